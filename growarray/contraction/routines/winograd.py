"""Convolution with kernels of 3 x 3 taps in 16 products a tile of 2 x 2 outputs, where the direct way takes 36.

Lavin and Gray 2016, F(2 x 2, 3 x 3): Y = A' [(G g G') * (B' d B)] A, with a product over channels for each of the 16
points of a tile. A third axis is convolved by adding up its taps at the points. Letters: b kept by both · s summed ·
n of the kernel · t taps of the third axis.

Only float32 is run this way, float64 being there to be exact: the error is about that of the direct way, but goes by
the largest input and the largest tap that an output reads, not by their products. An infinity or a NaN reaches exactly
the outputs that read it; what was infinite may become NaN.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import ClassVar, NamedTuple

import numpy as np

from growarray.contraction.machine import Machine
from growarray.contraction.problem import Axis, Product
from growarray.contraction.routines.protocol import D_KERNEL, FORWARD, Task
from growarray.contraction.routines.windows import Window
from growarray.contraction.threads import run_tasks
from growarray.contraction.workspace import here

_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
_POINTS = np.kron(_G, _G)  # (16, 9): from taps to points
_SIGNS = np.array([1, 1, 1, -1], np.float32)  # of the points that the gradient's transform leaves positive
_TAPS = np.ascontiguousarray(np.kron(_SIGNS, _SIGNS)[:, None] * _POINTS)

_WIDTH = 32  # channels of both sides below which the transforms cost more than they save
_TILES = (48, 224)  # of one piece: below, products are slow; above, points do not stay in the cache
_CACHE = 1 << 19  # elements of the points of one piece
_SHARE = 0.45  # of input, output and kernel together that the kernel's points and two threads' pieces may take
_FLOOR = 3 << 17  # elements that they may take in the smallest layer
_DEPTH = 4  # positions of the third axis that a piece has at least
_WIDE = 64  # channels of one piece of a gradient by the kernel
_COLD = 1.2  # what these products take beside those whose operands lie in the cache, measured
_HEAVY = 1 << 18  # entries of a kernel from which its transform is shared among threads


def tiles_at_once(product: Product) -> int:
    """Tiles of one piece, 0 if the direct way is better: other kernels, few channels, too little work space."""
    b, s, n, axes = product.b, product.s, product.n, product.axes
    convolved = [a for a in axes if not a.is_plain]
    if not 2 <= len(convolved) <= 3 or len(axes) > len(convolved) + 1 or min(s, n) < _WIDTH or not b:
        return 0
    if any((a.stride, a.dilation) != (1, 1) for a in convolved) or any(
        a.taps != 3 or a.out < 4 for a in convolved[-2:]
    ):
        return 0
    taps = convolved[0].taps if len(convolved) == 3 else 1
    free = product.workspace_factor * max(_SHARE * product.working_set, _FLOOR) - 16 * taps * b * s * n
    most = max(_CACHE / (16 * b * max(s, n)), 2 * _TILES[0])
    found = int(min(free / (2 * 17 * b * (s + n)), most, _TILES[1]))
    return found if found >= _TILES[0] else 0


class _Piece(NamedTuple):
    """The place of a piece in input and output, and how its inputs and its gradients are copied, columns of one parity
    after those of the other."""

    images: slice
    depth: range
    first: int
    rows: int
    inputs: tuple[Window, ...]
    outputs: tuple[Window, ...]


class Winograd:
    """One such convolution of fixed sizes, ``tiles`` of which are done at once, by default as many as suit it."""

    name: ClassVar[str] = "winograd"
    ways: ClassVar[tuple[str, ...]] = (FORWARD, D_KERNEL)
    call = None

    def __init__(self, product: Product, tiles: int | None = None) -> None:
        self.b, self.s, self.n, axes = product.b, product.s, product.n, product.axes
        tiles = tiles_at_once(product) if tiles is None else tiles
        plain = [i for i, a in enumerate(axes) if a.is_plain]
        convolved = [i for i, a in enumerate(axes) if not a.is_plain]
        self.order = (0, *(2 + i for i in plain), *(2 + i for i in convolved), 1)
        self.added = (*(() if plain else (1,)), *(() if len(convolved) == 3 else (2,)))  # images and z, where missing
        self.z, self.y, self.x = [Axis("z", 1), *(axes[i] for i in convolved)][-3:]
        images = axes[plain[0]].out if plain else 1
        self.high, self.wide = -(-self.y.out // 2), -(-self.x.out // 2)
        deep = self.z.out if self.z.out * self.wide <= 2 * tiles else max(_DEPTH, tiles // self.wide)
        rows = _even(self.high, tiles // (deep * self.wide))
        group = _even(images, tiles // (deep * self.high * self.wide)) if self.z.taps == 1 else 1
        self.pieces = [
            self._piece(slice(image, image + group), range(z, min(z + deep, self.z.out)), y, min(rows, self.high - y))
            for image in range(0, images, group)
            for z in range(0, self.z.out, deep)
            for y in range(0, self.high, rows)
        ]

    @classmethod
    def fits(cls, product: Product, library: str) -> bool:
        """Single precision, and tiles that suit it."""
        return library == "numpy" and product.itemsize == 4 and tiles_at_once(product) > 0

    @classmethod
    def seconds(cls, product: Product, machine: Machine, way: str) -> float:
        """Products at the points of all tiles, and passes over tiles of s and of n to come to them and back."""
        b, s, n, axes = product.b, product.s, product.n, product.axes
        convolved = [i for i, a in enumerate(axes) if not a.is_plain]
        tiles = math.prod(-(-a.out // 2) if i in convolved[-2:] else a.out for i, a in enumerate(axes))
        taps = axes[convolved[0]].taps if len(convolved) == 3 else 1
        back = 24 if way == D_KERNEL else 28
        moved = 4 * machine.gathered * (s + n) + machine.element * (24 * s + (back + 48 * (taps - 1)) * n)
        products = machine.product(16 * taps * b, n, s, tiles, product.itemsize)
        return b * tiles * moved + _COLD * products + 40 * machine.call

    @classmethod
    def preparing(cls, product: Product, machine: Machine) -> float:
        """The points of the kernel."""
        return 3 * machine.gathered * product.b * product.s * product.n * product.taps

    def _piece(self, images: slice, depth: range, first: int, rows: int) -> _Piece:
        z, y, x = self.z, self.y, self.x
        z_in = z._replace(out=len(depth) + z.taps - 1, taps=1, before=z.before - depth.start)
        y_in = y._replace(out=2 * rows + 2, taps=1, before=y.before - 2 * first)
        x_in = [x._replace(out=self.wide + 1, taps=1, stride=2, before=x.before - q) for q in (0, 1)]
        z_out = Axis("z", z.out, 1, len(depth), 1, -depth.start)
        y_out = Axis("y", y.out, 1, 2 * rows, 1, -2 * first)
        x_out = [Axis("x", x.out, 1, self.wide, 2, -q) for q in (0, 1)]
        inputs = tuple(Window((z_in, y_in, one), lead=2) for one in x_in)
        outputs = tuple(Window((z_out, y_out, one), lead=2) for one in x_out)
        return _Piece(images, depth, first, rows, inputs, outputs)

    def _channels_last(self, array: np.ndarray) -> np.ndarray:
        """(b, channels, *sizes) as (b, images, z, y, x, channels)."""
        return np.expand_dims(array.transpose(self.order), self.added)

    def prepare(self, kernel: np.ndarray) -> np.ndarray:
        """The points of a kernel, (t, 16, b, s, n)."""
        taps, points = kernel.reshape(self.b, self.n, self.s, self.z.taps, 9), _POINTS
        if taps.strides[-1] < 0:  # a kernel reversed for a gradient; products want ascending addresses
            taps, points = taps[..., ::-1], np.ascontiguousarray(_POINTS[:, ::-1])
        found = np.empty((self.z.taps, 16, self.b, self.s, self.n), kernel.dtype)
        taps, into = taps.transpose(3, 0, 2, 4, 1), found.transpose(0, 2, 3, 1, 4)
        pieces = _cuts(self.s, 4 if taps.size >= _HEAVY else 1)
        run_tasks([partial(np.matmul, points, taps[:, :, c], into[:, :, c]) for c in pieces])
        return found

    def forward(
        self, kernel: np.ndarray, feature: np.ndarray, out: np.ndarray, ready: np.ndarray | None = None
    ) -> Sequence[Task]:
        """Groups of tiles."""
        ready = self.prepare(kernel) if ready is None else ready
        source, target = self._channels_last(feature), self._channels_last(out)
        return [partial(self._run, p, source, ready, target) for p in self.pieces]

    def _run(self, piece: _Piece, source: np.ndarray, points: np.ndarray, target: np.ndarray) -> None:
        # work space "even" and "odd" in turns: each stage reads one and writes the other
        rows = slice(2 * piece.first, 2 * (piece.first + piece.rows))
        into = target[:, piece.images, piece.depth.start : piece.depth.stop, rows]
        v = self._input_points(piece, source[:, piece.images])
        lead, n = (self.b, into.shape[1], len(piece.depth), piece.rows, self.wide), self.n
        m = here.arrays["odd", (16, self.b, math.prod(lead[1:]), n), v.dtype]
        for tap in range(self.z.taps):
            read = self._at_depth(piece, v, tap)
            if tap:
                np.add(m, np.matmul(read, points[tap], out=here.arrays["part", m.shape, m.dtype]), out=m)
            else:
                np.matmul(read, points[tap], out=m)
        planes = m.reshape(4, 4, *lead, n)
        space = here.arrays["even", (10, *lead, n), v.dtype]
        a, both = space[:8].reshape(2, 4, *lead, n), space[8:]
        np.add(planes[1], planes[2], out=a[0])
        np.add(a[0], planes[0], out=a[0])
        np.subtract(planes[1], planes[2], out=a[1])
        np.subtract(a[1], planes[3], out=a[1])
        result = here.arrays["odd", (*lead[:4], 2, self.wide, 2, n), v.dtype]
        y = result.transpose(6, 4, 0, 1, 2, 3, 5, 7)
        np.add(a[:, 1], a[:, 2], out=both)
        np.add(both, a[:, 0], out=y[0])
        np.subtract(a[:, 1], a[:, 2], out=both)
        np.subtract(both, a[:, 3], out=y[1])
        whole = result.reshape(*lead[:3], 2 * piece.rows, 2 * self.wide, n)
        into[...] = whole[:, :, :, : into.shape[3], : into.shape[4]]

    def _at_depth(self, piece: _Piece, v: np.ndarray, tap: int) -> np.ndarray:
        """The inputs' points that one tap of the third axis reads: (16, b, tiles, s)."""
        flat = v.reshape(16, self.b, -1, v.shape[-1])
        if self.z.taps == 1:
            return flat
        layer = piece.rows * self.wide  # pieces are of one image: its layers follow each other
        return flat[:, :, tap * layer : (tap + len(piece.depth)) * layer]

    def _input_points(self, piece: _Piece, source: np.ndarray) -> np.ndarray:
        """B' d B of every tile: (4, 4, b, images, z, rows, columns, s)."""
        s, rows, wide = source.shape[-1], piece.rows, self.wide
        lead = (self.b, source.shape[1], len(piece.depth) + self.z.taps - 1)
        d = here.arrays["even", (2, *lead, 2 * rows + 2, wide + 1, s), source.dtype]
        for parity, window in enumerate(piece.inputs):
            window.fill(d[parity], source)
        z = here.arrays["odd", (4, 2, *lead, rows, wide + 1, s), source.dtype]
        paired = d.reshape(2, *lead, rows + 1, 2, wide + 1, s).transpose(5, 0, 1, 2, 3, 4, 6, 7)
        above, below = paired[:, :, :, :, :, :-1], paired[:, :, :, :, :, 1:]
        np.subtract(above, below, out=z[::3])
        np.add(above[1], below[0], out=z[1])
        np.subtract(below[0], above[1], out=z[2])
        v = here.arrays["even", (4, 4, *lead, rows, wide, s), source.dtype]
        left, right = z[..., :-1, :], z[..., 1:, :]
        np.subtract(left, right, out=v[:, ::3])
        np.add(left[:, 1], right[:, 0], out=v[:, 1])
        np.subtract(right[:, 0], left[:, 1], out=v[:, 2])
        return v

    def _gradient_points(self, piece: _Piece, d_out: np.ndarray) -> np.ndarray:
        """A d A' of every tile, but for signs: (4, 4, b, images, z, rows, columns, n)."""
        n, rows, wide = d_out.shape[-1], piece.rows, self.wide
        lead = (self.b, d_out.shape[1], len(piece.depth))
        d = here.arrays["gradient even", (2, *lead, 2 * rows, wide, n), d_out.dtype]
        for parity, window in enumerate(piece.outputs):
            window.fill(d[parity], d_out)
        e = here.arrays["gradient odd", (4, 2, *lead, rows, wide, n), d_out.dtype]
        paired = d.reshape(2, *lead, rows, 2, wide, n).transpose(5, 0, 1, 2, 3, 4, 6, 7)
        e[::3] = paired
        np.add(paired[0], paired[1], out=e[1])
        np.subtract(paired[0], paired[1], out=e[2])
        m = here.arrays["gradient even", (4, 4, *lead, rows, wide, n), d_out.dtype]
        m[:, ::3] = e
        np.add(e[:, 0], e[:, 1], out=m[:, 1])
        np.subtract(e[:, 0], e[:, 1], out=m[:, 2])
        return m

    def d_kernel(self, d_out: np.ndarray, feature: np.ndarray, out: np.ndarray) -> Sequence[Task]:
        """Some channels after others."""
        source, gradient = self._channels_last(feature), self._channels_last(d_out)
        pieces = _cuts(self.s, max(1, min(4, self.s // _WIDE)))
        return [partial(self._kernel_gradient, gradient, source[..., c], out[:, :, c]) for c in pieces]

    def _kernel_gradient(self, d_out: np.ndarray, source: np.ndarray, out: np.ndarray) -> None:
        s, taps = source.shape[-1], self.z.taps
        total = np.zeros((taps, 16, self.b, self.n, s), out.dtype)
        part = np.empty(total.shape[1:], out.dtype)
        for piece in self.pieces:
            m = self._gradient_points(piece, d_out[:, piece.images]).reshape(16, self.b, -1, self.n)
            v = self._input_points(piece, source[:, piece.images])
            for tap in range(taps):
                np.add(total[tap], np.matmul(m.swapaxes(2, 3), self._at_depth(piece, v, tap), out=part), out=total[tap])
        out[...] = np.matmul(total.transpose(2, 3, 0, 4, 1), _TAPS).swapaxes(2, 3).reshape(out.shape)


def _even(count: int, step: int) -> int:
    """The size of nearly equal pieces of ``count``, about ``step`` each."""
    return max(1, -(-count // max(1, -(-count // max(1, step)))))


def _cuts(count: int, pieces: int) -> list[slice]:
    bounds = [count * i // pieces for i in range(pieces + 1)]
    return [slice(*ends) for ends in itertools.pairwise(bounds)]
