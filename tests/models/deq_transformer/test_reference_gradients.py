"""Exact implicit gradients and dropout against what the original computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mdeq_jax.models.deq_transformer.cell import CellMasks
from mdeq_jax.models.deq_transformer.masks import DropoutMasks
from mdeq_jax.models.deq_transformer.network import Memory
from tests.helpers.language import close


def memory_before(reference, segment):
    """The reference's memory in front of a segment, in a buffer of the fixed size."""
    model = reference.model
    batch = reference.arrays["tokens"].shape[1]
    memory = model.empty_memory(batch, reference.dtype)
    if segment == 0:
        return memory
    z, injection = (
        reference.time_first(f"memory_{name}_segment{segment - 1}") for name in ("z", "u")
    )
    filled = z.shape[1]
    return Memory(
        memory.z.at[:, model.mem_len - filled :].set(z),
        memory.injection.at[:, model.mem_len - filled :].set(injection),
        jnp.full(batch, filled, jnp.int32),
    )


def loss_and_gradient(reference, segment, masks=None):
    model, (tokens, targets) = reference.model, reference.segment(segment)

    @jax.jit
    def run(params, memory):
        def loss(params):
            out = model.apply({"params": params}, tokens, memory=memory, train=True, masks=masks)
            return jnp.mean(out.logits.nll(targets)), out.memory

        return jax.value_and_grad(loss, has_aux=True)(params)

    return run(reference.variables["params"], memory_before(reference, segment))


@pytest.mark.parametrize("which", ["grad", pytest.param("grad_last", marks=pytest.mark.slow)])
def test_implicit_gradients(reference, which):
    segment = 0 if which == "grad" else reference.num_segments - 1
    (loss, _), gradients = loss_and_gradient(reference, segment)
    close(loss, reference.array(f"loss_segment{segment}"), reference.tol, "loss")
    reference.gradients_close(gradients, f"{which}/")


@pytest.mark.parametrize("name", ["post_norm_adaptive", "pre_norm_adaptive"])
def test_dropout_with_given_masks(name, load, reference_dir, x64):
    arrays = np.load(reference_dir / "deq_transformer" / "dropout_given_masks.npz")
    rates = {
        "model.transformer.dropout": float(arrays["dropout"]),
        "model.transformer.dropatt": float(arrays["dropatt"]),
    }
    reference = load(name, fields=rates)
    keep = {
        key.rsplit("/", 1)[1]: jnp.asarray(arrays[key], bool)
        for key in arrays
        if key.startswith(f"{name}/keep/")
    }
    masks = DropoutMasks(
        word_embedding=keep["word_embedding"],
        positional=keep["positional"][:, :, 0],
        cell=CellMasks(
            keep["attention_probabilities"],
            keep["attention_output"].swapaxes(1, 2),
            keep["ff_hidden"],
            keep["ff_output"],
        ),
        core_output=keep["core_output"].swapaxes(1, 2),
    )
    (loss, memory), gradients = loss_and_gradient(reference, 1, masks)
    close(loss, arrays[f"{name}/loss"], 1e-6, "loss")
    close(memory.z, arrays[f"{name}/memory_z"].swapaxes(0, 1), 1e-6, "memory_z")
    close(memory.injection, arrays[f"{name}/memory_u"].swapaxes(0, 1), 1e-6, "memory_u")
    reference.gradients_close(gradients, f"{name}/grad/", dict(arrays))
