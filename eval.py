"""Evaluates a checkpoint: `python eval.py --config=configs/digits.py`."""

import json
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from mdeq_jax.training import (
    describe_prediction,
    evaluate,
    predict_classes,
    predict_folder,
    save_predictions,
)

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, e.g. configs/digits.py; --config.FIELD=VALUE overrides a field."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory that was trained or converted; default: runs/NAME of the config."
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "'latest', 'best', or a step.")
_SWEEP_STEPS = flags.DEFINE_list(
    "sweep_steps", [], "Evaluate with each of these forward solver steps, e.g. 1,2,5,10,20."
)
_PREDICT = flags.DEFINE_string(
    "predict",
    None,
    "Folder of images; of a segmenter also a video. Write WORKDIR/predictions.csv, or the pictures "
    "of segmentations to WORKDIR/predictions/, instead of evaluating.",
)
_SAVE_PREDICTIONS = flags.DEFINE_string(
    "save_predictions", None, "Segmenters: write the evaluation split's segmentations to here."
)


def predict(config, workdir: Path) -> None:
    """Predicts on the folder of the flag."""
    source, checkpoint = _PREDICT.value, _CHECKPOINT.value
    if config.model.name == "mdeq_segmenter":
        output = workdir / "predictions"
        figures = predict_folder(config, workdir, source, output, checkpoint=checkpoint)
        print(f"Wrote {output}: {describe_prediction(figures)}")
    else:
        output = workdir / "predictions.csv"
        count = predict_classes(config, workdir, source, output, checkpoint=checkpoint)
        print(f"Wrote {output}: {count:,} images.")


def main(_):
    logging.set_verbosity(logging.WARNING)
    config = _CONFIG.value
    workdir = Path(_WORKDIR.value or f"runs/{config.name}")
    try:
        if _PREDICT.value is not None:
            predict(config, workdir)
            return
        if _SAVE_PREDICTIONS.value is not None:
            folder = _SAVE_PREDICTIONS.value
            metrics = save_predictions(config, workdir, folder, checkpoint=_CHECKPOINT.value)
        else:
            steps = [int(number) for number in _SWEEP_STEPS.value]
            metrics = evaluate(config, workdir, checkpoint=_CHECKPOINT.value, sweep_steps=steps)
    except (ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    # A class that does not occur has no IoU, and JSON no NaN.
    print(json.dumps({k: v if v == v else None for k, v in metrics.items()}, indent=2))


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
