"""The call that every model answers: what a training step passes in, and what comes out."""

from typing import Any, NamedTuple

import jax

from mdeq_jax.implicit import BackwardStats
from mdeq_jax.solvers import Solution


class ForwardOptions(NamedTuple):
    """Settings of one forward pass, as the engine passes them to any model.

    A model without an equilibrium ignores those that concern the solver.

    Attributes:
        pretraining_layers: applications of the cell instead of the solver; None: the solver.
        step_budget: most forward solver steps; may be traced. None: all that the solver may take.
        backward_stats: `BackwardStats.zeros(B)`, to differentiate with respect to; see there.
        with_jacobian: whether to compute the Jacobian loss (random key "jacobian"). May be traced;
            it then costs nothing where it is false.
        first_sample: index in the global batch of this device's first sample. Random numbers are
            drawn by that index, so they do not depend on how the batch is split.
    """

    pretraining_layers: int | None = None
    step_budget: int | jax.Array | None = None
    backward_stats: BackwardStats | None = None
    with_jacobian: bool | jax.Array = False
    first_sample: int | jax.Array = 0


class ModelOutput(NamedTuple):
    """The result of a forward pass.

    Attributes:
        logits: the network's output, for an MDEQ `[B, num_classes]`, or
            `[B, H_0, W_0, num_classes]` for segmentation.
        solution: report of the forward solver; None if none ran: in the pretraining phase, and in
            a model without an equilibrium.
        z_star: state that the head read, any pytree; one evaluation of the cell past
            `solution.z` (the `phantom` gradient: its last application). None without a cell.
        jacobian_loss: scalar; zero unless asked for.
    """

    logits: Any
    solution: Solution | None = None
    z_star: Any = None
    jacobian_loss: jax.Array | float = 0.0
