"""One kernel for every product: tiles in shared memory, windows of a convolution read in place."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from growarray.contraction.routines.tiles import DEPTH, Tile
from growarray.cuda.text import Walk, address, kernel_text, split, walk

_RESIDENT = 512  # threads that a multiprocessor has room for at least, with 128 registers each
_VECTOR = 4  # rows or columns of a thread that lie side by side

Strides = Mapping[str, int]


class Implicit(NamedTuple):
    """``out[batch, row, column] = sum over depth of left[batch, row, depth] right[batch, depth, column]``.

    rows, depth, columns, batch : names of the indices of each    left, right, out : strides by index
    axes : along which ``right`` is read    backward : whether it is a gradient of the output, read by p and t
    looped, blocked : taps that stand apart: each is a sum, or a block, of its own
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
    tile: Tile
    axes: tuple[Walk, ...] = ()
    backward: bool = False
    looped: tuple[str, ...] = ()
    blocked: tuple[str, ...] = ()
    slabs: int = 1
    slab_step: int = 0

    def count(self, names: Sequence[str]) -> int:
        """How many values some indices have together."""
        return math.prod(self.sizes[name] for name in names)

    @property
    def phases(self) -> dict[int, int]:
        """Strides of the axes whose positions are grouped: those of one phase are read by the same taps."""
        if not self.backward or any(name[0] == "t" for name in self.depth):
            return {}
        return {k: axis.stride for k, axis in enumerate(self.axes) if axis.stride > 1 and axis.mode == "zeros"}

    @property
    def across(self) -> dict[str, int]:
        """The columns of a block with their sizes: ``u`` counts the positions ``p`` of a phase."""
        phases, found = self.phases, {}
        for name in self.columns:
            by = phases.get(int(name[1:]), 1) if name[0] == "p" else 1
            found[name.replace("p", "u") if by > 1 else name] = -(-self.sizes[name] // by)
        return found

    @property
    def grid(self) -> tuple[int, int, int, int]:
        """Tiles of rows, tiles of columns, products, and pieces of each."""
        products = self.count((*self.batch, *self.blocked)) * math.prod(self.phases.values())
        columns = math.prod(self.across.values())
        return -(-self.count(self.rows) // self.tile.rows), -(-columns // self.tile.columns), products, self.slabs


def implicit(one: Implicit, dtype: str, wide: bool) -> str:
    """Arguments: left, right, out."""
    tile, (down, across, products, _), depth = one.tile, one.grid, one.count(one.depth)
    length = -(-depth // (DEPTH * one.slabs)) * DEPTH
    phases = {f"r{k}": by for k, by in one.phases.items()}
    left = _Side(one, "left", one.rows, one.left)
    right = _Side(one, "right", one.columns, one.right)

    def windows(lines: list[str]) -> list[str]:
        known = [f"const int t{k} = 0;" for k, a in enumerate(one.axes) if a.taps == 1 and not a.is_plain]
        inside = [f"if ({' && '.join(_within(one))})"] if _within(one) else []
        walked = walk(one.axes, lines, backward=one.backward, taps=False)
        return [*_positions(one), *known, *inside, "{", *walked, "}"]

    lines = [
        *left.declared(), *right.declared(),
        "const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;",
        f"const unsigned tx = lane % 8 + warp % {tile.across // 8} * 8, ty = lane / 8 + warp / {tile.across // 8} * 4;",
        f"const N block = blockIdx.x, left0 = block % {down} * {tile.rows};",
        f"const N right0 = block / {down} % {across} * {tile.columns};",
        f"const N part = block / {down * across} % {products}, slab = block / {down * across * products};",
        *split("part", (*one.batch, *phases, *one.blocked), {**one.sizes, **phases}),
        f"const N stop = (slab + 1) * {length} < {depth} ? (slab + 1) * {length} : {depth};",
        f"A acc[{tile.tall}][{tile.broad}];",
        "#pragma unroll",
        f"for (int i = 0; i < {tile.tall * tile.broad}; ++i) acc[i / {tile.broad}][i % {tile.broad}] = 0;",
        f"N k0 = slab * {length}; int at = 0;",
        *_first_taps(one),
        "for (bool held = false;; held = true) {",  # a tile is read while that before it, which is held, is multiplied
        "const bool more = k0 < stop;",
        "if (more) {", *left.read(lambda lines: lines), *right.read(windows), "}",
        "if (held) {", *_multiply(tile), "}",
        "if (!more) break;",
        *left.store(), *right.store(),
        f"__syncthreads(); at = 1 - at; {_next_taps(one)} }}",
        *_results(one),
    ]  # fmt: skip
    arguments = f"const T* left, const T* right, {'A' if one.slabs > 1 else 'T'}* out"
    return kernel_text(dtype, arguments, lines, wide, threads=tile.threads, resident=_RESIDENT // tile.threads)


class _Side:
    """The tiles of one factor: all threads together read them, beginning with neighbours in memory.

    A thread reads elements of one column, or of one place in the depth if ``along``, so it has one address if the other
    index is a single one that no axis has, else one for each.
    """

    def __init__(self, one: Implicit, name: str, names: Sequence[str], strides: Strides) -> None:
        self.one, self.name, self.strides = one, name, strides
        self.size = one.tile.rows if name == "left" else one.tile.columns
        self.columns = one.across if name == "right" else {n: one.sizes[n] for n in names}
        self.along = _nearest(one.depth, strides) <= _nearest(names, strides)
        threads = one.tile.threads
        self.fast, self.slow, self.count = ("kk", "mm", DEPTH) if self.along else ("mm", "kk", self.size)
        self.each, self.step = -(-DEPTH * self.size // threads), threads // self.count
        varying = [n for n in (names if self.along else one.depth) if one.sizes[n] > 1]
        self.is_linear = not varying or (len(varying) == 1 and varying[0][0] in "bsn")
        self.apart = self.step * strides.get(varying[0], 0) if self.is_linear and varying else 0
        self.guard = f"e < {DEPTH * self.size}" if DEPTH * self.size % threads else "true"

    def declared(self) -> list[str]:
        """Two tiles, one that is multiplied and one that is filled; rows are apart by what keeps banks apart."""
        return [
            f"alignas(16) __shared__ A {self.name}_tile[2][{DEPTH}][{self.size + _VECTOR * self.along}];",
            f"A {self.name}_next[{self.each}];",
        ]

    def _elements(self, count: int) -> list[str]:
        """Loop over ``count`` elements of a thread, with their places in the tile."""
        e = f"const unsigned e = threadIdx.x + j * {self.one.tile.threads}"
        place = f"{e}, {self.fast} = e % {self.count}, {self.slow} = e / {self.count};"
        return ["#pragma unroll", f"for (int j = 0; j < {count}; ++j) {{", place]

    def read(self, walked: Callable[[list[str]], list[str]]) -> list[str]:
        """Lines that read; ``walked`` puts those that add what lies at an index within a walk along the axes."""
        count, depth = math.prod(self.columns.values()), self.one.count(self.one.depth)
        outer, inner = (1, self.each) if self.is_linear else (self.each, 1)
        k, m = ("k", f"m + i * {self.step}") if self.along else (f"k + i * {self.step}", "m")
        ends = [f"{m} < {count}"] * bool(count % self.size), [f"{k} < stop"] * bool(depth % DEPTH)
        fixed, varying = ends[::-1] if self.along else ends
        adds = [
            f"const T* from = {self.name} + {address(self.strides)};",
            "#pragma unroll",
            f"for (int i = 0; i < {inner}; ++i)",
            f"if ({' && '.join(varying) or 'true'}) {self.name}_next[j + i] += load(from + i * {self.apart});",
        ]
        return [
            "#pragma unroll",
            f"for (int j = 0; j < {self.each}; ++j) {self.name}_next[j] = 0;",
            *self._elements(outer),
            f"const N k = k0 + kk, m = {self.name}0 + mm;",
            f"if ({' && '.join([self.guard, *fixed])}) {{",
            *split("m", list(self.columns), self.columns),
            *split("k", self.one.depth, self.one.sizes),
            *walked(adds),
            "} }",
        ]

    def store(self) -> list[str]:
        """What was read, into the tile that is not multiplied."""
        return [*self._elements(self.each), f"if ({self.guard}) {self.name}_tile[at][kk][mm] = {self.name}_next[j]; }}"]


def _nearest(names: Sequence[str], strides: Strides) -> int:
    """The distance of neighbours; positions move with those that are read."""
    read = [{"q": "p", "p": "q"}.get(n[0], n[0]) + n[1:] for n in names]
    return min((abs(step) for step in map(strides.get, (*names, *read)) if step), default=1 << 62)


def _positions(one: Implicit) -> list[str]:
    """The positions of the u-th columns of a phase."""
    return [f"const I p{k} = u{k} * {by} + r{k};" for k, by in one.phases.items()]


def _within(one: Implicit) -> list[str]:
    """That they are positions: phases differ in how many they have."""
    return [f"p{k} < {one.axes[k].size}" for k, by in one.phases.items() if one.axes[k].size % by]


def _first_taps(one: Implicit) -> list[str]:
    """The first taps that stand apart; of a phase those that read it, which may be none."""
    lines = [f"int {name} = 0;" for name in one.looped]
    for k, by in one.phases.items():
        axis = one.axes[k]
        each = by // math.gcd(by, axis.dilation)
        lines += [
            f"int first{k} = {axis.taps};",
            f"for (int t = {min(each, axis.taps)}; t--;)",
            f"if ((r{k} + {axis.before} - t * {axis.dilation}) % {by} == 0) first{k} = t;",
            f"if (first{k} == {axis.taps}) k0 = stop;",
            *([f"t{k} = first{k};"] if axis.taps > 1 else []),
        ]
    return lines


def _next_taps(one: Implicit) -> str:
    """Goes on to the next taps, and after the last to more of the depth."""
    further = f"k0 += {DEPTH};"
    for name in one.looped:
        k = int(name[1:])
        by, first = one.phases.get(k, 1), f"first{k}" if k in one.phases else "0"
        step = by // math.gcd(by, one.axes[k].dilation)
        further = f"{name} += {step}; if ({name} >= {one.axes[k].taps}) {{ {name} = {first}; {further} }}"
    return further


def _place(i: str, thread: str, each: int, threads: int) -> str:
    """Of one of the rows or columns of a thread in the tile: vectors side by side, those of one thread apart."""
    vector = min(each, _VECTOR)
    return f"{i} / {vector} * {vector * threads} + {thread} * {vector} + {i} % {vector}"


def _multiply(tile: Tile) -> list[str]:
    """Add the tiles that are held to the results of each thread."""
    row, column = _place("i", "ty", tile.tall, tile.down), _place("j", "tx", tile.broad, tile.across)
    return [
        "#pragma unroll",
        f"for (int kk = 0; kk < {DEPTH}; ++kk) {{ A l[{tile.tall}], r[{tile.broad}];",
        "#pragma unroll",
        f"for (int i = 0; i < {tile.tall}; ++i) l[i] = left_tile[1 - at][kk][{row}];",
        "#pragma unroll",
        f"for (int j = 0; j < {tile.broad}; ++j) r[j] = right_tile[1 - at][kk][{column}];",
        "#pragma unroll",
        f"for (int i = 0; i < {tile.tall}; ++i)",
        "#pragma unroll",
        f"for (int j = 0; j < {tile.broad}; ++j) acc[i][j] += l[i] * r[j]; }}",
    ]


def _results(one: Implicit) -> list[str]:
    """Store the results of a thread, four at once if they are neighbours in memory."""
    tile, columns, slabbed = one.tile, one.across, one.slabs > 1
    target = address(one.out, f"slab * (I){one.slab_step}" if slabbed else "")
    count, rows, inside = math.prod(columns.values()), one.count(one.rows), list(_within(one))
    together = _VECTOR if tile.broad >= _VECTOR and _side_by_side(one) else 1
    row, column = _place("i", "ty", tile.tall, tile.down), _place("j", "tx", tile.broad, tile.across)
    stored = [f"store(out + {target}, acc[i][j]);"]
    if together > 1:
        kind = "A" if slabbed else "T"
        stored = [
            f"struct alignas(sizeof(T) < 4 ? 8 : 16) Four {{ {kind} v[{together}]; }} four;",
            "#pragma unroll",
            f"for (int n = 0; n < {together}; ++n) store(four.v + n, acc[i][j + n]);",
            f"*(Four*)(out + {target}) = four;",
        ]
    return [
        "#pragma unroll",
        f"for (int i = 0; i < {tile.tall}; ++i)",
        "#pragma unroll",
        f"for (int j = 0; j < {tile.broad}; j += {together}) {{",
        f"const N row = left0 + {row}, column = right0 + {column};",
        f"if (row < {rows} && column < {count}) {{",
        *split("row", one.rows, one.sizes),
        *split("column", list(columns), columns),
        *_positions(one),
        *([f"if ({' && '.join(inside)}) {{"] if inside else ["{"]),
        *stored,
        "} } }",
    ]


def _side_by_side(one: Implicit) -> bool:
    """Whether four columns in a row, and the first of them at an address that four divides, are so in the result."""
    run, inner = 1, set()
    for name in reversed(one.columns):
        if one.sizes[name] > 1:
            if one.out.get(name, 0) != run:
                break
            inner.add(name)
        run *= one.sizes[name]
    others = [step for name, step in one.out.items() if name not in inner]
    return not one.phases and all(number % _VECTOR == 0 for number in (run, one.slab_step, *others))
