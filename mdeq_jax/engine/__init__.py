"""Training and evaluation: state, step, loop, checkpoints, work directories."""

from mdeq_jax.extras import require_extra

require_extra(
    "train", "mdeq_jax.engine", ("ml_collections", "optax", "orbax", "tensorboardX", "tqdm")
)
