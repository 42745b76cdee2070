"""Converts weights of the original PyTorch repositories, and back.

Look:    python convert_torch_weights.py --input=MDEQ_Small_cls.pkl --inspect
Import:  python convert_torch_weights.py --config=configs/imagenet_small.py \
             --input=MDEQ_Small_cls.pkl --output=/runs/in_small
Export:  python convert_torch_weights.py --config=configs/imagenet_small.py \
             --input=/runs/in_small --export=weights.pkl
"""

from mdeq_jax.extras import require_extra

require_extra("train", "mdeq_jax.convert_torch_weights", ("absl", "ml_collections"))

import sys
from pathlib import Path

from absl import flags, logging

from mdeq_jax import convert
from mdeq_jax.engine.variables import load_variables, save_variables
from mdeq_jax.engine.workdir import has_weights, with_saved_fields
from mdeq_jax.runtime import command_line

_CONFIG = command_line.define_config("Config of the network, e.g. configs/imagenet_small.py")
_INPUT = command_line.define_path(
    "input", "PyTorch file to convert or inspect; or a work directory, to export."
)
_OUTPUT = command_line.define_path("output", "Work directory to make, for eval.py and train.py.")
_EXPORT = command_line.define_path("export", "PyTorch file to write; needs torch.")
_INSPECT = flags.DEFINE_bool("inspect", False, "List what the file holds, and convert nothing.")

_KEY = flags.DEFINE_string("key", None, "Entry of the file to take, e.g. model_ema.")
_ALLOW_NONFINITE = flags.DEFINE_bool("allow_nonfinite", False, "Take NaN and infinity too.")


def _convert():
    if _INPUT.value is None:
        raise ValueError("Give --input=FILE, and --inspect to list what the file holds.")
    if _INSPECT.value:
        print(convert.inspect_file(_INPUT.value, _KEY.value))
        return
    config = _CONFIG.value
    if config is None or not (_OUTPUT.value or _EXPORT.value):
        configs = command_line.list_configs(command_line.config_folder(sys.argv[0]))
        raise ValueError(
            "Give --config, and --output or --export (or --inspect alone). The configs are\n"
            + configs
        )
    if has_weights(source := Path(_INPUT.value)):
        if _OUTPUT.value:
            raise ValueError(f"{_INPUT.value} is a work directory already: give --export alone.")
        config = with_saved_fields(source, config)
        variables, step = load_variables(config, source)
        summary = f"exported step {step:,} of {_INPUT.value}"
    else:
        tensors, notes = convert.read_state_dict(_INPUT.value, _KEY.value)
        conversion = convert.convert(tensors, config, allow_nonfinite=_ALLOW_NONFINITE.value)
        variables = conversion.variables
        summary = "\n".join([*(f"note: {note}" for note in notes), convert.summarize(conversion)])
    if _EXPORT.value:
        state_dict = convert.export_state_dict(
            variables, config, allow_nonfinite=_ALLOW_NONFINITE.value
        )
        convert.write_torch_file(_EXPORT.value, state_dict)
        summary += f"\nwrote {_EXPORT.value}"
    if _OUTPUT.value:
        save_variables(variables, config, _OUTPUT.value)
        summary += f"\nwrote {_OUTPUT.value}: config.json and checkpoints/0"
        if config.train.pretrain_steps:
            summary += "\nto train on from it, set --config.train.pretrain_steps=0"
    print(summary)


def main(_):
    logging.set_verbosity(logging.WARNING)
    try:
        _convert()
    except (ValueError, OSError, ModuleNotFoundError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def run():
    """Parses the command line and converts."""
    command_line.run(main, __name__, config_required=False)


if __name__ == "__main__":
    run()
