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


def write_data(folder, eval_sizes):
    rows = ("id,name,color,ignored", "3,road,#804080,false", "7,sky,#4682b4,false")
    write(folder / "classes.csv", "\n".join((*rows, "9,void,#000000,true")).encode())
    for split, sizes in (("train", [(36, 48)] * 4), ("val", eval_sizes)):
        for i, size in enumerate(sizes):
            labels = np.random.default_rng(i).choice([3, 7, 9], size).astype(np.uint8)
            write(folder / split / "images" / f"{i}.png", encode(".png", picture(*size, i)))
            write(folder / split / "labels" / f"{i}.png", encode(".png", labels))


def test_trains_and_evaluates(tmp_path):
    """Two steps; the pixels counted are those of the classes that are not ignored."""
    write_data(tmp_path, [(36, 48)] * 2)
    config = override(own_segmentation.get_config(), {**SMALL, "data.data_dir": str(tmp_path)})
    metrics = train_and_evaluate(config, tmp_path / "run")
    assert np.isfinite(metrics["train/loss"]) and 0 < metrics["eval/miou"] < 1
    again = evaluate(config, tmp_path / "run")
    np.testing.assert_allclose(again["eval/miou"], metrics["eval/miou"], rtol=1e-6)


def test_evaluates_images_of_several_sizes(tmp_path):
    """In training, whose thread compiles for the first size, and with continuous batching."""
    write_data(tmp_path, [(36, 48), (28, 40), (28, 40), (36, 48)])
    fields = {"data.data_dir": str(tmp_path), "data.eval_image_size": None, "eval.batch_size": 1}
    config = override(own_segmentation.get_config(), {**SMALL, **fields})
    config.log.convergence_plot = True
    metrics = train_and_evaluate(config, tmp_path / "run")
    assert metrics["eval/examples"] == 4 and (tmp_path / "run" / "convergence.png").exists()
    for choice in ("off", "on"):
        config.eval.continuous_batching = choice
        again = evaluate(config, tmp_path / "run")
        assert again["eval/examples"] == 4
        np.testing.assert_allclose(again["eval/miou"], metrics["eval/miou"], rtol=1e-6)
