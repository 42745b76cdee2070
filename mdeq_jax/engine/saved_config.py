"""Reads a config from the `config.json` of a work directory, also for `--config`."""

from pathlib import Path

from ml_collections import ConfigDict

from mdeq_jax.configs import default
from mdeq_jax.configs.fields.models import MODEL_FIELDS
from mdeq_jax.engine.workdir import CONFIG_FILE, read_fields


def read_config(folder: str | Path) -> ConfigDict:
    """The config that a folder was made with; fields that are newer have their defaults.

    Args:
        folder: a work directory, or one of `mdeq_jax.pretrained.save`.

    Returns:
        The config, locked.

    Raises:
        FileNotFoundError: there is no `config.json`.
        ValueError: it is no config, or has fields that this version does not have.
    """
    path = Path(folder).expanduser() / CONFIG_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no {CONFIG_FILE}. It must be a work directory of train.py, or a "
            "folder that mdeq_jax.pretrained.save wrote."
        )
    saved = read_fields(path.parent)
    family = saved["model"]["name"]
    # Without a name get_config has its default family, whose fields the saved ones replace.
    config = default.get_config(*([family] if family in MODEL_FIELDS else []))
    # A program's own family may have fields of its own.
    unknown = [name for name in _unknown(saved, config) if family in MODEL_FIELDS]
    if unknown:
        raise ValueError(
            f"{path} has fields that this version of mdeq_jax does not have: {', '.join(unknown)}. "
            "Install the version that wrote it, or a newer one."
        )
    with config.unlocked():
        set_fields(config, saved)
    return config.lock()


def set_fields(section: ConfigDict, saved: dict) -> None:
    """Sets the fields of a section, and of its parts, to values that were read from JSON."""
    for field, value in saved.items():
        if isinstance(value, dict):
            if field not in section:
                section[field] = ConfigDict()
            set_fields(section[field], value)
        else:
            section[field] = tuple(value) if isinstance(value, list) else value


def _unknown(saved: dict, config: ConfigDict, prefix: str = "") -> list[str]:
    names = []
    for field, value in saved.items():
        if field not in config:
            names.append(prefix + field)
        elif isinstance(value, dict) and isinstance(config[field], ConfigDict):
            names += _unknown(value, config[field], f"{prefix}{field}.")
    return names


def get_config(folder: str) -> ConfigDict:
    """`read_config`, so that this file is a config: `--config=FILE:FOLDER`."""
    return read_config(folder)
