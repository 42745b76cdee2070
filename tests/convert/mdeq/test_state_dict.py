"""Full-size state dicts to variables and back, bit by bit."""

import json
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from mdeq_jax.convert import convert, convert_state_dict, export_state_dict
from tests.helpers.networks import EXPERIMENTS, assert_same, load_config, random_state_dict

COUNTERS = "*.num_batches_tracked"


@pytest.mark.parametrize(
    "experiment",
    [pytest.param(n, marks=pytest.mark.slow) if "XL" in n else n for n in EXPERIMENTS],
)
def test_full_size_there_and_back(experiment, shapes):
    config = load_config(EXPERIMENTS[experiment])
    state_dict = random_state_dict(shapes[experiment])
    conversion = convert(state_dict, config)
    assert f"configs/{config.name}.py (the original's {experiment})" in conversion.recognised
    assert "--config" not in conversion.recognised and not conversion.notes
    assert [line.split(":")[0] for line in conversion.ignored] == [COUNTERS]
    assert_same(export_state_dict(conversion.variables, config), state_dict)


XL_SCRIPT = """
import json, pathlib, sys, time
from mdeq_jax.convert import convert_state_dict, export_state_dict, load_torch_file
from tests.helpers import networks, torch_files

shapes = json.loads(pathlib.Path(sys.argv[1]).read_text())
state_dict, path = networks.random_state_dict(shapes), pathlib.Path(sys.argv[2])
kinds = {"float32": "FloatStorage", "int64": "LongStorage"}
pickled = torch_files.dumps({
    name: torch_files.tensor(array.shape, key=str(i), kind=kinds[array.dtype.name])
    for i, (name, array) in enumerate(state_dict.items())
})
torch_files.write_zip(path, pickled, {str(i): a.data for i, a in enumerate(state_dict.values())})

config = networks.load_config("imagenet_xl")
start = time.perf_counter()
exported = export_state_dict(convert_state_dict(load_torch_file(path), config), config)
seconds = time.perf_counter() - start
networks.assert_same(exported, state_dict)
# Not getrusage: its peak is that of the process that started this one, if that was larger.
status = pathlib.Path("/proc/self/status").read_text()
kilobytes = int(status.split("VmHWM:")[1].split()[0])
print(json.dumps({"seconds": seconds, "gigabytes": kilobytes / 1e6}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_xl_from_its_file_in_time_and_memory(shapes, tmp_path):
    path = tmp_path / "shapes.json"
    path.write_text(json.dumps(shapes["imagenet/cls_mdeq_XL"]))
    weights = tmp_path / "xl.pkl"
    command = [sys.executable, "-c", XL_SCRIPT, str(path), str(weights)]
    result = subprocess.run(command, capture_output=True, text=True)
    weights.unlink(missing_ok=True)
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    print(figures)
    assert figures["seconds"] < 30 and figures["gigabytes"] < 3, figures


@pytest.mark.parametrize("kind", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_precisions_become_float32(kind, tiny):
    state_dict, config = tiny
    narrow = {n: w.astype(kind) if w.dtype.kind == "f" else w for n, w in state_dict.items()}
    exported = export_state_dict(convert_state_dict(narrow, config), config)
    assert_same(exported, {n: w.astype(state_dict[n].dtype) for n, w in narrow.items()})


def test_counters_may_be_absent(tiny):
    state_dict, config = tiny
    old = {name: w for name, w in state_dict.items() if not name.endswith("num_batches_tracked")}
    conversion = convert(old, config)
    assert not conversion.ignored
    assert_same(export_state_dict(conversion.variables, config), state_dict)
