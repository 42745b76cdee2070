"""Semantic segmentation of your images: a config to copy, for one GPU.

Data: DIR/train/images and DIR/train/labels, the same for DIR/val, and DIR/classes.csv, as
`mdeq_jax/data/sets/image_label_folder.py` describes. Set `model.num_classes` to the number of
classes that are not ignored.
Cost: 8,960,290 parameters with 2 classes.

    python train.py --config=configs/own_segmentation.py --config.data.data_dir=DIR
    python eval.py --config=configs/own_segmentation.py --config.data.data_dir=DIR \\
        --save_predictions=PICTURES
"""

from mdeq_jax.configs import default


def get_config():
    config = default.get_config()
    config.name = "own_segmentation"

    config.model.name = "mdeq_segmenter"
    config.model.channels = (32, 64, 128, 256)
    config.model.num_blocks = (1, 1, 1, 1)
    config.model.big_kernels = (0, 0, 0, 0)
    config.model.expansion = 5
    config.model.num_groups = 8
    config.model.downsample_times = 2
    config.model.post_gn_affine = True
    config.model.num_classes = 2  # of classes.csv, without the ignored ones

    config.solver.forward.max_steps = 12
    config.solver.backward.max_steps = 12
    config.jacobian.weight = 1.0
    config.jacobian.frequency = 0.2

    config.train.epochs = 60
    config.train.batch_size = 8
    config.train.learning_rate = 2e-3
    config.train.schedule = "polynomial"
    config.train.pretrain_steps = 1000  # about half of the steps
    config.train.pretrain_layers = 3
    config.train.sync_batch_norm = True

    config.data.name = "image_label_folder"
    config.data.image_size = (352, 480)  # part of an image that is trained on; multiples of 32
    config.data.eval_image_size = (None,)  # or (height, width) that all images are padded to
    config.data.scale_factor = 10
    config.data.augment = True
    config.data.num_workers = 8
    config.eval.batch_size = 1  # images may differ in size
    config.eval.every_epochs = 10.0
    config.checkpoint.every_epochs = 10.0
    return config.lock()
