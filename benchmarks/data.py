"""The rate of a config's training data, the time of its stages, and the wait of a step.

    python -m benchmarks.data --config=configs/cifar10_tiny.py --config.data.data_dir=/data/tfds

`--step_ms` is the time that a training step takes on your accelerator; `--pillow` also times the
ImageNet transform written with Pillow, on the same images in turn with this one.
"""

import collections
import contextlib
import io
import json
import time
from unittest import mock

import numpy as np
from absl import app, flags
from ml_collections import config_flags

from mdeq_jax.data import Prefetcher, TrainLoader, load_dataset
from mdeq_jax.data.vision import augment, decoding
from mdeq_jax.data.vision.disk_split import IMAGENET_MEAN, IMAGENET_STD
from mdeq_jax.data.vision.transforms import ClassificationTransform

_STAGES = {
    "header": (decoding, "read_header"),
    "decode": (decoding, "decode_rgb"),
    "decode label": (decoding, "decode_label_map"),
    "resize": (augment, "resize"),
    "resize pair": (augment, "resize_pair"),
    "crop and flip": (augment, "shift_and_flip"),
    "pad": (augment, "pad_to"),
    "normalise": (augment, "normalize"),
}


@contextlib.contextmanager
def stage_times(split):
    """Yields {stage: seconds of CPU, those of the stages that it calls apart}, filled meanwhile."""
    seconds, running = collections.Counter(), [0.0]

    def timed(name, function):
        def call(*args, **kwargs):
            running.append(0.0)
            start = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                total = time.thread_time() - start
                seconds[name] += total - running.pop()
                running[-1] += total

        return call

    places = dict(_STAGES)
    if not split.in_memory:
        places["read"] = (type(split.reader), "__getitem__")
    with contextlib.ExitStack() as stack:
        for name, (owner, attribute) in places.items():
            wrapped = timed(name, getattr(owner, attribute))
            stack.enter_context(mock.patch.object(owner, attribute, wrapped))
        yield seconds


def measure_stages(dataset, num_examples: int, batch_size: int) -> dict:
    """Makes batches in this process, on one core.

    Returns:
        "examples": how many; "examples_per_second_per_core"; "shares": {stage: of the time}.
    """
    order = np.random.default_rng(0).permutation(dataset.num_train)[:num_examples]
    batches = np.split(order, range(batch_size, len(order), batch_size))
    dataset.train.make_batch(batches[0], (0, 0))  # imports, file handles, tables of the epoch
    with stage_times(dataset.train) as seconds:
        start = time.thread_time()
        for indices in batches:
            dataset.train.make_batch(indices, (0, 0))
        total = time.thread_time() - start
    seconds["everything else"] = total - sum(seconds.values())
    return {
        "examples": len(order),
        "examples_per_second_per_core": len(order) / total,
        "shares": {name: value / total for name, value in seconds.most_common()},
    }


def measure_loader(loader, num_batches: int, batch_size: int, step_s: float) -> dict:
    """Lets a consumer that takes `step_s` a batch run against the loader.

    Returns:
        "examples_per_second"; "waited_s_per_step"; "waited_share" of the time; "first_batch_s".
    """
    start = time.perf_counter()
    with Prefetcher(loader, lambda batch: batch) as prefetcher:
        next(prefetcher)
        first = time.perf_counter() - start
        prefetcher.waited_s = 0.0
        start = time.perf_counter()
        for _ in range(num_batches):
            time.sleep(step_s)
            next(prefetcher)
        total = time.perf_counter() - start
        waited = prefetcher.waited_s
    return {
        "examples_per_second": num_batches * batch_size / total,
        "waited_s_per_step": waited / num_batches,
        "waited_share": waited / total,
        "first_batch_s": first,
    }


def pillow_transform(record, rng, size: tuple[int, int], train: bool) -> np.ndarray:
    """The ImageNet transform in Pillow: the same boxes, its bilinear filter, float32 numpy."""
    from PIL import Image

    image = Image.open(io.BytesIO(record.image)).convert("RGB")
    height, width = size
    if train:
        top, left, h, w = augment.random_resized_crop_box(image.height, image.width, rng)
        image = image.crop((left, top, left + w, top + h)).resize((width, height), Image.BILINEAR)
        if rng.random() < 0.5:
            image = image.transpose(Image.FLIP_LEFT_RIGHT)
    else:
        scaled = augment.shorter_side_size(image.height, image.width, int(max(size) / 0.875))
        image = image.resize(scaled[::-1], Image.BILINEAR)
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        image = image.crop((left, top, left + width, top + height))
    pixels = np.asarray(image, np.float32) / 255
    return (pixels - np.float32(IMAGENET_MEAN)) / np.float32(IMAGENET_STD)


def compare_with_pillow(split, num_examples: int) -> dict:
    """Times both transforms, image by image in turn, so that other load meets both alike.

    Returns:
        Images per second and core of both, and their ratio.
    """
    transform, seconds = split.transform, collections.Counter()
    if not isinstance(transform, ClassificationTransform):
        raise ValueError("--pillow compares the transform of image_folder and imagenet2012 only.")
    ways = {
        "opencv": lambda record, rng: augment.normalize(
            transform(record, rng)[0], IMAGENET_MEAN, IMAGENET_STD
        ),
        "pillow": lambda record, rng: pillow_transform(
            record, rng, transform.size, transform.train
        ),
    }
    num_examples = min(num_examples, len(split))
    for index in range(-1, num_examples):
        record = split.reader[max(index, 0)]
        for name, way in ways.items():
            rng = np.random.default_rng(index + 1)
            start = time.thread_time()
            way(record, rng)
            if index >= 0:  # the first pair is a warm-up
                seconds[name] += time.thread_time() - start
    rates = {name: num_examples / value for name, value in seconds.items()}
    return {**rates, "ratio": rates["opencv"] / rates["pillow"]}


def main(argv) -> None:
    """Runs the measurements and prints them, the last line as JSON."""
    del argv
    import cv2

    cv2.setNumThreads(0)  # figures are per core
    config, batch_size = _CONFIG.value, _CONFIG.value.train.batch_size
    dataset = load_dataset(config.data)
    report = {"dataset": dataset.name, "batch_size": batch_size}
    report |= {"num_workers": config.data.num_workers, "step_ms": _STEP_MS.value}
    report["stages"] = stages = measure_stages(dataset, _EXAMPLES.value, batch_size)
    print(f"{stages['examples_per_second_per_core']:10.1f} examples/s/core, of which")
    for name, share in stages["shares"].items():
        print(f"{share:10.1%} {name}")
    loader = TrainLoader(dataset, batch_size, num_workers=config.data.num_workers)
    num_batches = max(2, _EXAMPLES.value // batch_size)
    report["loader"] = run = measure_loader(loader, num_batches, batch_size, _STEP_MS.value / 1000)
    loader.close()
    print(
        f"{run['examples_per_second']:10.1f} examples/s with {config.data.num_workers} workers, a "
        f"step of {_STEP_MS.value} ms waiting {run['waited_s_per_step'] * 1000:.1f} ms "
        f"({run['waited_share']:.1%} of the time); the first batch after "
        f"{run['first_batch_s']:.1f} s"
    )
    if _PILLOW.value:
        for name in ("train", "eval"):
            split = dataset.train if name == "train" else dataset.eval
            report[f"pillow_{name}"] = pillow = compare_with_pillow(split, _EXAMPLES.value)
            print(
                f"{pillow['opencv']:10.1f} images/s/core by the {name} transform, "
                f"{pillow['pillow']:.1f} written with Pillow: {pillow['ratio']:.2f} times"
            )
    print(json.dumps(report))


if __name__ == "__main__":
    _CONFIG = config_flags.DEFINE_config_file("config", None, "The config.", lock_config=True)
    _EXAMPLES = flags.DEFINE_integer("examples", 2000, "Number of examples to measure with.")
    _STEP_MS = flags.DEFINE_float("step_ms", 100.0, "Time of the training step that is fed.")
    _PILLOW = flags.DEFINE_bool("pillow", False, "Compare with the same transform in Pillow.")
    flags.mark_flag_as_required("config")
    app.run(main)
