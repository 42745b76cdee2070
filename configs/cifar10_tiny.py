"""MDEQ TINY on CIFAR-10 without augmentation.

Paper: Bai, Koltun, Kolter, Multiscale Deep Equilibrium Models, 2020 (2006.08656), table 1.
Published: 87.1 % (the paper's MDEQ-small). Users of the released settings report 80.3 %
    (github.com/locuslab/mdeq/issues/1).
Cost: 158,890 parameters; 19,500 steps of 128 images (2 GPUs in the original).
Differs from the paper's table 4 in dropout, solver limits and groups, among others (same issue);
    the authors recommend the released settings (github.com/locuslab/mdeq/issues/7).

    python train.py --config=configs/cifar10_tiny.py --config.data.data_dir=DIR
"""

from mdeq_jax.configs import default


def get_config():
    config = default.get_config()
    config.name = "cifar10_tiny"

    config.model.channels = (24, 24)
    config.model.num_blocks = (1, 1)
    config.model.big_kernels = (0, 0)
    config.model.expansion = 5
    config.model.num_groups = 8
    config.model.downsample_times = 0
    config.model.post_gn_affine = False
    config.model.dropout = 0.25
    config.model.num_classes = 10
    config.model.head_channels = (8, 16)
    config.model.final_channels = 200

    config.solver.forward.max_steps = 18
    config.solver.backward.max_steps = 20

    config.train.epochs = 50
    config.train.batch_size = 128
    config.train.optimizer = "adam"
    config.train.learning_rate = 0.001
    config.train.weight_decay = 2.5e-6
    config.train.pretrain_steps = 3000
    config.train.pretrain_layers = 10

    config.data.name = "cifar10"
    config.data.image_size = (32, 32)
    config.data.augment = False

    # Released settings that have no effect in this recipe:
    # config.train.momentum = 0.95
    # config.train.nesterov = True
    # config.train.random_forward_delta = 2
    return config.lock()
