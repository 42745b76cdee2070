"""A work directory: the config it belongs to, and Orbax checkpoints of training.

workdir/config.json        the settings that the checkpoints were made with
workdir/checkpoints/STEP   state (arrays) and data (position of the input pipeline)
"""

import json
from pathlib import Path

import jax
import orbax.checkpoint as ocp

CONFIG_FILE = "config.json"

# What makes a checkpoint fit a network: the parts of the config that its arrays depend on.
ARCHITECTURE = (
    "name",
    "channels",
    "num_blocks",
    "big_kernels",
    "expansion",
    "num_groups",
    "downsample_times",
    "weight_norm",
    "fuse_weight_norm",
    "block_gn_affine",
    "fuse_gn_affine",
    "post_gn_affine",
    "num_classes",
)
HEAD = {
    "mdeq_classifier": ("head_channels", "final_channels"),
    "mdeq_segmenter": ("final_conv_kernel",),
}


def write_config(workdir: Path, config) -> None:
    """Writes `workdir/config.json`; by the first process only."""
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        text = json.dumps(json.loads(config.to_json_best_effort()), indent=2)
        (workdir / CONFIG_FILE).write_text(text + "\n")


def check_architecture(workdir: Path, config) -> None:
    """Refuses a work directory whose checkpoints are of another network.

    Raises:
        ValueError: lists every field of `config.model` that differs; or the checkpoints have no
            `config.json`.
    """
    path = workdir / CONFIG_FILE
    if not any(folder.name.isdigit() for folder in (workdir / "checkpoints").glob("*")):
        return  # a run that was stopped before it saved anything
    if not path.exists():
        raise ValueError(
            f"{workdir} holds checkpoints but no {CONFIG_FILE}, so that nobody can tell of which "
            "network: put the file back, or choose another --workdir."
        )
    saved = json.loads(path.read_text())["model"]
    wanted = json.loads(config.to_json_best_effort())["model"]
    fields = (*ARCHITECTURE, *HEAD[config.model.name])
    differing = [name for name in fields if saved.get(name) != wanted[name]]
    if differing:
        rows = "\n".join(
            f"  model.{name}: {saved.get(name)} there, {wanted[name]} in this config"
            for name in differing
        )
        raise ValueError(
            f"{workdir} holds the work of another architecture:\n{rows}\n"
            "Choose another --workdir, or the config that it was made with "
            f"(it is in {path})."
        )


def check_optimizer(workdir: Path, config) -> None:
    """Refuses to go on from a state of another optimiser.

    Raises:
        ValueError: as said.
    """
    path = workdir / CONFIG_FILE
    if not path.exists():
        return
    saved = json.loads(path.read_text())["train"]["optimizer"]
    if saved != config.train.optimizer:
        raise ValueError(
            f"{workdir} was trained with train.optimizer={saved!r}, whose state "
            f"{config.train.optimizer!r} cannot go on from. Keep it, or start a new --workdir with "
            f"--config.init.from_checkpoint={workdir}."
        )


class Checkpoints:
    """Saves and restores (state, position of the data) by step.

    Attributes:
        path: the folder `workdir/checkpoints`.
    """

    def __init__(self, workdir: Path, *, keep: int | None = None):
        """Opens, or makes, the checkpoints of a work directory.

        Args:
            workdir: work directory.
            keep: how many of the newest are kept; None: all.
        """
        self.path = Path(workdir).resolve() / "checkpoints"
        self._manager = ocp.CheckpointManager(
            self.path, options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        )

    def latest_step(self) -> int | None:
        """The newest complete checkpoint's step, or None."""
        return self._manager.latest_step()

    def save(self, state, data_state: dict) -> None:
        """Starts saving in the background; `wait` or `close` ends it.

        Args:
            state: `TrainState` on the host.
            data_state: JSON-serialisable position of the input pipeline.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                variables=ocp.args.StandardSave(state.variables),
                optimizer=ocp.args.StandardSave({"step": state.step, "state": state.opt_state}),
                data=ocp.args.JsonSave(data_state),
            ),
        )

    def restore(self, like) -> tuple:
        """The newest state and data position.

        Args:
            like: a `TrainState` of the same structure, shapes and types (values are not read).

        Raises:
            FileNotFoundError: there is no checkpoint.
        """
        optimizer = _abstract({"step": like.step, "state": like.opt_state})
        restored = self._manager.restore(
            self._newest(),
            args=ocp.args.Composite(
                variables=ocp.args.StandardRestore(_abstract(like.variables)),
                optimizer=ocp.args.StandardRestore(optimizer),
                data=ocp.args.JsonRestore(),
            ),
        )
        state = like.replace(
            step=restored.optimizer["step"],
            params=restored.variables["params"],
            batch_stats=restored.variables["batch_stats"],
            opt_state=restored.optimizer["state"],
        )
        return state, restored.data

    def restore_variables(self, like) -> tuple[dict, int]:
        """The newest network without its optimiser, and the step that it is of.

        Args:
            like: Flax variables of the same structure, shapes and types.

        Raises:
            FileNotFoundError: there is no checkpoint.
        """
        step = self._newest()
        args = ocp.args.Composite(variables=ocp.args.StandardRestore(_abstract(like)))
        return self._manager.restore(step, args=args).variables, step

    def _newest(self) -> int:
        step = self.latest_step()
        if step is None:
            raise FileNotFoundError(
                f"There is no checkpoint in {self.path}. Train first, or point --workdir to a "
                "directory that was trained or converted."
            )
        return step

    def wait(self) -> None:
        """Returns once every save has ended."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Ends saves and frees the manager."""
        self._manager.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
