"""Settings of one task that another does not have, or that cannot work."""

import pytest

from configs import cityscapes_small, default
from mdeq_jax.tasks import TASKS, build_task, task_type
from mdeq_jax.tasks.segmentation.segmenter import class_table


def test_the_task_of_a_config():
    config = default.get_config()
    assert task_type(config) is TASKS["classification"]
    config.model.name = "mdeq_segmenter"
    assert task_type(config) is TASKS["segmentation"]
    config.task = "classification"
    assert task_type(config) is TASKS["classification"]
    config.task = "regression"
    with pytest.raises(ValueError, match=r"task must be one of .*; got 'regression'"):
        task_type(config)


def test_what_a_classifier_cannot_save(tmp_path):
    task = build_task(default.get_config())
    with pytest.raises(ValueError, match="--save_predictions is not available for classification"):
        task.save_predictions(None, tmp_path)


def test_pictures_need_a_segmentation_data_set():
    with pytest.raises(ValueError, match=r"need a data\.name of .*; got 'digits'"):
        class_table(default.get_config())


def test_pictures_need_the_classes_of_the_data_set():
    config = cityscapes_small.get_config()
    config.data.name = "camvid"
    with pytest.raises(ValueError, match=r"model\.num_classes=19, but camvid has 11 classes"):
        class_table(config)


@pytest.mark.parametrize(("field", "value"), [("flip", True), ("warm_start", False)])
def test_settings_that_classification_does_not_have(field, value):
    config = default.get_config()
    config.eval[field] = value
    with pytest.raises(ValueError, match=rf"eval\.{field}={value} is for segmentation"):
        build_task(config)


@pytest.mark.parametrize("weights", [3, "imagenet", (1.0, 2.0), ("a",) * 19, (0.0,) * 19])
def test_bad_class_weights(weights):
    config = cityscapes_small.get_config()
    config.train.class_weights = weights
    with pytest.raises(ValueError, match=r"train\.class_weights=.* must be one"):
        build_task(config)
