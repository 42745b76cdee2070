"""Which RepMLP-ResNet or RepMLPNet a file belongs to, by the names and shapes of its tensors."""

from collections.abc import Iterator, Mapping
from itertools import count, takewhile
from math import isqrt
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from mdeq_jax.convert.entries import count_parameters, find_misfit
from mdeq_jax.convert.repmlp.names import repmlpnet_table, resnet_table

Shapes = Mapping[str, tuple[int, ...]]
_TABLES = {"repmlp_resnet": resnet_table, "repmlpnet": repmlpnet_table}
_RES50 = dict(num_blocks=(3, 4, 6, 3), channels=(64, 256, 512, 1024, 2048))
# File in configs/ -> what distinguishes its network from the others.
KNOWN: dict[str, dict[str, Any]] = {
    "repmlp_res50_light_224": dict(name="repmlp_resnet", block="light", groups=4, **_RES50),
    "repmlp_res50_bottleneck_224": dict(
        name="repmlp_resnet", block="bottleneck", groups=8, **_RES50
    ),
    **{
        f"repmlpnet_{variant}": dict(
            name="repmlpnet",
            channels=tuple(width << stage for stage in range(4)),
            num_blocks=(2, 2, depth, 2),
            partitions=tuple(side >> stage for stage in range(4)),
            sharesets=sharesets,
        )
        for variant, width, depth, side, sharesets in (
            ("t224", 64, 6, 56, (1, 4, 16, 128)),
            ("t256", 64, 6, 64, (1, 4, 16, 128)),
            ("b224", 96, 12, 56, (1, 4, 32, 128)),
            ("b256", 96, 12, 64, (1, 4, 32, 128)),
            ("d256", 80, 18, 64, (1, 4, 16, 128)),
            ("l256", 96, 18, 64, (1, 4, 32, 256)),
        )
    },
}


class Network(NamedTuple):
    """What a file is.

    Attributes:
        fields: of `config.model`, as far as they show.
        image_size: height and width.
        misfit: number of tensors that do not fit these fields.
    """

    fields: dict[str, Any]
    image_size: tuple[int, int]
    misfit: int

    @property
    def text(self) -> str:
        """For people: the config, and the overrides that it needs."""
        fits = (
            config
            for config, known in KNOWN.items()
            if all(self.fields.get(field) == value for field, value in known.items())
        )
        config = next(fits, None)
        if config is None:
            listed = ", ".join(f"{field}={value}" for field, value in self.fields.items())
            text = f"a network that no config here describes ({listed})"
        else:
            overrides = [f" --config.model.{f}={self.fields[f]}" for f in self._unusual()]
            text = f"configs/{config}.py{''.join(overrides)}"
        if self.misfit:
            return f"incomplete or altered, {self.misfit} tensors do not fit; nearest is {text}"
        return text

    @property
    def parameters(self) -> int:
        """Trainable parameters."""
        return count_parameters(_TABLES[self.fields["name"]](self.config))

    @property
    def config(self) -> SimpleNamespace:
        """What a table of names reads."""
        return SimpleNamespace(
            model=SimpleNamespace(**self.fields), data=SimpleNamespace(image_size=self.image_size)
        )

    def _unusual(self) -> Iterator[str]:
        if self.fields["deployed"]:
            yield "deployed"
        if self.fields["num_classes"] != 1000:
            yield "num_classes"


def recognise(tensors: Mapping[str, np.ndarray]) -> Network | None:
    """Recognises named tensors, prefixes stripped; None: neither of the two families."""
    shapes = {name: np.shape(tensor) for name, tensor in tensors.items()}
    infer = _infer_repmlpnet if "conv_embedding.conv.weight" in shapes else _infer_resnet
    try:
        found = infer(shapes)
    except (KeyError, ZeroDivisionError, ValueError, IndexError):
        return None  # a name or a dimension that every such file has is missing
    table = _TABLES[found.fields["name"]](found.config)
    return found._replace(misfit=find_misfit(tensors, table).count)


def remedy(config, tensors: Mapping[str, np.ndarray]) -> list[str]:
    """The overrides that make a config fit a file; empty if the file fits no such config."""
    found = recognise(tensors)
    if found is None or found.misfit or found.fields["name"] != config.model.name:
        return []
    merged = found.fields["deployed"]  # then the kernels do not show
    changes = [
        f"--config.model.{field}={value}"
        for field, value in found.fields.items()
        if config.model[field] != value and not (merged and field == "kernels")
    ]
    if tuple(config.data.image_size) != found.image_size:
        changes.append(f"--config.data.image_size={found.image_size}")
    return changes


def _depth(shapes: Shapes, prefix: str, last: str) -> int:
    """The number of blocks PREFIX0, PREFIX1, ... that have a tensor LAST."""
    return len(list(takewhile(lambda j: f"{prefix}{j}.{last}" in shapes, count())))


def _kernels(shapes: Shapes, module: str, usual: tuple[int, ...]) -> tuple[int, ...]:
    """Sizes of the convolutions next to fc3; `usual` if they have been merged."""
    if f"{module}.fc3.bias" in shapes:
        return usual
    return tuple(k for k in range(1, 32) if f"{module}.repconv{k}.conv.weight" in shapes)


def _root(n: int) -> int:
    """The square root of a square.

    Raises:
        ValueError: it is no square.
    """
    root = isqrt(n)
    if root * root != n or n == 0:
        raise ValueError(n)
    return root


def _infer_repmlpnet(shapes: Shapes) -> Network:
    first = "stages.0.0.repmlp_block"
    fields: dict[str, Any] = dict(name="repmlpnet", deployed=f"{first}.fc3.bias" in shapes)
    stages = len(list(takewhile(lambda i: f"stages.{i}.0.prebn1.weight" in shapes, count())))
    channels, _, patch, _ = shapes["conv_embedding.conv.weight"]
    units = [f"stages.{i}.0.repmlp_block" for i in range(stages)]
    fc3 = [shapes[f"{unit}.fc3.weight"] for unit in units]
    fields |= dict(
        channels=tuple(shapes[f"stages.{i}.0.prebn1.weight"][0] for i in range(stages)),
        num_blocks=tuple(_depth(shapes, f"stages.{i}.", "prebn1.weight") for i in range(stages)),
        partitions=tuple(_root(shape[1]) for shape in fc3),
        sharesets=tuple(shape[0] // shape[1] for shape in fc3),
        kernels=_kernels(shapes, first, (1, 3)),
        patch_size=patch,
        gate_reduction=channels // shapes[f"{first}.gp.fc1.weight"][0],
        ffn_expansion=shapes["stages.0.0.ffn_block.ffn_fc1.conv.weight"][0] // channels,
        num_classes=shapes["head.weight"][0],
    )
    side = fields["partitions"][0] * patch
    return Network(fields, (side, side), 0)


def _infer_resnet(shapes: Shapes) -> Network:
    block, prefix = next(
        (pair for pair in (("light", "light"), ("bottleneck", "btnk")) if _has(shapes, pair[1])),
        ("base", ""),
    )
    stages = range(1, 5)
    last = {"light": "light_conv3", "bottleneck": "btnk_conv5", "base": "conv3"}[block]
    num_blocks = tuple(
        max(
            _depth(shapes, f"stage{s}.", "conv3.conv.weight"),
            next((j for j in count(1) if f"stage{s}.{j}.{last}.conv.weight" not in shapes), 1),
        )
        for s in stages
    )
    fields: dict[str, Any] = dict(
        name="repmlp_resnet",
        block=block,
        num_blocks=num_blocks,
        channels=(
            shapes["stage0.0.conv.weight"][0],
            *(shapes[f"stage{s}.0.conv3.conv.weight"][0] for s in stages),
        ),
        num_classes=shapes["linear.weight"][0],
        deployed="stage0.0.conv.bias" in shapes,
    )
    if block == "base":
        return Network(fields | _NO_REPMLP, (224, 224), 0)
    return _with_repmlp(shapes, fields, prefix)


_NO_REPMLP: dict[str, Any] = dict(
    partition=(7, 7), kernels=(1, 3, 5), groups=4, global_reduction=1, bottleneck_reduction=(2, 4)
)


def _has(shapes: Shapes, prefix: str) -> bool:
    return any(f"{prefix}_repmlp.fc3.weight" in name for name in shapes)


def _with_repmlp(shapes: Shapes, fields: dict[str, Any], prefix: str) -> Network:
    """Adds what the first RepMLPs of stages 2 and 3 show."""
    widths, modules = {}, {}
    for stage in (2, 3):
        module = f"stage{stage}.1.{prefix}_repmlp"
        if f"{module}.fc3.weight" in shapes:
            before = "conv1" if prefix == "light" else "conv2"
            widths[stage] = shapes[f"stage{stage}.1.{prefix}_{before}.conv.weight"][0]
            modules[stage] = module
    stage = min(modules)
    module, width = modules[stage], widths[stage]
    rows, columns = shapes[f"{module}.fc3.weight"][:2]
    side = _root(rows // width)
    partitions = reduction = 1
    if f"{module}.fc1_fc2.fc1.weight" in shapes:
        hidden, c_in = shapes[f"{module}.fc1_fc2.fc1.weight"]
        partitions, reduction = c_in // width, c_in // hidden
    reductions = tuple(
        fields["channels"][s] // 4 // widths[s] if s in widths and prefix == "btnk" else usual
        for s, usual in zip((2, 3), _NO_REPMLP["bottleneck_reduction"])
    )
    fields |= dict(
        partition=(side, side),
        kernels=_kernels(shapes, module, (1, 3, 5)),
        groups=width * side**2 // columns,
        global_reduction=reduction,
        bottleneck_reduction=reductions,
    )
    image = _root(partitions) * side * 2 ** (stage + 1)
    return Network(fields, (image, image), 0)
