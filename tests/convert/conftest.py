"""What the converter's tests share."""

import networks
import pytest


@pytest.fixture(scope="session")
def shapes(reference_dir):
    """Experiment -> {name: shape}."""
    return networks.released_shapes(reference_dir)
