"""What evaluating a whole Cityscapes image needs, from the compiler; nothing is run."""

import jax
import jax.numpy as jnp
import pytest

from configs import cityscapes_small
from mdeq_jax.models import build_model
from mdeq_jax.tasks import build_task

SIZE = (1, 1024, 2048)


@pytest.mark.slow
def test_a_whole_image_needs_no_more_than_the_header_says():
    config = cityscapes_small.get_config()
    model, task = build_model(config), build_task(config)
    shape = jax.ShapeDtypeStruct
    images = shape((*SIZE, 3), jnp.float32)
    batch = {"label": shape(SIZE, jnp.int32), "mask": shape(SIZE[:1], jnp.float32)}
    variables = jax.eval_shape(model.init, jax.random.key(0), images)

    def evaluate(variables, images, batch):
        out = task.infer(model, variables, images)
        return task.metric_sums(out, batch), out.solution.rel_residual

    compiled = jax.jit(evaluate).lower(variables, images, batch).compile()
    memory = compiled.memory_analysis()
    needed = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    assert 0.5e9 < needed < 2e9
