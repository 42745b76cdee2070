"""Downloads data sets with TensorFlow Datasets (TFDS) and writes them as array_record.

    pip install "mdeq_jax[prepare]"
    python -m mdeq_jax.data.prepare --dataset=cifar10 --data_dir=/data/tfds

ImageNet and Cityscapes must be downloaded by hand. Without their files, the command reports which
files it needs and where to put them. `--convert_to=DIR` rewrites a data set that was prepared as
tfrecord. `camvid`, `image_folder` and Cityscapes' official folders need no preparation.
"""

import json
import os
import pathlib
import shutil
import sys
from typing import NamedTuple

from absl import app, flags

from mdeq_jax.data.sets import cityscapes
from mdeq_jax.data.vision import tfds_records

_NO_TENSORFLOW = (
    "Preparing a data set needs TensorFlow; reading it afterwards does not: "
    'pip install "mdeq_jax[prepare]" ({error}).'
)


class Manual(NamedTuple):
    """Files that must be downloaded by hand.

    Attributes:
        page: where to download them.
        files: their names.
        note: appended to the error about missing files.
    """

    page: str
    files: tuple[str, ...]
    note: str = ""


TFDS_NAMES = {
    "cifar10": "cifar10",
    "imagenet2012": "imagenet2012",
    "cityscapes": cityscapes.TFDS_NAME,
}
MANUAL = {
    "imagenet2012": Manual(
        "https://image-net.org/challenges/LSVRC/2012/2012-downloads.php (with an account)",
        ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"),
    ),
    "cityscapes": Manual(
        "https://www.cityscapes-dataset.com/downloads/ (with an account)",
        ("leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip"),
        "Unpacked into one folder they need no preparing: set config.data.data_dir to it.",
    ),
}


def check_manual(dataset: str, manual_dir: pathlib.Path) -> None:
    """Raises FileNotFoundError with the files to download by hand and the folder for them."""
    if dataset not in MANUAL:
        return
    manual = MANUAL[dataset]
    missing = [name for name in manual.files if not (manual_dir / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{dataset} may not be downloaded automatically. Fetch {' and '.join(missing)} from "
            f"{manual.page}, put {'it' if len(missing) == 1 else 'them'} unopened into "
            f"{manual_dir} (or set --manual_dir), and run this command again. {manual.note}".strip()
        )


def prepare(dataset: str, data_dir: str, manual_dir: pathlib.Path) -> None:
    """Downloads a data set and writes it to DATA_DIR/NAME/VERSION as array_record."""
    check_manual(dataset, manual_dir)
    import tensorflow  # noqa: F401  (first, so the error names TensorFlow if it is missing)
    import tensorflow_datasets as tfds

    builder = tfds.builder(TFDS_NAMES[dataset], data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=str(manual_dir))
    )


def convert(dataset: str, data_dir: str, output_dir: str) -> pathlib.Path:
    """Rewrites a data set that was prepared as tfrecord as array_record.

    Args:
        dataset: a key of `TFDS_NAMES`.
        data_dir: holds the data set as tfrecord; it is not changed.
        output_dir: receives the same version as array_record.

    Returns:
        The folder of the new version.

    Raises:
        FileNotFoundError: `data_dir` does not hold the data set.
        ValueError: the data set is not tfrecord.
        FileExistsError: `output_dir` already holds that version.
    """
    name = TFDS_NAMES[dataset]
    version = tfds_records.find_version(data_dir, name)
    found = tfds_records.file_format(version)
    if found != "tfrecord":
        raise ValueError(f"{version} was prepared as {found}; only tfrecord can be converted.")
    output = pathlib.Path(output_dir) / name / version.name
    if output.exists():
        raise FileExistsError(
            f"{output} is already there: remove it, or give another --convert_to."
        )
    import tensorflow as tf
    from array_record.python.array_record_module import ArrayRecordWriter

    # Renamed when complete, so an interrupted conversion is not mistaken for a data set.
    partial = output.with_name(output.name + ".incomplete")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for path in sorted(version.iterdir()):
        if ".tfrecord" in path.name:
            writer = ArrayRecordWriter(
                str(partial / path.name.replace(".tfrecord", ".array_record")), "group_size:1"
            )
            for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
                writer.write(record)
            writer.close()
        elif path.name != "dataset_info.json":
            shutil.copy(path, partial)
    info = json.loads((version / "dataset_info.json").read_text())
    info["fileFormat"] = "array_record"
    (partial / "dataset_info.json").write_text(json.dumps(info, indent=2))
    partial.rename(output)
    return output


def main(argv: list[str]) -> None:
    """Runs the command."""
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}")
    dataset, data_dir = str(_DATASET.value), os.path.expanduser(str(_DATA_DIR.value))
    manual_dir = pathlib.Path(_MANUAL_DIR.value or pathlib.Path(data_dir, "downloads", "manual"))
    manual_dir = manual_dir.expanduser()
    try:
        if _CONVERT_TO.value:
            output_dir = os.path.expanduser(_CONVERT_TO.value)
            convert(dataset, data_dir, output_dir)
            data_dir = output_dir
        else:
            prepare(dataset, data_dir, manual_dir)
    except ImportError as error:
        sys.exit(_NO_TENSORFLOW.format(error=error))
    except (FileNotFoundError, FileExistsError, ValueError) as error:
        sys.exit(str(error))
    print(f"{dataset} is ready: --config.data.name={dataset} --config.data.data_dir={data_dir}")


if __name__ == "__main__":
    _DATASET = flags.DEFINE_enum("dataset", None, sorted(TFDS_NAMES), "The data set.")
    _DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder in which NAME/VERSION is written.")
    _MANUAL_DIR = flags.DEFINE_string(
        "manual_dir", None, "Files downloaded by hand. Default: DATA_DIR/downloads/manual."
    )
    _CONVERT_TO = flags.DEFINE_string(
        "convert_to", None, "Convert DATA_DIR's tfrecord to array_record in this folder instead."
    )
    flags.mark_flags_as_required(["dataset", "data_dir"])
    app.run(main)
