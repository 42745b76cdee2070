"""Trains a model: `python train.py --config=configs/digits.py`.

Outside the repository: `python -m mdeq_jax.train --config=digits`.
"""

from mdeq_jax.extras import require_extra

require_extra("train", "mdeq_jax.train", ("absl", "ml_collections"))

import sys

from absl import flags, logging

from mdeq_jax.runtime import command_line, hosts
from mdeq_jax.runtime.compilation import (
    choose_device_per_core,
    choose_flags,
    keep_compiled_programs,
)
from mdeq_jax.training import Interrupted, TrainingDiverged, train_and_evaluate

_CONFIG = command_line.define_config()
_WORKDIR = command_line.define_path(
    "workdir", "Where results go, and where to resume from; default: runs/NAME of the config."
)
_CACHE = flags.DEFINE_bool("compilation_cache", True, "Keep compiled programs for the next run.")
_DEVICE_PER_CORE = command_line.define_device_per_core()
_COORDINATOR = flags.DEFINE_string("coordinator", None, "Several hosts: HOST:PORT of process 0.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Several hosts: how many processes.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Several hosts: which one this is, from 0.")


def main(_):
    logging.set_verbosity(logging.WARNING)
    config = _CONFIG.value
    choose_flags(config.quick_compilation)
    if _DEVICE_PER_CORE.value:
        size, processes = config.train.batch_size, _NUM_PROCESSES.value or 1
        parts = max(config.train.accumulate_steps, 1)  # others are refused later
        shares = size // parts, config.eval.batch_size or size
        choose_device_per_core(*(share // processes for share in shares))
    keep_compiled_programs(_CACHE.value)
    try:
        hosts.initialize_distributed(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        train_and_evaluate(config, _WORKDIR.value or f"runs/{config.name}")
    except Interrupted as stop:
        print(stop.args[0], file=sys.stderr)
        sys.exit(128 + stop.signal)
    except (ValueError, OSError, TrainingDiverged) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def run():
    """Parses the command line and trains."""
    command_line.run(main, __name__)


if __name__ == "__main__":
    run()
