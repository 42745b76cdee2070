"""MDEQ SMALL on Cityscapes: semantic segmentation, 19 classes.

Paper: Bai, Koltun, Kolter, Multiscale Deep Equilibrium Models, 2020 (2006.08656).
Published: 75.1 mIoU on the validation set, from the ImageNet weights of the same size; the released
weights were measured at 76.5 (github.com/locuslab/mdeq, issue 4). One scale, not mirrored.
Cost: 8,968,467 parameters; 123,500 steps of 12 images (4 GPUs in the original).
Evaluating a whole image of 1024x2048 takes 1.2 GB of working memory, as compiled for a CPU.

    python train.py --config=configs/cityscapes_small.py --config.data.data_dir=DIR \\
        --config.init.from_checkpoint=WORKDIR_OF_IMAGENET_SMALL
    python eval.py --config=configs/cityscapes_small.py --config.data.data_dir=DIR \\
        --save_predictions=PICTURES
"""

from mdeq_jax.configs import default


def get_config():
    config = default.get_config()
    config.name = "cityscapes_small"

    config.model.name = "mdeq_segmenter"
    config.model.channels = (32, 64, 128, 256)
    config.model.num_blocks = (1, 1, 1, 1)
    config.model.big_kernels = (0, 0, 0, 0)
    config.model.expansion = 5
    config.model.num_groups = 8
    config.model.downsample_times = 2
    config.model.post_gn_affine = True
    config.model.dropout = 0.05
    config.model.num_classes = 19
    config.model.final_conv_kernel = 1

    config.solver.forward.max_steps = 27
    config.solver.backward.max_steps = 30
    config.solver.forward.stop_mode = "abs"
    config.solver.backward.stop_mode = "abs"

    config.train.epochs = 500
    config.train.batch_size = 12
    config.train.optimizer = "sgd"
    config.train.learning_rate = 0.01
    config.train.weight_decay = 0.0002
    config.train.momentum = 0.9
    config.train.nesterov = False
    config.train.pretrain_steps = 60000
    config.train.pretrain_layers = 3
    config.train.sync_batch_norm = True
    config.train.class_weights = "cityscapes"

    config.data.name = "cityscapes"
    config.data.image_size = (512, 1024)
    config.data.eval_image_size = (1024, 2048)
    config.data.base_size = 2048
    config.data.scale_factor = 16
    config.data.augment = True
    config.eval.every_epochs = 10.0
    config.eval.batch_size = 4
    config.checkpoint.every_epochs = 10.0

    # Released settings that have no effect in this recipe:
    # config.train.random_forward_delta = 2
    return config.lock()
