import pytest

from configs import default


@pytest.fixture
def small_config():
    """Two scales, eight channels, 8x8 images."""
    config = default.get_config()
    config.model.channels = (8, 8)
    config.model.num_groups = 4
    config.model.expansion = 2
    config.model.head_channels = (2, 4)
    config.model.final_channels = 16
    config.model.post_gn_affine = True
    config.data.image_size = (8, 8)
    return config
