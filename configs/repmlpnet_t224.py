r"""RepMLPNet-T224 on ImageNet: an MLP into which convolutions are merged, 224x224 pixels.

Paper: Ding et al., RepMLPNet, CVPR 2022 (2112.11081).
Published: 76.62 % top-1, 38.3 M parameters, 2.8 B multiply-adds (the authors' README).
Cost: 38,293,608 parameters, 38,331,720 deployed; 500,400 steps of 256 images.
Multiply-adds per image: 2.808 G in training form, 2.798 G deployed (benchmarks/multiply_adds.py).
Differs from the original: its recipe is given for B256 only, and is assumed for this network.

    python train.py --config=configs/repmlpnet_t224.py --config.data.data_dir=DIR
    python deploy.py --config=configs/repmlpnet_t224.py --output=DEPLOYED \
        --config.data.data_dir=DIR
"""

from mdeq_jax.configs import repmlpnet_b256


def get_config():
    config = repmlpnet_b256.get_config().unlock()
    config.name = "repmlpnet_t224"
    config.model.channels = (64, 128, 256, 512)
    config.model.num_blocks = (2, 2, 6, 2)
    config.model.partitions = (56, 28, 14, 7)
    config.model.sharesets = (1, 4, 16, 128)
    config.data.image_size = (224, 224)
    return config.lock()
