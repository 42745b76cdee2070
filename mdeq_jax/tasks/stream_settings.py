"""Whether continuous batching is available, and with how many slots."""

from ml_collections import ConfigDict

from mdeq_jax import hardware
from mdeq_jax.implicit import GRADIENTS
from mdeq_jax.models import family_of
from mdeq_jax.tasks.task import Task

CHOICES = ("auto", "on", "off")
# Slots of each device on CPUs, which are as fast with them as with larger batches.
CPU_SLOTS = 16


def num_slots(config: ConfigDict, batch_size: int) -> int:
    """Slots of a device: `eval.slots`, at most its share of a batch, which is `batch_size`.

    On CPUs at most half of the share, if it is more than one. Outputs are then computed for half a
    batch at a time, which makes up for the memory of the examples that are in flight meanwhile.
    """
    chosen = batch_size
    if hardware.target().platform == "cpu":
        chosen = min(CPU_SLOTS, max(1, batch_size // 2))
    return min(config.eval.slots or chosen, batch_size)


def why_not(task: Task, config: ConfigDict) -> str:
    """Why continuous batching is not available; empty if it is."""
    info = GRADIENTS[config.gradient.name]
    if not family_of(config).has_equilibrium:
        return f"model.name={config.model.name!r} has no equilibrium"
    if info.own_iteration or info.needs_inverse:
        return f"gradient.name={config.gradient.name!r} needs the ordinary solve"
    if not task.single_pass:
        return "an example takes several passes of the network, or continues another one"
    return ""


def slots_for(task: Task, config: ConfigDict, batch_size: int) -> int | None:
    """Slots for a prediction; None: always a batch at a time, which "auto" is except on CPUs.

    Raises:
        ValueError: see `check_stream`.
    """
    check_stream(task, config)
    choice = config.eval.continuous_batching
    if choice == "off" or why_not(task, config):
        return None
    if choice == "auto" and hardware.target().platform != "cpu":
        return None
    return num_slots(config, batch_size)


def check_stream(task: Task, config: ConfigDict) -> None:
    """Refuses settings of continuous batching that cannot work.

    Raises:
        ValueError: an unknown choice, no slot, or "on" where it is not available.
    """
    choice = config.eval.continuous_batching
    if choice not in CHOICES:
        raise ValueError(f"eval.continuous_batching must be one of {CHOICES}; got {choice!r}.")
    check_slots(config)
    if choice == "on" and (reason := why_not(task, config)):
        raise ValueError(
            f"eval.continuous_batching='on' is not available: {reason}. Set it to 'auto' or 'off'."
        )


def check_slots(config: ConfigDict) -> None:
    """Refuses a number of slots that cannot work.

    Raises:
        ValueError: `eval.slots` is below 1.
    """
    slots = config.eval.slots
    if slots is not None and slots < 1:
        raise ValueError(f"eval.slots must be at least 1, or None; got {slots}.")
