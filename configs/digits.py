"""A two-scale MDEQ on scikit-learn's handwritten digits: real images, nothing to download.

1,797 images of 8x8 pixels (the UCI optical-digits test set), 1,437 of them for training.

    python train.py --config=configs/digits.py
"""

from configs import default


def get_config():
    config = default.get_config()
    config.name = "digits"

    config.model.channels = (24, 48)
    config.model.num_blocks = (1, 1)
    config.model.expansion = 3
    config.model.head_channels = (8, 16)
    config.model.final_channels = 128
    config.model.post_gn_affine = True
    config.model.num_classes = 10

    config.solver.forward.max_steps = 10
    config.gradient.name = "neumann"
    config.gradient.steps = 4
    config.gradient.tau = 0.5

    config.train.epochs = 30
    config.train.batch_size = 64
    config.train.learning_rate = 2e-3
    config.train.pretrain_steps = 100
    config.train.pretrain_layers = 5
    config.train.sync_batch_norm = True

    config.data.name = "digits"
    config.data.image_size = (8, 8)
    config.eval.every_epochs = 5.0
    config.eval.batch_size = 360
    config.checkpoint.every_epochs = 5.0
    return config.lock()
