"""A work directory and the config that it belongs to: `workdir/config.json`."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mdeq_jax.engine.checkpoint_folder import NEWEST, saved_steps
from mdeq_jax.models import family_of
from mdeq_jax.runtime import hosts

CONFIG_FILE = "config.json"
SETTINGS_OF_TRAINING = (
    "train",
    "gradient",
    "jacobian",
    "data",
    "solver.forward",
    "solver.backward",
)


def check_writable(workdir: Path) -> None:
    """Makes the directory and tries to write in it; the first process only.

    Raises:
        OSError: it cannot be made or written.
    """
    if not hosts.is_primary():
        return
    for path in (workdir, *workdir.parents):
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(
                f"{path} is a file, so it cannot be the work directory or hold it: name a folder, "
                "which is made if missing."
            )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir) as file:
            file.write(b"can this be written?")
    except OSError as error:
        raise OSError(
            f"The work directory {workdir} cannot be written: {error}. Results and checkpoints go "
            "there: choose another --workdir, make room, or correct the permissions."
        ) from None


def write_config(workdir: Path, config: ConfigDict) -> None:
    """Writes `workdir/config.json`, whole or not at all; by the first process only."""
    if not hosts.is_primary():
        return
    workdir.mkdir(parents=True, exist_ok=True)
    text = json.dumps(json.loads(config.to_json_best_effort()), indent=2)
    with tempfile.NamedTemporaryFile("w", dir=workdir, delete=False) as file:
        file.write(text + "\n")
    os.chmod(file.name, 0o644)
    os.replace(file.name, workdir / CONFIG_FILE)


def read_fields(workdir: Path) -> dict:
    """The fields of `workdir/config.json`, as JSON holds them.

    Raises:
        ValueError: it is not the config of a model.
    """
    path = workdir / CONFIG_FILE
    try:
        fields = json.loads(path.read_text())
        _ = fields["model"]["name"], fields["train"]  # what every config has
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the config of a model: {error!r}.") from None
    return fields


def with_saved_fields(workdir: Path, config: ConfigDict) -> ConfigDict:
    """The config with the fields of the architecture that are unset in it and known in a workdir.

    Such fields are decided by the data that the network there was trained on.
    """
    if not (has_weights(workdir) and (workdir / CONFIG_FILE).exists()):
        return config
    saved = read_fields(workdir)["model"]
    config = config.copy_and_resolve_references()
    for name in family_of(config).architecture_fields:
        value = field_of(saved, name)
        if value is not None and field_of(config.model, name) is None:
            *path, last = name.split(".")
            (field_of(config.model, ".".join(path)) if path else config.model)[last] = value
    return config


def has_weights(workdir: Path) -> bool:
    """Whether there are checkpoints, or weights of `mdeq_jax.pretrained.save`."""
    return has_checkpoints(workdir) or any(workdir.glob("*.safetensors"))


def has_checkpoints(workdir: Path) -> bool:
    """Whether there is a complete checkpoint."""
    return bool(saved_steps(workdir / NEWEST))


def check_without_checkpoints(workdir: Path) -> None:
    """Refuses a directory to write to that holds checkpoints.

    Raises:
        ValueError: it does.
    """
    if any((workdir / NEWEST).glob("*")):
        raise ValueError(
            f"{workdir} holds checkpoints already: choose another --output, or remove them first."
        )


def check_architecture(workdir: Path, config: ConfigDict) -> None:
    """Refuses a work directory whose checkpoints are of another network.

    Raises:
        ValueError: lists every field of `config.model` that differs; or the checkpoints have no
            `config.json`.
    """
    path = workdir / CONFIG_FILE
    if not has_weights(workdir):
        return  # a run that was stopped before it saved anything
    if not path.exists():
        raise ValueError(
            f"{workdir} holds checkpoints but no {CONFIG_FILE}, so their network is unknown: put "
            "the file back, or choose another --workdir."
        )
    saved = read_fields(workdir)["model"]
    wanted = json.loads(config.to_json_best_effort())["model"]
    fields = family_of(config).architecture_fields
    values = {name: (field_of(saved, name), field_of(wanted, name)) for name in fields}
    differing = {name: pair for name, pair in values.items() if pair[0] != pair[1]}
    if differing:
        rows = "\n".join(
            f"  model.{name}: {there} there, {here} in this config"
            for name, (there, here) in differing.items()
        )
        raise ValueError(
            f"{workdir} holds checkpoints of another architecture:\n{rows}\n"
            "Choose another --workdir, or the config that it was made with "
            f"(in {path})."
        )


def field_of(section: Any, name: str) -> Any:
    """The value of the field "NAME", or "PART.NAME", of a dict of dicts; None if there is none."""
    for key in name.split("."):
        section = None if section is None else section.get(key)
    return section


def changed_settings(workdir: Path, config: ConfigDict) -> list[str]:
    """Lines on the settings of training that differ from those of the last run there.

    Fields that one of them does not have, as of another version, are left out.
    """
    if not (workdir / CONFIG_FILE).exists():
        return []
    saved, wanted = read_fields(workdir), json.loads(config.to_json_best_effort())
    names = [
        f"{section}.{field}"
        for section in SETTINGS_OF_TRAINING
        for field in field_of(wanted, section) or ()
        if field in (field_of(saved, section) or ())
    ]
    values = ((name, field_of(saved, name), field_of(wanted, name)) for name in names)
    return [f"{name} was {there}, is {here}" for name, there, here in values if there != here]


def check_resumable(workdir: Path, config: ConfigDict) -> None:
    """Refuses to resume with another optimiser, or to add or drop the moving average.

    Raises:
        ValueError: the checkpoints have another optimiser or average than the config.
    """
    path = workdir / CONFIG_FILE
    if not path.exists():
        return
    saved = read_fields(workdir)["train"]
    anew = "start a new --workdir"
    if parts := family_of(config).transferable:
        anew += f" with --config.init.from_checkpoint={workdir}, which takes its "
        anew += f"{' and '.join(parts)} and a fresh head"
    if saved["optimizer"] != config.train.optimizer:
        raise ValueError(
            f"{workdir} was trained with train.optimizer={saved['optimizer']!r}, whose state "
            f"{config.train.optimizer!r} cannot resume from. Keep it, or {anew}."
        )
    if (saved["ema_decay"] is None) != (config.train.ema_decay is None):
        raise ValueError(
            f"{workdir} was trained with train.ema_decay={saved['ema_decay']}; "
            f"{config.train.ema_decay} cannot resume from it, because an average is kept from the "
            "first step or not at all. Keep the setting, or "
            f"{anew}."
        )
