"""Training and evaluation on a user's own folders of images and label maps."""

import numpy as np

from configs import own_segmentation
from mdeq_jax.training import evaluate, train_and_evaluate
from tests.helpers.synthetic_images import encode, picture, write
from tests.helpers.tiny import override

# One resolution, plain iteration and one-step gradients: quick to compile.
SMALL = {
    "model.channels": (8,),
    "model.num_blocks": (1,),
    "model.big_kernels": (0,),
    "model.expansion": 1,
    "model.num_groups": 4,
    "solver.forward.name": "fixed_point_iteration",
    "solver.forward.max_steps": 4,
    "gradient.name": "one_step",
    "jacobian.weight": 0.0,
    "jacobian.frequency": 0.0,
    "train.batch_size": 2,
    "train.epochs": 1.0,
    "train.pretrain_steps": 0,
    "data.image_size": (32, 32),
    "data.eval_image_size": (36, 48),
    "data.num_workers": 0,
    "eval.every_epochs": 1.0,
    "checkpoint.every_epochs": 1.0,
    "log.tensorboard": False,
    "log.convergence_plot": False,
}


def test_trains_and_evaluates(tmp_path):
    """Two steps; the pixels counted are those of the classes that are not ignored."""
    rows = ("id,name,color,ignored", "3,road,#804080,false", "7,sky,#4682b4,false")
    write(tmp_path / "classes.csv", "\n".join((*rows, "9,void,#000000,true")).encode())
    for split, count in (("train", 4), ("val", 2)):
        for i in range(count):
            labels = np.random.default_rng(i).choice([3, 7, 9], (36, 48)).astype(np.uint8)
            write(tmp_path / split / "images" / f"{i}.png", encode(".png", picture(36, 48, i)))
            write(tmp_path / split / "labels" / f"{i}.png", encode(".png", labels))
    config = override(own_segmentation.get_config(), {**SMALL, "data.data_dir": str(tmp_path)})
    metrics = train_and_evaluate(config, tmp_path / "run")
    assert np.isfinite(metrics["train/loss"]) and 0 < metrics["eval/miou"] < 1
    again = evaluate(config, tmp_path / "run")
    np.testing.assert_allclose(again["eval/miou"], metrics["eval/miou"], rtol=1e-6)
