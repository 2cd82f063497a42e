# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""Two processes get what one gets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from plugin.flow import distributed_run

from lowrank_plugin import Statistics
from lowrank_plugin.support import processes


@pytest.mark.slow
def test_two_processes_get_what_one_gets(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = Path(distributed_run.__file__)
    done = subprocess.run([*command, str(script), str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    distributed_run.run(tmp_path, "one")
    alone = Statistics.load(tmp_path / "one.safetensors")
    for rank in "01":
        found = Statistics.load(tmp_path / f"{rank}.safetensors")
        assert (found.data, found.samples, found.weights) == (alone.data, alone.samples, alone.weights)
        assert list(found.layers) == list(alone.layers)
        for name, each in alone.layers.items():
            assert found.layers[name].patches.count == each.patches.count
            torch.testing.assert_close(found.layers[name].inputs.mean, each.inputs.mean, rtol=1e-6, atol=1e-7)
            torch.testing.assert_close(
                found.layers[name].inputs.covariance, each.inputs.covariance, rtol=1e-5, atol=1e-6
            )
            torch.testing.assert_close(found.gradients[name], alone.gradients[name], rtol=1e-5, atol=1e-9)
    plans = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "0", "1")]
    assert plans[1] == plans[2]
    chosen = [{name: (entry["decomposer"], entry["rank"]) for name, entry in plan["layers"].items()} for plan in plans]
    assert chosen[0] == chosen[1]
    saved = [torch.load(tmp_path / f"{name}.pt") for name in ("one", "0", "1")]
    assert [each["repairs"] for each in saved] == [5, 3, 3]
    outputs = [each["outputs"] for each in saved]
    assert torch.equal(outputs[1], outputs[2])
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-3, atol=1e-4)
    # only the second process met the broken batch, but both end with its cause
    errors = [(tmp_path / f"{rank}.txt").read_text() for rank in "01"]
    assert errors[0].startswith("Process 1 of 2 failed. CalibrationError: The model cannot take a calibration batch")
    assert errors[1].startswith("The model cannot take a calibration batch")


def test_one_process_is_given_back_what_it_gave():
    assert processes.processes() == 1
    assert processes.gathered(3) == [3]
    assert processes.agreed(3) == 3
    assert processes.place() == 0
    assert processes.divided(lambda names: dict.fromkeys(names, 1), ["a", "b"]) == {"a": 1, "b": 1}
    with pytest.raises(ZeroDivisionError):
        processes.together(lambda: 1 / 0)
