"""cuDNN itself, where a GPU and the extra are: the numbers of NumPy, in full and with 10 bits of fraction."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from growarray.backend import to_device, to_numpy
from growarray.contraction import plan
from growarray.contraction.routines import cudnn as routine
from growarray.cuda import convolution

pytestmark = pytest.mark.gpu

EQUATION = "n g c y x, g o c y x -> n g o y x | y, x"
SHAPES = (4, 2, 16, 20, 18), (2, 24, 16, 3, 3)
CASES: dict[str, dict[str, Any]] = {
    "same": {"padding": 1},
    "stride, dilation": {"padding": 2, "stride": (2, 1), "dilation": (1, 2)},
    "before and after": {"padding": ((2, 1), (0, 2))},
    "reflect": {"padding": 1, "padding_mode": "reflect"},
    "circular": {"padding": ((1, 2), (0, 1)), "padding_mode": "circular", "stride": 2},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
@pytest.mark.parametrize(
    ("dtype", "precision", "tolerance"),
    [("float64", None, 1e-13), ("float32", None, 1e-5), ("float32", "tf32", 5e-3), ("float16", None, 5e-3)],
    ids=["float64", "float32", "tf32", "float16"],
)
def test_every_way(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], dtype: str, precision: str | None, tolerance: float
) -> None:
    if not convolution.available():
        pytest.skip("cuDNN's frontend is not installed")
    monkeypatch.setattr(routine, "_LEAST", 0)
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype(dtype) for shape in SHAPES)
    there = plan(EQUATION, *SHAPES, device="cuda", dtype=dtype, precision=precision, training=True, **options)
    assert there.steps[0].routine == "cudnn"
    y, back = plan(EQUATION, *SHAPES, dtype="float64", **options).vjp(x.astype("float64"), w.astype("float64"))
    dy = rng.standard_normal(y.shape).astype(dtype)
    got, got_back = there.vjp(to_device(x, "cuda"), to_device(w, "cuda"))
    gradients = got_back(to_device(dy, "cuda"))
    for found, expected in zip((got, *gradients), (y, *back(dy.astype("float64"))), strict=True):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(to_numpy(found) / scale, expected / scale, rtol=0, atol=tolerance)
