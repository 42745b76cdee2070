"""Orbax checkpoints of training: the newest ones, and the best by the task's primary metric.

workdir/checkpoints/STEP   "variables", "average" (if one is kept), "optimizer", "data", the
                           position of the input pipeline, and "carry" (if there is one), which the
                           last batch leaves to the next one: the rows of all hosts
workdir/best/STEP          "variables" or "average", and "score", the metric

Orbax writes a checkpoint under another name and renames it once it is complete. A folder whose name
is a number is therefore never half of one.
"""

import contextlib
import functools
from pathlib import Path
from typing import Any

import jax

from mdeq_jax.engine.checkpoint_folder import NEWEST, remove_unfinished, saved_steps
from mdeq_jax.engine.state import TrainState
from mdeq_jax.tree import PyTree


class CheckpointError(OSError):
    """A checkpoint could not be written; the older ones are intact."""


class Checkpoints:
    """Saves and restores (state, position of the data) by step.

    Attributes:
        path: the folder, `workdir/checkpoints` or `workdir/best`.
    """

    def __init__(
        self, workdir: Path, *, folder: str = NEWEST, keep: int | None = None, write: bool = True
    ):
        """Opens the checkpoints of a work directory.

        Args:
            workdir: work directory.
            folder: `NEWEST` or `BEST`.
            keep: number of the newest to keep; None: all.
            write: whether they will be written, or only read.
        """
        self.path = Path(workdir).resolve() / folder
        if write and jax.process_index() == 0:
            remove_unfinished(self.path)
            self.path.mkdir(parents=True, exist_ok=True)
        self._options: dict[str, Any] = {"max_to_keep": keep, "create": write}

    @functools.cached_property
    def _manager(self):
        """Orbax's manager, made when a checkpoint is first read or written."""
        ocp = _orbax()
        return ocp.CheckpointManager(
            self.path, options=ocp.CheckpointManagerOptions(**self._options)
        )

    def latest_step(self) -> int | None:
        """The newest complete checkpoint's step, or None."""
        return self._manager.latest_step() if saved_steps(self.path) else None

    def save(self, state: TrainState, data_state: dict, carry: PyTree = ()) -> None:
        """Starts saving in the background; `wait` or `close` ends it.

        Args:
            state: `TrainState` on the host.
            data_state: JSON-serialisable position of the input pipeline.
            carry: what the last batch leaves to the next one, on the host, rows of all hosts.

        Raises:
            CheckpointError: this one or the one before could not be written.
        """
        items = {
            "variables": _orbax().args.StandardSave(state.variables),
            "optimizer": _orbax().args.StandardSave(_optimizer_item(state)),
            "data": _orbax().args.JsonSave(data_state),
        }
        if state.average:
            items["average"] = _orbax().args.StandardSave(state.average)
        if leaves := _carry_item(carry):
            items["carry"] = _orbax().args.StandardSave(leaves)
            items["carry_shapes"] = _orbax().args.JsonSave(_shapes(leaves))
        self._save(int(state.step), items)

    def save_scored(self, state: TrainState, score: float) -> None:
        """Starts saving the network alone, with the metric that it is kept for.

        It takes the place of networks of this step and later ones, which a run that was resumed
        from an earlier checkpoint has left.

        Raises:
            CheckpointError: as for `save`.
        """
        name = "average" if state.average else "variables"
        items = {
            name: _orbax().args.StandardSave(state.eval_variables),
            "score": _orbax().args.JsonSave({"score": score}),
        }
        step = int(state.step)
        with self._explained():
            for later in self._manager.all_steps():
                if later >= step:
                    self._manager.delete(later)
        self._save(step, items)

    def _save(self, step: int, items: dict) -> None:
        with self._explained():
            # Orbax refuses a second save of a step, which would be identical.
            if step in self._manager.all_steps():
                return
            if not self._manager.save(step, args=_orbax().args.Composite(**items)):
                raise OSError(
                    f"step {step} is not after {self._manager.latest_step()}, the newest one there"
                )

    def best_score(self) -> float | None:
        """The metric of the newest scored checkpoint; None if there is none."""
        step = self.latest_step()
        if step is None:
            return None
        args = _orbax().args.Composite(score=_orbax().args.JsonRestore())
        restored: Any = self._manager.restore(step, args=args)
        return restored.score["score"]

    def data_state(self) -> dict:
        """The newest position of the input pipeline.

        Raises:
            FileNotFoundError: there is no checkpoint.
        """
        args = _orbax().args.Composite(data=_orbax().args.JsonRestore())
        restored: Any = self._manager.restore(self._step(None), args=args)
        return restored.data

    def restore(self, like: TrainState) -> TrainState:
        """The newest state.

        Args:
            like: a `TrainState` of the same structure, shapes and types (values are not read).

        Raises:
            FileNotFoundError: there is no checkpoint.
        """
        items = {
            "variables": _orbax().args.StandardRestore(_abstract(like.variables)),
            "optimizer": _orbax().args.StandardRestore(_abstract(_optimizer_item(like))),
        }
        if like.average:
            items["average"] = _orbax().args.StandardRestore(_abstract(like.average))
        restored: Any = self._manager.restore(
            self._step(None), args=_orbax().args.Composite(**items)
        )
        return like.replace(
            step=restored.optimizer["step"],
            params=restored.variables["params"],
            batch_stats=restored.variables["batch_stats"],
            opt_state=restored.optimizer["state"],
            average=restored.average if like.average else {},
            skipped_in_a_row=restored.optimizer["skipped_in_a_row"],
        )

    def restore_carry(self, initial: PyTree) -> PyTree:
        """The carry of the newest checkpoint; `initial` if it was saved without one.

        Args:
            initial: of the same structure, shapes and types, rows of all hosts.

        Raises:
            ValueError: it has other shapes.
        """
        step, item = self._step(None), _carry_item(initial)
        if not item or not (self.path / str(step) / "carry").is_dir():
            return initial
        args = _orbax().args.Composite(
            carry=_orbax().args.StandardRestore(_abstract(item)),
            carry_shapes=_orbax().args.JsonRestore(),  # Orbax would cut or pad other shapes
        )
        restored: Any = self._manager.restore(step, args=args)
        if restored.carry_shapes != _shapes(item):
            raise ValueError(
                f"What the run in {self.path} carries from batch to batch has other shapes with "
                f"this config: {restored.carry_shapes} there, {_shapes(item)} here. Resume with "
                "the settings that it was made with."
            )
        leaves, structure = jax.tree.flatten(initial)
        return structure.unflatten(
            restored.carry.get(str(i), leaf) for i, leaf in enumerate(leaves)
        )

    def restore_variables(self, like: dict, step: int | None = None) -> tuple[dict, int]:
        """The variables of a checkpoint (its moving average, if one was kept), and its step.

        Args:
            like: Flax variables of the same structure, shapes and types.
            step: of the checkpoint; None: the newest.

        Raises:
            FileNotFoundError: there is no such checkpoint.
        """
        step = self._step(step)
        name = "average" if (self.path / str(step) / "average").is_dir() else "variables"
        args = _orbax().args.Composite(**{name: _orbax().args.StandardRestore(_abstract(like))})
        return self._manager.restore(step, args=args)[name], step

    def _step(self, wanted: int | None) -> int:
        steps = self._manager.all_steps()
        if wanted is None and steps:
            return max(steps)
        if wanted is None:
            raise FileNotFoundError(
                f"There is no checkpoint in {self.path}. Train first, or point --workdir to a "
                "directory that was trained or converted."
            )
        if wanted not in steps:
            raise FileNotFoundError(
                f"There is no checkpoint of step {wanted} in {self.path}, only of {sorted(steps)}."
            )
        return wanted

    def wait(self) -> None:
        """Returns once every save has ended.

        Raises:
            CheckpointError: one could not be written.
        """
        with self._explained():
            if "_manager" in self.__dict__:
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Ends saves and frees the manager.

        Raises:
            CheckpointError: one could not be written.
        """
        with self._explained():
            if "_manager" in self.__dict__:
                self._manager.close()

    @contextlib.contextmanager
    def _explained(self):
        try:
            yield
        except Exception as error:  # a full disk is an error of another type in every layer
            whole = saved_steps(self.path)
            intact = f"the checkpoints of steps {whole} are" if whole else "there is none before it"
            raise CheckpointError(
                f"A checkpoint could not be written to {self.path}: {_first_line(error)}\n"
                f"Nothing else was lost: {intact} intact. Make room (`df -h`) or correct the "
                "permissions, and give the same command again."
            ) from error

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.close()
        else:  # the error being raised explains more than one of closing would
            with contextlib.suppress(CheckpointError):
                self.close()


def _orbax():
    """Imported when needed: it takes 0.2 s, and a new run first compiles its training step."""
    import orbax.checkpoint

    return orbax.checkpoint


def _optimizer_item(state: TrainState) -> dict:
    return {
        "step": state.step,
        "state": state.opt_state,
        "skipped_in_a_row": state.skipped_in_a_row,
    }


def _carry_item(carry: PyTree) -> dict:
    """The arrays of a carry by number, without empty ones, which Orbax does not write."""
    return {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(carry)) if leaf.size}


def _shapes(leaves: dict) -> dict[str, list[int]]:
    return {name: list(leaf.shape) for name, leaf in leaves.items()}


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0][:300]


def _abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
