"""Runs of a small language model: training, resuming with the memory, evaluating, sampling."""

import json
import re

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mdeq_jax.configs import enwik8_small
from mdeq_jax.data import load_dataset
from mdeq_jax.diagnostics.convergence import convergence_traces
from mdeq_jax.diagnostics.spectral_radius import BATCHES_BEFORE, SPECTRAL_STEPS
from mdeq_jax.engine.evaluation import load_trained
from mdeq_jax.engine.evaluator import Evaluator
from mdeq_jax.implicit import spectral_radius
from mdeq_jax.models.language import Segment
from mdeq_jax.runtime import devices
from mdeq_jax.tasks import GenerationRequest, build_task, read_prompts
from mdeq_jax.training import evaluate, generate, train_and_evaluate
from tests.helpers.tiny import override
from tests.helpers.toy_language import SIZES
from tests.helpers.workdirs import final_variables, read_evaluations


@pytest.fixture(scope="module")
def trained(language_config, tmp_path_factory):
    """A run of two passes without a stop: config, work directory, metrics."""
    config = language_config(**{"train.epochs": 2.0, "log.convergence_plot": True})
    workdir = tmp_path_factory.mktemp("trained")
    return config, workdir, train_and_evaluate(config, workdir)


def carry_of(workdir, step):
    """The arrays that a checkpoint carries to the next batch."""
    item = ocp.StandardCheckpointer().restore(workdir / "checkpoints" / str(step) / "carry")
    return [np.asarray(item[name]) for name in sorted(item)]


def test_it_learns(trained):
    _, workdir, metrics = trained
    first, last = read_evaluations(workdir)
    assert last["eval/bits_per_character"] < first["eval/bits_per_character"] < np.log2(17)
    assert metrics["eval/loss"] == pytest.approx(np.log(metrics["eval/perplexity"]))
    assert metrics["eval/loss"] == pytest.approx(np.log(2) * metrics["eval/bits_per_character"])
    assert metrics["eval/tokens_per_second"] > 0 and metrics["tokens_per_second"] > 0
    assert (workdir / "convergence.png").exists()


def test_what_the_data_decide_is_recorded(trained):
    config, workdir, _ = trained
    saved = json.loads((workdir / "config.json").read_text())
    vocabulary = json.loads((workdir / "vocabulary.json").read_text())
    assert config.model.transformer.vocab_size is None
    assert saved["model"]["transformer"]["vocab_size"] == len(vocabulary["tokens"])
    assert saved["data"]["unit"] == "character"


def test_resuming_is_as_if_it_had_not_stopped(trained, language_config, tmp_path):
    """It stops within a pass, so that the memory matters."""
    config, workdir, metrics = trained
    for epochs in (0.5, 1.3):
        train_and_evaluate(language_config(**{"train.epochs": epochs}), tmp_path)
    resumed = train_and_evaluate(config, tmp_path)
    assert resumed["eval/loss"] == metrics["eval/loss"]
    jax.tree.map(
        np.testing.assert_array_equal,
        final_variables(config, tmp_path),
        final_variables(config, workdir),
    )
    for carried, expected in zip(
        carry_of(tmp_path, metrics["step"]), carry_of(workdir, metrics["step"])
    ):
        assert expected.shape[0] == 8 and np.any(expected)
        np.testing.assert_array_equal(carried, expected)


def test_a_memory_of_other_shapes_is_refused(trained, language_config):
    _, workdir, _ = trained
    other = language_config(**{"train.epochs": 3.0, "model.transformer.mem_len": 5})
    with pytest.raises(ValueError, match="carries from batch to batch has other shapes"):
        train_and_evaluate(other, workdir)
    # An evaluation may have another memory.
    assert evaluate(other, workdir)["eval/examples"] > 200


def evaluate_directly(config, workdir, stride=None):
    """Mean -log p of the evaluation text, computed with the model alone."""
    model_of = load_trained(config, workdir, "latest")
    model, variables = model_of.model, model_of.variables
    tokens = load_dataset(config.data).eval.tokens
    length, columns = config.data.segment_length, config.eval.batch_size

    @jax.jit
    def solve(tokens, targets, memory):
        out = model.apply(variables, Segment(tokens, memory))
        return out.logits.nll(targets), out.memory

    targets = len(tokens) - 1
    height = -(-targets // columns)
    losses = []
    for start in range(0, targets, height):
        memory, end = model.empty_memory(1), min(start + height, targets)
        for at in range(start, end, stride or length):
            ids = np.minimum(at + np.arange(length), len(tokens) - 2)
            nll, memory = solve(tokens[ids][None], tokens[ids + 1][None], memory)
            new = at + np.arange(length) < end
            if stride:
                memory = model.empty_memory(1)
                new &= (np.arange(length) >= length - stride) | (at == start)
            losses += np.asarray(nll)[0][new].tolist()
            if at + length >= end:
                break
    assert len(losses) == targets
    return np.mean(losses)


def test_evaluation_in_columns_is_that_of_the_whole_text(trained):
    config, workdir, metrics = trained
    assert metrics["eval/examples"] == len(load_dataset(config.data).eval.tokens) - 1
    np.testing.assert_allclose(metrics["eval/loss"], evaluate_directly(config, workdir), rtol=2e-4)


def test_a_sliding_window(trained, language_config):
    config, workdir, metrics = trained
    slides = language_config(**{"data.eval_stride": 3})
    slid = evaluate(slides, workdir)
    assert slid["eval/examples"] == metrics["eval/examples"]
    expected = evaluate_directly(config, workdir, stride=3)
    np.testing.assert_allclose(slid["eval/loss"], expected, rtol=2e-4)
    with pytest.raises(ValueError, match="eval_stride is 9, but must lie between 1 and the 8"):
        evaluate(language_config(**{"data.eval_stride": 9}), workdir)


def test_a_sweep_of_solver_steps(trained):
    config, workdir, metrics = trained
    sweep = evaluate(config, workdir, sweep_steps=[1, 12])["sweep"]
    assert sweep[1]["eval/nfe"] == 2 and (workdir / "sweep.png").exists()
    assert sweep[1]["eval/perplexity"] > sweep[12]["eval/perplexity"]
    np.testing.assert_allclose(sweep[12]["eval/loss"], metrics["eval/loss"], rtol=1e-6)


def first_segments(config, workdir, count):
    """The model with its weights, and the first evaluated segments with the memory they find."""
    model_of = load_trained(config, workdir, "latest")
    model, variables = model_of.model, model_of.variables
    columns = load_dataset(config.data).eval.columns(config.eval.batch_size)
    memory, segments = model.empty_memory(config.eval.batch_size), []
    solve = jax.jit(lambda segment: model.apply(variables, segment))
    for step in range(count):
        batch, _ = columns.make_batch(step, np.arange(config.eval.batch_size))
        segments.append(Segment(batch["tokens"], memory))
        memory = solve(segments[-1]).memory
    return model, variables, segments


def test_convergence_is_traced_with_the_memory(trained):
    config, workdir, _ = trained
    model, variables, segments = first_segments(config, workdir, 3)
    traces = convergence_traces(
        model, variables, build_task(config), load_dataset(config.data), config
    )
    solve = jax.jit(lambda segment: model.apply(variables, segment).solution.rel_trace)
    rows = config.eval.batch_size
    for number, segment in enumerate(segments):
        found = traces.forward[:, number * rows :][:, :rows]
        np.testing.assert_allclose(found[0], solve(segment)[0], rtol=1e-4)
    alone = segments[-1]._replace(memory=model.empty_memory(rows))
    assert np.all(np.abs(found[0] / solve(alone)[0] - 1) > 1e-3)


@pytest.mark.slow
def test_the_spectral_radius_is_that_with_the_memory(trained):
    config, workdir, _ = trained
    model, variables, segments = first_segments(config, workdir, BATCHES_BEFORE + 1)
    evaluator = Evaluator(model, build_task(config), load_dataset(config.data), config)
    found = evaluator.spectral_radius(devices.replicate(variables))

    @jax.jit
    def growth(segment):
        problem = model.fixed_point_problem(variables, segment)
        z = problem.unravel(model.solve(problem)[1].z)
        key = jax.random.key(config.seed)
        return spectral_radius(problem, z=z, key=key, num_steps=SPECTRAL_STEPS).growth

    expected = growth(segments[-1])
    np.testing.assert_allclose(found["eval/spectral_radius"], expected.mean(), rtol=1e-3)
    np.testing.assert_allclose(found["eval/spectral_radius_max"], expected.max(), rtol=1e-3)
    alone = growth(segments[-1]._replace(memory=model.empty_memory(config.eval.batch_size)))
    assert abs(alone.mean() / expected.mean() - 1) > 1e-2


def test_samples(trained):
    config, workdir, _ = trained
    request = GenerationRequest(30, prompt="the c", temperature=0.8, top_k=5, num_samples=3)
    printed = generate(config, workdir, request)
    saved = (workdir / "samples.txt").read_text()
    samples = re.split(r"--- sample \d of 3\n", saved)[1:]
    assert printed.startswith(saved.rstrip("\n")) and len(samples) == 3
    assert all(sample.startswith("the c") and len(sample.rstrip("\n")) <= 35 for sample in samples)
    assert len(set(samples)) == 3 and generate(config, workdir, request).startswith(saved[:-1])
    costs = [float(n) for n in re.findall(r"takes ([\d.]+) evaluations of the cell", printed)]
    assert len(costs) == 3 and costs[0] < costs[1]
    assert "With 3 texts at a time" in printed


def test_samples_of_several_prompts(trained, tmp_path):
    """They are those of each prompt alone, in order, in fewer slots than texts."""
    config, workdir, _ = trained
    (tmp_path / "prompts.txt").write_text("the c\n\na bird sings\ndog\n")
    (tmp_path / "latin.txt").write_bytes("über".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt is not UTF-8"):
        read_prompts(str(tmp_path / "latin.txt"))
    prompts = read_prompts(str(tmp_path / "prompts.txt"))
    assert prompts == ("the c", "a bird sings", "dog")
    request = GenerationRequest(12, top_k=5, num_samples=2, prompts=prompts)
    config = override(config.copy_and_resolve_references(), {"eval.slots": 2})
    printed = generate(config, workdir, request)
    names, texts = read_samples(workdir)
    assert printed.count("evaluations of the cell") == 1 and "With 2 texts at a time" in printed
    assert names == [f"prompt {p} of 3, sample {s} of 2" for p in (1, 2, 3) for s in (1, 2)]
    alone = request._replace(prompt=prompts[1], prompts=None)
    generate(config, workdir, alone)
    assert read_samples(workdir) == (["sample 1 of 2", "sample 2 of 2"], texts[2:4])


def read_samples(workdir):
    """The names and the texts in `samples.txt`."""
    parts = re.split(r"(?m)^--- (.*)\n", (workdir / "samples.txt").read_text())
    return parts[1::2], [text.rstrip("\n") for text in parts[2::2]]


def test_files_without_prompts_are_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(ValueError, match=r"--prompts needs one prompt a line; got '.*empty.txt'"):
        read_prompts(str(tmp_path / "empty.txt"))
    with pytest.raises(FileNotFoundError, match="is no file: give a text file with one prompt"):
        read_prompts(str(tmp_path / "missing.txt"))


@pytest.mark.slow
def test_bytes_of_one_file_in_bfloat16(text, tmp_path):
    """The config for enwik8, with a small network: both phases, evaluation and samples."""
    (tmp_path / "enwik8").write_bytes(text.read_bytes())
    fields = {**SIZES, "data.data_dir": str(tmp_path), "data.segment_length": 8}
    fields |= {"train.batch_size": 8, "train.epochs": 1.0, "train.warmup_steps": 5}
    fields |= {"train.pretrain_steps": 20, "eval.batch_size": 4, "log.convergence_plot": False}
    config, workdir = override(enwik8_small.get_config(), fields), tmp_path / "run"
    metrics = train_and_evaluate(config, workdir)
    assert config.precision == "bfloat16" and metrics["eval/bits_per_character"] < np.log2(17)
    printed = generate(config, workdir, GenerationRequest(20, prompt="the c"))
    assert "evaluations of the cell" in printed and "Without the memory" in printed
    config.data.eval_split = "test"
    assert evaluate(config, workdir)["eval/examples"] == len(load_dataset(config.data).eval) - 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"length": 0}, "--generate must be at least 1; got 0"),
        ({"temperature": -1.0}, "--temperature must be at least 0"),
        ({"top_k": 100}, "--top_k must be at most .* the number of characters"),
        ({"num_samples": 0}, "--num_samples must be at least 1"),
    ],
)
def test_requests_that_cannot_be_met(trained, fields, message):
    config, workdir, _ = trained
    with pytest.raises(ValueError, match=message):
        generate(config, workdir, GenerationRequest(**{"length": 5, **fields}))


def test_other_data_are_refused(trained, language_config, tmp_path):
    config, workdir, _ = trained
    other = tmp_path / "other.txt"
    other.write_text("xyz XYZ\n" * 200)
    with pytest.raises(ValueError, match=r"The model has \d+ tokens .* but text_file has \d+"):
        evaluate(language_config(**{"data.data_dir": str(other)}), workdir)
    letters = "".join(sorted(set(config.data.data_dir and open(config.data.data_dir).read())))
    other.write_text((letters[::-1] + "\n") * 100)
    with pytest.raises(ValueError, match="is the vocabulary of another training text"):
        train_and_evaluate(language_config(**{"data.data_dir": str(other)}), workdir)


def test_another_architecture_is_refused(trained, language_config):
    _, workdir, _ = trained
    other = language_config(**{"model.transformer.d_inner": 32})
    with pytest.raises(ValueError, match=r"model\.transformer\.d_inner: 24 there, 32 in this"):
        evaluate(other, workdir)


def test_data_of_another_task_are_refused(language_config, tmp_path):
    fields = {"data.name": "digits", "data.data_dir": "", "data.segment_length": None}
    with pytest.raises(ValueError, match="is for language_model, but digits is a data set for cl"):
        train_and_evaluate(language_config(**fields), tmp_path)


def test_other_tasks_make_no_text(tiny_config):
    task = build_task(tiny_config())
    with pytest.raises(ValueError, match="--generate is not available for classification"):
        task.generate(None, GenerationRequest(5), None)
