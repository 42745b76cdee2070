"""The architecture that the names and shapes of a state dict show."""

import numpy as np

from mdeq_jax.convert import load_torch_file, recognise
from mdeq_jax.convert.mdeq.architectures import architecture_of, infer_architecture
from mdeq_jax.convert.mdeq.names import name_table
from mdeq_jax.convert.mdeq.variants import standard_names
from tests.helpers import networks
from tests.helpers.networks import load_config, refusal


def test_unknown_sizes_and_no_mdeq_at_all(reference_dir, tiny):
    for name in networks.SMALL_MODELS:
        named = standard_names(load_torch_file(reference_dir / f"{name}.pkl"))
        found = recognise(named.tensors)
        assert found.misfit.count == 0
        assert "no config here describes (name=mdeq_" in found.text
    message = refusal({"layer.weight": np.zeros((2, 2), np.float32)}, tiny[1])
    assert message.endswith("Recognised as: a network of no family here.")


def test_inferred_from_every_kind_of_network():
    """Odd networks that nobody released: one scale, many blocks, large kernels, long stems."""
    sizes = dict(head_channels=(4,), final_channels=12)
    for fields in (
        dict(channels=(8,), num_blocks=(2,), big_kernels=(1,), downsample_times=1, **sizes),
        dict(num_blocks=(1, 3), big_kernels=(2, 1), weight_norm=False, block_gn_affine=False),
        dict(downsample_times=4, fuse_gn_affine=False, post_gn_affine=True, dropout=0.5),
        dict(name="mdeq_segmenter", final_conv_kernel=3, downsample_times=2, num_classes=3),
    ):
        model = load_config("cifar10_tiny", **fields).model
        shapes = {entry.torch_name: entry.shape for entry in name_table(model)}
        assert infer_architecture(shapes) == architecture_of(model)


def test_more_scales_than_an_image_has_are_not_tried():
    kernel = np.zeros((2, 2, 3, 3), np.float32)
    many = {f"fullstage.branches.{i}.blocks.0.conv1.weight": kernel for i in range(5000)}
    many["classifier.weight"] = np.zeros((2, 2), np.float32)
    many["incre_modules.0.0.conv1.weight"] = kernel
    assert recognise(many).architecture is None
