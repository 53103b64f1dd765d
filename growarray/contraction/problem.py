"""An equation with sizes: which modes every partial result has, how large it is, and what a pairwise product is.

Partial results are named by the set of operands in them, a bit mask: 0b101 is operands 0 and 2 contracted.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from growarray.contraction.equation import ELLIPSIS, Equation
from growarray.contraction.geometry import ConvAxis, conv_axes
from growarray.errors import PlanError, shown

__all__ = ["AMONG_MANY", "Axis", "Conv", "Operand", "Pair", "Problem", "Product", "checked_shapes"]

AMONG_MANY = 4  # times the work space of a product that is all there is: for one of many, and for a backward pass


class Axis(NamedTuple):
    """One axis of a feature map in a product: ``out`` position q reads ``q stride + t dilation - before``, t < taps."""

    name: str
    size: int
    taps: int = 1
    out: int = 1
    stride: int = 1
    before: int = 0
    dilation: int = 1

    @property
    def is_plain(self) -> bool:
        """Whether the outputs are the inputs."""
        return (self.taps, self.stride, self.before, self.out) == (1, 1, 0, self.size)


class Conv(NamedTuple):
    """A convolution mode with its sizes, and the operands that hold the feature map and the kernel."""

    axis: ConvAxis
    feature: int
    kernel: int
    size: int
    taps: int
    out: int


@dataclass(frozen=True, slots=True)
class Operand:
    """How an operand becomes one with every mode once: drop broadcast axes, take diagonals, sum what no other needs."""

    dropped: tuple[int, ...]
    diagonals: tuple[tuple[int, int], ...]
    summed: tuple[int, ...]
    modes: tuple[str, ...]

    @property
    def is_plain(self) -> bool:
        """Whether the operand is used as it is."""
        return not (self.dropped or self.diagonals or self.summed)


@dataclass(frozen=True, slots=True)
class Product:
    """The sizes of ``out[b, n, q] = sum over s, t of kernel[b, n, s, t] * feature[b, s, q stride + t ...]``.

    axes : those of the feature map, convolved or not (one tap)
    working_set : elements of both sides and the result, of the whole batch
    workspace_factor : how often the usual share of the working set may be taken as work space
    itemsize : bytes of an element
    columns, taps : positions of the result, of the kernel    is_conv : whether a kernel meets its feature map here
    """

    b: int
    s: int
    n: int
    axes: tuple[Axis, ...]
    working_set: int = 1 << 22
    workspace_factor: int = 1
    itemsize: int = 4
    columns: int = field(init=False, repr=False, compare=False)
    taps: int = field(init=False, repr=False, compare=False)
    is_conv: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        columns, taps, is_conv = 1, 1, False
        for axis in self.axes:
            columns, taps, is_conv = columns * axis.out, taps * axis.taps, is_conv or not axis.is_plain
        for name, value in (("columns", columns), ("taps", taps), ("is_conv", is_conv)):
            object.__setattr__(self, name, value)

    def over(self, axes: tuple[Axis, ...]) -> Product:
        """The product over other axes."""
        factor, size = self.workspace_factor, self.itemsize
        return Product(self.b, self.s, self.n, axes, self.working_set, factor, size)

    def transposed(self, axes: tuple[Axis, ...]) -> Product:
        """The product over other axes of a gradient and the kernel with its sides swapped."""
        return Product(self.b, self.n, self.s, axes, self.working_set, AMONG_MANY, self.itemsize)

    @property
    def backward(self) -> Product:
        """The product as its gradients see it, which may take more work space."""
        if self.workspace_factor == AMONG_MANY:
            return self
        return Product(self.b, self.s, self.n, self.axes, self.working_set, AMONG_MANY, self.itemsize)

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """(b, s, *sizes)."""
        return (self.b, self.s, *(a.size for a in self.axes))

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """(b, n, s, *taps)."""
        return (self.b, self.n, self.s, *(a.taps for a in self.axes))

    @property
    def shape(self) -> tuple[int, ...]:
        """(b, n, *outs), of the result."""
        return (self.b, self.n, *(a.out for a in self.axes))

    @property
    def kernel_dominates(self) -> bool:
        """Whether the kernel is so large a part of all there is that reordering it costs more than gathering taps."""
        return 4 * self.b * self.s * self.n * self.taps > self.working_set


@dataclass(frozen=True, slots=True)
class Pair:
    """A product of two partial results: masks of their operands, and what their modes are in it.

    b : modes of both that stay    s : modes of both that are summed    n : of the kernel alone
    padded : (mode, axis) of the convolution modes that meet here and are padded by something else than zeros
    """

    feature_mask: int
    kernel_mask: int
    b: tuple[str, ...]
    s: tuple[str, ...]
    n: tuple[str, ...]
    padded: tuple[tuple[str, ConvAxis], ...]
    product: Product

    @property
    def flops(self) -> int:
        """Multiplications, and additions where something is summed; padding counts as data."""
        return self._multiplications * (2 if self.s or self.product.is_conv else 1)

    @property
    def backward_flops(self) -> int:
        """Of the two products of the backward pass: by the feature map and by the kernel."""
        by_feature, by_kernel = self.n or self.product.is_conv, self.product.axes
        return self._multiplications * ((2 if by_feature else 1) + (2 if by_kernel else 1))

    @property
    def _multiplications(self) -> int:
        p = self.product
        return p.b * p.s * p.n * p.columns * p.taps


class Problem:
    """An equation bound to shapes. Not changed after it was made.

    blocks : how many times the block mode of these shapes goes into that of the whole batch
    itemsize : bytes of an element
    Raises PlanError if shapes, equation and options do not fit together.
    """

    def __init__(
        self,
        equation: Equation,
        shapes: Sequence[Sequence[int]],
        *,
        blocks: float = 1.0,
        itemsize: int = 4,
        **options: Any,
    ) -> None:
        self.equation, self.blocks, self.itemsize = equation, blocks, itemsize
        self.shapes = checked_shapes(equation, shapes)
        terms, self.output, dropped = _expand(equation, self.shapes)
        self.terms = tuple(terms)
        sizes, pairs = _sizes(equation, terms, self.shapes, dropped)
        kernels = [pairs[name][1] for name in equation.convolved]
        axes = conv_axes(equation.convolved, kernels, **options)
        self.conv: dict[str, Conv] = {}
        for name, axis, taps in zip(equation.convolved, axes, kernels, strict=True):
            feature, kernel = (i for i, term in enumerate(terms) if name in term)
            size = pairs[name][0]
            self.conv[name] = Conv(axis, feature, kernel, size, taps, axis.output_size(size, taps, name))
        self.operands_with_mode: dict[str, int] = {}
        for i, term in enumerate(terms):
            for place, name in enumerate(term):
                self.operands_with_mode[name] = self.operands_with_mode.get(name, 0) | (place not in dropped[i]) << i
        self.size = sizes
        self.operands = tuple(_operand(i, term, self, dropped[i]) for i, term in enumerate(terms))
        self.everything = (1 << len(terms)) - 1
        self.block = self._block_mode()
        rank = {name: index for index, name in enumerate(self.operands_with_mode)}
        later = {name: len(rank) + index for index, name in enumerate([self.block or "", *self.conv])}
        self._order = sorted(rank, key=lambda name: later.get(name, rank[name]))
        self._modes: dict[int, tuple[str, ...]] = {}
        self._elements: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.shapes)

    def _block_mode(self) -> str | None:
        """The mode a convolution can be cut along: of one feature map alone, and in the output."""
        features = {1 << conv.feature for conv in self.conv.values()}
        for name in self.output:
            written = sum(term.count(name) for term in self.terms)  # a diagonal or a broadcast axis cannot be cut
            if name not in self.conv and self.operands_with_mode[name] in features and written == 1:
                return name
        return None

    def modes(self, operands: int) -> tuple[str, ...]:
        """Modes of a partial result in the order in which it is kept: the block mode and convolution modes last."""
        found = self._modes.get(operands)
        if found is None:
            rest, holders = self.everything & ~operands, self.operands_with_mode
            kept = [m for m in self._order if m in self.output or holders[m] & rest]
            found = tuple(m for m in kept if holders[m] & operands)
            self._modes[operands] = found
        return found

    def extent(self, name: str, operands: int) -> int:
        """Positions of a mode in a partial result."""
        conv = self.conv.get(name)
        if conv is None:
            return self.size[name]
        if operands >> conv.feature & 1:
            return conv.out if operands >> conv.kernel & 1 else conv.size
        return conv.taps

    def shape(self, operands: int) -> tuple[int, ...]:
        """Shape of a partial result."""
        return tuple(self.extent(name, operands) for name in self.modes(operands))

    def elements(self, operands: int) -> int:
        """Size of a partial result."""
        found = self._elements.get(operands)
        if found is None:
            found = self._elements[operands] = math.prod(self.shape(operands))
        return found

    def pair(self, left: int, right: int) -> Pair | None:
        """The product of two partial results; None if each is the feature map of a mode of the other."""
        if right & -right < left & -left:  # if both may be the feature map, one tree is one product
            left, right = right, left
        met = {
            name: conv
            for name, conv in self.conv.items()
            if (left >> conv.feature & 1 and right >> conv.kernel & 1)
            or (right >> conv.feature & 1 and left >> conv.kernel & 1)
        }
        sides = {bool(left >> conv.feature & 1) for conv in met.values()}
        if len(sides) > 1:
            return None
        feature, kernel = (left, right) if self._left_is_feature(left, right, sides) else (right, left)
        f_modes, k_modes, kept = self.modes(feature), self.modes(kernel), set(self.modes(left | right))
        b = tuple(m for m in f_modes if m in k_modes and m in kept and m not in met)
        s = tuple(m for m in f_modes if m in k_modes and m not in kept)
        n = tuple(m for m in k_modes if m not in f_modes)
        axes, padded = [], []
        for m in f_modes:
            if m in met:
                conv = met[m]
                if conv.axis.padding_mode != "zeros" and (conv.axis.before or conv.axis.after):
                    padded.append((m, conv.axis))
                    size, before = conv.size + conv.axis.before + conv.axis.after, 0
                else:
                    size, before = conv.size, conv.axis.before
                axes.append(Axis(m, size, conv.taps, conv.out, conv.axis.stride, before, conv.axis.dilation))
            elif m not in b and m not in s:
                size = self.extent(m, feature)
                axes.append(Axis(m, size, 1, size))
        product = Product(
            math.prod(self.extent(m, feature) for m in b),
            math.prod(self.extent(m, feature) for m in s),
            math.prod(self.extent(m, kernel) for m in n),
            tuple(axes),
            sum(self._whole(part) for part in (feature, kernel, left | right)),
            # one product of two operands is to need little beside them; among many, partial results need more than this
            1 if len(self) == 2 else AMONG_MANY,
            self.itemsize,
        )
        return Pair(feature, kernel, b, s, n, tuple(padded), product)

    def _whole(self, operands: int) -> int:
        """Size of a partial result of the whole batch, of which this problem may be a block."""
        blocked = self.block is not None and operands & self.operands_with_mode[self.block]
        return int(self.elements(operands) * self.blocks) if blocked else self.elements(operands)

    def _left_is_feature(self, left: int, right: int, sides: set[bool]) -> bool:
        if sides:
            return sides.pop()
        if self.block is not None:
            for side in (left, right):
                if side & self.operands_with_mode[self.block]:
                    return side == left
        if self.conv:
            return self.elements(left) >= self.elements(right)
        # a plain product: the kernel's free modes come first in its result, so it is the side that is wanted first
        lefts, rights = set(self.modes(left)), set(self.modes(right))
        free = [m for m in self.modes(left | right) if not (m in lefts and m in rights)]
        return bool(free) and free[0] in rights


def checked_shapes(equation: Equation, shapes: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Shapes as tuples of whole numbers. Raises PlanError for anything else."""
    try:
        found = tuple(tuple(operator.index(d) for d in shape) for shape in shapes)
    except TypeError as error:
        raise PlanError(f"'{equation}': expected shapes of whole numbers, found {shown(list(shapes))}") from error
    if any(d < 0 for shape in found for d in shape):
        raise PlanError(f"'{equation}': shapes must not be negative, found {list(found)}")
    return found


def _expand(
    equation: Equation, shapes: Sequence[tuple[int, ...]]
) -> tuple[list[tuple[str, ...]], tuple[str, ...], list[tuple[int, ...]]]:
    """Write ``...`` out as modes of their own; axes of size 1 that others broadcast are dropped."""
    if len(shapes) != len(equation.terms):
        raise PlanError(f"'{equation}' has {len(equation.terms)} operands, found {len(shapes)} arrays")
    counts = []
    for i, (term, shape) in enumerate(zip(equation.terms, shapes, strict=True)):
        named = len(term) - (ELLIPSIS in term)
        if len(shape) < named or (len(shape) > named and ELLIPSIS not in term):
            raise PlanError(
                f"operand {i} of '{equation}' has {len(shape)} axes {shape}, its term '{' '.join(term)}' names {named}"
            )
        counts.append(len(shape) - named if ELLIPSIS in term else 0)
    most = max(counts, default=0)
    hidden = tuple(f"...{k}" for k in range(most))
    terms, dropped = [], []
    for term, shape, count in zip(equation.terms, shapes, counts, strict=True):
        place = term.index(ELLIPSIS) if ELLIPSIS in term else 0
        own = hidden[most - count :] if count else ()
        terms.append(term[:place] + own + term[place + (ELLIPSIS in term) :])
        dropped.append(tuple(place + k for k in range(count) if shape[place + k] == 1))
    largest: dict[str, int] = dict.fromkeys(hidden, 1)
    for term, shape in zip(terms, shapes, strict=True):
        for name, size in zip(term, shape, strict=True):
            if name in largest and size != 1:
                largest[name] = size
    kept = [tuple(axis for axis in axes if largest[term[axis]] != 1) for term, axes in zip(terms, dropped, strict=True)]
    if most and ELLIPSIS not in equation.output:
        raise PlanError(f"'{equation}': '...' stands for {most} modes that the output lacks; write '...' there too")
    at = equation.output.index(ELLIPSIS) if ELLIPSIS in equation.output else len(equation.output)
    return terms, equation.output[:at] + hidden + equation.output[at + 1 :], kept


def _sizes(
    equation: Equation,
    terms: Sequence[tuple[str, ...]],
    shapes: Sequence[tuple[int, ...]],
    dropped: Sequence[tuple[int, ...]],
) -> tuple[dict[str, int], dict[str, list[int]]]:
    """Size of every plain mode, and (feature, kernel) of every convolution mode."""
    sizes: dict[str, int] = {}
    holder: dict[str, int] = {}
    pairs: dict[str, list[int]] = {name: [] for name in equation.convolved}
    for i, (term, shape) in enumerate(zip(terms, shapes, strict=True)):
        for axis, (name, size) in enumerate(zip(term, shape, strict=True)):
            if name in pairs:
                pairs[name].append(size)
            elif axis not in dropped[i] and sizes.setdefault(name, size) != size:
                raise PlanError(
                    f"'{equation}': mode {shown(name)} has size {sizes[name]} in operand {holder[name]} and {size} in "
                    f"operand {i}; shapes are {[tuple(s) for s in shapes]}"
                )
            holder.setdefault(name, i)
    return sizes, pairs


def _operand(index: int, term: tuple[str, ...], problem: Problem, dropped: tuple[int, ...]) -> Operand:
    modes = [name for axis, name in enumerate(term) if axis not in dropped]
    diagonals = []
    for name in dict.fromkeys(modes):
        while modes.count(name) > 1:
            first = modes.index(name)
            second = modes.index(name, first + 1)
            diagonals.append((first, second))
            del modes[second]
    lone = [m for m in modes if m not in problem.output and problem.operands_with_mode[m] == 1 << index]
    summed = tuple(axis for axis, name in enumerate(modes) if name in lone)
    return Operand(dropped, tuple(diagonals), summed, tuple(m for m in modes if m not in lone))
