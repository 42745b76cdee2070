"""How long the first call of a step takes: most of it is tracing and compiling."""

import jax
from ml_collections import ConfigDict

from mdeq_jax.runtime.first_call import first_call
from mdeq_jax.runtime.hosts import log

# Seconds a parameter tensor on two idle CPU cores (`benchmarks/RESULTS.md`, "The first step"). The
# time grows with the operations in the cell, and hardly depends on the batch or the step counts.
SECONDS_PER_TENSOR = {
    "the pretraining step": 0.15,
    "the training step": 0.25,
    "the training step with the Jacobian loss": 0.3,
    "the evaluation step": 0.1,
}
QUICK = 0.75  # of these with `config.quick_compilation`
# Parts of a config that decide no program.
_UNRELATED = ("name", "seed", "checkpoint", "log", "init")


def announced(step: str, variables: dict, config: ConfigDict):
    """Context of the first call of a step, which prints how long it will take; see `first_call`.

    Args:
        step: "training", "pretraining" or "evaluation".
        variables: Flax variables of the model.
        config: the whole config.
    """
    what = f"the {step} step"
    if step == "training" and config.jacobian.frequency > 0:
        what += " with the Jacobian loss"
    seconds = SECONDS_PER_TENSOR[what] * len(jax.tree.leaves(variables["params"]))
    if config.quick_compilation:
        seconds *= QUICK
    decisive = {part: value for part, value in config.items() if part not in _UNRELATED}
    program = ConfigDict(decisive).to_json_best_effort(sort_keys=True)
    return first_call(what, program, seconds, log)
