"""Merges a trained network for inference: `python deploy.py --config=configs/repmlp_digits.py`.

python deploy.py --config=configs/repmlp_digits.py --workdir=RUN --output=DEPLOYED
python eval.py --config=configs/repmlp_digits.py --config.model.deployed=True --workdir=DEPLOYED
"""

from mdeq_jax.extras import require_extra

require_extra("train", "mdeq_jax.deploy", ("absl", "ml_collections"))

import sys

from absl import flags, logging

from mdeq_jax.engine.deployment import deploy_workdir
from mdeq_jax.runtime import command_line
from mdeq_jax.runtime.compilation import choose_flags

_CONFIG = command_line.define_config("Config of the trained network, e.g. configs/repmlp_digits.py")
_WORKDIR = command_line.define_path(
    "workdir", "Directory that was trained or converted; default: runs/NAME of the config."
)
_OUTPUT = command_line.define_path("output", "Work directory to make, for eval.py.", required=True)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "'latest', 'best', or a step.")


def main(_):
    logging.set_verbosity(logging.WARNING)
    config = _CONFIG.value
    choose_flags(config.quick_compilation)
    workdir = _WORKDIR.value or f"runs/{config.name}"
    try:
        print(deploy_workdir(config, workdir, _OUTPUT.value, checkpoint=_CHECKPOINT.value))
    except (ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def run():
    """Parses the command line and deploys."""
    command_line.run(main, __name__)


if __name__ == "__main__":
    run()
