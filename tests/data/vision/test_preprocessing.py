"""What a work directory keeps of the images that its network was trained on."""

import dataclasses

import pytest

from configs import default
from mdeq_jax.data import load_dataset
from mdeq_jax.data.vision.preprocessing import FILE, Preprocessing, load_preprocessing

KEPT = Preprocessing(("Gr\u00f6\u00dfe", "zwei"), (8, 12), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.7)


def with_names(*names):
    return dataclasses.replace(KEPT, class_names=names)


def test_there_and_back(tmp_path):
    assert load_preprocessing(tmp_path) is None
    KEPT.save(tmp_path)
    assert load_preprocessing(tmp_path) == KEPT


def test_other_classes_are_refused(tmp_path):
    KEPT.check(tmp_path)  # nothing is known of them
    KEPT.save(tmp_path)
    with_names("Gro\u0308\u00dfe", "zwei").check(tmp_path)  # another form in Unicode
    with pytest.raises(ValueError, match=r"class 0 is 'Gr.*e' there, 'zwei' in these data"):
        with_names("zwei", "Gr\u00f6\u00dfe").check(tmp_path)
    with pytest.raises(ValueError, match="it has 2, these data have 3"):
        with_names(*KEPT.class_names, "drei").check(tmp_path)
    (tmp_path / FILE).write_text('{"class_names": ["a"]}')
    with pytest.raises(ValueError, match=r"preprocessing\.json is damaged"):
        KEPT.check(tmp_path)


def test_a_data_set_keeps_its_own(tmp_path):
    dataset = load_dataset(default.get_config().data)
    dataset.save_to(tmp_path)
    kept = load_preprocessing(tmp_path)
    assert kept == dataset.preprocessing and kept.class_names == tuple("0123456789")
    dataset.check_workdir(tmp_path)
    renamed = dataclasses.replace(dataset, class_names=tuple("9876543210"))
    with pytest.raises(ValueError, match="class 0 is '0' there, '9' in these data"):
        renamed.check_workdir(tmp_path)
