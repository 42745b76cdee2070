"""How equilibria converge and contract."""

from mdeq_jax.extras import require_extra

require_extra("train", "mdeq_jax.diagnostics", ("matplotlib",))
