"""How the solves converge: traces, spectral radius, evaluations by number of solver steps."""

from mdeq_jax.extras import require_extra

require_extra("train", "mdeq_jax.diagnostics", ("matplotlib", "ml_collections"))
