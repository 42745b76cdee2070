"""The benchmark of one GPU, with its processes replaced by stubs."""

import json
import subprocess

import pytest
from absl import flags

from benchmarks import gpu, gpu_profile, gpu_worker


@pytest.fixture
def values(tmp_path):
    """The benchmark's flags, which write to a folder of the test."""
    values = flags.FlagValues()
    gpu.define_own_flags(values)
    values(["gpu", f"--output={tmp_path}", "--jobs=2", "--minutes=1"])
    return values


@pytest.fixture
def started(monkeypatch):
    """Replaces the processes; each writes its reports when it is started. Their command lines."""
    commands = []

    class Child:
        def __init__(self, command, env, **_):
            commands.append(command)
            assert env["JAX_PLATFORMS"] == "cuda" and "compiled" in env["JAX_COMPILATION_CACHE_DIR"]
            parsed = flags.FlagValues()
            gpu_worker.define_own_flags(parsed)
            monkeypatch.setattr("sys.argv", command[2:])
            assert parsed(command[2:]) == command[2:3]  # nothing is left over
            self.parsed, self.env = parsed, env
            for mode in parsed.modes:
                self.write(mode)

        def write(self, mode):
            path = f"{self.parsed.folder}/{self.parsed.process}_{mode}"
            if self.parsed.stage == "memory":
                report, path = {"peak_bytes": 1.4e9}, f"{path}.memory"
            else:
                early = ["backward"] if self.parsed.precision == "bfloat16" else []
                report = {"batch": self.parsed.batch, "machine": "1 x GPU", "ended_early": early}
                report |= {"images_per_second": 2800.0, "seconds": {"median": 0.034}}
                report |= {"planned_bytes": 1.2e9, "trace_s": 5.0, "compile_s": 47.0}
            with open(f"{path}.json", "w") as file:
                json.dump(report, file)

        def poll(self):
            return 0

    monkeypatch.setattr(gpu.subprocess, "Popen", Child)
    monkeypatch.setattr(gpu, "check_gpu", lambda: None)
    return commands


def rows(out: str) -> list[list[str]]:
    lines = [line for line in out.splitlines() if line.startswith("| ") and "batch" in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_programs_are_measured_once_and_training_gives_its_peak(values, started, capsys):
    values.only = "cifar10_large_float32_pallas_graphs"
    gpu.main([], values)
    assert [command[2] for command in started] == ["benchmarks.gpu_worker"] * 2
    stages = [part for command in started for part in command if part.startswith("--stage")]
    assert stages == ["--stage=measure", "--stage=memory"]
    assert "--config.pallas=True" in started[0] and "--forward_steps=18" in started[0]
    training, inference = rows(capsys.readouterr().out)
    assert training[:8] == [
        "cifar10_large, batch 96, training",
        "float32",
        "pallas + graphs",
        "34.00",
        "2,800",
        "8.16",
        "2,740",
        "yes",
    ]
    assert training[8:] == ["1.20", "1.40", "1.5", "5 + 47"]
    assert inference[5:] == ["4.33", "7,000", "no", "1.20", "", "", "5 + 47"]

    gpu.main([], values)
    assert len(started) == 2  # all reports are there


def test_graphs_of_loops_are_a_flag_of_xla(values, started, monkeypatch):
    environments = []
    monkeypatch.setenv("XLA_FLAGS", "--mine")
    make = gpu.subprocess.Popen
    monkeypatch.setattr(
        gpu.subprocess,
        "Popen",
        lambda command, env, **kwargs: environments.append(env) or make(command, env, **kwargs),
    )
    values.only = "cifar10_tiny_float32_graphs"
    gpu.main([], values)
    assert environments[0]["XLA_FLAGS"] == f"--mine {gpu.GRAPHS}"


def test_solves_that_ended_early_do_not_count(values, started, capsys):
    values.only = "imagenet_small_bfloat16_plain"
    gpu.main([], values)
    assert "--config.solver.forward.history_dtype=bfloat16" in started[0]
    assert {row[7] for row in rows(capsys.readouterr().out)} == {"ended early"}


def test_what_was_not_measured_is_named(values, started, monkeypatch):
    monkeypatch.setattr(gpu, "run_stage", lambda *_: None)
    values.only = "cifar10_tiny_bfloat16_plain"
    with pytest.raises(SystemExit, match=r"cifar10_tiny_bfloat16_plain training, .* inference"):
        gpu.main([], values)
    values.only = "none"
    with pytest.raises(SystemExit, match="--only='none' names no process"):
        gpu.main([], values)


def test_without_a_gpu_nothing_is_run(values, monkeypatch):
    def run(command, **_):
        assert "-c" in command
        return subprocess.CompletedProcess(command, 1, stderr="no plugin\n")

    monkeypatch.setattr(gpu.subprocess, "run", run)
    with pytest.raises(SystemExit, match="no plugin\nJAX finds no NVIDIA GPU here"):
        gpu.main([], values)


def test_kernels_are_told_apart():
    def kernel(name, microseconds, pid=1):
        return {"ph": "X", "pid": pid, "name": name, "dur": microseconds}

    process = {"ph": "M", "name": "process_name"}
    trace = {
        "traceEvents": [
            {**process, "pid": 1, "args": {"name": "/device:GPU:0"}},
            {**process, "pid": 2, "args": {"name": "/host:CPU"}},
            kernel("sm90_xmma_fprop_implicit_gemm_f32f32", 3000),
            kernel("sm90_xmma_dgrad_implicit_gemm_f32f32", 2000),
            kernel("input_reduce_fusion_3", 4000),
            kernel("loop_add_fusion", 1000),
            kernel("python", 9000, pid=2),
        ]
    }
    text = gpu_profile.table(trace, steps=2)
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines()[2:]]
    assert cells == [
        ["reduction", "0", "2.00", "40%"],
        ["convolution, forward", "0", "1.50", "30%"],
        ["convolution, input gradient", "0", "1.00", "20%"],
        ["elementwise", "0", "0.50", "10%"],
        ["all", "2", "5.00", "100%"],
    ]


def test_shares_of_a_profile():
    def kernel(name, start, end, operation=""):
        event = {"ph": "X", "pid": 1, "name": name, "ts": start, "dur": end - start}
        return {**event, "args": {"hlo_op": operation}}

    process = {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "/device:GPU:0"}}
    trace = {
        "traceEvents": [
            process,
            kernel("sm90_xmma_fprop_implicit_gemm_f32f32", 0, 4000),
            kernel("input_reduce_fusion", 4040, 6000, "input_reduce_fusion"),
            kernel("_normalize_1", 6000, 7000),
            kernel("loop_add_fusion", 6500, 7000, "loop_add_fusion"),  # at the same time
            kernel("sm90_xmma_dgrad_implicit_gemm_f32f32", 9000, 11000),  # the next step
        ]
    }
    program = """ENTRY %main (x: f32[2]) -> f32[2] {
  %x = f32[2]{0} parameter(0)
  %loop_add_fusion = f32[2]{0} add(%x, %x), metadata={op_name="jit(f)/add"}
  %input_reduce_fusion = f32[2]{0} add(%x, %x), metadata={op_name="jit(f)/group_norm/add"}
}"""
    norms = gpu_profile.group_norms(program)
    assert norms == {"input_reduce_fusion"}
    text = gpu_profile.shares(trace, 2, norms)
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines()[2:]]
    assert cells == [
        ["convolutions", "3.00", "63%"],
        ["group norms", "1.48", "31%"],
        ["everything else", "0.25", "5%"],
        ["gaps between kernels", "0.02", "0%"],
    ]
