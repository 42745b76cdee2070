"""From the work directory of a trained network to one of its merged form, and how they compare."""

import itertools
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from mdeq_jax.data import EvalLoader, load_dataset
from mdeq_jax.engine.variables import load_variables, save_variables
from mdeq_jax.engine.workdir import check_without_checkpoints
from mdeq_jax.models import build_model, deploy
from mdeq_jax.tasks import Task, build_task


def deploy_workdir(
    config: ConfigDict,
    workdir: str | Path,
    output: str | Path,
    *,
    checkpoint: str = "latest",
    max_batches: int = 8,
) -> str:
    """Writes the merged form of a trained network to a separate work directory.

    Args:
        config: of the trained network.
        workdir: its work directory.
        output: made; `eval.py` takes it with `--config.model.deployed=True`.
        checkpoint: "latest", "best", or a step.
        max_batches: of the evaluation split, on which both forms are compared.

    Returns:
        Lines on parameters, differences and times.

    Raises:
        FileNotFoundError: there is no such checkpoint, or no data.
        ValueError: the family has no merged form, the network is deployed already, or `output`
            holds checkpoints.
    """
    check_without_checkpoints(Path(output))
    model, task = build_model(config), build_task(config)
    variables, step = load_variables(config, workdir, checkpoint)
    merged, deployed = deploy(variables, config)
    batches = list(_batches(config, task, max_batches))
    forms = (model, variables), (build_model(deployed), merged)
    (before, slow), (after, fast) = (_run(task, *form, batches) for form in forms)
    save_variables(merged, deployed, output)
    counts = [sum(x.size for x in jax.tree.leaves(v["params"])) for _, v in forms]
    difference = max(np.abs(a - b).max() for a, b in zip(before, after))
    same = sum(int(np.sum(a.argmax(-1) == b.argmax(-1))) for a, b in zip(before, after))
    number = sum(a[..., 0].size for a in before)
    return "\n".join(
        (
            f"{workdir}, step {step:,}, to {output}",
            f"parameters: {counts[0]:,} in training, {counts[1]:,} deployed",
            f"largest difference of the outputs: {difference:.1e} (the largest is "
            f"{max(np.abs(a).max() for a in before):.1f})",
            f"same prediction: {same:,} of {number:,}",
            f"milliseconds for {task.example_noun}, {len(before[0])} at a time: {1e3 * slow:.3f} "
            f"each in training form, {1e3 * fast:.3f} deployed ({slow / fast:.2f} times as fast)",
        )
    )


def _batches(config: ConfigDict, task: Task, most: int) -> Iterator[Any]:
    """The inputs of the first batches of the evaluation split, without padding."""
    dataset = load_dataset(config.data)
    task.check_data(dataset)
    loader = EvalLoader(dataset, config.eval.batch_size or config.train.batch_size)
    for batch in itertools.islice(loader, most):
        keep = batch["mask"] > 0
        if keep.any():
            yield jax.tree.map(lambda x, keep=keep: x[keep], task.inputs(batch))


def _run(
    task: Task, model: nn.Module, variables: dict, batches: list
) -> tuple[list[np.ndarray], float]:
    """The outputs of each batch, and the seconds an example takes, without compiling."""
    apply = jax.jit(partial(task.infer, model))
    variables = jax.device_put(variables)
    outputs = [np.asarray(apply(variables, inputs).logits) for inputs in batches]
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(apply(variables, batches[0]))
        seconds.append(time.perf_counter() - start)
    return outputs, min(seconds) / len(outputs[0])
