"""The benchmark of a clone of the original, on a stub with the original's interface."""

import importlib.util
import sys
import types

import numpy as np
import pytest

from benchmarks import original, original_clone
from benchmarks.workload import forced, random_batch
from mdeq_jax.convert import WeightsFileError

pytest.importorskip("torch")

# One resolution, no weight norm; plain iteration as "broyden".
STUB = {
    "lib/solvers.py": """
def broyden(f, x0, threshold, eps=1e-3, stop_mode="rel", name=""):
    z, steps = f(x0), 0
    while steps < threshold:
        z, before, steps = f(z), z, steps + 1
        if (z - before).norm() <= eps * z.norm():
            break
    return {"result": z, "nstep": steps}
""",
    "MDEQ-Vision/lib/utils/__init__.py": "",
    "MDEQ-Vision/lib/utils/utils.py": """
import torch

def get_optimizer(cfg, model):
    return torch.optim.Adam(model.parameters(), lr=cfg.TRAIN.LR, weight_decay=cfg.TRAIN.WD)
""",
    "MDEQ-Vision/lib/models/__init__.py": "import models.mdeq",
    "MDEQ-Vision/lib/models/mdeq_core.py": """
import sys
import torch
from torch import nn

sys.path.append("lib/")
import utils.utils
sys.path.append("../")
from lib.solvers import broyden

class Block(nn.Module):
    def __init__(self, width, expansion, groups):
        super().__init__()
        hidden = expansion * width
        self.conv1 = nn.Conv2d(width, hidden, 3, padding=1, bias=False)
        self.gn1 = nn.GroupNorm(groups, hidden)
        self.conv2 = nn.Conv2d(hidden, width, 3, padding=1, bias=False)
        self.gn2, self.gn3 = nn.GroupNorm(groups, width), nn.GroupNorm(groups, width)

    def forward(self, z, injection):
        y = self.conv2(self.gn1(self.conv1(z)).relu()) + injection
        return self.gn3((self.gn2(y) + z).relu())

class Core(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        stage, model = cfg["MODEL"]["EXTRA"]["FULL_STAGE"], cfg["MODEL"]
        self.width, self.layers = stage["NUM_CHANNELS"][0], model["NUM_LAYERS"]
        self.pretrain_steps, self.deq = cfg["TRAIN"]["PRETRAIN_STEPS"], cfg["DEQ"]
        parts = []
        for channels in (3, self.width):
            conv = nn.Conv2d(channels, self.width, 3, padding=1, bias=False)
            parts += [conv, nn.BatchNorm2d(self.width), nn.ReLU()]
        self.downsample = nn.Sequential(*parts)
        block = Block(self.width, model["EXPANSION_FACTOR"], model["NUM_GROUPS"])
        branch = nn.Module()
        branch.blocks = nn.ModuleList([block])
        self.fullstage = nn.Module()
        self.fullstage.branches = nn.ModuleList([branch])
        self.f_solver = self.b_solver = broyden

    def equilibrium(self, images, train_step, compute_jac_loss):
        assert not compute_jac_loss
        injection = self.downsample(images)
        f = lambda z: self.fullstage.branches[0].blocks[0](z, injection)
        z = torch.zeros_like(injection)
        if 0 <= train_step < self.pretrain_steps:
            for _ in range(self.layers):
                z = f(z)
            return z
        with torch.no_grad():
            z = self.f_solver(f, z, threshold=self.deq["F_THRES"], stop_mode="rel")["result"]
        if self.training:
            start = z.requires_grad_()
            z = f(start)
            hook = None

            def solve(grad):
                hook.remove()
                torch.cuda.synchronize()
                pull = lambda u: torch.autograd.grad(z, start, u, retain_graph=True)[0] + grad
                zero = torch.zeros_like(grad)
                return self.b_solver(pull, zero, threshold=self.deq["B_THRES"])["result"]

            hook = z.register_hook(solve)
        return z
""",
    "MDEQ-Vision/lib/models/mdeq.py": """
import sys
from torch import nn

sys.path.append("lib/models")
from mdeq_core import Core

class Bottleneck(nn.Module):
    def __init__(self, width, raised):
        super().__init__()
        self.conv1 = nn.Conv2d(width, raised // 4, 1, bias=False)
        self.conv2 = nn.Conv2d(raised // 4, raised // 4, 3, padding=1, bias=False)
        self.conv3 = nn.Conv2d(raised // 4, raised, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(raised // 4, affine=False)
        self.bn2 = nn.BatchNorm2d(raised // 4, affine=False)
        self.bn3 = nn.BatchNorm2d(raised, affine=False)
        self.downsample = None
        if raised != width:
            conv = nn.Conv2d(width, raised, 1, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(raised))

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        return (self.bn3(self.conv3(y)) + (self.downsample or (lambda x: x))(x)).relu()

class Net(Core):
    def __init__(self, cfg):
        super().__init__(cfg)
        stage = cfg["MODEL"]["EXTRA"]["FULL_STAGE"]
        raised = 4 * stage["HEAD_CHANNELS"][0]
        head = nn.Sequential(Bottleneck(self.width, raised))
        self.incre_modules = nn.ModuleList([head])
        final = stage["FINAL_CHANSIZE"]
        self.final_layer = nn.Sequential(
            nn.Conv2d(raised, final, 1), nn.BatchNorm2d(final), nn.ReLU()
        )
        self.classifier = nn.Linear(final, cfg["MODEL"]["NUM_CLASSES"])

    def forward(self, x, train_step=0, compute_jac_loss=True, **settings):
        z = self.equilibrium(x, train_step, compute_jac_loss)
        y = self.final_layer(self.incre_modules[0](z)).mean((2, 3))
        return self.classifier(y), None, None

def get_cls_net(config):
    return Net(config)
""",
}


@pytest.fixture
def clone(tmp_path):
    """A folder with the stub."""
    for name, text in STUB.items():
        path = tmp_path / "clone" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "clone"


@pytest.fixture
def stub_config(tiny_config):
    """A config whose network the stub has."""
    with tiny_config.unlocked():
        tiny_config.model.weight_norm = False
    return forced(tiny_config)


def test_both_are_timed_with_the_same_network_and_steps(run, arguments, clone):
    arguments = [*arguments, "--config.model.weight_norm=False", "--batch=4", f"--repo={clone}"]
    out, report = run(original, arguments)
    assert report["logits_differ"] < 1e-5
    found = {(row["program"], row["side"]): row["evaluations"] for row in report["rows"]}
    training, inference = {"forward": 4, "backward": 3}, {"forward": 4}
    assert found == {
        ("training", "original"): training,
        ("training", "here"): {**training, "backward": 2},  # none at a start of zero
        ("inference", "original"): inference,
        ("inference", "here"): inference,
    }
    for row in report["rows"]:
        np.testing.assert_allclose(row["images_per_second"] * row["seconds"]["median"], 4)
        assert f"{row['program']}, {row['side']}" in out
        assert f"{row['images_per_second']:.2f}" in out
        assert row["memory_bytes"] is None or row["memory_bytes"] >= 0


def test_the_clone_leaves_no_trace(clone, monkeypatch):
    mine = types.ModuleType("models")
    monkeypatch.setitem(sys.modules, "models", mine)
    before = list(sys.path)
    get_network, get_optimizer = original_clone.load(clone)
    assert get_network.__module__ == "models.mdeq" and get_optimizer.__module__ == "utils.utils"
    assert sys.path == before and sys.modules["models"] is mine
    assert not {"mdeq_core", "models.mdeq", "lib", "lib.solvers", "utils"} & sys.modules.keys()


def test_another_network_is_refused(clone, stub_config):
    batch = random_batch(stub_config, 2)
    network = original_clone.build(clone, stub_config, batch, "cpu")
    with stub_config.unlocked():
        stub_config.model.weight_norm = True
    with pytest.raises(WeightsFileError, match=r"conv1\.weight_g"):
        original.compare(network, stub_config, batch)
    with stub_config.unlocked():
        stub_config.model.weight_norm = False
    other = network._replace(plain=lambda: 2 * network.plain())
    with pytest.raises(ValueError, match=r"differ by 5\.0e-01 of their size"):
        original.compare(other, stub_config, batch)
    with stub_config.unlocked():
        stub_config.gradient.name = "phantom"
    with pytest.raises(ValueError, match=r"exact gradient.*'phantom'"):
        original_clone.original_config(stub_config)


def test_without_a_clone_it_says_how_to_get_one(run, arguments, tmp_path):
    with pytest.raises(SystemExit, match=r"git clone https://github\.com/locuslab/deq"):
        run(original, arguments)
    with pytest.raises(SystemExit, match=r"not a clone of the original: no .*mdeq\.py(.|\n)*git"):
        run(original, [*arguments, "--batch=2", f"--repo={tmp_path}"])


def test_without_pytorch_it_says_what_to_install(monkeypatch, run, arguments, clone):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"needs PyTorch(.|\n)*pip install torch"):
        run(original, [*arguments, f"--repo={clone}"])
