"""One pairwise product on arrays: how its operands lie, and which routines run it, forward and backward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from growarray.backend import Array
from growarray.contraction import operand
from growarray.contraction.cost import is_short
from growarray.contraction.machine import CPU
from growarray.contraction.problem import Pair, Problem
from growarray.contraction.routines.choice import choose
from growarray.contraction.routines.protocol import D_FEATURE, D_KERNEL, FORWARD, SingleCall
from growarray.contraction.workspace import view_as


class Step:
    """A product of two partial results, with everything that its sizes decide.

    f_order, k_order : modes of the two arrays as they are stored    library : of the arrays
    out : modes of the result, [b, n, axes], as stored    short : whether it is left to one thread
    call : the product as one call of NumPy, if it is one
    """

    def __init__(
        self, pair: Pair, f_order: Sequence[str], k_order: Sequence[str], problem: Problem, library: str = "numpy"
    ) -> None:
        self.pair, self.library, product = pair, library, pair.product
        self.f, self.k, self.mask = pair.feature_mask, pair.kernel_mask, pair.feature_mask | pair.kernel_mask
        names = tuple(a.name for a in product.axes)
        self.out = (*pair.b, *pair.n, *names)
        f_modes = (*pair.b, *pair.s, *names)
        k_modes = (*pair.b, *pair.n, *pair.s, *(m for m in names if m in k_order))
        self.f_perm, self.k_perm = _places(f_modes, f_order), _places(k_modes, k_order)
        self.f_back, self.k_back = _places(f_order, f_modes), _places(k_order, k_modes)
        self.out_sizes = tuple(problem.extent(m, self.mask) for m in self.out)
        self.f_stored = tuple(problem.extent(m, self.f) for m in f_order)
        self.f_sizes = tuple(problem.extent(m, self.f) for m in f_modes)
        self.k_sizes = tuple(problem.extent(m, self.k) for m in k_modes)
        self.padded = tuple((names.index(m) + 2, axis) for m, axis in pair.padded)
        self.f_shape = (product.b, product.s, *self.f_sizes[len(f_modes) - len(names) :])
        self.k_shape, self.out_shape = product.kernel_shape, product.shape
        self.feature_shape = product.feature_shape
        self.empty = 0 in self.out_shape or 0 in self.feature_shape
        chosen = choose(product, FORWARD, library)
        self.forward: Any = chosen(product)
        self.call = self._single_call() if library == "numpy" else None
        self.short = is_short(product, chosen, chosen.seconds(product, CPU, FORWARD))

    def _single_call(self) -> SingleCall | None:
        """The product as one call of NumPy, if contiguous operands need no copy for it."""
        call: SingleCall | None = self.forward.call
        stored = contiguous(self.f_stored).transpose(self.f_perm)
        return None if call is None or self.empty or view_as(stored, call.feature) is None else call

    @cached_property
    def by_feature(self) -> Any:
        """The routine of the gradient by the feature map."""
        return choose(self.pair.product, D_FEATURE, self.library)(self.pair.product)

    @cached_property
    def by_kernel(self) -> Any:
        """The routine of the gradient by the kernel."""
        product = self.pair.product.backward
        return choose(product, D_KERNEL, self.library)(product)

    @property
    def routines(self) -> tuple[str, str, str]:
        """Names of what runs the product, its gradient by the feature map, and by the kernel."""
        return self.forward.name, self.by_feature.name, self.by_kernel.name

    def feature(self, xp: Any, array: Array) -> Array:
        """The feature map as (b, s, *sizes), padded if that is not by zeros."""
        return self.pad(xp, _permuted(xp, array, self.f_perm, self.f_shape))

    def pad(self, xp: Any, feature: Array) -> Array:
        """A feature map (b, s, *sizes) with its padding, if that is not by zeros."""
        for place, axis in self.padded:
            feature = operand.pad(xp, feature, place, axis)
        return feature

    def kernel(self, xp: Any, array: Array) -> Array:
        """The kernel as (b, n, s, *taps)."""
        return _permuted(xp, array, self.k_perm, self.k_shape)

    def d_feature(self, xp: Any, gradient: Array) -> Array:
        """A gradient (b, s, *sizes) as the feature map is stored."""
        for place, axis in reversed(self.padded):
            gradient = operand.unpad(xp, gradient, place, axis)
        return _permuted_back(xp, gradient, self.f_sizes, self.f_back)

    def d_kernel(self, xp: Any, gradient: Array) -> Array:
        """A gradient (b, n, s, *taps) as the kernel is stored."""
        return _permuted_back(xp, gradient, self.k_sizes, self.k_back)


def contiguous(shape: tuple[int, ...]) -> np.ndarray:
    """An array that lies as a contiguous one would, to ask about views; it has no memory of its own."""
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return as_strided(np.empty(1, np.uint8), shape, strides)


def _places(modes: Sequence[str], order: Sequence[str]) -> tuple[int, ...]:
    return tuple(order.index(m) for m in modes)


def _permuted(xp: Any, array: Array, order: tuple[int, ...], shape: tuple[int, ...]) -> Array:
    """Axes in another order, in another shape; by NumPy's methods on NumPy, at a third of the cost."""
    permuted: Array = (
        array.transpose(order).reshape(shape) if xp is np else xp.reshape(xp.permute_dims(array, order), shape)
    )
    return permuted


def _permuted_back(xp: Any, array: Array, shape: tuple[int, ...], order: tuple[int, ...]) -> Array:
    """Another shape, its axes in another order."""
    permuted: Array = (
        array.reshape(shape).transpose(order) if xp is np else xp.permute_dims(xp.reshape(array, shape), order)
    )
    return permuted
