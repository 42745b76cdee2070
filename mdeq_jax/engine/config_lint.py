"""Settings that a run does not read, to be said before it starts.

What only one part has, and another was given, is an error of that part (`build_model`,
`learning_rate`, `load_dataset`, ...). Here are those that a config may well hold while something
else is switched off: a recipe with another gradient, say.
"""

from mdeq_jax import hardware
from mdeq_jax.implicit import GRADIENTS
from mdeq_jax.models import family_of

IN_MEMORY = ("digits", "cifar10")
# Where they have no effect, these are left unsaid at the values of `configs/default.py`.
DEFAULTS = {
    "train.end_learning_rate": 1e-6,
    "train.momentum": 0.9,
    "train.nesterov": False,
    "train.pretrain_layers": 0,
    "train.random_forward_delta": 0,
    "jacobian.frequency": 0.0,
    "jacobian.increment_every": None,
    "jacobian.pretrain_weight": 0.0,
    "jacobian.stop_epoch": None,
    "model.head_channels": (8, 16),
    "model.final_channels": 200,
    "model.final_conv_kernel": 1,
    "data.base_size": None,
    "data.data_dir": "",
    "data.num_workers": 0,
    "data.scale_factor": None,
}
_SOLVER_FIELDS = ("history_dtype", "m", "lam", "beta", "tau")


def unused_settings(config, *, training: bool) -> list[str]:
    """The settings without an effect, a sentence for each reason.

    Args:
        config: a config that `build_model` and `build_task` accept.
        training: else an evaluation, which reads neither `train`, `jacobian` nor
            `solver.backward`: nothing is said of those.
    """
    lines = [
        f"{', '.join(f'{name}={_get(config, name)!r}' for name in names)} "
        f"{'has' if len(names) == 1 else 'have'} no effect: {reason}."
        for fields, reason in _reasons(config, training)
        if (names := [name for name in fields if _get(config, name) != DEFAULTS[name]])
    ]
    if config.pallas and hardware.target().platform == "cpu":
        lines.append("pallas=True has no effect: its kernels are for GPUs, and JAX runs on CPUs.")
    return [*_solvers(config, training), *lines]


def _solvers(config, training: bool) -> list[str]:
    gradient, lines = config.gradient.name, []
    info = GRADIENTS[gradient]
    if info.own_iteration:
        unused = ["name", *(f for f in _SOLVER_FIELDS if config.solver.forward[f] is not None)]
        lines.append(
            f"solver.forward ({', '.join(unused)}) has no effect: gradient.name={gradient!r} "
            "brings its own iteration, which takes max_steps, tol and stop_mode from there."
        )
    switch = info.solves_only_with
    if training and not info.solves_with(config.gradient):
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


def _reasons(config, training: bool):
    """Yields fields, and why they have no effect."""
    train = config.train
    fields = [f"model.{field}" for field in family_of(config).ignored_fields]
    yield fields, f"model.name={config.model.name!r} does not have them"
    if config.data.name == "digits":
        yield ["data.data_dir"], "data.name='digits' comes with scikit-learn"
    if config.data.name in IN_MEMORY:
        yield ["data.num_workers"], f"data.name={config.data.name!r} is held in memory"
    if not training:
        return
    if not config.data.augment:
        yield ["data.base_size", "data.scale_factor"], "data.augment=False scales no image"
    if train.optimizer != "sgd":
        yield ["train.momentum", "train.nesterov"], f"train.optimizer is {train.optimizer!r}"
    if train.schedule in ("constant", "step"):
        yield ["train.end_learning_rate"], f"train.schedule is {train.schedule!r}"
    if train.pretrain_steps == 0:
        fields = ["train.pretrain_layers", "jacobian.pretrain_weight"]
        yield fields, "train.pretrain_steps=0 is no pretraining phase"
    jacobian = config.jacobian
    if jacobian.frequency == 0:
        fields = ["train.random_forward_delta", "jacobian.increment_every", "jacobian.stop_epoch"]
        yield fields, "jacobian.frequency=0 applies no Jacobian loss"
    elif not (jacobian.weight or jacobian.pretrain_weight or jacobian.increment_every):
        fields = ["jacobian.frequency", "train.random_forward_delta", "jacobian.stop_epoch"]
        yield fields, "the weight of the Jacobian loss is 0 throughout"


def _get(config, name: str):
    part, field = name.split(".")
    return config[part][field]
