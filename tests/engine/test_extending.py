"""What `docs/extending.md` adds from outside the package trains, resumes and evaluates."""

import re
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from mdeq_jax.data import DATASETS
from mdeq_jax.implicit import GRADIENTS
from mdeq_jax.models import MODELS
from mdeq_jax.solvers import SOLVERS
from mdeq_jax.tasks import TASKS
from mdeq_jax.training import evaluate, predict, train_and_evaluate
from tests.helpers.tiny import override
from tests.helpers.workdirs import final_variables, read_evaluations

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "extending.md").read_text()
TABLES = (DATASETS, TASKS, MODELS, SOLVERS, GRADIENTS)
FAMILIES = ("perceptron", "small_deq")
FIELDS = {"log.tensorboard": False, "solver.forward.max_steps": 30, "solver.backward.max_steps": 10}
SOLVE_METRICS = {"eval/nfe", "eval/rel_residual", "eval/unconverged", "train/forward_nfe"}


@pytest.fixture(scope="module")
def outside():
    """The module that the programs of the page make, with its rows in the tables."""
    before = [dict(table) for table in TABLES]
    module = types.ModuleType("extending")
    sys.modules["extending"] = module  # where dataclasses look for it
    for program in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(compile(program, "docs/extending.md", "exec"), module.__dict__)
    yield module
    del sys.modules["extending"]
    for table, rows in zip(TABLES, before):
        table.clear()
        table.update(rows)


@pytest.fixture(scope="module")
def runs(outside, tmp_path_factory):
    """Config, work directory and metrics of each family, four epochs without a stop."""

    def run(family):
        config = override(outside.get_config(), {**FIELDS, "model.name": family})
        workdir = tmp_path_factory.mktemp(family)
        return config, workdir, train_and_evaluate(config, workdir)

    return {family: run(family) for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_it_learns_and_keeps_the_lowest(runs, family):
    config, workdir, metrics = runs[family]
    errors = {line["step"]: line["eval/rmse"] for line in read_evaluations(workdir)}
    assert list(errors) == [4, 8, 12, 16]
    assert errors[16] < 0.7 * errors[4]
    best = evaluate(config, workdir, checkpoint="best")
    assert best["step"] == min(errors, key=errors.get)
    np.testing.assert_allclose(best["eval/rmse"], min(errors.values()), rtol=1e-6)
    assert metrics["eval/examples"] == 64 and metrics["eval/rows_per_second"] > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_only_an_equilibrium_has_a_residual(runs, family):
    _, workdir, metrics = runs[family]
    solves = family == "small_deq"
    assert SOLVE_METRICS <= set(metrics) if solves else not SOLVE_METRICS & set(metrics)
    assert (workdir / "convergence.png").exists() == solves
    assert metrics["phase"] == ("equilibrium" if solves else "training")
    assert not solves or metrics["eval/rel_residual"] < 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_resuming_is_as_if_it_had_not_stopped(runs, family, tmp_path, capsys):
    config, workdir, _ = runs[family]
    half = config.copy_and_resolve_references()
    half.train.epochs = 2.0
    train_and_evaluate(half, tmp_path)
    train_and_evaluate(config, tmp_path)
    out = capsys.readouterr().out
    assert "Resuming from step 8 of 16." in out
    assert re.search(r"eval +16/16  RMSE 0\.\d{4}  loss ", out) and "rows/s" in out
    jax.tree.map(
        np.testing.assert_array_equal,
        final_variables(config, tmp_path),
        final_variables(config, workdir),
    )


def test_diagnostics_of_an_equilibrium_from_outside(runs):
    config, workdir, metrics = runs["small_deq"]
    config = config.copy_and_resolve_references()
    config.eval.spectral_radius_every_epochs = 1.0
    assert 0 < evaluate(config, workdir)["eval/spectral_radius"] < 1
    sweep = evaluate(config, workdir, sweep_steps=[1, 30])["sweep"]
    assert sweep[1]["eval/nfe"] == 2 and (workdir / "sweep.png").exists()
    np.testing.assert_allclose(sweep[30]["eval/rmse"], metrics["eval/rmse"], rtol=1e-5)


def test_what_a_model_without_an_equilibrium_refuses(runs):
    config, workdir, _ = runs["perceptron"]
    with pytest.raises(ValueError, match="which has no equilibrium to solve for"):
        evaluate(config, workdir, sweep_steps=[1])
    with pytest.raises(ValueError, match="--predict is not available for regression"):
        predict(config, workdir, "rows.csv")
    config = config.copy_and_resolve_references()
    config.eval.spectral_radius_every_epochs = 1.0
    with pytest.raises(ValueError, match="which has no equilibrium: unset it"):
        evaluate(config, workdir)


def test_data_for_another_task_are_refused(runs, tmp_path):
    config, _, _ = runs["perceptron"]
    config = override(config.copy_and_resolve_references(), {"data.name": "digits"})
    with pytest.raises(ValueError, match="is for regression, but digits is a data set for classif"):
        train_and_evaluate(config, tmp_path)


def test_the_page_touches_two_existing_files_at_most():
    for row in re.findall(r"^\| a .*\|$", PAGE, flags=re.MULTILINE):
        touched = row.strip("|").split("|")[2]
        files = re.findall(r"`([\w/]+\.py)`", touched)
        assert len(files) == 2
        for file in files:
            folder = REPOSITORY if file.startswith("configs") else REPOSITORY / "mdeq_jax"
            assert (folder / file).exists(), file
