"""Records of data sets that TensorFlow Datasets (TFDS) has prepared as array_record.

Reading needs no TensorFlow: `tensorflow_datasets` imports it only to prepare a data set.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from mdeq_jax.data.vision.disk_split import Record

_FORMAT = "array_record"
_CHUNK = 1000


def prepare_command(name: str, data_dir: str) -> str:
    """Returns the command that prepares a data set."""
    name = name.partition("/")[0]
    return f"python -m mdeq_jax.data.prepare --dataset={name} --data_dir={data_dir}"


@dataclasses.dataclass(frozen=True)
class TfdsReader:
    """See `disk_split.Reader`.

    Attributes:
        source: TFDS data source with undecoded images.
        name: data set and split, for errors.
        image: key of the image.
        label: key of the class or of the label map.
        id: key of the example's name; empty if it has none.
    """

    source: Any
    name: str
    image: str = "image"
    label: str = "label"
    id: str = ""

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        return self._record(index, self.source[index])

    def __iter__(self) -> Iterator[Record]:
        """Yields all records in order. Reading many at a time is faster than one by one."""
        for start in range(0, len(self), _CHUNK):
            indices = range(start, min(start + _CHUNK, len(self)))
            for index, fields in zip(indices, self.source.__getitems__(indices), strict=True):
                yield self._record(index, fields)

    def _record(self, index, fields):
        path = f"{self.name}[{index}]"
        if self.id:
            path += f" ({fields[self.id].decode()})"
        return Record(path, fields[self.image], fields[self.label], f"{path} {self.label}")


def find_version(data_dir: str, name: str) -> pathlib.Path:
    """Returns the folder of the newest prepared version of a data set.

    Args:
        data_dir: `config.data.data_dir`.
        name: of the data set in TFDS, with its config, e.g. "cifar10" or
            "cityscapes/semantic_segmentation".

    Raises:
        FileNotFoundError: the data set is missing, or its preparation did not finish.
    """
    folder = pathlib.Path(data_dir) / name
    command = prepare_command(name, data_dir or "DIR")
    if not data_dir:
        raise FileNotFoundError(
            f"config.data.data_dir is empty: set it to the folder that holds {name}/VERSION. If "
            f"there is none yet: {command}"
        )
    versions = [path.parent for path in folder.glob("*.*.*/dataset_info.json")]
    if not versions:
        what = "holds no finished version" if folder.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"{folder} {what} of {name} (VERSION/dataset_info.json). Set config.data.data_dir to "
            f"the folder above {name}, or prepare the set: {command}"
        )
    return max(versions, key=lambda path: [int(n) for n in path.name.split(".") if n.isdigit()])


def file_format(version: pathlib.Path) -> str:
    """Returns the format in which a version was prepared: "array_record", "tfrecord", ..."""
    info = json.loads((version / "dataset_info.json").read_text())
    return info.get("fileFormat", "tfrecord")


def open_split(
    data_dir: str, name: str, split: str, image_keys: tuple[str, ...]
) -> tuple[Any, Any]:
    """Opens a split for random access.

    Args:
        data_dir: `config.data.data_dir`.
        name: see `find_version`.
        split: "train", "test", "validation".
        image_keys: features that stay encoded.

    Returns:
        The data source, and the `tfds.core.DatasetInfo`.

    Raises:
        FileNotFoundError: the data set, or one of its files, is missing.
        ValueError: the data set was prepared in another format, or has no such split.
    """
    version = find_version(data_dir, name)
    found = file_format(version)
    if found != _FORMAT:
        raise ValueError(
            f"{version} was prepared as {found}, but {_FORMAT} is required, which can be read at "
            "random and without TensorFlow. Convert it: "
            f"{prepare_command(name, data_dir)} --convert_to=NEW_DIR, and set "
            "config.data.data_dir=NEW_DIR."
        )
    # Imported here, because other data sets do not need it and it is slow to import.
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder_from_directory(str(version))
    if split not in builder.info.splits:
        raise ValueError(
            f"{version} has no split {split!r}, only {sorted(builder.info.splits)}: prepare it "
            f"again: {prepare_command(name, data_dir)}"
        )
    missing = [p for p in builder.info.splits[split].filepaths if not pathlib.Path(p).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{missing[0]} is missing ({len(missing)} files are): copy the whole folder, or "
            f"prepare the set again: {prepare_command(name, data_dir)}"
        )
    decoders: dict[str, Any] = {key: tfds.decode.SkipDecoding() for key in image_keys}
    return builder.as_data_source(split, decoders=decoders), builder.info
