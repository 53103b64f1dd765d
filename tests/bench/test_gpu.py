"""The suite of a GPU: without one it says so; with the double of CuPy it runs and counts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bench import gpu, predicted_gpu
from growarray.errors import DeviceError
from tests.cuda.device import Cuda, cuda

__all__ = ["cuda"]


def test_without_a_gpu_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(device: str) -> None:
        raise DeviceError(f"{device}: none here")

    monkeypatch.setattr(gpu, "library", missing)
    assert gpu.report(gpu.run()) == "Nothing was measured: cuda: none here"


def test_a_quick_run(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda.dry = True
    monkeypatch.setattr(gpu, "BATCH", 2)
    monkeypatch.setattr(gpu, "DENSE", (gpu.DENSE[0]._replace(batch=1, size="8x8"),))
    monkeypatch.setattr(gpu, "QUICK", (21,))
    monkeypatch.setattr(gpu, "peers_for", lambda *_: ([], ["no peers"]))
    monkeypatch.setattr(gpu, "_ROUNDS", 1)
    result = gpu.run(quick=True)
    assert [row["forward_best"] for row in result["rows"]] == ["none"] * len(result["rows"])
    assert all(row["both_ours"] > 0 and math.isnan(row["both_ratio"]) for row in result["rows"])
    assert result["dense"][0]["forward_ours"] > 0
    assert result["adamw"]["ours"] > 0
    assert gpu.report(result).startswith("Double, CuPy 14.0. Geometric mean of")
    assert np.isfinite(result["rows"][0]["forward_ours"])


def test_what_layers_should_take_is_named_predicted(capsys: pytest.CaptureFixture[str]) -> None:
    result = gpu.run(quick=True, predict=True)
    text = gpu.report(result)
    assert text.startswith("PREDICTED from counted launches and bytes by the planner's model, not measured.")
    first, *_, dense = result["rows"]
    assert (first["forward_launches"], first["both_launches"]) == (3, 12)
    assert first["both"] > 2 * first["forward"] > 0
    assert dense["path"] == "cudnn"
    assert dense["forward"] < dense["forward_own"]
    assert (dense["peer"], first["peer"]) == (730.0, 151.0)


def test_steps_are_predicted_from_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    named = {name: case for name, case in predicted_gpu.CASES.items() if name.startswith(("MLP", "AdamW"))}
    monkeypatch.setattr(predicted_gpu, "CASES", named)
    result = predicted_gpu.run()
    mlp, adamw = result["rows"]
    assert (mlp["launches"], mlp["products"], mlp["waits"]) == (8, 8, 0)
    assert (adamw["launches"], adamw["copies"], adamw["products"], adamw["operations"]) == (1, 1, 0, 0)
    assert adamw["host"] <= 20.0  # microseconds
    # data, both moments, gradients and new data
    np.testing.assert_allclose(adamw["memory"], 5 * 4 * 1_863_690 / 2**20, rtol=0.01)
    assert predicted_gpu.report(result).startswith("Predicted from counts, not measured.")
