"""Evaluates a checkpoint: `python eval.py --config=configs/digits.py`."""

import json
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from mdeq_jax.training import evaluate, predict_classes

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
    "predict", None, "Folder of images: write WORKDIR/predictions.csv instead of evaluating."
)


def main(_):
    logging.set_verbosity(logging.WARNING)
    config = _CONFIG.value
    workdir = Path(_WORKDIR.value or f"runs/{config.name}")
    try:
        if _PREDICT.value is not None:
            output = workdir / "predictions.csv"
            count = predict_classes(
                config, workdir, _PREDICT.value, output, checkpoint=_CHECKPOINT.value
            )
            print(f"Wrote {output}: {count:,} images.")
            return
        sweep_steps = [int(number) for number in _SWEEP_STEPS.value]
        metrics = evaluate(config, workdir, checkpoint=_CHECKPOINT.value, sweep_steps=sweep_steps)
    except (ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(json.dumps(metrics, indent=2))


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
