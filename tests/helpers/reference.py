"""A converted network next to what the original computed with it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mdeq_jax.convert import export_state_dict


class Network(NamedTuple):
    """A converted model, and what the original computed with it."""

    config: object
    model: object
    variables: dict
    reference: object
    dtype: type
    tol: float

    def array(self, name):
        """A reference array in our layout."""
        value = self.reference[name]
        value = value.transpose(0, 2, 3, 1) if value.ndim == 4 else value
        return jnp.asarray(value, self.dtype)

    def scales(self, name):
        return tuple(self.array(f"{name}{i}") for i in range(len(self.config.model.channels)))

    def assert_close(self, actual, name, tol=None):
        """In the Euclidean norm: a single entry of a float32 result may well be off by more."""
        assert_close(actual, self.array(name), tol or self.tol, name)

    def assert_gradients_close(self, gradients, prefix):
        """Gradients of the parameters against the arrays "PREFIX/KEY"."""
        statistics = jax.tree.map(np.zeros_like, self.variables["batch_stats"])
        exported = export_state_dict({"params": gradients, "batch_stats": statistics}, self.config)
        keys = [k.removeprefix(prefix) for k in self.reference if k.startswith(prefix)]
        assert len(keys) > 50
        for key in keys:
            assert_close(exported[key], self.reference[prefix + key], self.tol, key)


def assert_close(actual, expected, tol, name):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    error = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
    assert error < tol, f"{name}: relative error {error:.1e}"
