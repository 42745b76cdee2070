r"""ResNet-50 with RepMLPs in its middle stages, light blocks, on ImageNet.

Paper: Ding et al., RepMLP, 2021 (2105.01883), section 4.2.
Published: 77.14 % top-1 (the paper; its ResNet-50 has 77.19 %).
Cost: 87,038,248 parameters, 86,142,440 deployed; 500,400 steps of 256 images.
Multiply-adds per image: 3.302 G in training form, 3.077 G deployed (benchmarks/multiply_adds.py).
Time on a 2-core CPU: 63.7 ms in training form, 56.3 ms deployed; eight images: 390 and 353 ms.
Differs from the paper: no AutoAugment, and a share of mixup (0.2) that the paper does not give.
The paper's appendix gives 8 groups; the published code builds 4, as does this one.

    python train.py --config=configs/repmlp_res50_light_224.py --config.data.data_dir=DIR
    python deploy.py --config=configs/repmlp_res50_light_224.py --output=DEPLOYED \
        --config.data.data_dir=DIR
"""

from mdeq_jax.configs import default


def get_config():
    config = default.get_config("repmlp_resnet")
    config.name = "repmlp_res50_light_224"

    config.model.block = "light"
    config.model.groups = 4

    config.train.epochs = 100
    config.train.batch_size = 256
    config.train.optimizer = "sgd"
    config.train.learning_rate = 0.1
    config.train.end_learning_rate = 0.0
    config.train.weight_decay = 1e-4
    config.train.mixup = 0.2

    config.data.name = "imagenet2012"
    config.data.image_size = (224, 224)
    config.data.augment = True
    config.log.convergence_plot = False
    return config.lock()
