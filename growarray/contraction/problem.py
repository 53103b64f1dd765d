"""An equation with sizes: which modes every partial result has, how large it is, and what a pairwise product is.

Partial results are named by the set of operands in them, a bit mask: 0b101 is operands 0 and 2 contracted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from growarray.contraction.equation import Equation
from growarray.contraction.geometry import ConvAxis, conv_axes
from growarray.contraction.shapes import checked_shapes, expand, operand_of, sizes_of
from growarray.errors import PlanError

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

    @property
    def is_padded(self) -> bool:
        """Whether the feature map is padded by something else than zeros, before it meets the kernel."""
        return self.axis.padding_mode != "zeros" and bool(self.axis.before or self.axis.after)

    def met(self, name: str) -> Axis:
        """The axis of the product in which the feature map meets the kernel."""
        by = self.axis
        size, before = (self.size + by.before + by.after, 0) if self.is_padded else (self.size, by.before)
        return Axis(name, size, self.taps, self.out, by.stride, before, by.dilation)


class Operations(NamedTuple):
    """What a product of two partial results takes, whatever runs it.

    flops : multiplications, and additions where something is summed; padding counts as data
    backward_flops : of the two products of the backward pass, by the feature map and by the kernel
    elements : of the result    operands : of both sides
    """

    flops: int
    backward_flops: int
    elements: int
    operands: int


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
        terms, self.output, dropped = expand(equation, self.shapes)
        self.terms = tuple(terms)
        self.size, pairs = sizes_of(equation, terms, self.shapes, dropped)
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
        self.operands = tuple(
            operand_of(i, term, dropped[i], self.output, self.operands_with_mode) for i, term in enumerate(terms)
        )
        self.everything = (1 << len(terms)) - 1
        self.block = self._block_mode()
        self._number_modes()

    def __len__(self) -> int:
        return len(self.shapes)

    def _number_modes(self) -> None:
        """Modes as bits, in the order in which partial results keep them: the block mode and convolution modes last."""
        later = [m for m in (self.block, *self.conv) if m is not None]
        self._names = (*(m for m in self.operands_with_mode if m not in later), *later)
        self._bit = {name: 1 << k for k, name in enumerate(self._names)}
        self._held = {bit: self.operands_with_mode[name] for name, bit in self._bit.items()}
        self._wanted = sum(self._bit[name] for name in self.output)
        self._met = [(self._bit[m], 1 << c.feature, 1 << c.kernel, c, c.met(m)) for m, c in self.conv.items()]
        self._plain = ~sum(bit for bit, *_ in self._met)
        self._sets = {1 << i: sum(self._bit[m] for m in operand.modes) for i, operand in enumerate(self.operands)}
        self._modes: dict[int, tuple[str, ...]] = {}
        self._elements: dict[int, int] = {}
        self._products: dict[int, int] = {}

    def _block_mode(self) -> str | None:
        """The mode a convolution can be cut along: of one feature map alone, and in the output."""
        features = {1 << conv.feature for conv in self.conv.values()}
        for name in self.output:
            written = sum(term.count(name) for term in self.terms)  # a diagonal or a broadcast axis cannot be cut
            if name not in self.conv and self.operands_with_mode[name] in features and written == 1:
                return name
        return None

    def mode_set(self, operands: int) -> int:
        """Modes of a partial result, each a bit: those that the output or another operand still needs."""
        modes = self._sets.get(operands)
        if modes is None:
            modes = 0
            for bit, operands_with_bit in self._held.items():
                if operands_with_bit & operands and (bit & self._wanted or operands_with_bit & ~operands):
                    modes |= bit
            self._sets[operands] = modes
        return modes

    def modes(self, operands: int) -> tuple[str, ...]:
        """Modes of a partial result in the order in which it is kept."""
        modes = self._modes.get(operands)
        if modes is None:
            modes = self._modes[operands] = self._named(self.mode_set(operands))
        return modes

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
        count = self._elements.get(operands)
        if count is None:
            modes = self.mode_set(operands)
            count = self._product(modes & self._plain)
            for bit, feature, kernel, conv, _ in self._met:
                if modes & bit:
                    extent = (conv.out if operands & kernel else conv.size) if operands & feature else conv.taps
                    count *= extent
            self._elements[operands] = count
        return count

    def _product(self, modes: int) -> int:
        """Positions of plain modes together."""
        count = self._products.get(modes)
        if count is None:
            count, rest = 1, modes
            while rest:
                bit = rest & -rest
                count, rest = count * self.size[self._names[bit.bit_length() - 1]], rest ^ bit
            self._products[modes] = count
        return count

    def operations(self, left: int, right: int) -> Operations | None:
        """What the product of two partial results takes; None if each is the feature map of a mode of the other."""
        left_modes, right_modes, whole = self.mode_set(left), self.mode_set(right), left | right
        kept = self.mode_set(whole)
        every, left_free, right_free = left_modes | right_modes, left_modes & ~right_modes, right_modes & ~left_modes
        count, is_conv, on_left, on_right = self._product(every & self._plain), False, False, False
        for bit, feature, kernel, conv, axis in self._met:
            if not every & bit:
                continue
            if not whole & feature:
                count *= conv.taps
            elif not whole & kernel:
                count *= conv.size
            else:
                count *= conv.out
                if left & feature and right & kernel:
                    on_left = True
                elif right & feature and left & kernel:
                    on_right = True
                else:
                    continue
                count, is_conv = count * conv.taps, is_conv or not axis.is_plain
        if on_left and on_right:
            return None
        # a convolution mode is one of the feature map's own, and of both sides the one that has it is the feature map
        columns, rows = (right_free, left_free) if on_right else (left_free, right_free)
        by_feature, by_kernel = bool(rows) or is_conv, bool(columns) or on_left or on_right
        return Operations(
            count * (2 if every & ~kept or is_conv else 1),
            count * ((2 if by_feature else 1) + (2 if by_kernel else 1)),
            self.elements(whole),
            self.elements(left) + self.elements(right),
        )

    def no_pair(self, left: int, right: int) -> PlanError:
        """What is wrong with two partial results that have no product."""
        first, second = (" ".join(self.modes(side)) for side in (left, right))
        return PlanError(
            f"'{self.equation}': the path joins '{first}' and '{second}' the wrong way round: each has the feature "
            "map of a convolution mode whose kernel the other has; join one of them with another operand first"
        )

    def pair(self, left: int, right: int) -> Pair | None:
        """The product of two partial results; None if each is the feature map of a mode of the other."""
        if right & -right < left & -left:  # if both may be the feature map, one tree is one product
            left, right = right, left
        met, sides = 0, set()
        for bit, feature, kernel, _, _ in self._met:
            if left & feature and right & kernel:
                met |= bit
                sides.add(True)
            elif right & feature and left & kernel:
                met |= bit
                sides.add(False)
        if len(sides) > 1:
            return None
        feature, kernel = (left, right) if self._left_is_feature(left, right, sides) else (right, left)
        f_set, k_set, kept = self.mode_set(feature), self.mode_set(kernel), self.mode_set(left | right)
        both = f_set & k_set & ~met
        b, s = self._named(both & kept), self._named(both & ~kept)
        axes, padded = [], []
        for m in self._named(f_set & ~both):
            if self._bit[m] & met:
                conv = self.conv[m]
                axes.append(conv.met(m))
                if conv.is_padded:
                    padded.append((m, conv.axis))
            else:
                size = self.extent(m, feature)
                axes.append(Axis(m, size, 1, size))
        n = self._named(k_set & ~f_set)
        product = Product(
            math.prod([self.extent(m, feature) for m in b]),
            math.prod([self.extent(m, feature) for m in s]),
            math.prod([self.extent(m, kernel) for m in n]),
            tuple(axes),
            sum([self._whole(part) for part in (feature, kernel, left | right)]),
            # one product of two operands is to need little beside them; among many, partial results need more than this
            1 if len(self) == 2 else AMONG_MANY,
            self.itemsize,
        )
        return Pair(feature, kernel, b, s, n, tuple(padded), product)

    def _named(self, modes: int) -> tuple[str, ...]:
        names = []
        while modes:
            bit = modes & -modes
            names.append(self._names[bit.bit_length() - 1])
            modes ^= bit
        return tuple(names)

    def _whole(self, operands: int) -> int:
        """Size of a partial result of the whole batch, of which this problem may be a block."""
        blocked = self.block is not None and operands & self.operands_with_mode[self.block]
        return round(self.elements(operands) * self.blocks) if blocked else self.elements(operands)

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
