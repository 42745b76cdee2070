"""The RepMLP module (Ding et al. 2021, 2105.01883, section 3), to train and merged."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from mdeq_jax.layers import BatchNorm, ConvNorm, GroupedDense, grouped_orthogonal, torch_dense


def check_partition(height: int, width: int, partition: tuple[int, int], where: str) -> None:
    """Refuses a map that the partition does not divide.

    Raises:
        ValueError: names the map, the partition and the remedy.
    """
    h, w = partition
    if height % h or width % w:
        raise ValueError(
            f"{where} cuts its map into partitions of {h}x{w}, which must divide it; the map is "
            f"{height}x{width}. Change data.image_size, or the partition."
        )


class GlobalPerceptron(nn.Module):
    """One number for each partition and channel, from all of them.

    Attributes:
        reduction: by which the hidden layer is narrower than input and output.
        norm: the batch norm to copy.
        merged: whether the batch norm has been merged into the first layer.
        dtype: to compute in; None: that of input and kernel.
    """

    reduction: int
    norm: BatchNorm
    merged: bool = False
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, means: jax.Array, *, train: bool) -> jax.Array:
        """`[B, A, B', C]`, the mean of each of A x B' partitions, to the same shape."""
        rows, columns = means.shape[1:3]
        if not self.merged:
            means = self.norm.copy(name="norm")(means, train=train)
        v = rearrange(means, "n a b c -> n (c a b)")
        features, hidden = v.shape[1], v.shape[1] // self.reduction
        v = torch_dense(features, hidden, dtype=self.dtype, name="fc1")(v)
        v = torch_dense(hidden, features, dtype=self.dtype, name="fc2")(nn.relu(v))
        return rearrange(v, "n (c a b) -> n a b c", a=rows, b=columns)


class RepMLP(nn.Module):
    """Global, partition and local perceptron of a map.

    The map is cut into partitions. What the global perceptron makes of their means is added to
    them. The partition perceptron then is one grouped, fully connected layer over all pixels and
    channels of a partition; in training convolutions of each partition by itself stand next to it
    (the local perceptron). There is no activation within or after the module.

    Attributes:
        features: channels of the output.
        partition: height and width of a partition; they divide those of the map.
        kernels: sizes of the local perceptron's convolutions, odd; () for none.
        groups: of channels, both of the partition and the local perceptron.
        reduction: of the global perceptron, which there is only if there are several partitions.
        norm: the batch norm to copy.
        merged: whether it is the merged form (`deploy`): no batch norm and no convolution.
        dtype: to compute in; None: that of input and kernel.
    """

    features: int
    partition: tuple[int, int]
    kernels: tuple[int, ...]
    groups: int
    reduction: int
    norm: BatchNorm
    merged: bool = False
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """`[B, H, W, C]` to `[B, H, W, features]`.

        Raises:
            ValueError: the partition does not divide the map, or the groups the channels.
        """
        (h, w), (_, height, width, channels) = self.partition, x.shape
        check_partition(height, width, self.partition, "RepMLP")
        check_groups(self.groups, channels, self.features)
        rows, columns = height // h, width // w

        x = rearrange(x, "n (a h) (b w) c -> n a h b w c", h=h, w=w)
        if rows * columns > 1:
            means = jnp.mean(x, axis=(2, 4))
            added = GlobalPerceptron(
                self.reduction, self.norm, self.merged, self.dtype, name="global_perceptron"
            )(means, train=train)
            x = x + added[:, :, None, :, None, :].astype(x.dtype)

        vectors = rearrange(x, "n a h b w (g c) -> g (n a b) (h w c)", g=self.groups)
        y = GroupedDense(
            h * w * self.features // self.groups,
            use_bias=self.merged,
            kernel_init=grouped_orthogonal,
            dtype=self.dtype,
            name="fc3",
        )(vectors)
        if self.merged:
            return rearrange(
                y, "g (n a b) (h w o) -> n (a h) (b w) (g o)", a=rows, b=columns, h=h, w=w
            )

        y = rearrange(y, "g m (h w o) -> m 1 1 (h w g o)", h=h, w=w)  # statistics per position
        y = self.norm.copy(name="fc3_norm")(y, train=train)
        y = rearrange(y, "m 1 1 (h w o) -> m h w o", h=h, w=w)
        partitions = rearrange(x, "n a h b w c -> (n a b) h w c")
        for size in self.kernels:
            branch = ConvNorm(
                self.features,
                size,
                self.norm,
                groups=self.groups,
                dtype=self.dtype,
                name=f"repconv{size}",
            )
            y = y + branch(partitions, train=train)
        return rearrange(y, "(n a b) h w o -> n (a h) (b w) o", a=rows, b=columns)


def check_groups(groups: int, *channels: int) -> None:
    """Refuses groups that do not divide the channels.

    Raises:
        ValueError: names the groups and the channels.
    """
    if groups < 1 or any(c % groups for c in channels):
        raise ValueError(
            f"The groups of a RepMLP must divide its channels; got {groups} groups and "
            f"{' to '.join(map(str, channels))} channels. Change model.groups."
        )
