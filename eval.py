"""Evaluates the newest checkpoint: `python eval.py --config=configs/digits.py`."""

import json
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from mdeq_jax.training import evaluate

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, e.g. configs/digits.py; --config.FIELD=VALUE overrides a field."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory that was trained or converted; default: runs/NAME of the config."
)


def main(_):
    logging.set_verbosity(logging.WARNING)
    config = _CONFIG.value
    try:
        metrics = evaluate(config, _WORKDIR.value or f"runs/{config.name}")
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(json.dumps(metrics, indent=2))


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main)
