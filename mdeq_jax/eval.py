"""Evaluates a checkpoint: `python eval.py --config=configs/digits.py`."""

from mdeq_jax.extras import require_extra

require_extra("train", "mdeq_jax.eval", ("absl", "ml_collections"))

import json
import sys
from pathlib import Path

from absl import flags, logging

from mdeq_jax import pretrained, training
from mdeq_jax.engine.writers import finite
from mdeq_jax.runtime import command_line
from mdeq_jax.runtime.compilation import (
    choose_device_per_core,
    choose_flags,
    keep_compiled_programs,
)
from mdeq_jax.tasks import GenerationRequest, read_prompts

_CONFIG = command_line.define_config()
_WORKDIR = command_line.define_path(
    "workdir", "Directory that was trained or converted; default: runs/NAME of the config."
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "'latest', 'best', or a step.")
_SWEEP_STEPS = flags.DEFINE_list(
    "sweep_steps", None, "Evaluate with each of these forward solver steps; WORKDIR/sweep.png."
)
flags.register_validator(
    "sweep_steps",
    lambda steps: all(step.strip().isdigit() for step in steps or ()),
    "must be whole numbers, e.g. 1,2,5,10,20.",
)
_PREDICT = command_line.define_path(
    "predict",
    "Predict instead of evaluating. Classification: the class of each JPEG and PNG file in this "
    "folder, in WORKDIR/predictions.csv. Segmentation: pictures of a folder or a video, in "
    "WORKDIR/predictions/.",
)
_SAVE_PREDICTIONS = command_line.define_path(
    "save_predictions", "Segmentation: write pictures of the evaluation split to this folder."
)
_PRETRAINED = flags.DEFINE_string(
    "pretrained",
    None,
    "Folder of mdeq_jax.pretrained.save, or USER/MODEL on the Hugging Face hub, instead of "
    "--workdir; its own config is used unless --config is given.",
)
_SPLIT = command_line.define_path("split", "Evaluate on this split, or folder of image_folder.")
_GENERATE = flags.DEFINE_integer(
    "generate", None, "Language models: make a text of this many tokens; WORKDIR/samples.txt."
)
_SAMPLING = {
    "prompt": flags.DEFINE_string("prompt", None, "--generate: how the text begins."),
    "temperature": flags.DEFINE_float("temperature", 1.0, "--generate: 0: the most likely tokens."),
    "top_k": flags.DEFINE_integer("top_k", None, "--generate: draw among so many tokens only."),
    "num_samples": flags.DEFINE_integer("num_samples", 1, "--generate: texts of each prompt."),
}
_PROMPTS = command_line.define_path(
    "prompts", "--generate: a file with one prompt a line, or - for standard input; not --prompt."
)
_DEVICE_PER_CORE = command_line.define_device_per_core()
_CACHE = flags.DEFINE_bool("compilation_cache", True, "Keep compiled programs for the next run.")


def main(_):
    logging.set_verbosity(logging.WARNING)
    config, checkpoint = _CONFIG.value, _CHECKPOINT.value
    choose_flags(config.quick_compilation)
    keep_compiled_programs(_CACHE.value)
    if _DEVICE_PER_CORE.value and _PREDICT.value is None and _GENERATE.value is None:
        choose_device_per_core(config.eval.batch_size or config.train.batch_size)
    if _SPLIT.value is not None:
        config.data.eval_split = _SPLIT.value
    workdir = Path(_PRETRAINED.value or _WORKDIR.value or f"runs/{config.name}")
    try:
        if _PREDICT.value is not None:
            print(training.predict(config, workdir, _PREDICT.value, checkpoint=checkpoint))
            return
        if _GENERATE.value is not None:
            chosen = {n: flag.value for n, flag in _SAMPLING.items() if flag.value is not None}
            chosen["prompts"] = read_prompts(_PROMPTS.value)
            request = GenerationRequest(_GENERATE.value, seed=config.seed, **chosen)
            print(training.generate(config, workdir, request, checkpoint=checkpoint))
            return
        if _SAVE_PREDICTIONS.value is not None:
            folder = _SAVE_PREDICTIONS.value
            metrics = training.save_predictions(config, workdir, folder, checkpoint=checkpoint)
        else:
            steps = [int(number) for number in _SWEEP_STEPS.value or ()]
            metrics = training.evaluate(config, workdir, checkpoint=checkpoint, sweep_steps=steps)
    except (ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(json.dumps(finite(metrics), indent=2))


def run():
    """Parses the command line and evaluates."""
    flags.mark_flags_as_mutual_exclusive(["predict", "save_predictions", "sweep_steps", "generate"])
    flags.mark_flags_as_mutual_exclusive(["pretrained", "workdir"])
    flags.mark_flags_as_mutual_exclusive(["prompt", "prompts"])
    command_line.mark_needed("generate", [*_SAMPLING, "prompts"])
    command_line.run(main, __name__, prepare=pretrained.complete_arguments)


if __name__ == "__main__":
    run()
