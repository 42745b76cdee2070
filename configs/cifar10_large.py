"""MDEQ LARGE on CIFAR-10 with augmentation.

Paper: Bai, Koltun, Kolter, Multiscale Deep Equilibrium Models, 2020 (2006.08656), table 1.
Published: 93.8 % (the paper's MDEQ).
Cost: 11,097,438 parameters; 85,800 steps of 128 images (4 GPUs in the original).
Differs from the paper's table 4 in widths, dropout, solver limits, batch size, weight decay and
    epochs; the authors recommend the released settings (github.com/locuslab/mdeq/issues/7).

    python train.py --config=configs/cifar10_large.py --config.data.data_dir=DIR
"""

from mdeq_jax.configs import default


def get_config():
    config = default.get_config()
    config.name = "cifar10_large"

    config.model.channels = (32, 64, 128, 256)
    config.model.num_blocks = (1, 1, 1, 1)
    config.model.big_kernels = (0, 0, 0, 0)
    config.model.expansion = 5
    config.model.num_groups = 8
    config.model.downsample_times = 0
    config.model.post_gn_affine = False
    config.model.dropout = 0.3
    config.model.num_classes = 10
    config.model.head_channels = (14, 28, 56, 112)
    config.model.final_channels = 1680

    config.solver.forward.max_steps = 18
    config.solver.backward.max_steps = 20

    config.train.epochs = 220
    config.train.batch_size = 128
    config.train.optimizer = "adam"
    config.train.learning_rate = 0.001
    config.train.weight_decay = 0.0
    config.train.pretrain_steps = 20000
    config.train.pretrain_layers = 10

    config.data.name = "cifar10"
    config.data.image_size = (32, 32)
    config.data.augment = True

    # Released settings that have no effect in this recipe:
    # config.train.momentum = 0.95
    # config.train.nesterov = True
    # config.train.random_forward_delta = 2
    return config.lock()
