"""The head of every segmentation network, and a network of a backbone and this head."""

from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp

from mdeq_jax.layers import BatchNorm, Conv, ConvBNReLU, resize_bilinear
from mdeq_jax.models.output import ForwardOptions, ModelOutput

if TYPE_CHECKING:
    from ml_collections import ConfigDict

# The original's momentum, as Flax counts it: the weight of the old statistics.
SEGMENTER_MOMENTUM = 0.99


class SegmentationHead(nn.Module):
    """Maps to pixel logits at the highest resolution.

    Attributes:
        final_conv_kernel: size of the last convolution.
        num_classes: of the logits.
        norm: the batch norm to copy.
        dtype: to compute in; None: that of input and kernel.
    """

    final_conv_kernel: int
    num_classes: int
    norm: BatchNorm
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, z: tuple[jax.Array, ...], *, train: bool) -> jax.Array:
        """`[B, H_i, W_i, C_i]`, highest first, to `[B, H_0, W_0, num_classes]`.

        The logits are in float32 or better.
        """
        size = z[0].shape[1:3]
        y = jnp.concatenate([resize_bilinear(z_i, size) for z_i in z], axis=-1)
        y = ConvBNReLU(y.shape[-1], 1, self.norm, use_bias=True, dtype=self.dtype, name="mix")(
            y, train
        )
        y = Conv(
            self.num_classes,
            self.final_conv_kernel,
            use_bias=True,
            dtype=self.dtype,
            name="classifier",
        )(y)
        return y.astype(jnp.promote_types(y.dtype, jnp.float32))


class BackboneSegmenter(nn.Module):
    """The stages of a backbone, all fed to a segmentation head; it has no equilibrium.

    Attributes:
        backbone: called as `backbone(images, train=...)`; the output of each stage, highest first.
        head: from these to pixel logits.
    """

    backbone: nn.Module
    head: SegmentationHead

    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool = False,
        forward: ForwardOptions | None = None,
    ) -> ModelOutput:
        """Pixel logits `[B, H_0, W_0, num_classes]` of normalised images `[B, H, W, 3]`.

        Args:
            images: float32, of the size that the variables were made for.
            train: use the batch's statistics instead of the running ones.
            forward: has no effect: there is no solver.
        """
        del forward
        stages = self.backbone(images, train=train)
        return ModelOutput(self.head(stages, train=train))


def check_final_conv_kernel(config: "ConfigDict") -> None:
    """Refuses a size that `SegmentationHead` does not have.

    Raises:
        ValueError: names the setting, its value and the requirement.
    """
    if config.model.final_conv_kernel not in (1, 3, 5):
        raise ValueError(
            f"model.final_conv_kernel must be 1, 3 or 5; got {config.model.final_conv_kernel}."
        )
