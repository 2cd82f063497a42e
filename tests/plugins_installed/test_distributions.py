# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""The example distributions, installed with pip into an environment of their own and used as a user would."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from environment import Environment

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples" / "plugins"
UNSOUND = "lowrank-broken,lowrank-conflict"

NETWORK = """
import json, torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 24, 3, padding=1)
        self.up = nn.ConvTranspose2d(24, 24, 4, stride=2, padding=1)
        self.head = nn.Linear(24, 24)

    def forward(self, x):
        x = torch.relu(self.up(torch.relu(self.conv(x))))
        return self.head(x.mean(dim=(2, 3)))

torch.manual_seed(0)
model, images = Net().eval(), [torch.randn(8, 3, 8, 8) for _ in range(4)]
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Has all example distributions; those that are unsound are switched off unless a test says otherwise."""
    made = Environment(tmp_path_factory.mktemp("installed"), {"LOWRANK_DISABLE_PLUGINS": UNSOUND})
    made.install(*sorted(folder for folder in EXAMPLES.iterdir() if (folder / "pyproject.toml").is_file()))
    return made


def test_every_example_is_listed_with_its_distribution(environment: Environment) -> None:
    done = environment.run(str(environment.python.parent / "lowrank"), "plugins", "--json")
    assert done.returncode == 0, done.stderr
    listed = json.loads(done.stdout)
    found = {(row["kind"], row["name"], row["distribution"], row["version"]) for row in listed["plugins"]}
    assert listed["failures"] == []
    assert found >= {
        ("decomposer", "tensor_train", "lowrank-tensor-train", "0.1.0"),
        ("rank policy", "equal-energy", "lowrank-energy-ranks", "0.1.0"),
        ("layer adapter", "ConvTranspose2d", "lowrank-transposed-conv", "0.1.0"),
        ("compression algorithm", "weight_clustering", "lowrank-weight-clustering", "0.1.0"),
        ("decomposer", "svd", "lowrank-plugin", "0.1.0"),
    }


@pytest.mark.parametrize(
    "name", ["lowrank-tensor-train", "lowrank-transposed-conv", "lowrank-energy-ranks", "lowrank-weight-clustering"]
)
def test_conformance_kit_and_doctests_pass(environment: Environment, name: str) -> None:
    folder = environment.folder / "sources" / name
    done = environment.run(
        str(environment.python), "-m", "pytest", "-p", "no:cacheprovider", "--doctest-modules", cwd=folder
    )
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout


def test_by_name_from_an_nncf_config(environment: Environment) -> None:
    printed = environment.script(
        NETWORK
        + """
import lowrank_nncf, nncf
config = {"compression": [
    {"algorithm": "lowrank", "budget": {"macs": 0.5}, "rank_multiple": 1, "policy": "equal-energy",
     "decomposers": ["tensor_train"]},
    {"algorithm": "weight_clustering", "clusters": 16},
    {"algorithm": "quantization"},
]}
controller, compressed = lowrank_nncf.create_compressed_model(model, config, nncf.Dataset(images))
statistics = controller.statistics().to_dict()
controller.export_model("net.xml")
import openvino
there = openvino.compile_model("net.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(images[0].numpy())[0]
with torch.no_grad():
    statistics["distance"] = float((compressed(images[0]) - torch.from_numpy(there)).abs().max())
print(json.dumps(statistics))
""",
    )
    statistics = json.loads(printed.splitlines()[-1])
    layers = statistics["lowrank"]["layers"]
    assert {layer["decomposer"] for layer in layers.values()} <= {"tensor_train", "dense"}
    assert layers["up"]["decomposer"] == "tensor_train"
    assert statistics["lowrank"]["model"]["macs"][1] <= 0.5 * statistics["lowrank"]["model"]["macs"][0]
    assert all(count <= 16 for count in statistics["weight_clustering"]["values"].values())
    assert statistics["quantization"]["quantized_layers"] == statistics["quantization"]["layers"]
    assert statistics["distance"] < 0.05


def test_order_of_the_algorithm_is_checked(environment: Environment) -> None:
    printed = environment.script(
        NETWORK
        + """
import lowrank_nncf, nncf
clustering, quantization = {"algorithm": "weight_clustering"}, {"algorithm": "quantization"}
try:
    lowrank_nncf.create_compressed_model(model, {"compression": [quantization, clustering]}, nncf.Dataset(images))
except nncf.ValidationError as error:
    print(error)
""",
    )
    assert "The order must be weight_clustering, quantization" in printed


def test_it_competes_in_auto(environment: Environment) -> None:
    printed = environment.script(
        """
import json, torch, lowrank_plugin
from lowrank_hooks import Problem
from lowrank_plugin.plugins import DECOMPOSERS, manager
# a short train: 704 weights, where two exact separable stages take 768 and an exact Tucker-2 core 1088
train = manager().find(DECOMPOSERS, "tensor_train").decomposer
kernel = train.fit(Problem(torch.randn(1, 32, 32, 3, 3, generator=torch.Generator().manual_seed(0))), (8, 4, 8))
conv = torch.nn.Conv2d(32, 32, 3)
conv.weight.data.copy_(kernel.value.to_kernel()[0])
made = lowrank_plugin.plan(torch.nn.Sequential(conv), [torch.randn(8, 32, 9, 9)], budget={"parameters": 0.08},
                           rank_multiple=1)
print(json.dumps(made["layers"]["0"]))
"""
    )
    layer = json.loads(printed.splitlines()[-1])
    assert layer["decomposer"] == "tensor_train"
    assert layer["error"] < 1e-3


def test_transposed_convolutions_at_full_rank(environment: Environment) -> None:
    printed = environment.script(
        """
import itertools, torch, lowrank_plugin
from torch import nn
torch.manual_seed(0)
ranks = {"svd": 99, "spatial_svd": 99, "tucker2": [99, 99], "tensor_train": [99, 99, 99]}
layers = [
    nn.ConvTranspose2d(6, 8, 3, stride=2, padding=1, output_padding=1),
    nn.ConvTranspose2d(6, 8, (3, 2), stride=(2, 3), padding=(0, 1), output_padding=(1, 2), groups=2, bias=False,
                       dilation=(1, 2)),
    nn.ConvTranspose2d(6, 8, 3, dilation=2, padding=2),
]
x = torch.randn(4, 6, 7, 5)
for layer, (name, rank) in itertools.product(layers, ranks.items()):
    model = nn.Sequential(layer)
    small = lowrank_plugin.decompose(model, [x], ranks={"0": rank}, decomposers=[name])
    assert isinstance(small[0], nn.Sequential)
    torch.testing.assert_close(small(x), model(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lowrank_plugin.to_dense(small)(x), small(x), atol=1e-5, rtol=1e-5)
    assert type(lowrank_plugin.to_dense(small)[0]) is nn.ConvTranspose2d
    low = lowrank_plugin.decompose(model, [x], budget={"macs": 0.8}, rank_multiple=1, decomposers=[name])
    entry = lowrank_plugin.report(low).to_dict()["layers"]["0"]
    from torch.utils.flop_counter import FlopCounterMode
    counter = FlopCounterMode(display=False)
    with counter:
        low(x)
    assert entry["macs"][1] == counter.get_total_flops() / 2 / len(x), (entry["macs"], counter.get_total_flops())
print("done")
"""
    )
    assert printed == "done\n"


RESTORE = (
    NETWORK
    + """
import lowrank_plugin
from lowrank_plugin.errors import PluginError
saved = torch.load("saved.pt", weights_only=True)
try:
    restored = lowrank_plugin.restore(model, saved["state"])
    restored.load_state_dict(saved["weights"])
    print(torch.equal(restored(images[0]), saved["outputs"]))
except PluginError as error:
    print(error)
"""
)


@pytest.fixture(scope="module")
def saved(environment: Environment) -> Path:
    """A folder with the state of a network with tensor trains."""
    environment.script(
        NETWORK
        + """
import lowrank_plugin
small = lowrank_plugin.decompose(model, images, ranks={"conv": [3, 3, 3], "up": [8, 8, 8], "head": 4},
                                 decomposers=["tensor_train"])
torch.save({"state": lowrank_plugin.get_state(small), "weights": small.state_dict(),
            "outputs": small(images[0]).detach()}, "saved.pt")
"""
    )
    return environment.folder


@pytest.mark.usefixtures("saved")
def test_it_is_restored(environment: Environment) -> None:
    assert environment.script(RESTORE) == "True\n"


@pytest.mark.parametrize(
    ("disabled", "message"),
    [
        ("lowrank-tensor-train", "decomposer 'tensor_train' of lowrank-tensor-train, which is not installed"),
        ("lowrank-transposed-conv", "layer adapter 'ConvTranspose2d' of lowrank-transposed-conv, which is not"),
    ],
)
@pytest.mark.usefixtures("saved")
def test_restoring_names_the_missing_distribution(environment: Environment, disabled: str, message: str) -> None:
    assert message in environment.script(RESTORE, LOWRANK_DISABLE_PLUGINS=f"{UNSOUND},{disabled}")


def test_restoring_where_nothing_is_installed(saved: Path) -> None:
    done = subprocess.run([sys.executable, "-c", RESTORE], cwd=saved, capture_output=True, text=True, check=True)
    assert "of lowrank-tensor-train, which is not installed here" in done.stdout


LIST = "from lowrank_plugin.cli import list_plugins; print(len(list_plugins()))"


def test_broken_one_is_warned_about_by_name(environment: Environment) -> None:
    done = environment.run(str(environment.python), "-c", LIST, LOWRANK_DISABLE_PLUGINS="lowrank-conflict")
    assert done.returncode == 0
    assert "The lowrank plugin 'broken' of lowrank-broken could not be loaded: ModuleNotFoundError" in done.stderr


def test_strict_switch(environment: Environment) -> None:
    variables = {"LOWRANK_DISABLE_PLUGINS": "lowrank-conflict", "LOWRANK_STRICT_PLUGINS": "1"}
    done = environment.run(str(environment.python), "-c", LIST, **variables)
    assert done.returncode != 0
    assert "PluginError: The lowrank plugin 'broken' of lowrank-broken could not be loaded" in done.stderr


def test_conflict_names_both_distributions(environment: Environment) -> None:
    done = environment.run(str(environment.python), "-c", LIST, LOWRANK_DISABLE_PLUGINS="lowrank-broken")
    assert done.returncode != 0
    message = "Two plugins offer a decomposer named 'svd': lowrank-plugin and lowrank-conflict."
    assert f"PluginError: {message}" in done.stderr


def test_only_switch(environment: Environment) -> None:
    code = "from lowrank_plugin.cli import list_plugins; print(sorted({row['distribution'] for row in list_plugins()}))"
    printed = environment.script(code, LOWRANK_ONLY_PLUGINS="lowrank-energy-ranks")
    assert printed == "['lowrank-energy-ranks', 'lowrank-plugin']\n"
