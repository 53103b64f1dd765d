"""Products on CuPy: what each costs a GPU, and the launches that compute it, from the strides of what it is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, NamedTuple

from growarray.contraction.machine import Machine
from growarray.contraction.problem import Product
from growarray.contraction.routines.depthwise_text import Chain, depthwise, factor_gradients, tap_sums
from growarray.contraction.routines.implicit_text import Implicit, implicit
from growarray.contraction.routines.protocol import D_FEATURE, D_KERNEL, FORWARD
from growarray.contraction.routines.tiles import PARTS, cut
from growarray.cuda.convolution import Convolution
from growarray.cuda.device import Kernel, StridedProduct
from growarray.cuda.text import ACCUMULATED, THREADS, Walk

_WAYS = (FORWARD, D_FEATURE, D_KERNEL)
_BLOCKS = 1024  # of threads, which fill a GPU
_SLABS = 64  # pieces of a sum at most, so that the second launch, which adds them, is short
_LEAST = 1024  # elements that a piece of a sum has at least
_IMAGES = 256  # products of which a gradient by a kernel is the sum at most
_UNROLLED = 64  # taps for which a thread keeps a sum each

Launches = list[Kernel | StridedProduct | Convolution]
Reserve = Callable[[int, str], int]
"""Gives work space for so many elements of a type until the launches of one product are done, as a slot of the table
of addresses."""


class Place(NamedTuple):
    """Where an array is: a slot of the table of addresses, and the stride of each index in elements."""

    slot: int
    strides: Mapping[str, int]


class Site(NamedTuple):
    """A product with named indices, see :mod:`growarray.cuda.text`.

    wide : whether it needs 64 bits for an address    tf32 : whether float32 may be multiplied with 10 bits of fraction
    """

    dtype: str
    sizes: Mapping[str, int]
    b: tuple[str, ...]
    s: tuple[str, ...]
    n: tuple[str, ...]
    axes: tuple[Walk, ...]
    wide: bool
    tf32: bool = False

    @property
    def taps(self) -> tuple[str, ...]:
        """Indices of the taps."""
        return tuple(f"t{k}" for k, axis in enumerate(self.axes) if axis.taps > 1)

    def places(self, letter: str) -> tuple[str, ...]:
        """Indices of the positions of the output (``q``) or the feature map (``p``)."""
        return tuple(f"{letter}{k}" for k in range(len(self.axes)))

    def count(self, names: Sequence[str]) -> int:
        """How many values some indices have together."""
        return math.prod(self.sizes[name] for name in names)


def _blocks(count: int) -> int:
    return -(-count // THREADS)


class Dense:
    """Any product by the kernel that reads windows in place."""

    name: ClassVar[str] = "implicit"
    ways: ClassVar[tuple[str, ...]] = _WAYS

    def __init__(self, product: Product) -> None: ...

    @classmethod
    def fits(cls, product: Product, library: str) -> bool:
        """Any product of CuPy's arrays."""
        return library == "cupy"

    @classmethod
    def seconds(cls, product: Product, machine: Machine, way: str) -> float:
        """Operations of its tiles, what is read and written, and a launch, two for a sum in pieces."""
        axes = tuple((axis.size, axis.taps, axis.out, axis.stride) for axis in product.axes)
        found = cut(way, product.b, product.s, product.n, axes, product.itemsize == 8)
        flops = found.operations / machine.implicit * max(product.itemsize / 4, 1)
        return (2 if found.slabs > 1 else 1) * machine.call + moved(product) * machine.byte + flops

    @classmethod
    def preparing(cls, product: Product, machine: Machine) -> float:
        """Nothing is kept."""
        return 0.0

    def forward(self, site: Site, kernel: Place, feature: Place, out: Place, reserve: Reserve) -> Launches:
        """The product."""
        return _implicit(FORWARD, site, kernel, feature, out, reserve)

    def d_feature(self, site: Site, kernel: Place, d_out: Place, out: Place, reserve: Reserve) -> Launches:
        """Its gradient by the feature map."""
        return _implicit(D_FEATURE, site, kernel, d_out, out, reserve)

    def d_kernel(self, site: Site, d_out: Place, feature: Place, out: Place, reserve: Reserve) -> Launches:
        """Its gradient by the kernel."""
        return _implicit(D_KERNEL, site, d_out, feature, out, reserve)


def operations(product: Product) -> float:
    """Multiplications and additions."""
    return 2.0 * product.b * product.s * product.n * product.columns * product.taps


def moved(product: Product) -> int:
    """Bytes that are read and written once."""
    shapes = (product.feature_shape, product.kernel_shape, product.shape)
    return sum(map(math.prod, shapes)) * product.itemsize


def _implicit(way: str, site: Site, left: Place, right: Place, out: Place, reserve: Reserve) -> Launches:
    b, s, n = (site.count(names) for names in (site.b, site.s, site.n))
    axes = tuple((a.size, a.taps, a.out, a.stride if a.mode == "zeros" else 1) for a in site.axes)
    found = cut(way, b, s, n, axes, site.dtype == "float64")
    apart, inside = (site.taps, ()) if found.apart else ((), site.taps)
    rows, depth, columns, looped, blocked = {
        FORWARD: (site.n, (*site.s, *inside), site.places("q"), apart, ()),
        D_FEATURE: (site.s, (*site.n, *inside), site.places("p"), apart, ()),
        D_KERNEL: (site.n, site.places("q"), (*site.s, *inside), (), apart),
    }[way]
    one = Implicit(
        site.sizes, site.b, rows, depth, columns, left.strides, right.strides, out.strides, found.tile, site.axes,
        way == D_FEATURE, looped, blocked, found.slabs,
    )  # fmt: skip
    target, after = out.slot, []
    if found.slabs > 1:
        names = (*site.b, *blocked, *rows, *columns)
        size, parts = site.count(names), contiguous(site, names)
        target = reserve(found.slabs * size, ACCUMULATED[site.dtype])
        after = _added(site, target, parts, out, found.slabs)
        one = one._replace(slab_step=size, out=parts)
    text = implicit(one, site.dtype, site.wide)
    return [Kernel(text, math.prod(one.grid), found.tile.threads, (left.slot, right.slot, target)), *after]


def contiguous(site: Site, names: Sequence[str]) -> dict[str, int]:
    """Strides of indices that lie one in the other."""
    return {name: site.count(names[place + 1 :]) for place, name in enumerate(names)}


def _added(site: Site, parts: int, strides: Mapping[str, int], out: Place, slabs: int) -> Launches:
    """The sum of the pieces of a result."""
    chain = Chain(site.sizes, tuple(strides), (), (out.strides,))
    text = factor_gradients(chain, site.dtype, strides, {0: out.strides}, slabs, site.wide)
    return [Kernel(text, _blocks(site.count(tuple(strides))), THREADS, (parts, out.slot))]


class Strided(Dense):
    """A product by cuBLAS, straight from the strides; by :class:`Dense` if cuBLAS does not take them."""

    name: ClassVar[str] = "matmul"

    @classmethod
    def fits(cls, product: Product, library: str) -> bool:
        """There is no convolution."""
        return library == "cupy" and not product.is_conv

    @classmethod
    def seconds(cls, product: Product, machine: Machine, way: str) -> float:
        """Operations at the rate of such matrices, what is read and written, and its launch, as long as two kernels."""
        s, n, columns = product.s, product.n, product.columns
        rows, depth, width = {FORWARD: (n, s, columns), D_FEATURE: (s, n, columns), D_KERNEL: (n, columns, s)}[way]
        flops = machine.product(product.b, rows, depth, width, product.itemsize, machine.small)
        return (3 if way == D_KERNEL else 2) * machine.call + moved(product) * machine.byte + flops

    def forward(self, site: Site, kernel: Place, feature: Place, out: Place, reserve: Reserve) -> Launches:
        """The product."""
        found = _strided(site, site.n, site.s, site.places("q"), kernel, _by_output(feature), out)
        return found or super().forward(site, kernel, feature, out, reserve)

    def d_feature(self, site: Site, kernel: Place, d_out: Place, out: Place, reserve: Reserve) -> Launches:
        """Its gradient by the feature map."""
        found = _strided(site, site.s, site.n, site.places("q"), kernel, d_out, _by_output(out))
        return found or super().d_feature(site, kernel, d_out, out, reserve)

    def d_kernel(self, site: Site, d_out: Place, feature: Place, out: Place, reserve: Reserve) -> Launches:
        """Its gradient by the kernel."""
        found = _strided(site, site.n, site.places("q"), site.s, d_out, _by_output(feature), out, reserve)
        return found or super().d_kernel(site, d_out, feature, out, reserve)


def _by_output(place: Place) -> Place:
    """A feature map of a plain product: its positions are those of the output."""
    return place._replace(strides={name.replace("p", "q"): stride for name, stride in place.strides.items()})


class _Index(NamedTuple):
    """Indices that are one for all three arrays: its size, and its stride in each."""

    size: int
    strides: tuple[int, int, int]


def _merged(site: Site, names: Sequence[str], *by: Mapping[str, int]) -> list[_Index]:
    """The indices, the slowest first, with those joined that lie one after the other in all three arrays."""
    left, right, out = by
    whole = [_Index(site.sizes[n], (left.get(n, 0), right.get(n, 0), out.get(n, 0))) for n in names]
    return _joined(sorted(whole, key=lambda index: index.strides[::-1], reverse=True))


def _joined(indices: Sequence[_Index]) -> list[_Index]:
    found: list[_Index] = []
    for one in indices:
        if one.size == 1:
            continue
        if found and found[-1].strides == tuple(stride * one.size for stride in one.strides):
            found[-1] = _Index(found[-1].size * one.size, one.strides)
        else:
            found.append(one)
    return found


def _strided(
    site: Site, rows: Sequence[str], depth: Sequence[str], columns: Sequence[str],
    left: Place, right: Place, out: Place, reserve: Reserve | None = None,
) -> Launches:  # fmt: skip
    """``out[b, row, column] = sum over depth of left right`` as products at equal distances; empty if it is none.

    With ``reserve`` the depth may come in pieces at a distance, such as images: each is a product, and they are added.
    """
    kept = (left.strides, right.strides, out.strides)
    batch, pieces, size = _merged(site, site.b, *kept), 1, site.count((*site.b, *rows, *columns))
    deep, tall, across = _merged(site, depth, *kept), _merged(site, rows, *kept), _merged(site, columns, *kept)
    parts = contiguous(site, (*site.b, *rows, *columns))
    if reserve is not None and len(deep) == 2:
        pieces, kept = deep[0].size, (left.strides, right.strides, parts)
        if pieces > _IMAGES or pieces * size > PARTS:
            return []
        tall, across = _merged(site, rows, *kept), _merged(site, columns, *kept)
        batch = _joined([_Index(pieces, (*deep[0].strides[:2], size)), *_merged(site, site.b, *kept)])
        deep = deep[1:]
    elif len(across) == 2 and not batch:
        batch, across = across[:1], across[1:]
    if max(map(len, (deep, tall, across, batch))) > 1 or not all(axis.is_plain for axis in site.axes):
        return []
    one = _columnwise(site, *(group[0] if group else _Index(1, (0, 0, 0)) for group in (tall, deep, across, batch)))
    if one is None:
        return []
    target, after = out.slot, []
    if pieces > 1 and reserve is not None:
        target = reserve(pieces * size, ACCUMULATED[site.dtype])
        after = _added(site, target, parts, out, pieces)
        one = one._replace(out_dtype=ACCUMULATED[site.dtype])
    a, b, _ = one.slots
    return [one._replace(slots=((left.slot, right.slot)[a], (left.slot, right.slot)[b], target)), *after]


def _columnwise(site: Site, rows: _Index, depth: _Index, columns: _Index, batch: _Index) -> StridedProduct | None:
    """The product as cuBLAS takes it, or its transpose; None if no index of an array has stride 1, or they overlap.

    The slots are 0 for the left array, 1 for the right one, and 2.
    """
    for a, b, high, wide in ((0, 1, rows, columns), (1, 0, columns, rows)):
        ld_c = _ld(high, wide, 2)
        plain_a, plain_b = _ld(high, depth, a), _ld(depth, wide, b)
        ld_a, ld_b = plain_a or _ld(depth, high, a), plain_b or _ld(wide, depth, b)
        sizes = (high.size, wide.size, depth.size, batch.size)
        if ld_a is None or ld_b is None or ld_c is None or max(*sizes, ld_a, ld_b, ld_c) >= 1 << 31:
            continue
        steps = (batch.strides[a], batch.strides[b], batch.strides[2])
        transposed = (plain_a is None, plain_b is None)
        return StridedProduct(
            transposed, sizes, (ld_a, ld_b, ld_c), steps, site.dtype, site.dtype, (a, b, 2), site.tf32
        )
    return None


def _ld(along: _Index, across: _Index, array: int) -> int | None:
    """Elements from one column to the next if ``along`` lies within a column, None if it does not."""
    inner, step = along.strides[array], across.strides[array]
    if along.size > 1 and inner != 1:
        return None
    if across.size == 1:
        return max(along.size, 1)
    return step if step >= along.size else None


class Depthwise(Dense):
    """A convolution without a sum over channels, or a scaling; those in a row are one launch."""

    name: ClassVar[str] = "depthwise"

    @classmethod
    def fits(cls, product: Product, library: str) -> bool:
        """Nothing is summed but taps, few enough to keep a sum for each."""
        return library == "cupy" and product.s == product.n == 1 and product.taps <= _UNROLLED

    @classmethod
    def seconds(cls, product: Product, machine: Machine, way: str) -> float:
        """Half a launch and half a pass over what is read and written, as two in a row are one launch.

        A scaling beside them is almost free.
        """
        elements = product.b * (math.prod(product.feature_shape[2:]) + product.columns)
        launches, share = ((2 if way == D_KERNEL else 1) / 2, 0.5) if product.is_conv else (0.0, 0.125)
        return launches * machine.call + share * elements * machine.element * product.itemsize / 4


class Outer(Dense):
    """A product that sums nothing: an element of the result is one of each side, times each other."""

    name: ClassVar[str] = "outer"
    ways: ClassVar[tuple[str, ...]] = (FORWARD,)

    @classmethod
    def fits(cls, product: Product, library: str) -> bool:
        """Nothing is summed."""
        return library == "cupy" and sums_nothing(product)

    @classmethod
    def seconds(cls, product: Product, machine: Machine, way: str) -> float:
        """A launch, and what is read and written; those in a row are one launch if there is no way back."""
        return machine.call + moved(product) * machine.byte

    def forward(self, site: Site, kernel: Place, feature: Place, out: Place, reserve: Reserve) -> Launches:
        """The product."""
        sizes = {name: site.sizes[name] for name in (*site.b, *site.n, *site.places("q"))}
        return multiplied(sizes, [_by_output(feature), kernel], out, site.dtype, site.wide)


def sums_nothing(product: Product) -> bool:
    """Whether there is neither a sum over channels nor one over taps."""
    return product.s == 1 and not product.is_conv


def multiplied(sizes: Mapping[str, int], parts: Sequence[Place], out: Place, dtype: str, wide: bool) -> Launches:
    """The product of arrays element by element."""
    first, *others = parts
    chain = Chain(sizes, tuple(sizes), (), tuple(one.strides for one in others))
    text = depthwise(chain, dtype, first.strides, out.strides, wide)
    return [Kernel(text, _blocks(math.prod(sizes.values())), THREADS, (*(one.slot for one in parts), out.slot))]


def chained(chain: Chain, site: Site, kernels: Sequence[int], source: Place, target: Place, backward: bool) -> Launches:
    """All steps of a chain at once, or the gradient by its feature map."""
    text = depthwise(chain, site.dtype, source.strides, target.strides, site.wide, backward)
    count = site.count((*chain.b, *site.places("p" if backward else "q")))
    return [Kernel(text, _blocks(count), THREADS, (source.slot, *kernels, target.slot))]


def chain_gradients(
    chain: Chain, site: Site, kernels: Sequence[int], d_out: Place, feature: Place, targets: Mapping[int, Place],
    reserve: Reserve,
) -> Launches:  # fmt: skip
    """Gradients by the kernels of a chain whose positions are in ``targets``: sums by tap, then their products."""
    batches, taps, whole = site.count(chain.b), site.count(chain.taps), site.count(site.places("q"))
    slabs = max(1, min(_SLABS, _BLOCKS // batches, whole // _LEAST))
    parts = reserve(slabs * batches * taps, ACCUMULATED[site.dtype])
    sums = tap_sums(chain, site.dtype, d_out.strides, feature.strides, site.wide, -(-whole // slabs))
    strides = contiguous(site, (*chain.b, *chain.taps))
    by_kernel = {j: place.strides for j, place in targets.items()}
    text = factor_gradients(chain, site.dtype, strides, by_kernel, slabs, site.wide)
    count = sum(site.count([n for n in strides if n in place]) for place in by_kernel.values())
    slots = (parts, *(kernels if len(kernels) > 1 else ()), *(place.slot for place in targets.values()))
    return [
        Kernel(sums, batches * slabs, THREADS, (d_out.slot, feature.slot, parts)),
        Kernel(text, _blocks(count), THREADS, slots),
    ]
