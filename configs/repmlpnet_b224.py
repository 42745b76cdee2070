r"""RepMLPNet-B224 on ImageNet: an MLP into which convolutions are merged, 224x224 pixels.

Paper: Ding et al., RepMLPNet, CVPR 2022 (2112.11081).
Published: 80.32 % top-1, 68.2 M parameters, 6.7 B multiply-adds (the authors' README).
Cost: 68,242,712 parameters, 68,332,664 deployed; 500,400 steps of 256 images.
Multiply-adds per image: 6.676 G in training form, 6.657 G deployed (benchmarks/multiply_adds.py).
Differs from the original: its recipe is given for B256 only, and is assumed for this network.

    python train.py --config=configs/repmlpnet_b224.py --config.data.data_dir=DIR
    python deploy.py --config=configs/repmlpnet_b224.py --output=DEPLOYED \
        --config.data.data_dir=DIR
"""

from mdeq_jax.configs import repmlpnet_b256


def get_config():
    config = repmlpnet_b256.get_config().unlock()
    config.name = "repmlpnet_b224"
    config.model.partitions = (56, 28, 14, 7)
    config.data.image_size = (224, 224)
    return config.lock()
