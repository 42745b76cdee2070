"""A two-scale MDEQ on scikit-learn's handwritten digits: real data, no download."""

from configs import default


def get_config():
    config = default.get_config()
    config.name = "digits"
    config.model.channels = (24, 48)
    config.data.name = "digits"
    config.data.image_size = (8, 8)
    return config.lock()
