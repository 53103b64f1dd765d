"""3 by 3 convolutions of stride 1 with 16 multiplications where the definition has 36: Winograd's F(2 x 2, 3 x 3).

Lavin and Gray 2016 (arXiv:1509.09308), section 4.1. A tile of 4 x 4 inputs gives 2 x 2 outputs; inputs, kernel and
outputs are transformed by sums and differences alone (the kernel with halves): single precision loses about one bit.
Letters: a, b rows and columns of a tile, 0 to 3 · t tiles, in rows and columns, images innermost · s, n channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from growarray.contraction.problem import Axis
from growarray.contraction.scratch import borrow
from growarray.contraction.windows import Task

__all__ = ["Winograd", "WinogradGradient", "suits"]

_LEAST = 48  # channels on both sides below which transforming costs more than it saves
_TILES = (64, 200)  # tiles of one piece: below, products lose speed; above, transforms leave the cache
_CACHED = 1 << 13  # elements of one plane of the channels that are transformed together
_SHARE = 0.4  # of the elements of input, output and kernel, that two threads may take for work space


def suits(sizes: tuple[int, int, int], axes: Sequence[Axis], room: int) -> bool:
    """Whether this is a large enough 3 by 3 convolution of stride 1 over the last two axes, with at most one before.

    room : elements of input, output and kernel together, of the whole batch; work space is bounded by a share of them
    """
    b, s, n = sizes
    if b != 1 or min(s, n) < _LEAST or not 2 <= len(axes) <= 3:
        return False
    if any((a.taps, a.stride, a.before, a.out) != (1, 1, 0, a.size) for a in axes[:-2]):
        return False
    if not all((a.taps, a.stride, a.dilation) == (3, 1, 1) and a.out >= 4 for a in axes[-2:]):
        return False
    return _tiles(s, n, room) >= _TILES[0]


def _tiles(s: int, n: int, room: int) -> int:
    """Tiles of one piece, whose transforms two threads hold beside the transformed kernel."""
    return min(_TILES[1], int(_SHARE * room - 16 * s * n - 24 * _CACHED) // (32 * (s + n)))


class _Tiles:
    """How outputs are cut into tiles and pieces of rows of tiles."""

    def __init__(self, sizes: tuple[int, int, int], axes: Sequence[Axis], room: int) -> None:
        _, self.s, self.n = sizes
        self.y, self.x = axes[-2:]
        self.images = axes[0].out if len(axes) == 3 else 1
        self.rows, self.columns = -(-self.y.out // 2), -(-self.x.out // 2)
        step = max(1, _tiles(self.s, self.n, room) // max(self.columns * self.images, 1))
        step = -(-self.rows // -(-self.rows // step))
        self.chunks = [range(start, min(start + step, self.rows)) for start in range(0, self.rows, step)]
        self.pitch = (self.columns + 1) * self.images

    def planes(self, feature: np.ndarray, rows: range) -> np.ndarray:
        """Even and odd rows and columns of the padded input, apart: (2, 2, s, rows + 1, columns + 1, images)."""
        source = feature.transpose(0, 2, 3, 1)
        shape = (2, 2, source.shape[0], len(rows) + 1, self.columns + 1, self.images)
        planes = borrow("planes", shape, feature.dtype)
        for i in (0, 1):
            y_low, y_high, y_from = _run(self.y, 2 * rows.start + i, shape[3])
            for j in (0, 1):
                x_low, x_high, x_from = _run(self.x, j, shape[4])
                plane = planes[i, j]
                plane[:, :y_low], plane[:, y_high:], plane[:, :, :x_low], plane[:, :, x_high:] = 0, 0, 0, 0
                plane[:, y_low:y_high, x_low:x_high] = source[:, y_from, x_from]
        return planes

    def inputs(self, feature: np.ndarray, rows: range) -> np.ndarray:
        """B^T d B for every tile: (4, 4, s, tiles), the last axis a view of longer rows.

        Entries of a tile lie a fixed distance apart, for all tiles of all channels: every difference is one long run.
        What runs over the end of a row of tiles is never copied out.
        """
        s, count = feature.shape[0], len(rows)
        across_step, down_step = self.images, self.pitch
        plane = (count + 1) * down_step
        result = borrow("windows", (4, 4, s, plane), feature.dtype)
        step = self.together(count)
        for start in range(0, s, step):
            channels = slice(start, min(start + step, s))
            planes = self.planes(feature[channels], rows).reshape(2, 2, -1)
            run = planes.shape[2] - across_step
            across = borrow("total", (2, 4, run), feature.dtype)
            for i in (0, 1):
                even, odd = planes[i]
                _differences(even[:run], odd[:run], even[across_step:], odd[across_step:], across[i])
            run -= down_step
            flat = result.reshape(4, 4, -1)[:, :, start * plane : start * plane + run]
            for j in range(4):
                even, odd = across[0, j], across[1, j]
                _differences(even[:run], odd[:run], even[down_step:], odd[down_step:], flat[:, j])
        return result[..., : count * down_step - across_step]

    def together(self, rows: int) -> int:
        """Channels that are transformed at a time: their planes stay in the cache."""
        return max(1, _CACHED // max((rows + 1) * (self.columns + 1) * self.images, 1))

    def outputs(self, products: np.ndarray, out: np.ndarray, rows: range) -> None:
        """A^T m A for every tile, written where it belongs. ``products`` is (4, 4, n, tiles)."""
        n, count, length = products.shape[2], len(rows), products.shape[3]
        target = out.transpose(0, 2, 3, 1)
        step = self.together(count)
        for start in range(0, n, step):
            channels = slice(start, min(start + step, n))
            across = borrow("planes", (4, 2, channels.stop - start, length), products.dtype)
            for i in range(4):
                m0, m1, m2, m3 = products[i, :, channels]
                _sums(m0, m1, m2, m3, across[i])
            down = borrow("total", (2, channels.stop - start, count * self.pitch), products.dtype)
            for j in (0, 1):
                m0, m1, m2, m3 = across[:, j]
                _sums(m0, m1, m2, m3, down[..., :length])
                for i in (0, 1):
                    tiles = down[i].reshape(channels.stop - start, count, -1, self.images)[:, :, : self.columns]
                    place = target[channels, 2 * rows.start + i : min(2 * rows.stop, self.y.out) : 2, j::2]
                    place[...] = tiles[:, : place.shape[1], : place.shape[2]]

    def gradients(self, d_out: np.ndarray, rows: range) -> np.ndarray:
        """A dy A^T for every tile, laid out as :meth:`inputs`: (4, 4, n, tiles)."""
        source, n, count = d_out.transpose(0, 2, 3, 1), d_out.shape[0], len(rows)
        tiles = borrow("gradients", (2, 2, n, count, self.columns + 1, self.images), d_out.dtype)
        tiles[...] = 0
        for i in (0, 1):
            for j in (0, 1):
                piece = source[:, 2 * rows.start + i : min(2 * rows.stop, self.y.out) : 2, j::2]
                tiles[i, j][:, : piece.shape[1], : piece.shape[2]] = piece
        length = count * self.pitch - self.images
        flat = tiles.reshape(2, 2, n, -1)[..., :length]
        result = borrow("spread", (4, 4, n, length), d_out.dtype)
        across = borrow("total", (2, 4, n, length), d_out.dtype)
        for i in (0, 1):
            _spread(flat[i, 0], flat[i, 1], across[i])
        for j in range(4):
            _spread(across[0, j], across[1, j], result[:, j])
        return result


def _run(axis: Axis, first: int, count: int) -> tuple[int, int, slice]:
    """Which of ``count`` padded positions first, first + 2, ... lie inside the input, and where in it they are."""
    start = first - axis.before
    low = min(max(-(start // 2), 0), count)
    high = min(max((axis.size - 1 - start) // 2 + 1, low), count)
    begin = start + 2 * low
    return low, high, slice(begin, begin + 2 * (high - low), 2) if high > low else slice(0, 0)


def _differences(d0: np.ndarray, d1: np.ndarray, d2: np.ndarray, d3: np.ndarray, out: np.ndarray) -> None:
    """B^T d: d0 - d2, d1 + d2, d2 - d1, d1 - d3."""
    np.subtract(d0, d2, out=out[0])
    np.add(d1, d2, out=out[1])
    np.subtract(d2, d1, out=out[2])
    np.subtract(d1, d3, out=out[3])


def _sums(m0: np.ndarray, m1: np.ndarray, m2: np.ndarray, m3: np.ndarray, out: np.ndarray) -> None:
    """A^T m: m0 + m1 + m2 and m1 - m2 - m3."""
    np.add(m0, m1, out=out[0])
    np.add(out[0], m2, out=out[0])
    np.subtract(m1, m2, out=out[1])
    np.subtract(out[1], m3, out=out[1])


def _spread(even: np.ndarray, odd: np.ndarray, out: np.ndarray) -> None:
    """A y: y0, y0 + y1, y0 - y1, -y1."""
    out[0] = even
    np.add(even, odd, out=out[1])
    np.subtract(even, odd, out=out[2])
    np.negative(odd, out=out[3])


def _kernels(kernel: np.ndarray) -> np.ndarray:
    """G g G^T: (4, 4, n, s) from (n, s, 3, 3)."""
    half = kernel.dtype.type(0.5)
    result = np.empty((4, 4, *kernel.shape[:2]), kernel.dtype)
    across = np.empty((4, 3, *kernel.shape[:2]), kernel.dtype)
    taps = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
    for g, out in ((taps, across), (across.swapaxes(0, 1), result)):
        both, middle = (g[0] + g[2]) * half, g[1] * half
        out[0], out[3] = g[0], g[2]
        np.add(both, middle, out=out[1])
        np.subtract(both, middle, out=out[2])
    return result


class Winograd:
    """One convolution; the interface is that of :class:`growarray.contraction.convolve.Convolution`."""

    def __init__(self, sizes: tuple[int, int, int], axes: Sequence[Axis], room: int) -> None:
        self.tiles = _Tiles(sizes, axes, room)
        self.s, self.n = sizes[1:]

    def prepare(self, kernel: np.ndarray) -> np.ndarray:
        """The kernel transformed: (4, 4, n, s)."""
        return _kernels(kernel.reshape(self.n, self.s, 3, 3))

    def tasks(self, feature: np.ndarray, matrices: np.ndarray, out: np.ndarray) -> list[Task]:
        """Pieces of rows of tiles."""
        t = self.tiles
        source = feature.reshape(self.s, t.images, *feature.shape[-2:])
        target = out.reshape(self.n, t.images, *out.shape[-2:])

        def piece(rows: range) -> None:
            inputs = t.inputs(source, rows)
            products = borrow("part", (4, 4, self.n, inputs.shape[3]), target.dtype)
            np.matmul(matrices, inputs, out=products)
            t.outputs(products, target, rows)

        return [lambda r=r: piece(r) for r in t.chunks]  # type: ignore[misc]


class WinogradGradient:
    """The gradient by the kernel: G^T [sum over tiles of (A dy A^T) (B^T d B)] G."""

    def __init__(self, sizes: tuple[int, int, int], axes: Sequence[Axis], room: int) -> None:
        self.tiles = _Tiles(sizes, axes, room)
        self.s, self.n = sizes[1:]

    def tasks(self, d_out: np.ndarray, feature: np.ndarray, out: np.ndarray) -> list[Task]:
        """Pieces of output channels, each over all tiles."""
        t = self.tiles
        source = feature.reshape(self.s, t.images, *feature.shape[-2:])
        gradient = d_out.reshape(self.n, t.images, *d_out.shape[-2:])
        target = out.reshape(self.n, self.s, 3, 3)
        step = max(64, -(-self.n // 4))
        pieces = [slice(start, min(start + step, self.n)) for start in range(0, self.n, step)]
        return [lambda c=c: self._piece(source, gradient[c], target[c]) for c in pieces]  # type: ignore[misc]

    def _piece(self, source: np.ndarray, gradient: np.ndarray, target: np.ndarray) -> None:
        n = gradient.shape[0]
        total, part = (borrow(slot, (4, 4, n, self.s), target.dtype) for slot in ("sum", "part"))
        for index, rows in enumerate(self.tiles.chunks):
            inputs = self.tiles.inputs(source, rows)
            spread = self.tiles.gradients(gradient, rows)
            np.matmul(spread, inputs.swapaxes(2, 3), out=part if index else total)
            if index:
                np.add(total, part, out=total)
        half = target.dtype.type(0.5)
        across = borrow("part", (3, 4, n, self.s), target.dtype)
        _folded(total, across, half)
        down = np.moveaxis(target, (2, 3), (0, 1))
        _folded(across.swapaxes(0, 1), down.swapaxes(0, 1), half)


def _folded(m: np.ndarray, out: np.ndarray, half: np.floating) -> None:
    """G^T m over the first axis: m0 + (m1 + m2)/2, (m1 - m2)/2, (m1 + m2)/2 + m3."""
    both = (m[1] + m[2]) * half
    np.add(m[0], both, out=out[0])
    np.add(both, m[3], out=out[2])
    np.subtract(m[1], m[2], out=out[1])
    np.multiply(out[1], half, out=out[1])
