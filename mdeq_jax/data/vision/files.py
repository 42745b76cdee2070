"""Records in files: one image per file, in folders."""

import dataclasses
import pathlib
from collections import Counter
from collections.abc import Sequence

from absl import logging

from mdeq_jax.data.vision.decoding import ExampleError
from mdeq_jax.data.vision.disk_split import Record
from mdeq_jax.data.vision.folders import describe_left_out, find_images, report_left_out


@dataclasses.dataclass(frozen=True)
class FileReader:
    """See `disk_split.Reader`.

    Attributes:
        images: paths of the images.
        labels: their classes, or the paths of their label maps.
    """

    images: Sequence[str]
    labels: Sequence[int] | Sequence[str]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Record:
        image, label = self.images[index], self.labels[index]
        if isinstance(label, str):
            return Record(image, read_file(image), read_file(label), label)
        return Record(image, read_file(image), int(label))


def read_file(path: str | pathlib.Path) -> bytes:
    """The bytes of a file.

    Raises:
        ExampleError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ExampleError(
            f"{path}: cannot be read ({error.strerror}): restore the file, or set "
            "config.data.on_error='skip' to leave it out."
        ) from error


def require_folders(data_dir: str, name: str, folders: Sequence[str]) -> pathlib.Path:
    """Returns `data_dir`, or raises FileNotFoundError unless it has these folders."""
    holds = f"set config.data.data_dir to the folder that holds {', '.join(folders)}."
    if not data_dir:
        raise FileNotFoundError(f"{name}: config.data.data_dir is empty: {holds}")
    root = pathlib.Path(data_dir)
    missing = [str(root / folder) for folder in folders if not (root / folder).is_dir()]
    if missing:
        raise FileNotFoundError(f"{name}: {', '.join(missing)} not found: {holds}")
    return root


def count_unused(
    folder: pathlib.Path, pairs: list[tuple[pathlib.Path, pathlib.Path]]
) -> Counter[str]:
    """Returns the count of a folder's label maps that are in none of the (image, label) pairs."""
    used = {label for _, label in pairs}
    found, left_out = find_images(folder, recursive=False)
    left_out["label maps without an image"] += len(set(found) - used)
    return +left_out


def pair_reader(
    pairs: list[tuple[pathlib.Path, pathlib.Path]],
    name: str,
    on_error: str,
    left_out: Counter[str],
) -> FileReader:
    """Returns the reader of (image, label map) pairs, all of which must exist.

    Args:
        pairs: paths.
        name: data set and split, for errors.
        on_error: "raise", or "skip", which reports the images without a label map and omits them.
        left_out: other files of the folders, which are reported in one line.

    Raises:
        FileNotFoundError: a label map is missing, or there are no pairs.
    """
    report_left_out(name, left_out)
    missing = [(image, label) for image, label in pairs if not label.is_file()]
    if missing and on_error != "skip":
        image, label = missing[0]
        raise FileNotFoundError(
            f"{image} has no label map {label} ({len(missing)} of {len(pairs)} images have none): "
            "add it, remove the image, or set config.data.on_error='skip' to leave such images out."
        )
    for image, label in missing:
        logging.warning("%s: skipped %s, which has no label map %s", name, image, label)
    if missing:
        logging.warning("%s: skipped %d images without a label map", name, len(missing))
        pairs = [pair for pair in pairs if pair not in missing]
    if not pairs:
        others = f" There are {describe_left_out(left_out)}." if left_out else ""
        raise FileNotFoundError(f"{name}: no images found: check config.data.data_dir.{others}")
    return FileReader([str(image) for image, _ in pairs], [str(label) for _, label in pairs])
