"""MDEQ XL on ImageNet.

Paper: Bai, Koltun, Kolter, Multiscale Deep Equilibrium Models, 2020 (2006.08656).
Published: in the paper's table of ImageNet results; no figure was confirmed for these settings.
Cost: 90,463,280 parameters; 500,400 steps of 256 images (8 GPUs in the original).
Differs from the paper: its table 4 does not describe the training of this model
    (github.com/locuslab/mdeq/issues/10).
Beware: as released, the 510,000 pretraining steps outlast the run, so the equilibrium is never
    trained. Half of the steps, as for SMALL and LARGE: --config.train.pretrain_steps=255000

    python train.py --config=configs/imagenet_xl.py --config.data.data_dir=DIR
"""

from mdeq_jax.configs import default


def get_config():
    config = default.get_config()
    config.name = "imagenet_xl"

    config.model.channels = (88, 176, 352, 704)
    config.model.num_blocks = (1, 1, 1, 1)
    config.model.big_kernels = (0, 0, 0, 0)
    config.model.expansion = 6
    config.model.num_groups = 8
    config.model.downsample_times = 2
    config.model.post_gn_affine = True
    config.model.dropout = 0.0
    config.model.num_classes = 1000
    config.model.head_channels = (32, 64, 128, 256)
    config.model.final_channels = 2048

    config.solver.forward.max_steps = 26
    config.solver.backward.max_steps = 27
    config.solver.forward.stop_mode = "abs"
    config.solver.backward.stop_mode = "abs"

    config.train.epochs = 100
    config.train.batch_size = 256
    config.train.optimizer = "sgd"
    config.train.learning_rate = 0.05
    config.train.weight_decay = 0.0001
    config.train.momentum = 0.9
    config.train.nesterov = True
    config.train.pretrain_steps = 510000
    config.train.pretrain_layers = 4

    config.data.name = "imagenet2012"
    config.data.image_size = (224, 224)
    config.data.augment = True

    # Released settings that have no effect in this recipe:
    # config.train.random_forward_delta = 2
    return config.lock()
