"""MDEQ LARGE on ImageNet, trained with the Jacobian loss: 14 solver steps instead of 26.

Paper: Bai, Koltun, Kolter, Stabilizing Equilibrium Models by Jacobian Regularization, 2021
    (2106.14342).
Published: about the accuracy of the plain network at about half its cell evaluations.
Cost: 67,061,224 parameters; 1,000,900 steps of 128 images (4 GPUs in the original).

    python train.py --config=configs/imagenet_large_reg.py --config.data.data_dir=DIR
"""

from mdeq_jax.configs import default


def get_config():
    config = default.get_config()
    config.name = "imagenet_large_reg"

    config.model.channels = (80, 160, 320, 640)
    config.model.num_blocks = (1, 1, 1, 1)
    config.model.big_kernels = (0, 0, 0, 0)
    config.model.expansion = 5
    config.model.num_groups = 8
    config.model.downsample_times = 2
    config.model.post_gn_affine = False
    config.model.dropout = 0.0
    config.model.num_classes = 1000
    config.model.head_channels = (32, 64, 128, 256)
    config.model.final_channels = 2048

    config.solver.forward.max_steps = 14
    config.solver.backward.max_steps = 14
    config.solver.forward.stop_mode = "abs"
    config.solver.backward.stop_mode = "abs"

    config.jacobian.weight = 3.0
    config.jacobian.frequency = 0.08
    config.jacobian.increment_every = 50000
    config.jacobian.pretrain_weight = 0.03

    config.train.epochs = 100
    config.train.batch_size = 128
    config.train.optimizer = "sgd"
    config.train.learning_rate = 0.05
    config.train.weight_decay = 0.0001
    config.train.momentum = 0.9
    config.train.nesterov = True
    config.train.pretrain_steps = 510000
    config.train.pretrain_layers = 4
    config.train.random_forward_delta = 2

    config.data.name = "imagenet2012"
    config.data.image_size = (224, 224)
    config.data.augment = True
    return config.lock()
