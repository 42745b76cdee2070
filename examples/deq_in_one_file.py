"""A deep equilibrium model in one file: `python examples/deq_in_one_file.py`.

The state of a sample is the fixed point z = f(params, z, x) of one layer. Anderson acceleration
finds it, and the implicit function theorem differentiates it. Nothing of mdeq_jax is imported: this
is what `mdeq_jax.implicit.equilibrium` does, without its other solvers, gradients and safeguards.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

HIDDEN, CLASSES, TRAIN = 96, 10, 1437


# The solver (Anderson 1965; Walker, Ni 2011, equation 2.3).
def anderson(g, z0, *, m=5, max_steps=30, tol=1e-4, lam=1e-4):
    """Solves z = g(z) for each row of z0 `[B, D]`.

    The next state is the combination of the last m values of g whose weights sum to one and
    minimise the combined residual.

    Returns:
        z `[B, D]`, relative residual `[B]`, and how often g was evaluated.
    """
    batch, size = z0.shape
    states = jnp.zeros((batch, m, size)).at[:, 0].set(z0)  # a ring of the last m states
    values = jnp.zeros((batch, m, size)).at[:, 0].set(g(z0))  # g at these states

    def residual(z, value):
        return jnp.linalg.norm(value - z, axis=1) / (jnp.linalg.norm(value, axis=1) + 1e-9)

    def weights(states, values, step):
        filled = jnp.arange(m) < step  # `[m]`
        difference = jnp.where(filled[None, :, None], values - states, 0)  # `[B, m, D]`
        gram = jnp.einsum("bmd,bnd->bmn", difference, difference)  # `[B, m, m]`
        scale = jnp.trace(gram, axis1=1, axis2=2)[:, None, None] / m + 1e-12
        gram = gram / scale + (lam * jnp.eye(m) + jnp.diag(1e9 * ~filled))[None]
        alpha = jnp.linalg.solve(gram, jnp.ones((batch, m, 1)))[..., 0]
        return alpha / jnp.sum(alpha, axis=1, keepdims=True)  # `[B, m]`

    def proceed(carry):
        step, _, _, _, worst = carry
        return (step < max_steps) & (worst > tol)

    def body(carry):
        step, states, values, _, _ = carry
        z = jnp.einsum("bm,bmd->bd", weights(states, values, step), values)
        value = g(z)
        states = states.at[:, step % m].set(z)
        values = values.at[:, step % m].set(value)
        return step + 1, states, values, z, jnp.max(residual(z, value))

    step, _, _, z, _ = jax.lax.while_loop(proceed, body, (1, states, values, z0, jnp.inf))
    return z, residual(z, g(z)), step + 1


# The equilibrium, and its gradient (Bai, Kolter, Koltun 2019, theorem 1).


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def equilibrium(f, params, x, z0):
    """z with z = f(params, z, x); differentiable in params and x."""
    return anderson(lambda z: f(params, z, x), z0)[0]


def equilibrium_forward(f, params, x, z0):
    z_star = equilibrium(f, params, x, z0)
    return z_star, (params, x, z_star)  # no step of the solver is stored


def equilibrium_backward(f, saved, gradient):
    params, x, z_star = saved
    _, vjp_z = jax.vjp(lambda z: f(params, z, x), z_star)
    # u = J^T u + gradient, with the same solver.
    u, _, _ = anderson(lambda u: vjp_z(u)[0] + gradient, jnp.zeros_like(gradient))
    _, vjp_rest = jax.vjp(lambda params, x: f(params, z_star, x), params, x)
    return *vjp_rest(u), jnp.zeros_like(z_star)


equilibrium.defvjp(equilibrium_forward, equilibrium_backward)


# The network: one layer, whose fixed point a linear layer reads out.


def init(key):
    keys = jax.random.split(key, 3)
    return {
        "inject": jax.random.normal(keys[0], (64, HIDDEN)) / 8,
        "cell": 0.3 * jax.random.normal(keys[1], (HIDDEN, HIDDEN)) / HIDDEN**0.5,
        "read_out": jax.random.normal(keys[2], (HIDDEN, CLASSES)) / HIDDEN**0.5,
    }


def cell(weight, z, x):
    return jnp.tanh(z @ weight + x)


def contractive(weight):
    """The weight with a spectral norm under 1: then there is one equilibrium (Banach)."""
    return 0.9 * weight / jnp.maximum(1.0, jnp.linalg.norm(weight, 2))


def network(params, images):
    x = images @ params["inject"]  # `[B, HIDDEN]`
    weight = contractive(params["cell"])  # once, not at every step of the solver
    z_star = equilibrium(cell, weight, x, jnp.zeros_like(x))
    return z_star @ params["read_out"]  # `[B, CLASSES]`


def loss(params, images, labels):
    logits = network(params, images)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def train(steps=300, batch=128, seed=0):
    """Trains on scikit-learn's digits; returns the parameters and the evaluation."""
    images, labels = load_digits(return_X_y=True)
    images, labels = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels)
    params = init(jax.random.key(seed))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-3))

    @jax.jit
    def update(params, state, key):
        rows = jax.random.randint(key, (batch,), 0, TRAIN)
        value, gradient = jax.value_and_grad(loss)(params, images[rows], labels[rows])
        changes, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, changes), state, value

    state = optimizer.init(params)
    for step, key in enumerate(jax.random.split(jax.random.key(seed + 1), steps), start=1):
        params, state, value = update(params, state, key)
        if step % 100 == 0:
            print(f"step {step:4}  loss {value:.4f}")
    x = images[TRAIN:] @ params["inject"]
    _, residual, nfe = anderson(
        lambda z: cell(contractive(params["cell"]), z, x), jnp.zeros_like(x)
    )
    correct = jnp.argmax(network(params, images[TRAIN:]), axis=1) == labels[TRAIN:]
    print(f"accuracy {jnp.mean(correct):.2%}  NFE {nfe}  residual {jnp.median(residual):.1e}")
    return params, float(jnp.mean(correct)), float(jnp.median(residual))


if __name__ == "__main__":
    train()
