"""Calibrating a GPU: what is measured there, through the doubles."""

from __future__ import annotations

import pytest

from growarray.contraction import calibrate
from growarray.contraction.machine import GPU
from tests import doubles
from tests.cuda.cudnn import Cudnn, cudnn
from tests.cuda.device import Cuda, cuda

__all__ = ["cuda", "cudnn"]


@pytest.mark.parametrize("with_cudnn", [True, False], ids=["cudnn", "without"])
def test_what_convolves_there_is_measured(
    cuda: Cuda, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, with_cudnn: bool
) -> None:
    double: Cudnn | None = request.getfixturevalue("cudnn") if with_cudnn else None
    cuda.dry = True
    monkeypatch.setattr(calibrate, "_STREAM", 1 << 12)
    monkeypatch.setattr(calibrate, "_WIDER", 1)
    monkeypatch.setattr(calibrate, "_seconds", lambda call, share: (call(), 1e-4)[1])
    told: list[tuple[int, int]] = []
    found = calibrate.measure(doubles.xp, cores=1, device="cuda", progress=lambda *at: told.append(at))
    assert told == [(done, len(told)) for done in range(1, len(told) + 1)]
    assert found.launched
    ((routine, operations, _),) = found.convolutions
    assert (routine, operations) == ("cudnn" if with_cudnn else "implicit", 2.0 * 64 * 64 * 64 * 9 * 28 * 28)
    assert double is None or double.runs == ["forward"]
    machine = calibrate.fit(found, GPU, name="gpu, calibrated")
    fitted, left = ("cudnn", "implicit") if with_cudnn else ("implicit", "cudnn")
    assert getattr(machine, fitted) == pytest.approx(operations / 1e-5)
    assert getattr(machine, left) == getattr(GPU, left)
