r"""RepMLPNet-B256 on ImageNet: an MLP into which convolutions are merged, 256x256 pixels.

Paper: Ding et al., RepMLPNet, CVPR 2022 (2112.11081).
Published: 81.03 % top-1, 96.5 M parameters, 9.6 B multiply-adds (the authors' README).
Cost: 96,447,512 parameters, 96,568,184 deployed; 500,400 steps of 256 images.
Multiply-adds per image: 9.640 G in training form, 9.616 G deployed (benchmarks/multiply_adds.py).

    python train.py --config=configs/repmlpnet_b256.py --config.data.data_dir=DIR
    python deploy.py --config=configs/repmlpnet_b256.py --output=DEPLOYED \
        --config.data.data_dir=DIR
"""

from mdeq_jax.configs import default


def get_config():
    config = default.get_config("repmlpnet")
    config.name = "repmlpnet_b256"

    config.model.channels = (96, 192, 384, 768)
    config.model.num_blocks = (2, 2, 12, 2)
    config.model.partitions = (64, 32, 16, 8)
    config.model.sharesets = (1, 4, 32, 128)

    config.train.epochs = 100
    config.train.batch_size = 256
    config.train.optimizer = "adamw"
    config.train.learning_rate = 1e-3
    config.train.end_learning_rate = 0.0
    config.train.weight_decay = 0.1
    config.train.warmup_steps = 50040  # 10 epochs
    config.train.warmup_learning_rate = 5e-7
    config.train.schedule_from_start = True
    config.train.grad_clip = 5.0
    config.train.label_smoothing = 0.1
    config.train.mixup = 0.4
    config.train.cutmix = 1.0

    config.data.name = "imagenet2012"
    config.data.image_size = (256, 256)
    config.data.augment = True
    config.data.rand_augment = 2
    config.data.rand_augment_magnitude = 14
    config.data.crop_fraction = 1.0
    config.log.convergence_plot = False
    return config.lock()
