"""MDEQ LARGE on CIFAR-10, trained with the Jacobian loss: 8 solver steps instead of 18.

Paper: Bai, Koltun, Kolter, Stabilizing Equilibrium Models by Jacobian Regularization, 2021
    (2106.14342).
Published: 92.6-93.4 % in the authors' logs of these settings
    (github.com/locuslab/deq/issues/13); with batches of 1,024, 91.6 %.
Cost: 11,097,438 parameters; 114,400 steps of 96 images (1 GPU in the original).

    python train.py --config=configs/cifar10_large_reg.py --config.data.data_dir=DIR
"""

from mdeq_jax.configs import default


def get_config():
    config = default.get_config()
    config.name = "cifar10_large_reg"

    config.model.channels = (32, 64, 128, 256)
    config.model.num_blocks = (1, 1, 1, 1)
    config.model.big_kernels = (0, 0, 0, 0)
    config.model.expansion = 5
    config.model.num_groups = 8
    config.model.downsample_times = 0
    config.model.post_gn_affine = False
    config.model.dropout = 0.22
    config.model.num_classes = 10
    config.model.head_channels = (14, 28, 56, 112)
    config.model.final_channels = 1680

    config.solver.forward.max_steps = 8
    config.solver.backward.max_steps = 7

    config.jacobian.weight = 0.4
    config.jacobian.frequency = 0.02
    config.jacobian.stop_epoch = 90

    config.train.epochs = 220
    config.train.batch_size = 96
    config.train.optimizer = "adam"
    config.train.learning_rate = 0.001
    config.train.weight_decay = 0.0
    config.train.pretrain_steps = 16000
    config.train.pretrain_layers = 8
    config.train.random_forward_delta = 2

    config.data.name = "cifar10"
    config.data.image_size = (32, 32)
    config.data.augment = True

    # Released settings that have no effect in this recipe:
    # config.train.momentum = 0.98
    # config.train.nesterov = True
    return config.lock()
