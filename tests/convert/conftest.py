"""What the converter's tests share."""

import pytest

from tests.helpers import networks


@pytest.fixture(scope="session")
def shapes(reference_dir):
    """Experiment -> {name: shape}."""
    return networks.released_shapes(reference_dir)
