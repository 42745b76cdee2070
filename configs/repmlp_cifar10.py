r"""The pure MLP of the RepMLP paper on CIFAR-10: RepMLPs and 1x1 convolutions only.

Paper: Ding et al., RepMLP, 2021 (2105.01883), section 4.1.
Published: 91.11 % accuracy, 52.8 M multiply-adds.
Cost: 22,582,650 parameters, 22,378,266 deployed; 39,000 steps of 128 images.
Multiply-adds per image: 0.080 G in training form, 0.053 G deployed (benchmarks/multiply_adds.py).
Here: no full training. A run of 2 epochs on two busy CPU cores (batch 64, learning rate 0.1) had
38.3 % after half an epoch and was stopped after 0.83. Deployed then, it predicts the same for all
of 512 test images; the logits differ by at most 3.8e-6 (the largest is 8.7).
Differs from the paper: it does not list the layers. These have its widths, partition and groups,
and their number is chosen by its multiply-adds. Weight decay and kernels are its ResNets'.

    python train.py --config=configs/repmlp_cifar10.py --config.data.data_dir=DIR
    python deploy.py --config=configs/repmlp_cifar10.py --output=DEPLOYED \
        --config.data.data_dir=DIR
"""

from mdeq_jax.configs import default


def get_config():
    config = default.get_config("repmlp_mlp")
    config.name = "repmlp_cifar10"

    config.model.channels = (16, 32, 64)
    config.model.num_blocks = (2, 2, 2)
    config.model.partition = (8, 8)
    config.model.groups = 2
    config.model.num_classes = 10

    config.train.epochs = 100
    config.train.batch_size = 128
    config.train.optimizer = "sgd"
    config.train.learning_rate = 0.2
    config.train.end_learning_rate = 0.0
    config.train.weight_decay = 1e-4

    config.data.name = "cifar10"
    config.data.image_size = (32, 32)
    config.data.augment = True
    config.log.convergence_plot = False
    return config.lock()
