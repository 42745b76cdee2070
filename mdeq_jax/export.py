"""Exports a model for other programs: `python export.py --config=configs/digits.py --output=DIR`.

The folder holds StableHLO for any batch size, the weights, and load.py, which runs them with JAX
and safetensors alone.
"""

from mdeq_jax.extras import require_extra

require_extra("train", "mdeq_jax.export", ("absl", "ml_collections"))

import sys

from absl import flags, logging

from mdeq_jax.engine.export import export_workdir
from mdeq_jax.runtime import command_line

_CONFIG = command_line.define_config("Config of the trained network, e.g. configs/digits.py")
_WORKDIR = command_line.define_path(
    "workdir", "Directory that was trained or converted; default: runs/NAME of the config."
)
_OUTPUT = command_line.define_path("output", "Folder to make.", required=True)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "'latest', 'best', or a step.")
_PLATFORMS = flags.DEFINE_list("platforms", ["cpu"], "cpu, cuda, rocm or tpu.")


def main(_):
    logging.set_verbosity(logging.WARNING)
    config = _CONFIG.value
    workdir = _WORKDIR.value or f"runs/{config.name}"
    try:
        lines = export_workdir(
            config,
            workdir,
            _OUTPUT.value,
            checkpoint=_CHECKPOINT.value,
            platforms=_PLATFORMS.value,
        )
    except (ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(lines)


def run():
    """Parses the command line and exports."""
    command_line.run(main, __name__)


if __name__ == "__main__":
    run()
