"""Lists settings that have no effect on a run, before it starts.

A setting that only another part has is an error of `build_model`, `learning_rate`, `load_dataset`
and so on. The settings here may well be set while something else is switched off, as in a recipe
that is tried with another gradient.
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from mdeq_jax import hardware
from mdeq_jax.data.config_lint import unused_fields
from mdeq_jax.implicit import GRADIENTS
from mdeq_jax.models import family_of

# Settings without effect are not listed at these values, those of `configs/default.py`.
DEFAULTS = {
    "train.end_learning_rate": 1e-6,
    "train.grad_clip_eps": 0.0,
    "train.momentum": 0.9,
    "train.nesterov": False,
    "train.pretrain_layers": 0,
    "train.random_forward_delta": 0,
    "train.random_forward_above": 1,
    "jacobian.frequency": 0.0,
    "jacobian.increment_every": None,
    "jacobian.pretrain_weight": 0.0,
    "jacobian.stop_epoch": None,
    "model.head_channels": (8, 16),
    "model.final_channels": 200,
    "model.final_conv_kernel": 1,
    "data.augment": False,
    "data.base_size": None,
    "data.data_dir": "",
    "data.num_workers": 0,
    "data.scale_factor": None,
}
DEFAULT_BACKWARD = {
    "name": "broyden",
    "max_steps": 20,
    "tol": 1e-3,
    "stop_mode": "rel",
    **dict.fromkeys(("history_dtype", "m", "lam", "beta", "tau")),
}
_SOLVER_FIELDS = ("history_dtype", "m", "lam", "beta", "tau")


def unused_settings(config: ConfigDict, *, training: bool) -> list[str]:
    """The settings without an effect, a sentence for each reason.

    Args:
        config: a config that `build_model` and `build_task` accept.
        training: whether it is a training. An evaluation reads neither `train`, `jacobian` nor
            `solver.backward`, and these are not listed for it.
    """
    lines = [
        f"{', '.join(f'{name}={_get(config, name)!r}' for name in names)} "
        f"{'has' if len(names) == 1 else 'have'} no effect: {reason}."
        for fields, reason in _reasons(config, training)
        if (names := [name for name in fields if _is_set(config, name)])
    ]
    if config.pallas and hardware.target().platform == "cpu":
        lines.append("pallas=True has no effect: its kernels are for GPUs, and JAX runs on CPUs.")
    notes = family_of(config).notes(config, training)
    return [*_solvers(config, training), *lines, *notes]


def _solvers(config: ConfigDict, training: bool) -> list[str]:
    if not family_of(config).has_equilibrium:
        return []
    gradient, lines = config.gradient.name, []
    info = GRADIENTS[gradient]
    if info.own_iteration:
        unused = ["name", *(f for f in _SOLVER_FIELDS if config.solver.forward[f] is not None)]
        lines.append(
            f"solver.forward ({', '.join(unused)}) has no effect: gradient.name={gradient!r} "
            "brings its own iteration, which takes max_steps, tol and stop_mode from there."
        )
    switch = info.solves_only_with
    if training and not info.solves_with(config.gradient) and _solver_is_set(config):
        lines.append(
            f"solver.backward has no effect on training: gradient.name={gradient!r} "
            f"{f'without {switch} ' if switch else ''}does no backward solve."
        )
    elif training and switch:
        lines.append(
            f"solver.backward.max_steps={config.solver.backward.max_steps} has no effect on "
            f"training: gradient.{switch}={config.gradient[switch]} is how many the backward solve "
            "takes."
        )
    return lines


def _solver_is_set(config: ConfigDict) -> bool:
    """Whether the backward solver differs from its defaults."""
    return any(config.solver.backward[f] != value for f, value in DEFAULT_BACKWARD.items())


def _reasons(config: ConfigDict, training: bool) -> Iterator[tuple[list[str], str]]:
    """Yields fields, and why they have no effect."""
    train, jacobian, family = config.train, config.jacobian, family_of(config)
    fields = [f"model.{field}" for field in family.ignored_fields]
    yield fields, f"model.name={config.model.name!r} has no such part"
    yield from unused_fields(config.data, training=training)
    if not training:
        return
    if train.optimizer != "sgd":
        yield ["train.momentum", "train.nesterov"], f"train.optimizer is {train.optimizer!r}"
    if train.grad_clip is None:
        yield ["train.grad_clip_eps"], "train.grad_clip=None clips nothing"
    if train.schedule in ("constant", "step"):
        yield ["train.end_learning_rate"], f"train.schedule is {train.schedule!r}"
    if train.pretrain_steps == 0:
        fields = ["train.pretrain_layers", "jacobian.pretrain_weight"]
        yield fields, "train.pretrain_steps=0 is no pretraining phase"
    limits = ("train.random_forward_delta", "train.random_forward_above")
    if not family.has_equilibrium:
        fields = ["jacobian.frequency", *limits, "train.pretrain_layers"]
        yield fields, f"model.name={config.model.name!r} has no equilibrium"
    elif jacobian.frequency == 0:
        fields = [*limits, "jacobian.increment_every", "jacobian.stop_epoch"]
        yield fields, "jacobian.frequency=0 applies no Jacobian loss"
    elif not (jacobian.weight or jacobian.pretrain_weight or jacobian.increment_every):
        fields = ["jacobian.frequency", *limits, "jacobian.stop_epoch"]
        yield fields, "the weight of the Jacobian loss is 0 throughout"
    elif train.random_forward_delta == 0:
        yield ["train.random_forward_above"], "train.random_forward_delta=0 varies no limit"


def _is_set(config: ConfigDict, name: str) -> bool:
    """Whether a field differs from its default; false for fields without an entry above."""
    return name in DEFAULTS and _get(config, name) != DEFAULTS[name]


def _get(config: ConfigDict, name: str):
    part, field = name.split(".")
    return config[part][field]
