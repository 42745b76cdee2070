"""Networks of RepMLPs and 1x1 convolutions only (Ding et al. 2021, 2105.01883, section 4.1)."""

import flax.linen as nn
import jax

from mdeq_jax.models.output import ForwardOptions, ModelOutput
from mdeq_jax.models.repmlp.blocks import BlockSpec
from mdeq_jax.models.repmlp.resnet import linear_head


class PureMLP(nn.Module):
    """Stages of 1x1 convolutions with a RepMLP between each two, and max pooling between stages.

    In the merged form all layers are linear layers over partitions, or over the channels of pixels.

    Attributes:
        channels: of each stage.
        num_blocks: RepMLPs of each stage.
        spec: what they share.
        num_classes: of the logits.
    """

    channels: tuple[int, ...]
    num_blocks: tuple[int, ...]
    spec: BlockSpec
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
        x = nn.relu(self.spec.conv(self.channels[0], 1, "embed")(images, train=train))
        for i, (features, depth) in enumerate(zip(self.channels, self.num_blocks)):
            if i > 0:
                x = nn.max_pool(x, (2, 2), (2, 2))
            x = nn.relu(self.spec.conv(features, 1, f"stage{i}_conv0")(x, train=train))
            for j in range(1, depth + 1):
                x = nn.relu(self.spec.repmlp(features, f"stage{i}_repmlp{j}")(x, train=train))
                x = nn.relu(self.spec.conv(features, 1, f"stage{i}_conv{j}")(x, train=train))
        return ModelOutput(linear_head(x, self.num_classes))
