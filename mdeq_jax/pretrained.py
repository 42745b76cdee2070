"""Sharing trained models: a folder with weights, config and model card, or the Hugging Face hub.

`pretrained.save("runs/digits", "digits_model")` writes it, and
`model, variables, config = pretrained.load("digits_model")` reads it again.
"""

from mdeq_jax.extras import require_extra

require_extra("train", "mdeq_jax.pretrained", ("ml_collections", "safetensors"))

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from mdeq_jax.engine import saved_config
from mdeq_jax.engine.saved_config import read_config
from mdeq_jax.engine.state import variable_shapes
from mdeq_jax.engine.variables import load_variables
from mdeq_jax.engine.weights_file import WEIGHTS_FILE, read_weights, write_weights
from mdeq_jax.engine.workdir import CONFIG_FILE
from mdeq_jax.engine.writers import METRICS_FILE, read_metrics
from mdeq_jax.models import build_model
from mdeq_jax.tasks import Task, build_task

MODEL_CARD = "README.md"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def save(
    workdir: str | Path,
    folder: str | Path,
    *,
    checkpoint: str = "latest",
    extra_files: Sequence[str] = (),
) -> Path:
    """Writes a trained model to a folder: `model.safetensors`, `config.json` and a model card.

    The card, `README.md`, shows the last evaluation of this checkpoint in `metrics.jsonl`. It
    claims nothing that was not measured.

    Args:
        workdir: work directory of `train_and_evaluate`, or of a converted file.
        folder: made if missing; uploading it shares the model.
        checkpoint: "latest", "best", or a step.
        extra_files: files of `workdir` to copy too, besides those that the task needs
            (`Task.model_files`, a vocabulary for example).

    Returns:
        The folder.

    Raises:
        FileNotFoundError: there is no config, checkpoint or extra file.
        ValueError: the folder holds another model already, or the checkpoint does not fit.
    """
    workdir, folder = Path(workdir).expanduser(), Path(folder).expanduser()
    if (folder / WEIGHTS_FILE).exists():
        raise ValueError(f"{folder} holds a model already: choose another folder, or remove it.")
    config = read_config(workdir)
    task = build_task(config)
    variables, step = load_variables(config, workdir, checkpoint)
    needed = [name for name in task.model_files if (workdir / name).exists()]
    files = dict.fromkeys([CONFIG_FILE, *needed, *extra_files])
    missing = [name for name in files if not (workdir / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{workdir} holds no {', '.join(missing)}.")
    folder.mkdir(parents=True, exist_ok=True)
    for name in files:
        shutil.copyfile(workdir / name, folder / name)
    card = model_card(config, task, variables, step, _last_evaluation(workdir, step))
    (folder / MODEL_CARD).write_text(card)
    write_weights(folder / WEIGHTS_FILE, jax.device_get(variables), step)
    return folder


def load(
    source: str | Path, *, revision: str | None = None
) -> tuple[nn.Module, dict[str, Any], ConfigDict]:
    """A trained model, in one line.

    Args:
        source: a folder of `save`, or the name "USER/MODEL" of one on the Hugging Face hub, which
            is downloaded and cached (extra `hub`).
        revision: branch, tag or commit on the hub; None: the newest.

    Returns:
        `(model, variables, config)`, for `model.apply(variables, inputs)`. The variables are the
        saved ones, bit for bit.

    Raises:
        FileNotFoundError: the folder does not exist or holds no model.
        ImportError: the hub is needed, and the extra is not installed.
        ValueError: weights and config do not fit each other.
    """
    folder = resolve(source, revision=revision)
    config = read_config(folder)
    model = build_model(config)
    if not (folder / WEIGHTS_FILE).is_file():
        raise FileNotFoundError(f"{folder} holds no {WEIGHTS_FILE}: write it with pretrained.save.")
    variables, _ = read_weights(folder / WEIGHTS_FILE, variable_shapes(model, config))
    return model, variables, config


def resolve(
    source: str | Path, *, revision: str | None = None, local_dir: str | Path | None = None
) -> Path:
    """The folder of a model: `source` itself, or what is downloaded from the hub for it.

    Args:
        source: a folder, or a name on the Hugging Face hub.
        revision: branch, tag or commit on the hub.
        local_dir: where to download to; None: the cache of `huggingface_hub`.

    Raises:
        FileNotFoundError: there is no such folder, and it is no name on a hub.
        ImportError: the hub is needed, and the extra is not installed.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if not _HUB_ID.fullmatch(str(source)):
        raise FileNotFoundError(
            f"{source} is neither a folder nor a name on the Hugging Face hub (USER/MODEL)."
        )
    require_extra("hub", "loading from the Hugging Face hub", ("huggingface_hub",))
    from huggingface_hub import snapshot_download  # pyright: ignore[reportMissingImports]

    return Path(snapshot_download(str(source), revision=revision, local_dir=local_dir))


def model_card(
    config: ConfigDict, task: Task, variables: dict, step: int, metrics: dict | None
) -> str:
    """A model card in Markdown, with the front matter that the hub reads.

    Args:
        config: of the model.
        task: of the config.
        variables: of the model.
        step: training step of the variables.
        metrics: of the evaluation at this step; None: it was not evaluated.
    """
    parameters = sum(array.size for array in jax.tree.leaves(variables["params"]))
    lines = [
        "---",
        "library_name: mdeq_jax",
        f"tags: [jax, flax, {task.name}, {config.model.name}]",
        "---",
        "",
        f"# {config.name}",
        "",
        f"A {config.model.name} for {task.name} on {config.data.name}, with {parameters:,} "
        f"parameters, after {step:,} training steps with mdeq_jax.",
        "",
        "## Measured",
        "",
        *(_figures(task, metrics) if metrics else ["This checkpoint has not been evaluated."]),
        "",
        "## Use",
        "",
        "```python",
        "from mdeq_jax import pretrained",
        "",
        'model, variables, config = pretrained.load("FOLDER")  # or this page\'s USER/MODEL',
        "outputs = model.apply(variables, inputs)",
        "```",
        "",
        "`python -m mdeq_jax.eval --pretrained=FOLDER` evaluates it again; `config.json` holds "
        "every setting of the training.",
    ]
    return "\n".join(lines) + "\n"


def _figures(task: Task, metrics: dict) -> list[str]:
    """A table of an evaluation."""
    rows = [
        (metric.display_name, f"{metric.scale * value:{metric.format}} {metric.unit}".strip())
        for metric in task.metrics
        if (value := metrics.get(f"eval/{metric.name}")) is not None
    ]
    rows.append(("loss", f"{metrics['eval/loss']:.4f}"))
    if "eval/nfe" in metrics:
        rows += [
            ("evaluations of the cell (NFE)", f"{metrics['eval/nfe']:.1f}"),
            ("relative residual, median", f"{metrics['eval/rel_residual']:.1e}"),
            ("not converged", f"{100 * metrics['eval/unconverged']:.1f} %"),
        ]
    rows.append((task.example_noun, f"{metrics['eval/examples']:,}"))
    return [
        f"Evaluated during training, at step {metrics['step']:,}:",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows),
    ]


def _last_evaluation(workdir: Path, step: int) -> dict | None:
    """The evaluation of a step in `metrics.jsonl`."""
    if not (workdir / METRICS_FILE).is_file():
        return None
    found = [line for line in read_metrics(workdir) if "eval/loss" in line]
    return next((line for line in reversed(found) if line["step"] == step), None)


def complete_arguments(argv: list[str]) -> list[str]:
    """`argv` with the folder of `--pretrained`, downloaded if need be, and with its config."""
    for i, argument in enumerate(argv):
        match = re.fullmatch(r"--?pretrained(?:=(.+))?", argument)
        if not match or (match[1] is None and i + 1 == len(argv)):
            continue
        source, after = (match[1], i + 1) if match[1] else (argv[i + 1], i + 2)
        # What eval.py writes, such as sweep.png, goes to the folder too.
        folder = resolve(source, local_dir=f"runs/{source.replace('/', '--')}")
        argv = [*argv[:i], f"--pretrained={folder}", *argv[after:]]
        if not any(re.match(r"--?config(=|$)", other) for other in argv):
            argv.insert(1, f"--config={saved_config.__file__}:{folder}")
        return argv
    return argv
