"""Layers and tensors that the tests of factorized convolutions share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from growarray.factorized import FactorizedConv, FactorizedTensor
from growarray.nn.module import Module
from growarray.ops.conv import conv

FORMATS = ("Dense", "CP", "Tucker", "TT", "TR")
FACTORED = FORMATS[1:]
IMPLEMENTATIONS = ("auto", "factorized", "mobilenet", "reconstructed")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def tensor(name: str, shape: tuple[int, ...], rank: Any = 2) -> FactorizedTensor:
    """A float64 tensor with entries of about one."""
    return FactorizedTensor.new(shape, rank, name, std=1.0, rng=rng(3), dtype=np.float64)


def layer(name: str, *sizes: Any, seed: int = 0, **options: Any) -> FactorizedConv:
    """A float64 layer with weights of about one and a bias, where it has one, that is not zero."""
    made = FactorizedConv(*sizes, factorization=name, rng=rng(seed), **{"rank": 2, "dtype": np.float64, **options})
    made.reset_parameters(1.0, rng(seed + 1))
    if made.bias is not None:
        made.bias.data = rng(seed + 2).standard_normal(made.bias.shape)
    return made


def dense_output(made: FactorizedConv, x: Any, indices: Any = 0) -> Any:
    """What the dense convolution with the reconstructed kernel gives."""
    settings = made.settings(indices)
    bias = None
    if settings.has_bias and made.bias is not None:
        place = indices if made.layers_shape else ()
        bias = made.bias.data[place]
    return conv(x, made.kernel(indices), bias, groups=made.groups, **settings.options)[0]


def as_function(made: Module, indices: Any = None) -> Callable[..., Any]:
    """A layer as a pure function of its input and its parameters."""

    def function(x: Any, *values: Any) -> Any:
        for parameter, value in zip(made.parameters(), values, strict=True):
            parameter.data = value
        y, back = made.vjp(x) if indices is None else made.vjp(x, indices)  # type: ignore[call-arg]

        def pullback(dy: Any) -> Any:
            made.zero_grad()
            dx = back(dy)
            return (dx, *[np.zeros(p.shape) if p.grad is None else p.grad for p in made.parameters()])

        return y, pullback

    return function
