"""The gradient alone, with no forward pass before it, by launches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from growarray import nn
from growarray.backend import to_numpy
from growarray.contraction import plan, transpose
from growarray.ops import conv
from tests.cuda.device import Cuda, cuda
from tests.cuda.test_products import CP, DENSE, shapes_of

__all__ = ["cuda"]


@pytest.mark.parametrize("equation", [CP, DENSE], ids=["cp", "dense"])
def test_the_gradient_by_one_operand(cuda: Cuda, equation: str) -> None:
    rng, shapes = np.random.default_rng(0), shapes_of(equation, {"y": 5, "x": 4})
    arrays = [rng.standard_normal(shape) for shape in shapes]
    options: dict[str, Any] = {"padding": 1, "optimize": "factorized", "dtype": "float64"}
    host, there = (plan(equation, *shapes, **options, device=device) for device in ("cpu", "cuda"))
    dy = rng.standard_normal(host.output_shape)
    for operand in range(len(shapes)):
        others = arrays[:operand] + arrays[operand + 1 :]
        expected = transpose(host, dy, *others, operand=operand)
        found = transpose(there, cuda.array(dy), *map(cuda.array, others), operand=operand)
        np.testing.assert_allclose(to_numpy(found), expected, atol=1e-12)
    assert cuda.launches


def test_layers_that_use_it(cuda: Cuda) -> None:
    rng = np.random.default_rng(0)
    layer = nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, rng=rng, dtype="float64")
    x, dy = rng.standard_normal((2, 3, 5, 4)), rng.standard_normal((2, 4, 9, 7))
    y, back = layer.vjp(x)
    expected = [y, back(dy), layer.weight.grad]
    for p in layer.parameters():
        p.data, p.grad = cuda.array(p.data), None
    y, back = layer.vjp(cuda.array(x))
    for found, value in zip((y, back(cuda.array(dy)), layer.weight.grad), expected, strict=True):
        np.testing.assert_allclose(to_numpy(found), value, atol=1e-12)


def test_a_gradient_by_the_kernel_alone(cuda: Cuda) -> None:
    rng = np.random.default_rng(0)
    x, w, dy = (rng.standard_normal(shape) for shape in ((2, 3, 6, 5), (4, 3, 3, 3), (2, 4, 6, 5)))
    expected = conv(x, w, padding=1)[1](dy, wrt_x=False)[1]
    there = [cuda.array(a) for a in (x, w, dy)]
    dx, dw, _ = conv(*there[:2], padding=1)[1](there[2], wrt_x=False)
    assert dx is None
    np.testing.assert_allclose(to_numpy(dw), expected, atol=1e-12)
