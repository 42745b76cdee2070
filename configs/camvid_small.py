"""An MDEQ of Cityscapes SMALL's size on CamVid: semantic segmentation, 11 classes, for one GPU.

Data: CamVid road scenes, 367 training and 101 validation images of 480x360 pixels, in the split of
SegNet (1511.00561); no other training data.
Aim: 0.60 mIoU on the validation set in ten minutes on one GPU; not measured yet.
Cost: 8,964,619 parameters; 2,700 steps of 8 images.

    python train.py --config=configs/camvid_small.py --config.data.data_dir=DIR
    python eval.py --config=configs/camvid_small.py --config.data.data_dir=DIR \\
        --save_predictions=PICTURES
"""

from mdeq_jax.configs import default


def get_config():
    config = default.get_config()
    config.name = "camvid_small"

    config.model.name = "mdeq_segmenter"
    config.model.channels = (32, 64, 128, 256)
    config.model.num_blocks = (1, 1, 1, 1)
    config.model.big_kernels = (0, 0, 0, 0)
    config.model.expansion = 5
    config.model.num_groups = 8
    config.model.downsample_times = 2
    config.model.post_gn_affine = True
    config.model.num_classes = 11

    config.solver.forward.max_steps = 12
    config.solver.backward.max_steps = 12
    config.jacobian.weight = 1.0
    config.jacobian.frequency = 0.2

    config.train.epochs = 60
    config.train.batch_size = 8
    config.train.learning_rate = 2e-3
    config.train.schedule = "polynomial"
    config.train.pretrain_steps = 1350
    config.train.pretrain_layers = 3
    config.train.sync_batch_norm = True

    config.data.name = "camvid"
    config.data.image_size = (352, 480)
    config.data.eval_image_size = (384, 480)
    config.data.base_size = 480
    config.data.scale_factor = 10
    config.data.augment = True
    config.data.num_workers = 8
    config.eval.every_epochs = 10.0
    config.checkpoint.every_epochs = 10.0
    return config.lock()
