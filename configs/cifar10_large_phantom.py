"""MDEQ LARGE on CIFAR-10 with phantom gradients: no pretraining, no backward solve.

Paper: Geng et al., On Training Implicit Models, 2021 (2111.05177).
Published: 94.89, 95.09 and 95.21 % in three runs; 95.0 % with TorchDEQ's settings, below.
Cost: 11,098,398 parameters; 85,800 steps of 128 images.
Unlike cifar10_large, all group norms are affine. TorchDEQ (2310.18605) trains the same network with
    --config.gradient.tau=0.7; its files need --config.model.fuse_weight_norm=True as well.

    python train.py --config=configs/cifar10_large_phantom.py --config.data.data_dir=DIR
"""

from mdeq_jax.configs import default


def get_config():
    config = default.get_config()
    config.name = "cifar10_large_phantom"

    config.model.channels = (32, 64, 128, 256)
    config.model.num_blocks = (1, 1, 1, 1)
    config.model.big_kernels = (0, 0, 0, 0)
    config.model.expansion = 5
    config.model.num_groups = 8
    config.model.downsample_times = 0
    config.model.post_gn_affine = True
    config.model.dropout = 0.0
    config.model.num_classes = 10
    config.model.head_channels = (14, 28, 56, 112)
    config.model.final_channels = 1680

    config.solver.forward.max_steps = 18
    config.gradient.name = "phantom"
    config.gradient.steps = 5
    config.gradient.tau = 0.5

    config.train.epochs = 220
    config.train.batch_size = 128
    config.train.optimizer = "sgd"
    config.train.learning_rate = 0.1
    config.train.weight_decay = 0.0001
    config.train.momentum = 0.9
    config.train.nesterov = False
    config.train.pretrain_steps = 0

    config.data.name = "cifar10"
    config.data.image_size = (32, 32)
    config.data.augment = True

    # Released settings that have no effect in this recipe:
    # config.solver.backward.max_steps = 20
    # config.train.random_forward_delta = 2
    return config.lock()
