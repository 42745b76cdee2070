"""Memory of a language model's training step, by XLA's plan; nothing of it is allocated or run.

    python -m benchmarks.language_memory --config=configs/wikitext103_transformer.py --batch=14
    python -m benchmarks.language_memory --config=configs/wikitext103_transformer.py --batch=14 \\
        --config.solver.forward.max_steps=60

The step is that of the equilibrium phase, with the memory of the segments before, compiled for one
device of this machine: once the loss and its gradient alone, once the whole step with its
optimiser. Arguments are the weights, the memory, the batch and the optimiser's moments.
Temporaries are everything else that is held at once; in the whole step they include the gradient.
A config that takes the size of its vocabulary from the data needs it on the command line.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from jax.sharding import Mesh, PartitionSpec
from ml_collections import ConfigDict, config_flags

from benchmarks.report import markdown
from mdeq_jax.engine.state import build_optimizer, state_shapes
from mdeq_jax.engine.step import make_train_step, training_config
from mdeq_jax.models import build_model, family_of
from mdeq_jax.parallel import BATCH_AXIS
from mdeq_jax.tasks import build_task
from mdeq_jax.tasks.language.task import vocabulary_section

NUM_STEPS, STEPS_PER_EPOCH = 300_000, 12_289  # of the training that the step is one of
WHOLE, ROWS = PartitionSpec(), PartitionSpec(BATCH_AXIS)


def compile_gradient(config: ConfigDict, batch_size: int) -> Any:
    """Compiles the loss with its gradient and the next memory, from shapes alone.

    Args:
        config: of a language model, with the size of its vocabulary.
        batch_size: segments.
    """
    model, task = build_model(config), build_task(config)
    variables = jax.eval_shape(model.init, jax.random.key(0), task.example_inputs(config))

    def loss(params, carry, batch, key):
        batch = task.with_carry(batch, carry)
        rngs = {"dropout": key}
        out: Any = model.apply({"params": params}, task.inputs(batch), train=True, rngs=rngs)
        return task.loss(out, batch), task.next_carry(out)

    arguments = (variables["params"], *_inputs(config, model, task, batch_size))
    key = jax.eval_shape(lambda: jax.random.key(0))
    return _compile(jax.value_and_grad(loss, has_aux=True), (*arguments, key), (WHOLE, WHOLE))


def compile_step(config: ConfigDict, batch_size: int) -> Any:
    """Compiles the whole step, its optimiser included, from shapes alone."""
    shared = family_of(config).shared_parameters(config)
    optimizer, task = build_optimizer(config.train, NUM_STEPS, shared), build_task(config)
    model = build_model(training_config(config))
    step = make_train_step(model, optimizer, task, config, STEPS_PER_EPOCH)
    state = state_shapes(model, optimizer, task, config)
    return _compile(
        lambda state, carry, batch: step(state, carry, batch, False)[:2],
        (state, *_inputs(config, model, task, batch_size)),
        (WHOLE, ROWS),
        donate_argnums=(0, 1),
    )


def _inputs(config, model, task, batch_size: int) -> tuple:
    """Shapes of the memory and of a batch."""
    carry = jax.eval_shape(lambda: task.initial_carry(model, batch_size))
    tokens = jax.ShapeDtypeStruct((batch_size, config.data.segment_length), jnp.int32)
    batch = {
        "tokens": tokens,
        "targets": tokens,
        "valid": jax.ShapeDtypeStruct(tokens.shape, bool),
        "start": jax.ShapeDtypeStruct((batch_size,), bool),
    }
    return carry, batch


def _compile(function, arguments: tuple, out_specs, **jit_options) -> Any:
    mesh = Mesh(np.array(jax.devices()[:1]), (BATCH_AXIS,))
    specs = (WHOLE, ROWS, ROWS, WHOLE)[: len(arguments)]
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=specs, out_specs=out_specs, check_vma=False
    )
    return jax.jit(mapped, **jit_options).lower(*arguments).compile()


def main(argv) -> None:
    """Prints the plans."""
    del argv
    config, batch = CONFIG.value, BATCH.value
    rows = []
    for name, build in (("loss and gradient", compile_gradient), ("whole step", compile_step)):
        plan = build(config, batch).memory_analysis()
        sizes = (plan.argument_size_in_bytes, plan.temp_size_in_bytes)
        rows.append((name, *(f"{size / 1e9:.2f}" for size in sizes)))
    length, vocabulary = config.data.segment_length, vocabulary_section(config).vocab_size
    head = f"{config.name}, {batch} segments of {length}"
    print(markdown((head, "arguments, GB", "temporaries, GB"), rows))
    print(f"All logits at once would be {4e-9 * batch * length * vocabulary:.2f} GB.")


if __name__ == "__main__":
    CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
    BATCH = flags.DEFINE_integer("batch", 14, "Segments of a step.")
    logging.set_verbosity(logging.WARNING)
    app.run(main)
