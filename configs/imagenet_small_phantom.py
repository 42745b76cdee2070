"""MDEQ SMALL on ImageNet with phantom gradients: no pretraining, no backward solve.

Paper: Geng et al., On Training Implicit Models, 2021 (2111.05177).
Published: 75.7 % top-1 with TorchDEQ's settings, below; the same with 20 solver steps in
    evaluation, 73.6 % with 10.
Cost: 16,808,936 parameters; 1,000,900 steps of 128 images.
TorchDEQ (2310.18605) trains the same network with --config.gradient.tau=1.0 and
    --config.solver.forward.name=fixed_point_iteration; its files need
    --config.model.fuse_weight_norm=True as well.

    python train.py --config=configs/imagenet_small_phantom.py --config.data.data_dir=DIR
"""

from mdeq_jax.configs import default


def get_config():
    config = default.get_config()
    config.name = "imagenet_small_phantom"

    config.model.channels = (32, 64, 128, 256)
    config.model.num_blocks = (1, 1, 1, 1)
    config.model.big_kernels = (0, 0, 0, 0)
    config.model.expansion = 5
    config.model.num_groups = 8
    config.model.downsample_times = 2
    config.model.post_gn_affine = True
    config.model.dropout = 0.0
    config.model.num_classes = 1000
    config.model.head_channels = (24, 48, 96, 192)
    config.model.final_channels = 2048

    config.solver.forward.max_steps = 26
    config.solver.forward.stop_mode = "abs"
    config.gradient.name = "phantom"
    config.gradient.steps = 5
    config.gradient.tau = 0.6

    config.train.epochs = 100
    config.train.batch_size = 128
    config.train.optimizer = "sgd"
    config.train.learning_rate = 0.05
    config.train.weight_decay = 5e-5
    config.train.momentum = 0.9
    config.train.nesterov = True
    config.train.pretrain_steps = 0

    config.data.name = "imagenet2012"
    config.data.image_size = (224, 224)
    config.data.augment = True

    # Released settings that have no effect in this recipe:
    # config.solver.backward.max_steps = 27
    # config.solver.backward.stop_mode = "abs"
    # config.train.random_forward_delta = 2
    return config.lock()
