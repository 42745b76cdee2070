"""RepMLPNet (Ding et al. 2022, 2112.11081): patches, stages of units, linear layer."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mdeq_jax.layers import BatchNorm, ConvNorm
from mdeq_jax.models.output import ForwardOptions, ModelOutput
from mdeq_jax.models.repmlp.resnet import linear_head
from mdeq_jax.models.repmlpnet.block import RepMLPBlock, Unit


class Stages(nn.Module):
    """Patches, then stages of units: all of the network before the last batch norm.

    Attributes:
        channels: of each stage.
        num_blocks: units of each stage.
        partitions: side of a partition in each stage.
        sharesets: of each stage.
        kernels: sizes of the convolutions next to the fully connected layers.
        patch_size: side of the patches that the first layer sees.
        gate_reduction: of the gates.
        ffn_expansion: of the feed-forward blocks.
        norm: the batch norm to copy.
        merged: whether the RepMLP blocks are merged (`deploy`). All other batch norms stay.
        dtype: to compute in; None: that of input and kernel.
    """

    channels: tuple[int, ...]
    num_blocks: tuple[int, ...]
    partitions: tuple[int, ...]
    sharesets: tuple[int, ...]
    kernels: tuple[int, ...]
    patch_size: int
    gate_reduction: int
    ffn_expansion: int
    norm: BatchNorm
    merged: bool = False
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, ...]:
        """From `[B, H, W, 3]` the output of each stage, each half as large as the one before."""
        outputs = []
        x = self._embed(images, self.channels[0], self.patch_size, "embed", train)
        for i, depth in enumerate(self.num_blocks):
            block = RepMLPBlock(
                (self.partitions[i], self.partitions[i]),
                self.kernels,
                self.sharesets[i],
                self.gate_reduction,
                self.norm,
                self.merged,
                self.dtype,
                parent=None,
            )
            for j in range(depth):
                x = Unit(block, self.ffn_expansion, name=f"stage{i}_{j}")(x, train=train)
            outputs.append(x)
            if i + 1 < len(self.channels):
                x = self._embed(x, self.channels[i + 1], 2, f"embed{i}", train)
        return tuple(outputs)

    def _embed(self, x, features, size, name, train):
        """Patches of `size` x `size` pixels to one pixel each."""
        conv = ConvNorm(features, size, self.norm, size, padding=0, dtype=self.dtype, name=name)
        return nn.relu(conv(x, train=train))


class RepMLPNet(nn.Module):
    """A hierarchical network without an equilibrium.

    Attributes:
        backbone: see there.
        num_classes: of the logits.
    """

    backbone: Stages
    num_classes: int

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool = False,
        forward: ForwardOptions | None = None,
    ) -> ModelOutput:
        """Class logits `[B, num_classes]` of normalised images `[B, H, W, 3]`.

        Args:
            images: float32, of a size such that the partitions divide the map of each stage.
            train: use the batch's statistics instead of the running ones.
            forward: has no effect: there is no solver.
        """
        del forward
        x = self.backbone(images, train=train)[-1]
        x = self.backbone.norm.copy(name="head_norm")(x, train=train)
        return ModelOutput(linear_head(x, self.num_classes))
