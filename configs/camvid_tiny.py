"""A three-scale MDEQ on CamVid for two CPU cores: semantic segmentation, 11 classes.

Images are taken at half their size, in training (240 or 288 pixels wide) and in evaluation
(`eval.scales`); the figures are of label maps in full size.

Data: CamVid road scenes, 367 training and 101 validation images of 480x360 pixels, in the split of
SegNet (1511.00561); no other training data.
Result: 80.9 and 84.8 % of the validation pixels, 37.0 and 39.8 % mIoU (two runs), in 10 and 13
minutes on a 2-core CPU that had other work too.
Baselines on the validation set: the commonest class of the training set everywhere (road) gives
2.7 % mIoU and 29.5 % of the pixels; the commonest class of each position in the image gives
16.7 % and 59.0 %.

    python train.py --config=configs/camvid_tiny.py --config.data.data_dir=DIR
    python eval.py --config=configs/camvid_tiny.py --config.data.data_dir=DIR \\
        --save_predictions=PICTURES
"""

from mdeq_jax.configs import default


def get_config():
    config = default.get_config()
    config.name = "camvid_tiny"

    config.model.name = "mdeq_segmenter"
    config.model.channels = (16, 32, 64)
    config.model.num_blocks = (1, 1, 1)
    config.model.big_kernels = (0, 0, 0)
    config.model.expansion = 2
    config.model.num_groups = 8
    config.model.downsample_times = 2
    config.model.post_gn_affine = True
    config.model.num_classes = 11

    config.solver.forward.max_steps = 7
    config.solver.backward.max_steps = 7
    config.jacobian.weight = 1.0
    config.jacobian.frequency = 0.2

    config.train.epochs = 13
    config.train.batch_size = 4
    config.train.learning_rate = 3e-3
    config.train.pretrain_steps = 600
    config.train.pretrain_layers = 3
    config.train.sync_batch_norm = True

    config.data.name = "camvid"
    config.data.image_size = (160, 224)
    config.data.eval_image_size = (368, 480)
    config.data.base_size = 480
    config.data.scale_factor = 1
    config.data.augment = True
    config.eval.scales = (0.5,)
    config.eval.every_epochs = 6.5
    config.checkpoint.every_epochs = 6.5
    return config.lock()
