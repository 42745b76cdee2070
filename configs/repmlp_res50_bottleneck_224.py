r"""ResNet-50 with RepMLPs in its middle stages, bottleneck blocks, on ImageNet.

Paper: Ding et al., RepMLP, 2021 (2105.01883), section 4.2.
Published: 78.55 % top-1 (the paper; its ResNet-50 has 77.19 %).
Cost: 41,071,144 parameters, 40,871,528 deployed; 500,400 steps of 256 images.
Multiply-adds per image: 3.950 G in training form, 3.891 G deployed (benchmarks/multiply_adds.py).
Differs from the paper: no AutoAugment, and a share of mixup (0.2) that the paper does not give.

    python train.py --config=configs/repmlp_res50_bottleneck_224.py --config.data.data_dir=DIR
    python deploy.py --config=configs/repmlp_res50_bottleneck_224.py --output=DEPLOYED \
        --config.data.data_dir=DIR
"""

from mdeq_jax.configs import repmlp_res50_light_224


def get_config():
    config = repmlp_res50_light_224.get_config().unlock()
    config.name = "repmlp_res50_bottleneck_224"
    config.model.block = "bottleneck"
    config.model.groups = 8
    return config.lock()
