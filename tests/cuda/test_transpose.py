"""Layers that take a gradient alone, with no forward pass before it, by launches."""

from __future__ import annotations

import numpy as np

from growarray import nn
from growarray.backend import to_numpy
from growarray.ops import conv
from tests.cuda.device import Cuda, cuda

__all__ = ["cuda"]


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
