"""What is compiled, how often, and where it is kept."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jaxlib
import pytest

from mdeq_jax.runtime import compilation
from mdeq_jax.runtime.compilation import (
    choose_convolutions,
    choose_device_per_core,
    choose_loop_graphs,
    choose_short_loops,
    keep_compiled_programs,
)


@pytest.fixture
def no_cache():
    """A process that has not chosen a folder yet."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    jax.config.update("jax_enable_compilation_cache", True)


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "HOME"])
def test_the_users_cache_folder(no_cache, variable, tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    base = tmp_path if variable == "XDG_CACHE_HOME" else tmp_path / ".cache"
    assert keep_compiled_programs() == base / "mdeq_jax" / "jax"
    assert jax.config.jax_compilation_cache_dir == str(base / "mdeq_jax" / "jax")
    assert (base / "mdeq_jax" / "jax").is_dir()


def test_a_folder_chosen_before_is_left_alone(no_cache, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    assert keep_compiled_programs() == tmp_path / "own"


def test_it_can_be_switched_off_whatever_folder_was_chosen(no_cache, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    assert keep_compiled_programs(False) is None
    assert not jax.config.jax_enable_compilation_cache


def test_a_folder_that_cannot_be_made_is_no_error(no_cache, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert keep_compiled_programs() is None
    assert jax.config.jax_compilation_cache_dir is None
    assert "set XDG_CACHE_HOME or JAX_COMPILATION_CACHE_DIR" in caplog.text


SCRIPT = """
import jax
from mdeq_jax.runtime.compilation import keep_compiled_programs
keep_compiled_programs()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name.endswith("/cache_hits")))
print(jax.jit(lambda x: 3 * x + 1)(2.0), sum(hits))
"""


def test_another_process_finds_what_was_compiled(tmp_path):
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)

    def run():
        command = [sys.executable, "-c", SCRIPT]
        root = Path(__file__).parents[2]
        result = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout.split()

    assert run() == ["7.0", "0"]
    value, hits = run()
    assert value == "7.0" and int(hits) >= 1
    for entry in (tmp_path / "mdeq_jax" / "jax").iterdir():  # as a killed process may leave it
        entry.write_bytes(entry.read_bytes()[:10])
    assert run() == ["7.0", "0"]


CONVOLUTION = """
import jax, jax.numpy as jnp
from mdeq_jax import train  # which computes nothing on import, or the flags would come too late
from mdeq_jax.layers import conv2d
train.choose_flags()
x, kernel = jnp.ones((4, 32, 32, 24)), jnp.ones((3, 3, 24, 24))
print("ynn" in jax.jit(conv2d).lower(x, kernel).compile().as_text())
"""


@pytest.mark.skipif(jaxlib.__version__ != "0.10.2", reason="other versions are left as they are")
def test_the_scripts_convolutions_are_xlas_own():
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    root = Path(__file__).parents[2]

    def run(script):
        command = [sys.executable, "-c", script]
        result = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    if run(CONVOLUTION.replace("train.choose_flags()", "")) == "False":
        pytest.skip("there is no YNNPACK for this processor")
    assert run(CONVOLUTION) == "False"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "--xla_backend_extra_options=xla_cpu_disable_loop_unrolling"),
        ("--xla_a=1", "--xla_a=1 --xla_backend_extra_options=xla_cpu_disable_loop_unrolling"),
        ("--xla_backend_extra_options=other", "--xla_backend_extra_options=other"),
    ],
)
def test_loops_are_not_unrolled_unless_the_user_has_options(before, after, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", before)
    for _ in range(2):
        choose_short_loops()
        assert os.environ["XLA_FLAGS"] == after


@pytest.mark.parametrize("version", ["0.10.2", "0.11.2"])
def test_quick_compilation_makes_fewer_loops(version, monkeypatch):
    monkeypatch.setattr(jaxlib, "__version__", version)
    options = (
        "--xla_backend_extra_options=xla_cpu_disable_loop_unrolling,xla_cpu_use_multi_output_fusion"
    )
    older = " --xla_cpu_use_fusion_emitters=false" if version == "0.10.2" else ""
    for before, after in (
        ("", options + older),
        ("--xla_backend_extra_options=mine", "--xla_backend_extra_options=mine" + older),
        (f"{options} --xla_cpu_use_fusion_emitters", f"{options} --xla_cpu_use_fusion_emitters"),
    ):
        monkeypatch.setenv("XLA_FLAGS", before)
        for _ in range(2):
            choose_short_loops(quick=True)
            assert os.environ["XLA_FLAGS"] == after


@pytest.mark.parametrize("version", ["0.10.1", "0.10.2"])
def test_flags_of_the_user_come_first(version, monkeypatch):
    monkeypatch.setattr(jaxlib, "__version__", version)
    ours = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"
    for before, after in (("", ours), ("--xla_a=1", f"--xla_a=1 {ours}")):
        monkeypatch.setenv("XLA_FLAGS", before)
        choose_convolutions()
        assert os.environ["XLA_FLAGS"] == (after if version == "0.10.2" else before)
        choose_convolutions()
        assert os.environ["XLA_FLAGS"].count("ynn") == (version == "0.10.2")
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=+dot")
    choose_convolutions()
    assert os.environ["XLA_FLAGS"] == "--xla_cpu_experimental_ynn_fusion_type=+dot"


@pytest.mark.parametrize(
    ("cores", "batches", "count"),
    [(8, (96, 32), 8), (8, (12, 30), 6), (8, (7, 5), 1), (1, (4,), 1)],
)
def test_devices_divide_the_batches(cores, batches, count, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.setenv("XLA_FLAGS", "--mine")
    choose_device_per_core(*batches)
    ours = f"--xla_force_host_platform_device_count={count} --xla_cpu_multi_thread_eigen=false"
    assert os.environ["XLA_FLAGS"] == ("--mine" if count == 1 else f"--mine {ours}")


def test_the_users_number_of_devices_comes_first(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=3")
    choose_device_per_core(32)
    assert os.environ["XLA_FLAGS"] == "--xla_force_host_platform_device_count=3"


@pytest.mark.parametrize("plugin", [None, "jax_cuda13_plugin"])
def test_loop_graphs_need_the_cuda_plugin(plugin, monkeypatch):
    monkeypatch.setattr(compilation, "find_spec", lambda name: name if name == plugin else None)
    monkeypatch.setenv("XLA_FLAGS", "--mine")
    choose_loop_graphs()
    expected = ["--mine", *(compilation.LOOP_GRAPHS if plugin else ())]
    assert os.environ["XLA_FLAGS"].split() == expected


def test_loop_graphs_respect_the_users_flags(monkeypatch):
    monkeypatch.setattr(compilation, "find_spec", lambda name: name)
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_enable_command_buffer=")
    choose_loop_graphs()
    assert os.environ["XLA_FLAGS"] == "--xla_gpu_enable_command_buffer="
