"""Plots how fast the solves converge."""

from pathlib import Path

import numpy as np


def plot_convergence(
    path: Path,
    forward: np.ndarray,
    backward: np.ndarray,
    *,
    title: str,
    forward_name: str,
    backward_name: str,
    forward_tol: float | None = None,
    backward_tol: float | None = None,
) -> None:
    """Draws residual against solver step: the median, and the band from 10 to 90 % of examples.

    Args:
        path: PNG file to write.
        forward: `[steps, N]` relative residuals of the equilibrium.
        backward: `[steps, N]` relative residuals of the adjoint equation.
        title: of the whole figure.
        forward_name: names the forward solver.
        backward_name: names the gradient.
        forward_tol: tolerance of the forward solver, drawn as a line.
        backward_tol: tolerance of the backward solver, drawn as a line.
    """
    from matplotlib.figure import Figure  # imported here, because it is slow to import

    figure = Figure(figsize=(10, 4), layout="constrained")
    figure.suptitle(title)
    left, right = figure.subplots(1, 2, sharey=True)
    panels = (
        (left, "Forward: equilibrium z = f(z)", "|f(z) − z| / |f(z)|"),
        (right, "Backward: adjoint u = Jᵀu + g, g = ∂loss/∂z", "|Jᵀu + g − u| / |Jᵀu + g|"),
    )
    contents = ((forward, forward_name, forward_tol), (backward, backward_name, backward_tol))
    for (axis, heading, ylabel), (trace, label, tol) in zip(panels, contents):
        steps = np.arange(1, len(trace) + 1)
        # A solver stops a sample at a residual of zero, so the sample keeps its last residual.
        low, median, high = np.nanquantile(_fill_forward(trace), (0.1, 0.5, 0.9), axis=1)
        axis.fill_between(steps, low, high, alpha=0.25, linewidth=0, label="10-90 % of examples")
        axis.plot(steps, median, marker="o", markersize=3, label="median")
        if tol:
            axis.axhline(tol, color="grey", linestyle="--", linewidth=1, label=f"tol = {tol:g}")
        axis.set_yscale("log")
        axis.set_title(f"{heading}\n{label}", fontsize=10)
        axis.set_xlabel("solver step")
        axis.set_ylabel(f"relative residual  {ylabel}")
        axis.yaxis.set_tick_params(labelleft=True)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def _fill_forward(trace: np.ndarray) -> np.ndarray:
    filled = trace.copy()
    for row in range(1, len(filled)):
        missing = np.isnan(filled[row])
        filled[row, missing] = filled[row - 1, missing]
    return filled
