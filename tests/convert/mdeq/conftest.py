"""State dicts that several of these tests read, each with its config."""

import pytest

from tests.helpers.networks import load_config, random_state_dict


@pytest.fixture(scope="session")
def tiny(shapes):
    """A random state dict of the TINY network, and its config."""
    return random_state_dict(shapes["cifar/cls_mdeq_TINY"]), load_config("cifar10_tiny")


@pytest.fixture(scope="session")
def segmenter(shapes):
    """A random state dict of the SMALL segmenter, and its config."""
    return random_state_dict(shapes["cityscapes/seg_mdeq_SMALL"]), load_config("cityscapes_small")
