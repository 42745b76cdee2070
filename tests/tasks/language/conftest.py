"""The smallest language models, on a text with a simple grammar."""

from functools import partial

import pytest

from tests.helpers.toy_language import toy_config, write_text


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """A text of about 2,600 characters."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    write_text(path)
    return path


@pytest.fixture(scope="session")
def language_config(text):
    """Makes the config of a small language model, with further fields set."""
    return partial(toy_config, text)
