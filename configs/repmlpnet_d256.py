r"""RepMLPNet-D256 on ImageNet: an MLP into which convolutions are merged, 256x256 pixels.

Paper: Ding et al., RepMLPNet, CVPR 2022 (2112.11081).
Published: 80.83 % top-1, 86.9 M parameters, 8.6 B multiply-adds (the authors' README).
Cost: 86,887,648 parameters, 86,985,280 deployed; 500,400 steps of 256 images.
Multiply-adds per image: 8.636 G in training form, 8.611 G deployed (benchmarks/multiply_adds.py).
Differs from the original: its recipe is given for B256 only, and is assumed for this network.

    python train.py --config=configs/repmlpnet_d256.py --config.data.data_dir=DIR
    python deploy.py --config=configs/repmlpnet_d256.py --output=DEPLOYED \
        --config.data.data_dir=DIR
"""

from mdeq_jax.configs import repmlpnet_b256


def get_config():
    config = repmlpnet_b256.get_config().unlock()
    config.name = "repmlpnet_d256"
    config.model.channels = (80, 160, 320, 640)
    config.model.num_blocks = (2, 2, 18, 2)
    config.model.sharesets = (1, 4, 16, 128)
    return config.lock()
