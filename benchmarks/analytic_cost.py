"""Multiply-adds and memory traffic of a network, counted from its config.

Only convolutions and the linear layer count, because they are nearly all of the arithmetic. Their
traffic is the least possible: each reads its input and its kernel and writes its output once, and
everything between two of them (norms, ReLUs, sums, the solver) is free.
"""

from typing import NamedTuple

import jax.numpy as jnp

from mdeq_jax.models.mdeq.heads import BOTTLENECK_EXPANSION
from mdeq_jax.models.precision import PRECISIONS

CELL_PARTS = ("blocks", "fusion", "post-fusion")
PARTS = ("stem", *CELL_PARTS, "head")


class Convolution(NamedTuple):
    """One convolution of one image; the linear layer is one of 1x1 on one pixel.

    Attributes:
        part: of `PARTS`.
        size: of the kernel, `size` x `size`.
        in_channels, out_channels: widths.
        height, width: of the output.
        stride: 1 or 2.
    """

    part: str
    size: int
    in_channels: int
    out_channels: int
    height: int
    width: int
    stride: int = 1

    @property
    def weights(self) -> int:
        """Entries of the kernel."""
        return self.size**2 * self.in_channels * self.out_channels

    @property
    def multiply_adds(self) -> int:
        """Of one image; products with the padding count too."""
        return self.weights * self.height * self.width

    @property
    def elements(self) -> int:
        """Numbers read and written, without the kernel."""
        pixels = self.height * self.width
        return pixels * (self.stride**2 * self.in_channels + self.out_channels)


class Work(NamedTuple):
    """What some computation takes.

    Attributes:
        flops: floating-point operations, two a multiply-add.
        bytes: memory traffic.
    """

    flops: float
    bytes: float

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: float) -> "Work":
        return Work(times * self.flops, times * self.bytes)


def state_numbers(config) -> int:
    """Numbers in one image's state, D."""
    sizes = (_size(config, i) for i in range(len(config.model.channels)))
    return sum(width * h * w for width, (h, w) in zip(config.model.channels, sizes))


def convolutions(config) -> list[Convolution]:
    """Every convolution that one image meets: stem, one application of the cell, head.

    Args:
        config: a config with `data.image_size`.
    """
    return [*_stem(config), *_cell(config), *_head(config)]


def _size(config, scale: int) -> tuple[int, int]:
    """Height and width of a resolution; 0 is the highest of the cell."""
    factor = 2 ** (config.model.downsample_times + scale)
    return tuple(side // factor for side in config.data.image_size)


def _stem(config):
    model, width = config.model, config.model.channels[0]
    height_width, in_channels = tuple(config.data.image_size), 3
    for i in range(max(2, model.downsample_times)):
        stride = 2 if i < model.downsample_times else 1
        height_width = tuple(side // stride for side in height_width)
        yield Convolution("stem", 3, in_channels, width, *height_width, stride)
        in_channels = width
    if model.downsample_times > 0 or len(model.channels) > 2:
        yield Convolution("stem", 1, width, width, *height_width)


def _cell(config):
    model = config.model
    for i, width in enumerate(model.channels):
        for n in range(2 * model.num_blocks[i]):
            size, wide = 5 if n % 2 < model.big_kernels[i] else 3, model.expansion * width
            between = (wide, width) if n % 2 else (width, wide)
            yield Convolution("blocks", size, *between, *_size(config, i))
    if len(model.channels) == 1:
        return
    for i, to_width in enumerate(model.channels):
        for j, from_width in enumerate(model.channels):
            if j > i:  # upsampled after the convolution
                yield Convolution("fusion", 1, from_width, to_width, *_size(config, j))
            for k in range(j + 1, i + 1):
                width = to_width if k == i else from_width
                yield Convolution("fusion", 3, from_width, width, *_size(config, k), 2)
        yield Convolution("post-fusion", 1, to_width, to_width, *_size(config, i))


def _head(config):
    model = config.model
    if model.name == "mdeq_segmenter":
        width = sum(model.channels)
        yield Convolution("head", 1, width, width, *_size(config, 0))
        yield Convolution(
            "head", model.final_conv_kernel, width, model.num_classes, *_size(config, 0)
        )
        return
    raised = [BOTTLENECK_EXPANSION * width for width in model.head_channels]
    for i, (channels, width) in enumerate(zip(model.channels, model.head_channels)):
        yield Convolution("head", 1, channels, width, *_size(config, i))
        yield Convolution("head", 3, width, width, *_size(config, i))
        yield Convolution("head", 1, width, raised[i], *_size(config, i))
        if channels != raised[i]:
            yield Convolution("head", 1, channels, raised[i], *_size(config, i))
        if i > 0:
            yield Convolution("head", 3, raised[i - 1], raised[i], *_size(config, i), 2)
    last = len(model.channels) - 1
    yield Convolution("head", 1, raised[-1], model.final_channels, *_size(config, last))
    yield Convolution("head", 1, model.final_channels, model.num_classes, 1, 1)


def forward_work(config, batch_size: int, parts=PARTS) -> Work:
    """One pass through these parts, the cell applied once, for a batch."""
    item = jnp.dtype(PRECISIONS[config.precision] or jnp.float32).itemsize
    met = [conv for conv in convolutions(config) if conv.part in parts]
    return Work(
        2.0 * batch_size * sum(conv.multiply_adds for conv in met),
        float(item * sum(batch_size * conv.elements + conv.weights for conv in met)),
    )


def inference_work(config, batch_size: int, forward_nfe: int) -> Work:
    """Stem, `forward_nfe` evaluations of the cell by the solver and one at its result, head."""
    outside = forward_work(config, batch_size, ("stem", "head"))
    return outside + forward_work(config, batch_size, CELL_PARTS) * (forward_nfe + 1)


def training_work(config, batch_size: int, forward_nfe: int, backward_nfe: int) -> Work:
    """A training step by implicit differentiation.

    A gradient with respect to a convolution's input, and one with respect to its kernel, each take
    as much as the convolution. Stem and head: forwards and both gradients. The cell: the forward
    evaluations and the one at z*; `backward_nfe` products with its Jacobian, which need gradients
    with respect to inputs alone; at last both gradients once.
    """
    outside = forward_work(config, batch_size, ("stem", "head"))
    evaluations = forward_nfe + 1 + backward_nfe + 2
    return outside * 3 + forward_work(config, batch_size, CELL_PARTS) * evaluations
