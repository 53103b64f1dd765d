"""The gradient of a convolution by its feature map on NumPy, by col2im: that of every window, added where it lies."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np

from growarray.contraction.machine import Machine
from growarray.contraction.problem import Product
from growarray.contraction.routines.protocol import D_FEATURE, Task
from growarray.contraction.routines.windows import transposed_parts, window
from growarray.contraction.routines.winograd import Winograd
from growarray.contraction.workspace import here

__all__ = ["Scatter"]

_CHUNK = 1 << 18  # elements of windows in one piece: 1 MiB of float32


class Scatter:
    """For kernels so large that to reorder them takes longer than to add up every tap."""

    name: ClassVar[str] = "scatter"
    ways: ClassVar[tuple[str, ...]] = (D_FEATURE,)

    def __init__(self, product: Product) -> None:
        self.b, self.s, self.n, self.columns = product.b, product.s, product.n, product.columns
        self.axes, self.outs = product.axes, tuple(a.out for a in product.axes)
        self.taps = list(itertools.product(*(range(a.taps) for a in product.axes)))
        step = max(1, _CHUNK // max(len(self.taps) * self.columns * self.b, 1))
        self.pieces = [slice(start, min(start + step, self.s)) for start in range(0, self.s, step)]

    @classmethod
    def fits(cls, product: Product, library: str) -> bool:
        """The kernel dominates, and its transpose would not run at the points of tiles."""
        if library != "numpy" or not product.is_conv or product.s == product.n == 1 or not product.kernel_dominates:
            return False
        return not any(part and Winograd.fits(part, library) for *_, part in transposed_parts(product))

    @classmethod
    def seconds(cls, product: Product, machine: Machine, way: str) -> float:
        """One product as wide as there are taps, and a pass for each."""
        b, s, n, out, taps = product.b, product.s, product.n, product.columns, product.taps
        each = machine.copied + machine.row / max(product.axes[-1].out, 1)
        return machine.product(b, s * taps, n, out, product.itemsize) + b * s * taps * out * each + taps * machine.call

    @classmethod
    def preparing(cls, product: Product, machine: Machine) -> float:
        """A view, if the kernel is stored so."""
        return 0.0

    def prepare(self, kernel: np.ndarray) -> np.ndarray:
        """The kernel as (b, n, s, taps)."""
        return kernel.reshape(self.b, self.n, self.s, len(self.taps))

    def d_feature(
        self, kernel: np.ndarray, d_out: np.ndarray, out: np.ndarray, ready: np.ndarray | None = None
    ) -> Sequence[Task]:
        """Some of the summed mode after others."""
        ready = self.prepare(kernel) if ready is None else ready
        flat = d_out.reshape(self.b, self.n, self.columns)
        return [partial(self._piece, ready[:, :, c], flat, out[:, c]) for c in self.pieces]

    def _piece(self, ready: np.ndarray, d_out: np.ndarray, out: np.ndarray) -> None:
        width, taps = out.shape[1], len(self.taps)
        windows = here.arrays["windows", (self.b, width * taps, self.columns), out.dtype]
        np.matmul(ready.reshape(self.b, self.n, width * taps).swapaxes(1, 2), d_out, out=windows)
        shaped = windows.reshape(self.b, width, taps, *self.outs)
        out[...] = 0
        for index, chosen in enumerate(self.taps):
            places = [window(a, t, 0, a.out) for a, t in zip(self.axes, chosen, strict=True)]
            into = (slice(None), slice(None), *(piece for _, _, piece in places))
            read: tuple[Any, ...] = (slice(None), slice(None), index, *(slice(low, high) for low, high, _ in places))
            out[into] += shaped[read]
