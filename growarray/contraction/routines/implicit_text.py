"""One kernel for every product: tiles in shared memory, windows of a convolution read where they lie."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from growarray.cuda.text import Walk, address, kernel_text, split, walk

THREADS = 256  # 16 x 16, each with a tile of results in registers
_DEPTH = 16  # of a tile in shared memory

Strides = Mapping[str, int]


class Implicit(NamedTuple):
    """``out[batch, row, column] = sum over depth of left[batch, row, depth] right[batch, depth, column]``.

    rows, depth, columns, batch : names of the indices of each    left, right, out : strides by index
    axes : along which ``right`` is read    backward : whether it is a gradient of the output, read by p and t
    slabs : pieces of the depth, each with a result of its own in the type of sums, ``slab_step`` elements apart
    """

    sizes: Mapping[str, int]
    batch: tuple[str, ...]
    rows: tuple[str, ...]
    depth: tuple[str, ...]
    columns: tuple[str, ...]
    left: Strides
    right: Strides
    out: Strides
    axes: tuple[Walk, ...] = ()
    backward: bool = False
    slabs: int = 1
    slab_step: int = 0

    def count(self, names: Sequence[str]) -> int:
        """How many values some indices have together."""
        return math.prod(self.sizes[name] for name in names)

    @property
    def tile(self) -> tuple[int, int]:
        """Rows and columns of a thread's tile: as large as there is work for."""
        return tuple(  # type: ignore[return-value]
            next(n for n in (4, 2, 1) if n == 1 or self.count(names) > 8 * n) for names in (self.rows, self.columns)
        )

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tiles of columns, tiles of rows, and products."""
        tall, wide = self.tile
        high, broad = -(-self.count(self.rows) // (16 * tall)), -(-self.count(self.columns) // (16 * wide))
        return broad, high, self.count(self.batch) * self.slabs


def _fill(name: str, origin: str, size: int, along: bool, guard: str, read: list[str], indices: list[str]) -> list[str]:
    """All threads together fill a tile (depth, size) of shared memory, beginning where neighbours lie side by side."""
    fast_size = _DEPTH if along else size
    fast, slow = ("kk", "mm") if along else ("mm", "kk")
    return [
        f"for (int e = threadIdx.x; e < {_DEPTH * size}; e += {THREADS}) {{",
        f"const int {fast} = e % {fast_size}, {slow} = e / {fast_size};",
        f"A v = 0; const I k = k0 + kk, m = {origin} + mm;",
        f"if ({guard}) {{",
        *indices,
        *read,
        f"}} tile_{name}[kk][mm] = v; }}",
    ]


def implicit(one: Implicit, dtype: str, wide: bool) -> str:
    """Arguments: left, right, out."""
    (tall, broad), (across, down, _) = one.tile, one.grid
    high, width, slabbed = 16 * tall, 16 * broad, one.slabs > 1
    rows, columns, depth = one.count(one.rows), one.count(one.columns), one.count(one.depth)
    length, batches = -(-depth // one.slabs), one.count(one.batch)

    def along(strides: Strides, others: Sequence[str]) -> bool:
        """Whether neighbours along the depth lie closer together than neighbours in a row or column."""
        steps = [min((strides.get(n, 0) or 1 << 40 for n in group), default=1 << 40) for group in (one.depth, others)]
        return steps[0] <= steps[1]

    taps = any(name[0] == "t" for name in (*one.depth, *one.columns))
    known = [f"const int t{k} = 0;" for k, a in enumerate(one.axes) if a.taps == 1 and not a.is_plain]
    right = walk(one.axes, [f"v += load(b + {address(one.right)});"], backward=one.backward, taps=not taps)
    target = f"c + {address(one.out, f'slab * (I){one.slab_step}' if slabbed else '')}"
    lines = [
        f"__shared__ A tile_a[{_DEPTH}][{high}], tile_b[{_DEPTH}][{width}];",
        "const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;",
        f"const I left0 = blockIdx.x / {across} % {down} * {high}, right0 = blockIdx.x % {across} * {width};",
        f"const I z = blockIdx.x / {across * down}, batch = z % {batches}, slab = z / {batches};",
        *split("batch", one.batch, one.sizes),
        f"const I stop = (slab + 1) * {length} < {depth} ? (slab + 1) * {length} : {depth};",
        f"A acc[{tall}][{broad}];",
        "#pragma unroll",
        f"for (int i = 0; i < {tall * broad}; ++i) acc[i / {broad}][i % {broad}] = 0;",
        f"for (I k0 = slab * {length}; k0 < stop; k0 += {_DEPTH}) {{",
        *_fill("a", "left0", high, along(one.left, one.rows), f"k < stop && m < {rows}",
               [f"v = load(a + {address(one.left)});"],
               [*split("m", one.rows, one.sizes), *split("k", one.depth, one.sizes)]),
        *_fill("b", "right0", width, along(one.right, one.columns), f"k < stop && m < {columns}", right,
               [*split("m", one.columns, one.sizes), *split("k", one.depth, one.sizes), *(known if taps else [])]),
        "__syncthreads();",
        "#pragma unroll",
        f"for (int kk = 0; kk < {_DEPTH}; ++kk) {{",
        "#pragma unroll",
        f"for (int i = 0; i < {tall}; ++i) {{ const A l = tile_a[kk][ty + 16 * i];",
        "#pragma unroll",
        f"for (int j = 0; j < {broad}; ++j) acc[i][j] += l * tile_b[kk][tx + 16 * j]; }} }}",
        "__syncthreads(); }",
        "#pragma unroll",
        f"for (int e = 0; e < {tall * broad}; ++e) {{ const int i = e / {broad}, j = e % {broad};",
        "const I row = left0 + ty + 16 * i, column = right0 + tx + 16 * j;",
        f"if (row < {rows} && column < {columns}) {{",
        *split("row", one.rows, one.sizes),
        *split("column", one.columns, one.sizes),
        f"store({target}, acc[i][j]); }} }}",
    ]  # fmt: skip
    return kernel_text(dtype, f"const T* a, const T* b, {'A' if slabbed else 'T'}* c", lines, wide)
