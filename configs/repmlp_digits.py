"""A network of RepMLPs on scikit-learn's handwritten digits: train it, deploy it, compare.

1,797 images of 8x8 pixels (UCI optical digits, test set), 1,437 of them for training. The merged
network has linear layers only: over the pixels of a 4x4 partition, or over the channels of a pixel.

    python train.py --config=configs/repmlp_digits.py
    python deploy.py --config=configs/repmlp_digits.py --output=runs/repmlp_digits_deployed
"""

from mdeq_jax.configs import default


def get_config():
    config = default.get_config("repmlp_mlp")
    config.name = "repmlp_digits"

    config.model.channels = (32, 64)
    config.model.num_blocks = (1, 1)
    config.model.partition = (4, 4)
    config.model.kernels = (1, 3)
    config.model.groups = 4
    config.model.num_classes = 10

    config.train.epochs = 20
    config.train.batch_size = 64
    config.train.optimizer = "sgd"
    config.train.learning_rate = 0.1
    config.train.end_learning_rate = 0.0
    config.train.nesterov = True
    config.train.weight_decay = 5e-4

    config.data.name = "digits"
    config.data.image_size = (8, 8)
    config.data.augment = True
    config.eval.every_epochs = 5.0
    config.eval.batch_size = 360
    config.log.every_steps = 22
    config.log.convergence_plot = False
    config.checkpoint.every_epochs = 5.0
    return config.lock()
