"""Kernels, memory traffic and memory of a step that XLA compiles for a GPU, on any machine.

    pip install -e ".[cuda]"
    python -m benchmarks.compiled_cost --config=configs/cifar10_tiny.py --batch=64
    python -m benchmarks.compiled_cost --config=configs/imagenet_small.py --batch=128 \\
        --precision=bfloat16 --forward_steps=26 --backward_steps=27 --json=runs/kernels.json

The training step, or the evaluation step with --inference, is compiled ahead of time for one
device. Its program is counted in parts: the part that runs once, and a step of each solver. "Least
time" is that of the memory traffic at the device's full bandwidth, if no kernel waits for another
and nothing stays in the caches. Algorithms are not tuned, which takes the device, so the numbers
are close to those of a program that runs there, but not equal.

With --config.pallas=True only the filled rows of Broyden's history count, which is half of it over
a whole solve. An array that a Pallas kernel reads twice, as a group norm reads its input, counts
once. The second read comes from a cache only if a sample's group is small enough.
"""

import os

import jax
import jax.numpy as jnp
from absl import app, flags, logging
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import hlo
from benchmarks.analytic_cost import state_numbers
from benchmarks.report import define_flags, markdown, write_json
from benchmarks.roofline import PEAKS
from benchmarks.train_step import NUM_STEPS, STEPS_PER_EPOCH, memory
from benchmarks.workload import forced_by_flags, random_batch, random_network
from mdeq_jax import hardware
from mdeq_jax.engine.state import build_optimizer, state_shapes
from mdeq_jax.engine.step import make_eval_step, make_train_step, training_config
from mdeq_jax.models import build_model
from mdeq_jax.parallel import BATCH_AXIS
from mdeq_jax.tasks import build_task

DEVICE = "NVIDIA H200"
# The device as XLA needs it, from its data sheet and NVIDIA's tables of compute capability.
TARGET = """
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  memory_bandwidth: 4800000000000
  device_memory_size: 150754820096
  l2_cache_size: 62914560
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H200"
"""


def target_mesh() -> jax.sharding.Mesh:
    """One device of the kind, which need not be there.

    Raises:
        RuntimeError: JAX's CUDA plugin is not installed.
    """
    try:
        topology = topologies.get_topology_desc(
            platform="cuda", topology_name="", topology="1x1x1", target_config=TARGET
        )
    except (NotImplementedError, RuntimeError) as error:
        raise RuntimeError(
            "Compiling for a GPU takes JAX's CUDA plugin, though no GPU: "
            f'`pip install -e ".[cuda]"` ({error}).'
        ) from error
    return topologies.make_mesh(topology, (1,), (BATCH_AXIS,))


def compile_training(config, batch_size: int, mesh):
    """Compiles the step of the equilibrium phase for the mesh's device."""
    optimizer = build_optimizer(config.train, NUM_STEPS)
    model = build_model(training_config(config))
    step = make_train_step(model, optimizer, build_task(config), config, STEPS_PER_EPOCH)
    state = state_shapes(model, optimizer, build_task(config), config)
    batch = jax.eval_shape(lambda: random_batch(config, batch_size))
    return _compile(
        lambda state, batch: step(state, (), batch, False), mesh, state, batch, donate_argnums=0
    )


def compile_inference(config, batch_size: int, mesh):
    """Compiles the evaluation step for the mesh's device."""
    step = make_eval_step(build_model(config), build_task(config))
    variables = jax.eval_shape(lambda: random_network(config)[1])
    images = jax.eval_shape(lambda: random_batch(config, batch_size))
    batch = {**images, "mask": jax.ShapeDtypeStruct((batch_size,), jnp.float32)}
    budget = config.solver.forward.max_steps
    return _compile(
        lambda variables, batch: step(variables, (), batch, budget), mesh, variables, batch
    )


def _compile(step, mesh, held, batch, **jit_options):
    """Compiles (what every device holds, its part of the batch) -> anything."""
    replicated, split = PartitionSpec(), PartitionSpec(BATCH_AXIS)

    def shapes(tree, spec):
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    mapped = jax.shard_map(
        step, mesh=mesh, in_specs=(replicated, split), out_specs=replicated, check_vma=False
    )
    with hardware.compiling_for("gpu"):
        lowered = jax.jit(mapped, **jit_options).lower(
            shapes(held, replicated), shapes(batch, split)
        )
    return lowered.compile(compiler_options={"xla_gpu_autotune_level": 0})


def measure(config, batch_size: int, inference: bool) -> dict:
    """Counts of the program that a config's step is compiled to; see the module."""
    compile_step = compile_inference if inference else compile_training
    compiled = compile_step(config, batch_size, target_mesh())
    program, entry = hlo.computations(compiled.as_text())
    names = ("forward", "backward")[: 1 if inference else 2]
    bodies = hlo.loops(program, entry)
    if len(bodies) != len(names):
        raise RuntimeError(
            f"The program has {len(bodies)} loops where {len(names)} are expected, one a solve: "
            "its counts cannot be distinguished. Gradients without a backward solve have no such "
            "loop."
        )
    parts = {"once": (1, hlo.counts(program, entry))}
    for name, body in zip(names, bodies):
        counted = hlo.counts(program, body)
        moved = counted.bytes - _not_read(config, config.solver[name], batch_size)
        parts[name] = (config.solver[name].max_steps, counted._replace(bytes=moved))
    moved = sum(n * part.bytes for n, part in parts.values())
    return {
        "benchmark": "kernels",
        "config": config.name,
        "device": DEVICE,
        "precision": config.precision,
        "history": config.solver.forward.history_dtype,
        "pallas": config.pallas,
        "batch": batch_size,
        "inference": inference,
        "parts": {name: {"times": n, **part._asdict()} for name, (n, part) in parts.items()},
        "kernels": sum(n * part.kernels for n, part in parts.values()),
        "bytes": moved,
        "least_seconds": moved / PEAKS[DEVICE].bandwidth,
        "planned_bytes": memory(compiled)["planned_bytes"],
    }


def _not_read(config, solver, batch_size: int) -> int:
    """Bytes of Broyden's history that its kernels leave out of a step, in the middle of a solve."""
    if not config.pallas or solver.name != "broyden":
        return 0
    item = jnp.dtype(solver.history_dtype or jnp.float32).itemsize
    history = (solver.max_steps - 1) * batch_size * state_numbers(config) * item
    return history  # of two readings half each


def table(report: dict) -> str:
    """The report, to read."""
    labels = {"once": "once", "forward": "a forward step", "backward": "a backward step"}
    rows = [
        (
            labels[name],
            part["times"],
            part["kernels"],
            part["round_trips"],
            f"{part['bytes'] / 1e6:,.0f}",
        )
        for name, part in report["parts"].items()
    ]
    rows.append(("all", "", report["kernels"], "", f"{report['bytes'] / 1e6:,.0f}"))
    what = "inference" if report["inference"] else "training"
    head = (
        f"{report['config']}, {what}, batch {report['batch']}, {report['precision']}",
        "times",
        "kernels",
        "loops, branches",
        "MB moved",
    )
    return (
        f"{markdown(head, rows)}\nLeast time by memory traffic {1e3 * report['least_seconds']:.1f} "
        f"ms, memory as planned {report['planned_bytes'] / 1e9:.3f} GB; for {report['device']}."
    )


def main(argv, values: flags.FlagValues = flags.FLAGS) -> None:
    """Compiles, prints the table, writes the file."""
    del argv
    # The plugin would look for a GPU, of which none is needed.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    jax.config.update("jax_platforms", "cpu")
    report = measure(forced_by_flags(values), values.batch, values.inference)
    print(table(report))
    write_json(values.json, report)


def define_own_flags(values: flags.FlagValues) -> None:
    """Defines this benchmark's flags."""
    define_flags(values)
    flags.DEFINE_bool(
        "inference", False, "The evaluation step, not that of training.", flag_values=values
    )


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    define_own_flags(flags.FLAGS)
    app.run(main)
