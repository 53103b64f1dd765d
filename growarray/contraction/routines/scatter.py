"""The gradient of a convolution by its feature map on NumPy, by col2im: that of every window, added at its place."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np

from growarray.contraction.machine import Machine
from growarray.contraction.problem import Product
from growarray.contraction.routines.planes import Flat, available, split, tables
from growarray.contraction.routines.protocol import D_FEATURE, Task
from growarray.contraction.routines.windows import transposed_parts, window
from growarray.contraction.routines.winograd import Winograd
from growarray.contraction.workspace import here

_CHUNK = 1 << 18  # elements of windows in one piece: 1 MiB of float32


def _compiled(product: Product) -> bool:
    return available() and product.itemsize in (4, 8)


class Scatter:
    """For kernels so large that to reorder them takes longer than to add up taps, and for strides if Numba adds."""

    name: ClassVar[str] = "scatter"
    ways: ClassVar[tuple[str, ...]] = (D_FEATURE,)

    def __init__(self, product: Product) -> None:
        self.b, self.s, self.n, self.columns = product.b, product.s, product.n, product.columns
        self.axes, self.outs = product.axes, tuple(a.out for a in product.axes)
        self.taps = list(itertools.product(*(range(a.taps) for a in product.axes)))
        outer, self.inner, _ = split(product.axes)
        self.lead = 2 + len(outer)
        self.loops: Any = None
        if _compiled(product):
            from growarray.contraction.routines import loops  # half a second: when a product first needs it

            self.loops = loops
        step = max(1, _CHUNK // max(len(self.taps) * self.columns * self.b, 1))
        self.pieces = [slice(start, min(start + step, self.s)) for start in range(0, self.s, step)]

    @classmethod
    def fits(cls, product: Product, library: str) -> bool:
        """The kernel dominates, and its transpose would not run at the points of tiles; or strides would cut it in
        phases, whose windows are no fewer than those that loops add up."""
        if library != "numpy" or not product.is_conv or product.s == product.n == 1:
            return False
        if _compiled(product) and product.s <= product.n and any(a.stride > 1 for a in product.axes):
            return True
        if not product.kernel_dominates:
            return False
        return not any(part and Winograd.fits(part, library) for *_, part in transposed_parts(product))

    @classmethod
    def seconds(cls, product: Product, machine: Machine, way: str) -> float:
        """One product as wide as there are taps, and a pass for each."""
        b, s, n, out, taps = product.b, product.s, product.n, product.columns, product.taps
        last, calls = product.axes[-1].out, machine.call
        each, work = machine.copied + machine.row / max(last, 1), machine.product(b, s * taps, n, out, product.itemsize)
        if _compiled(product):  # rows are added up, then lie in phases which are put together
            sizes = math.prod(a.size for a in product.axes)
            return (
                10 * calls
                + work
                + b * s * (taps * out * (each + machine.row / max(last, 1)) + 2 * sizes * machine.copied)
            )
        return work + b * s * taps * out * each + taps * calls

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
        if self.loops is not None:
            self._add(np.moveaxis(shaped, 2, 0), out)
            return
        for index, chosen in enumerate(self.taps):
            places = [window(a, t, 0, a.out) for a, t in zip(self.axes, chosen, strict=True)]
            into = (slice(None), slice(None), *(piece for _, _, piece in places))
            read: tuple[Any, ...] = (slice(None), slice(None), index, *(slice(low, high) for low, high, _ in places))
            out[into] += shaped[read]

    def _add(self, windows: np.ndarray, out: np.ndarray) -> None:
        """Add windows (taps, b, s, *outs) at their places."""
        read, into = Flat(windows, self.lead + 1), Flat(out, self.lead, into=True)
        found, ends = tables(self.inner, into.steps, read.steps, even=False), read.starts.reshape(len(windows), -1)
        buffer = here.arrays["buffer", (found.size,), out.dtype]
        self.loops.add_windows(read.array, ends, into.array, into.starts, found, buffer)
