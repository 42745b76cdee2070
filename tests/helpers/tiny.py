"""Networks of the smallest size, for the embedded digits."""

# As overrides of configs/digits.py: seconds to compile, and not meant to learn well.
TINY = {
    "model.channels": (8, 8),
    "model.num_groups": 4,
    "model.expansion": 2,
    "model.head_channels": (2, 4),
    "model.final_channels": 16,
    "solver.forward.max_steps": 5,
    "solver.backward.max_steps": 5,
    "jacobian.weight": 0.0,  # half of the compiler's work
    "jacobian.frequency": 0.0,
    "log.tensorboard": False,
    "log.convergence_plot": False,
    "train.epochs": 1.0,
    "data.augment": False,
    "train.batch_size": 128,
    "eval.batch_size": 120,
    "eval.every_epochs": 1.0,
    "checkpoint.every_epochs": 1.0,
}
# One resolution: a third of the compiler's work again.
SINGLE_SCALE = {
    "model.channels": (8,),
    "model.num_blocks": (1,),
    "model.big_kernels": (0,),
    "model.head_channels": (2,),
}


def override(config, fields):
    """`config` with `{"a.b": value}` set."""
    for name, value in fields.items():
        *path, last = name.split(".")
        part = config
        for key in path:
            part = part[key]
        part[last] = value
    return config
