"""The original PyTorch implementation, imported from a user's clone; nothing of it is kept here.

A clone of the DEQ repository is expected: `MDEQ-Vision/lib/models/mdeq.py` with
`get_cls_net(config)`, and the shared folder `lib/`. The network is built from a config of this
project, so its YAML files are not read. Its segmentation networks cannot be built from any config,
because their constructor names an undefined variable.
"""

import contextlib
import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from benchmarks.process_memory import growth

HOW_TO = """\
The original PyTorch implementation is timed in a clone of yours:

    git clone https://github.com/locuslab/deq CLONE
    pip install torch scipy termcolor
    python -m benchmarks.original --repo=CLONE --config=configs/cifar10_tiny.py --batch=32
"""
# Layers of the comparison of both networks, before anything is timed.
PLAIN_LAYERS = 2


class CloneError(Exception):
    """The folder is not a clone of the original, or what it imports is not installed."""


class Original(NamedTuple):
    """A network of the original, ready to run.

    Attributes:
        state_dict: its weights at the start, names to arrays.
        train: takes a training step on its batch, and waits for the device.
        infer: evaluates its batch, and waits for the device.
        plain: the logits `[B, classes]` of `PLAIN_LAYERS` applications of the cell, in evaluation
            mode.
        evaluations: of the cell in the last call, by solve: "forward", "backward".
        memory: bytes that a call needs beyond what lies in memory before it; None if unknown.
    """

    state_dict: dict[str, np.ndarray]
    train: Callable[[], Any]
    infer: Callable[[], Any]
    plain: Callable[[], np.ndarray]
    evaluations: dict[str, int]
    memory: Callable[[Callable], int | None]


def original_config(config: ConfigDict) -> ConfigDict:
    """The fields of a config by the original's names.

    Raises:
        ValueError: the original has no such network, gradient or solver.
    """
    model, train = config.model, config.train
    if model.name != "mdeq_classifier" or config.gradient.name != "ift":
        raise ValueError(
            "The original is timed with a classifier and its exact gradient: config.model.name="
            f"'mdeq_classifier', config.gradient.name='ift'; got {model.name!r} and "
            f"{config.gradient.name!r}."
        )
    stage = {
        "NUM_MODULES": 1,
        "NUM_BRANCHES": len(model.channels),
        "NUM_BLOCKS": list(model.num_blocks),
        "NUM_CHANNELS": list(model.channels),
        "BIG_KERNELS": list(model.big_kernels),
        "HEAD_CHANNELS": list(model.head_channels),
        "FINAL_CHANSIZE": model.final_channels,
        "BLOCK": "BASIC",
        "FUSE_METHOD": "SUM",
    }
    forward, backward = config.solver.forward, config.solver.backward
    fields = {
        "MODEL": {
            "NUM_LAYERS": PLAIN_LAYERS,
            "NUM_CLASSES": model.num_classes,
            "NUM_GROUPS": model.num_groups,
            "DROPOUT": model.dropout,
            "WNORM": model.weight_norm,
            "DOWNSAMPLE_TIMES": model.downsample_times,
            "EXPANSION_FACTOR": model.expansion,
            "BLOCK_GN_AFFINE": model.block_gn_affine,
            "FUSE_GN_AFFINE": model.fuse_gn_affine,
            "POST_GN_AFFINE": model.post_gn_affine,
            "EXTRA": {"FULL_STAGE": stage},
        },
        "DEQ": {
            "F_SOLVER": forward.name,
            "B_SOLVER": backward.name,
            "F_THRES": forward.max_steps,
            "B_THRES": backward.max_steps,
            "STOP_MODE": forward.stop_mode,
        },
        "TRAIN": {
            "OPTIMIZER": train.optimizer,
            "LR": train.learning_rate,
            "WD": train.weight_decay,
            "MOMENTUM": train.momentum,
            "NESTEROV": train.nesterov,
            "PRETRAIN_STEPS": 1,
        },
    }
    return ConfigDict(fields)


def load(repo: str | Path) -> tuple[Callable, Callable]:
    """Imports a clone; `sys.path` and the names of imported modules are as before afterwards.

    Args:
        repo: the clone.

    Returns:
        Its `get_cls_net(config)` and `get_optimizer(config, network)`.

    Raises:
        CloneError: a file or a package is missing.
    """
    root = Path(repo).expanduser().resolve()
    library = root / "MDEQ-Vision" / "lib"
    needed = [library / "models" / "mdeq.py", library / "utils" / "utils.py", root / "lib"]
    if missing := [str(path) for path in needed if not path.exists()]:
        raise CloneError(f"{root} is not a clone of the original: no {', '.join(missing)}.")
    names = {path.stem for folder in (library, library / "models") for path in folder.iterdir()}
    with _found_first([library, library / "models", root], {"lib", *names}):
        try:
            network = importlib.import_module("models.mdeq").get_cls_net
            return network, importlib.import_module("utils.utils").get_optimizer
        except ImportError as error:
            raise CloneError(f"{root} cannot be imported: {error}.") from error


@contextlib.contextmanager
def _found_first(folders: list[Path], names: set[str]) -> Iterator[None]:
    """Context in which `names` are imported from `folders`; afterwards they are as before."""

    def ours():
        return {name: m for name, m in sys.modules.items() if name.split(".")[0] in names}

    path, hidden = list(sys.path), ours()
    for name in hidden:
        del sys.modules[name]
    sys.path[:0] = map(str, folders)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = path
        for name in ours():
            del sys.modules[name]
        sys.modules.update(hidden)


def build(repo: str | Path, config: ConfigDict, batch: dict, device: str) -> Original:
    """A network of a clone, with a batch on a device; its solvers take all of their steps.

    Args:
        repo: the clone.
        config: a config of this project.
        batch: "image" `[B, H, W, 3]`, "label" `[B]`.
        device: "cpu" or "cuda".

    Raises:
        CloneError: it cannot be imported.
        ValueError: the original has no such network.
    """
    fields = original_config(config)
    get_network, get_optimizer = load(repo)
    import torch  # pyright: ignore[reportMissingImports]

    torch.manual_seed(config.seed)
    torch.backends.cudnn.benchmark = True  # as the original's experiments
    network = get_network(fields).to(device)
    optimizer = get_optimizer(fields, network)
    images = torch.from_numpy(np.array(batch["image"]).transpose(0, 3, 1, 2).copy()).to(device)
    labels = torch.from_numpy(np.array(batch["label"]).astype(np.int64)).to(device)
    evaluations: dict[str, int] = {}
    network.f_solver = _take_all_steps(network.f_solver, evaluations, "forward")
    network.b_solver = _take_all_steps(network.b_solver, evaluations, "backward")

    def forward(train_step=-1):
        return network(images, train_step=train_step, compute_jac_loss=False)[0]

    def train():
        network.train()
        loss = torch.nn.functional.cross_entropy(forward(), labels)
        optimizer.zero_grad()
        loss.backward()
        if config.train.grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(network.parameters(), config.train.grad_clip)
        optimizer.step()

    def evaluate(train_step=-1):
        network.eval()
        with torch.no_grad():
            return forward(train_step)

    def waiting(call):
        def run():
            # The original makes tensors on the default device, and synchronises CUDA on CPUs too.
            with torch.device(device), _harmless_synchronize(torch, device):
                result = call()
            if device == "cuda":
                torch.cuda.synchronize()
            return result

        return run

    return Original(
        state_dict={name: x.detach().cpu().numpy() for name, x in network.state_dict().items()},
        train=waiting(train),
        infer=waiting(evaluate),
        plain=lambda: waiting(lambda: evaluate(train_step=0))().cpu().numpy(),
        evaluations=evaluations,
        memory=functools.partial(_memory, torch, device),
    )


def _take_all_steps(solver: Callable, evaluations: dict[str, int], solve: str) -> Callable:
    """A solver of the original without a tolerance, which counts the evaluations that it makes."""

    def solve_all(f, start, **settings):
        evaluations[solve] = 0

        def counted(z):
            evaluations[solve] += 1
            return f(z)

        return solver(counted, start, eps=0.0, **settings)

    return solve_all


@contextlib.contextmanager
def _harmless_synchronize(torch, device: str) -> Iterator[None]:
    """Context in which `torch.cuda.synchronize` does nothing on a CPU, instead of failing."""
    synchronize = torch.cuda.synchronize
    if device == "cpu":
        torch.cuda.synchronize = lambda *_: None
    try:
        yield
    finally:
        torch.cuda.synchronize = synchronize


def _memory(torch, device: str, call: Callable) -> int | None:
    if device == "cpu":
        return growth(call)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - before
