"""Other libraries on the same layer as ``growarray bench paths``; stand-ins, so that no test needs them."""

import subprocess
import sys
import types
from functools import partial

import numpy as np

from bench import peers
from growarray.cli.bench.candidates import candidates_for
from growarray.cli.bench.layer import Layer, layer_from
from growarray.cli.bench.measure import Peer
from growarray.cli.bench.report import measure_layer
from tests.bench.checkout import ENVIRONMENT, ROOT

measured = partial(measure_layer, beside=peers.peers_for)


def test_without_torch_a_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    layer = layer_from({"in": 3, "out": 3, "size": 5, "batch": 1, "rank": 2})
    report = measured(layer, candidates_for(layer, 1), repeat=1)
    assert report["peers"] == []
    assert report["remarks"] == ["torch is not installed: no comparison with it and TensorLy-Torch"]


def test_without_tensorly_torch_torch_is_measured_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(set_num_threads=lambda count: None))
    monkeypatch.setitem(sys.modules, "tltorch", None)
    monkeypatch.setattr(peers, "_Side", _NumpySide)
    layer = layer_from({"in": 3, "out": 3, "size": 5, "batch": 1, "rank": 2})
    report = measured(layer, candidates_for(layer, 2), repeat=2)
    assert report["remarks"] == ["TensorLy-Torch is not installed: no comparison with it"]
    assert report["peers"][0]["label"] == "torch conv, dense kernel"
    assert report["peers"][0]["difference"] < 1e-5
    assert {"forward", "training"} < set(report["peers"][0])


def test_a_result_that_differs_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(set_num_threads=lambda count: None))
    monkeypatch.setitem(sys.modules, "tltorch", None)
    monkeypatch.setattr(peers, "_Side", lambda *arguments: _NumpySide(*arguments, factor=2.0))
    layer = layer_from({"in": 3, "out": 3, "size": 5, "batch": 1, "rank": 2})
    report = measured(layer, candidates_for(layer, 1), repeat=1)
    assert report["remarks"][-1] == "torch conv, dense kernel: the result differs by 1.0e+00 of its largest entry"


class _NumpySide:
    """Stands in for torch, which no test needs: the dense convolution, run here."""

    def __init__(self, torch, layer: Layer, arrays, dy, device, factor: float = 1.0) -> None:
        self.layer, self.arrays, self.factor = layer, arrays, factor

    def conv(self) -> Peer:
        def forward():
            return self.factor * self.layer.plan("reconstructed")(*self.arrays)

        return Peer("torch conv, dense kernel", forward, forward, forward)


def test_an_order_that_torch_does_not_know_is_left_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, "tltorch", None)
    layer = layer_from({"in": 2, "out": 2, "kernel": [2] * 4, "size": 3, "batch": 1, "rank": 1})
    found, remarks = peers.peers_for(layer, [], np.zeros(0), None)
    assert found == []
    assert remarks == ["torch has no convolution of order 4: no comparison with it and TensorLy-Torch"]


def test_the_command_is_that_of_the_package_with_the_other_libraries():
    program = "import sys; sys.modules['torch'] = None; import runpy; "
    program += "runpy.run_module('bench', run_name='__main__', alter_sys=True)"
    options = ["--in", "3", "--out", "3", "--size", "5", "--rank", "2", "--repeat", "1", "--paths", "2"]
    command = [sys.executable, "-c", program, "paths", *options]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "forward + backward" in done.stdout
    assert "torch is not installed: no comparison with it and TensorLy-Torch" in done.stdout
    refused = subprocess.run([*command, "--seed", "-1"], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr == "python -m bench paths: --seed: expected at least 0, found -1\n"
