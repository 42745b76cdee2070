"""ResNets whose middle stages hold RepMLPs (Ding et al. 2021, 2105.01883, section 4.2)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mdeq_jax.layers import torch_dense
from mdeq_jax.models.output import ForwardOptions, ModelOutput
from mdeq_jax.models.repmlp.blocks import BaseBlock, BlockSpec, BottleneckBlock, LightBlock

REPMLP_STAGES = (2, 3)  # of 1 to 4; there all blocks but the first hold a RepMLP
BLOCKS = ("light", "bottleneck", "base")


class Backbone(nn.Module):
    """Stem and four stages.

    Attributes:
        block: "light", "bottleneck" or "base", the kind of block that stage 2 and 3 repeat.
        num_blocks: of each stage.
        channels: of the stem and of each stage.
        bottleneck_reduction: "bottleneck": of the RepMLPs in stage 2 and in stage 3.
        spec: what all blocks share.
    """

    block: str
    num_blocks: tuple[int, ...]
    channels: tuple[int, ...]
    bottleneck_reduction: tuple[int, ...]
    spec: BlockSpec

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, ...]:
        """From `[B, H, W, 3]` the output of each stage, 1/4, 1/8, 1/16 and 1/32 as large."""
        stem, *widths = self.channels
        x = nn.relu(self.spec.conv(stem, 7, "stem", 2)(images, train=train))
        window, stride, padding = (3, 3), (2, 2), ((1, 1), (1, 1))
        x = nn.max_pool(x, window, stride, padding)  # pyright: ignore[reportArgumentType]
        outputs = []
        for stage, (depth, features) in enumerate(zip(self.num_blocks, widths), start=1):
            for j in range(depth):
                x = self._block(stage, j, features)(x, train=train)
            outputs.append(x)
        return tuple(outputs)

    @nn.nowrap
    def _block(self, stage: int, j: int, features: int) -> nn.Module:
        """Block `j` of a stage."""
        name = f"stage{stage}_{j}"
        if self.block == "base" or stage not in REPMLP_STAGES or j == 0:
            stride = 2 if stage > 1 and j == 0 else 1
            return BaseBlock(self.spec, features, features // 4, stride, name=name)
        if self.block == "light":
            return LightBlock(self.spec, features, features // 8, name=name)
        reduction = self.bottleneck_reduction[REPMLP_STAGES.index(stage)]
        return BottleneckBlock(self.spec, features, features // 4, reduction, name=name)


class RepMLPResNet(nn.Module):
    """Backbone, mean over space, linear layer; it has no equilibrium.

    Attributes:
        backbone: see there.
        num_classes: of the logits.
    """

    backbone: Backbone
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
            images: float32, of the size that the variables were made for.
            train: use the batch's statistics instead of the running ones.
            forward: has no effect: there is no solver.
        """
        del forward
        x = self.backbone(images, train=train)[-1]
        return ModelOutput(linear_head(x, self.num_classes))


def linear_head(x: jax.Array, num_classes: int) -> jax.Array:
    """Mean over space and the submodule "linear": `[B, H, W, C]` to `[B, num_classes]`.

    To be called within a compact module. Computes in float32 or better.
    """
    x = jnp.mean(x.astype(jnp.promote_types(x.dtype, jnp.float32)), axis=(1, 2))
    return torch_dense(x.shape[-1], num_classes, name="linear")(x)
