r"""RepMLPNet-T256 on ImageNet: an MLP into which convolutions are merged, 256x256 pixels.

Paper: Ding et al., RepMLPNet, CVPR 2022 (2112.11081).
Published: 77.44 % top-1, 58.7 M parameters, 4.2 B multiply-adds (the authors' README).
Cost: 58,687,848 parameters, 58,739,400 deployed; 500,400 steps of 256 images.
Multiply-adds per image: 4.258 G in training form, 4.246 G deployed (benchmarks/multiply_adds.py).
Differs from the original: its recipe is given for B256 only, and is assumed for this network.

    python train.py --config=configs/repmlpnet_t256.py --config.data.data_dir=DIR
    python deploy.py --config=configs/repmlpnet_t256.py --output=DEPLOYED \
        --config.data.data_dir=DIR
"""

from mdeq_jax.configs import repmlpnet_b256


def get_config():
    config = repmlpnet_b256.get_config().unlock()
    config.name = "repmlpnet_t256"
    config.model.channels = (64, 128, 256, 512)
    config.model.num_blocks = (2, 2, 6, 2)
    config.model.sharesets = (1, 4, 16, 128)
    return config.lock()
