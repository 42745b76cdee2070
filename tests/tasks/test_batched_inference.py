"""Continuous batching only rounds differently."""

import jax
import jax.numpy as jnp
import numpy as np

from mdeq_jax.data import load_dataset
from mdeq_jax.models import build_model
from mdeq_jax.solvers import Status
from mdeq_jax.tasks import TrainedModel, build_task
from mdeq_jax.tasks.batched_inference import BatchedInference, in_order
from tests.helpers.tiny import SINGLE_SCALE

COUNT, BATCH = 40, 12


def test_logits_agree_in_double_precision(tiny_config, x64):
    """Also those of examples that the limit stopped, where single precision may not agree."""
    solver = {"solver.forward.max_steps": 12, "solver.forward.tol": 0.25}
    config = tiny_config({**SINGLE_SCALE, **solver, "eval.slots": 4})
    model, task = build_model(config), build_task(config)
    split = load_dataset(config.data).eval
    images = np.zeros((4 * BATCH, 8, 8, 3))
    images[:COUNT] = split.make_batch(np.arange(COUNT), (0, 0))[0]["image"]
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    variables = jax.device_get(jax.tree.map(lambda x: x.astype(jnp.float64), variables))

    def summary(out):
        return out.logits, out.solution.status

    def results(choice):
        config.eval.continuous_batching = choice
        infer = BatchedInference(
            task,
            TrainedModel(config, model, variables, 0),
            summary,
            batch_size=BATCH,
            num_examples=COUNT,
        )
        for start in range(0, COUNT, BATCH):
            index = start + np.arange(BATCH, dtype=np.int32)
            mask = (index < COUNT).astype(np.float32)
            yield infer({"image": images[index], "mask": mask, "index": index})
        yield infer.finish()

    ours, theirs = ([np.stack(x) for x in zip(*in_order(results(c)))] for c in ("on", "off"))
    np.testing.assert_array_equal(ours[1], theirs[1])
    assert {Status.CONVERGED, Status.MAX_STEPS} <= set(ours[1].tolist())
    assert ours[0].dtype == np.float64
    assert len(ours[0]) == COUNT
    np.testing.assert_allclose(ours[0], theirs[0], rtol=0, atol=1e-9)
