"""A two-scale MDEQ on scikit-learn's handwritten digits: real images, nothing to download.

1,797 images of 8x8 pixels (UCI optical digits, test set), 1,437 of them for training. The
recipe is reliable rather than fast: the exact implicit gradient, with forward and backward solves
that converge. The Jacobian loss makes them converge (Bai, Koltun, Kolter 2021, 2106.14342).

    python train.py --config=configs/digits.py
"""

from mdeq_jax.configs import default


def get_config():
    config = default.get_config()
    config.name = "digits"
    config.quick_compilation = True  # training takes a minute

    config.model.channels = (24, 48)
    config.model.expansion = 2
    config.model.head_channels = (8, 16)
    config.model.final_channels = 128
    config.model.post_gn_affine = True
    config.model.num_classes = 10

    config.solver.forward.max_steps = 15
    config.solver.backward.max_steps = 15
    config.gradient.name = "ift"
    config.jacobian.weight = 2.0
    config.jacobian.frequency = 0.25

    config.train.epochs = 14
    config.train.batch_size = 64
    config.train.learning_rate = 4e-3
    config.train.grad_clip = 1.0  # a single sample can have a huge exact gradient
    config.train.sync_batch_norm = True

    config.data.name = "digits"
    config.data.image_size = (8, 8)
    config.data.augment = True
    config.eval.every_epochs = 2.0
    config.eval.batch_size = 360
    config.log.every_steps = 22
    config.checkpoint.every_epochs = 2.0
    return config.lock()
