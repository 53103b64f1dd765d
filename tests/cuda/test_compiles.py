"""NVIDIA's compiler takes every kind of kernel; it needs no GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from growarray import ops
from growarray.contraction import plan
from growarray.ops.moments import window_moment
from growarray.ops.windows import windows
from tests.cuda import nvrtc
from tests.cuda.cudnn import Cudnn, cudnn
from tests.cuda.device import Cuda, cuda

__all__ = ["cuda", "cudnn"]

CP = "n c y x, r, o r, c r, y r, x r -> n o y x | y, x"
DENSE = "n c y x, o c y x -> n o y x | y, x"
SHAPES = {CP: [(8, 64, 28, 28), (14,), (64, 14), (64, 14), (3, 14), (3, 14)], DENSE: [(8, 32, 28, 28), (64, 32, 3, 3)]}

pytestmark = pytest.mark.skipif(nvrtc.LIBRARY is None, reason="no NVRTC: pip install nvidia-cuda-nvrtc-cu12")


@pytest.mark.parametrize("equation", SHAPES, ids=["cp", "dense"])
@pytest.mark.parametrize(
    ("dtype", "mode"), [("float32", "zeros"), ("float16", "reflect"), ("float64", "circular"), ("float32", "replicate")]
)
def test_kernels_of_products_compile(cuda: Cuda, equation: str, dtype: str, mode: str) -> None:
    cuda.dry = True
    options: dict[str, Any] = {"padding": 1, "stride": 2, "padding_mode": mode, "optimize": "factorized"}
    p = plan(equation, *SHAPES[equation], dtype=dtype, device="cuda", **options)
    y, back = p.vjp(*(cuda.array(np.zeros(shape, dtype)) for shape in SHAPES[equation]))
    back(y)
    assert len(cuda.texts) >= 3
    for text in cuda.texts:
        assert ".visible .entry growarray(" in nvrtc.compiled(text)


def test_kernels_that_pad_for_cudnn_compile(cuda: Cuda, cudnn: Cudnn) -> None:
    cuda.dry = True
    p = plan(DENSE, *SHAPES[DENSE], padding=1, padding_mode="circular", device="cuda", training=True)
    y, back = p.vjp(*(cuda.array(np.zeros(shape, np.float32)) for shape in SHAPES[DENSE]))
    back(y)
    assert (len(cudnn.runs), len(cuda.texts)) == (3, 2)
    for text in cuda.texts:
        assert ".visible .entry growarray(" in nvrtc.compiled(text)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_kernels_of_operations_compile(cuda: Cuda, dtype: str) -> None:
    cuda.dry = True
    x, w = (cuda.array(np.ones(shape, dtype)) for shape in ((4, 6, 8, 8), (6,)))
    made = [ops.group_norm(x, 2, w, w), ops.batch_norm(x, w, w), ops.adaptive_avg_pool(x, 3), ops.max_pool(x, 2)]
    for y, back in (*made, ops.gelu(x)):
        back(y)
    ops.cross_entropy(x, cuda.array(np.zeros((4, 8, 8), np.int64)), reduction="none")[1](1.0)
    window_moment(windows(x, (3, 3), padding=1, bias=True))
    for text in cuda.texts:
        assert ".visible .entry growarray(" in nvrtc.compiled(text)
