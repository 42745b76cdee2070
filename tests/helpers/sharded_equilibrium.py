"""`jax.shard_map` around `equilibrium` on four simulated devices, as a program."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec

from mdeq_jax.implicit import GRADIENTS, equilibrium
from mdeq_jax.solvers import SOLVERS, broyden

BATCH, SIZE = 8, 3
SPLIT, WHOLE = PartitionSpec("batch"), PartitionSpec()


def cell(params, z, x):
    return jnp.tanh(z @ params + x)


def loss(params, x, gradient="ift", f_solver=broyden):
    solver = partial(f_solver, max_steps=30, tol=1e-6)
    z0 = jnp.zeros(x.shape)  # does not vary over the devices, unlike f(z0)
    z, _ = equilibrium(cell, params, x, z0, gradient=gradient, f_solver=solver)
    return jnp.sum(jnp.sin(z), axis=1)


def main():
    """Compares every gradient and solver with the same computation on one device."""
    params = 0.3 * jnp.cos(jnp.arange(SIZE * SIZE, dtype=jnp.float32)).reshape(SIZE, SIZE)
    x = jnp.sin(jnp.arange(BATCH * SIZE, dtype=jnp.float32)).reshape(BATCH, SIZE)
    cases = [{"gradient": name} for name in GRADIENTS]
    cases += [{"f_solver": solver} for solver in SOLVERS.values() if solver is not broyden]
    for axis_type in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((4,), ("batch",), axis_types=(axis_type,))
        for case, check_vma in ((c, v) for c in cases for v in (True, False)):
            if case != cases[0] and (axis_type == AxisType.Explicit or not check_vma):
                continue
            sharded = jax.shard_map(
                partial(loss, **case),
                mesh=mesh,
                in_specs=(WHOLE, SPLIT),
                out_specs=SPLIT,
                check_vma=check_vma,
            )

            def total(function, params, x):
                values = function(params, x)
                return jnp.sum(values), values

            def run(function, params, x):
                grad = jax.grad(partial(total, function), argnums=(0, 1), has_aux=True)
                return jax.jit(grad)(params, x)

            theirs = run(partial(loss, **case), params, x)
            with jax.set_mesh(mesh):
                ours = run(
                    sharded,
                    jax.device_put(params, jax.NamedSharding(mesh, WHOLE)),
                    jax.device_put(x, jax.NamedSharding(mesh, SPLIT)),
                )
            for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
                np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-4, atol=1e-5)
            print("equal:", axis_type, case, check_vma, flush=True)


if __name__ == "__main__":
    main()
