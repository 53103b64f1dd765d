"""Affine layer."""

from __future__ import annotations

import math
from typing import Any, Self

import numpy as np

from growarray.backend import Array, asarray, library, to_device
from growarray.contraction.checks import is_whole
from growarray.errors import ShapeError, shown
from growarray.nn.module import Module, Parameter, Pullback
from growarray.nn.parameter import as_parameter
from growarray.ops.linear import linear


def uniform(
    shape: tuple[int, ...], bound: float, rng: np.random.Generator, dtype: Any = None, device: str | None = None
) -> Array:
    """Uniform on ``[-bound, bound]``, drawn in NumPy and then moved, so that every library starts equal.

    Raises ``TypeError`` if ``rng`` is not a generator, or ``dtype`` not real floating: in integers all would be 0.
    """
    if not hasattr(rng, "uniform"):
        raise TypeError(
            f"rng: expected a numpy.random.Generator, found {shown(rng)}; use numpy.random.default_rng({shown(rng)})"
        )
    host = rng.uniform(-bound, bound, shape).astype(real_dtype(dtype))
    return to_device(asarray(host), device)


def real_dtype(dtype: Any) -> np.dtype[Any]:
    """The dtype of new parameters, float32 for None; raises TypeError if it is not real floating.

    >>> real_dtype(None)
    dtype('float32')
    """
    try:
        found = np.dtype(np.float32 if dtype is None else dtype)
    except TypeError:
        found = None
    if found is None or found.kind in "biucOSUmM":
        raise TypeError(f"dtype: expected a real floating dtype such as numpy.float32, found {found or shown(dtype)}")
    return found


class Linear(Module):
    """``y = x W^T + b`` over the last axis, ``W`` of shape (out_features, in_features) as in torch.

    Weight and bias are drawn uniformly within ``1 / sqrt(in_features)``, torch's default (Kaiming with a = sqrt(5)).
    ``dtype`` defaults to float32, ``rng`` to a fresh unseeded generator.

    Raises TypeError: a width is not a whole number, ``rng`` not a generator, or ``dtype`` not real floating;
    ShapeError: a width is negative.

    >>> import numpy as np
    >>> layer = Linear(3, 2, rng=np.random.default_rng(0))
    >>> y, pullback = layer.vjp(np.ones((4, 3), dtype=np.float32))
    >>> pullback(y).shape, layer.weight.grad.shape
    ((4, 3), (2, 3))
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        rng: np.random.Generator | None = None,
        dtype: Any = None,
        device: str | None = None,
    ) -> None:
        if not (is_whole(in_features) and is_whole(out_features)):
            raise TypeError(
                f"Linear: features must be whole numbers, found {shown(in_features)} -> {shown(out_features)}"
            )
        if in_features < 0 or out_features < 0:
            raise ShapeError(f"Linear: features must not be negative, found {in_features} -> {out_features}")
        library(device)
        rng = np.random.default_rng() if rng is None else rng
        bound = 1.0 / math.sqrt(max(in_features, 1))
        self.weight = Parameter(uniform((out_features, in_features), bound, rng, dtype, device))
        self.bias = Parameter(uniform((out_features,), bound, rng, dtype, device)) if bias else None

    @classmethod
    def of(cls, weight: Array | Parameter, bias: Array | Parameter | None = None) -> Self:
        """A layer that holds these arrays; raises ShapeError unless they are (o, d) and (o,)."""
        layer = cls.__new__(cls)
        layer.weight = as_parameter(weight)
        layer.bias = None if bias is None else as_parameter(bias)
        shapes = [p.shape for p in (layer.weight, layer.bias) if p is not None]
        if len(shapes[0]) != 2 or shapes[1:] not in ([], [shapes[0][:1]]):
            raise ShapeError(f"{cls.__name__}.of: weight and bias have shapes {shapes}, expected (o, d) and (o,)")
        return layer

    def _saved(self) -> dict[str, Any]:
        return {"weight": self.weight, "bias": self.bias}

    _restored = of

    @property
    def in_features(self) -> int:
        """Width of the input."""
        return int(self.weight.shape[1])

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return int(self.weight.shape[0])

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """Value and pullback, which adds to ``weight.grad`` and ``bias.grad``; with ``wrt_x=False`` it returns None."""
        y, back = linear(x, self.weight.data, None if self.bias is None else self.bias.data)
        wrt_w = self.weight.requires_grad

        def pullback(dy: Array, *, wrt_x: bool = True) -> Array:
            dx, dw, db = back(dy, wrt_x=wrt_x, wrt_w=wrt_w)
            self.weight.accumulate(dw, fresh=True)
            if self.bias is not None:
                self.bias.accumulate(db, fresh=True)
            return dx

        return y, pullback

    def extra_repr(self) -> str:
        """Widths and bias."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"
