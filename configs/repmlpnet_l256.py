r"""RepMLPNet-L256 on ImageNet: an MLP into which convolutions are merged, 256x256 pixels.

Paper: Ding et al., RepMLPNet, CVPR 2022 (2112.11081).
Published: 81.68 % top-1, 117.7 M parameters, 11.5 B multiply-adds (the authors' README).
Cost: 117,641,560 parameters, 117,820,600 deployed; 500,400 steps of 256 images.
Multiply-adds per image: 11.609 G in training form, 11.579 G deployed (benchmarks/multiply_adds.py).
Differs from the original: its recipe is given for B256 only, and is assumed for this network.

    python train.py --config=configs/repmlpnet_l256.py --config.data.data_dir=DIR
    python deploy.py --config=configs/repmlpnet_l256.py --output=DEPLOYED \
        --config.data.data_dir=DIR
"""

from mdeq_jax.configs import repmlpnet_b256


def get_config():
    config = repmlpnet_b256.get_config().unlock()
    config.name = "repmlpnet_l256"
    config.model.num_blocks = (2, 2, 18, 2)
    config.model.sharesets = (1, 4, 32, 256)
    return config.lock()
