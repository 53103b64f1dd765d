"""What one pairwise product costs, forward and backward: operations, bytes, the kernel that runs it, seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass

from growarray.contraction.band import layout_of
from growarray.contraction.machine import Machine
from growarray.contraction.problem import SPARE, Axis, Pair, Problem
from growarray.contraction.winograd import tiles_at_once

__all__ = ["DEPTH", "Costs", "StepCost", "is_heavy", "is_short", "kernel_of", "rows_axis"]

DEPTH = 48  # depth of a product from which im2col along the first axis does not pay any more
_SHORT = 1.5e-3  # seconds of a plain product below which a second thread costs more than it saves
_SHORT_CALLS = 2  # times that for convolutions, whose calls are short: threads wait for the interpreter's lock at each
_STRIDED = 1.4  # what gradients of convolutions with strides take beside the model, measured
_GATHERED = 1.15  # what convolutions by gathered windows take beside the model, measured
_SHARED = 0.4  # of a core that each further one adds to the steps of a single block, measured
_COLD = 1.2  # what products over gathered windows take beside those whose operands lie in the cache, measured


@dataclass(frozen=True, slots=True)
class StepCost:
    """A pairwise product: forward, and the two products of the backward pass where a plan is for training."""

    kernel: str
    flops: int
    backward_flops: int
    bytes: int
    backward_bytes: int
    elements: int
    seconds: float
    backward_seconds: float

    def total(self, minimize: str) -> float:
        """What a search adds up."""
        return {
            "time": self.seconds + self.backward_seconds,
            "flops": self.flops + self.backward_flops,
            "memory": self.elements,
        }[minimize]


def kernel_of(pair: Pair, itemsize: int = 4) -> str:
    """Which kernel runs a product: ``multiply``, ``matmul``, ``band``, ``winograd``, ``rows`` (partial im2col) or
    ``im2col``."""
    _, s, n = pair.sizes
    if not pair.is_conv:
        return "matmul" if pair.s else "multiply"
    if s == 1 and n == 1:
        return "band"
    if itemsize == 4 and tiles_at_once(pair.sizes, pair.axes, pair.room, pair.spare):
        return "winograd"
    return "im2col" if rows_axis(pair.sizes, pair.axes, pair.room) is None else "rows"


def is_heavy(sizes: tuple[int, int, int], axes: tuple[Axis, ...], room: int) -> bool:
    """Whether the kernel is so large a part of all there is that turning it costs more than gathering every tap."""
    return 4 * math.prod(sizes) * math.prod(a.taps for a in axes) > room


def rows_axis(sizes: tuple[int, int, int], axes: tuple[Axis, ...], room: int) -> int | None:
    """The axis whose taps become products of their own, on shifted views: the first that is convolved, unless it is
    strided, the products would be shallower than :data:`DEPTH`, or the kernel is too heavy to be turned."""
    if is_heavy(sizes, axes, room):
        return None
    depth = sizes[1]
    convolved = [i for i, a in enumerate(axes) if not a.is_plain]
    if not convolved or axes[convolved[0]].stride != 1 or axes[convolved[0]].taps == 1:
        return None
    others = math.prod(a.taps for i, a in enumerate(axes) if i != convolved[0])
    return convolved[0] if depth * others >= DEPTH or (others == 1 and depth >= DEPTH // 3) else None


def is_short(pair: Pair, seconds: float) -> bool:
    """Whether a step of a single block, of so many seconds on one core, is left to one thread."""
    return seconds < _SHORT * (_SHORT_CALLS if pair.is_conv else 1)


class Costs:
    """Costs of the products of one problem, each computed once.

    problem : with the block mode at its full size    block : positions of the block mode that run at a time
    constants : mask of the operands that are contracted once, so that steps among them cost nothing
    """

    def __init__(
        self, problem: Problem, machine: Machine, *, itemsize: int, training: bool, block: int, constants: int = 0
    ) -> None:
        self.problem, self.machine, self.itemsize, self.training = problem, machine, itemsize, training
        self.constants = constants
        whole = problem.size[problem.block] if problem.block is not None else 1
        self.block = max(min(block, whole), 1)
        self.blocks = whole / self.block
        self._steps: dict[tuple[int, int], StepCost | None] = {}

    def held(self, operands: int) -> int:
        """Elements that a partial result takes at a time: of a block a core, unless a backward pass keeps it whole."""
        problem, elements = self.problem, self.problem.elements(operands)
        if self.training or operands == problem.everything or problem.block is None:
            return elements
        if not operands & problem.holders[problem.block]:
            return elements
        return min(elements, -(-elements * self.block * self.machine.cores // max(problem.size[problem.block], 1)))

    def step(self, left: int, right: int) -> StepCost | None:
        """Cost of the product of two partial results; None where there is no such product."""
        key = (left, right) if left < right else (right, left)
        if key not in self._steps:
            pair = self.problem.pair(*key)
            self._steps[key] = None if pair is None else self._cost(pair)
            if pair is not None and not (left | right) & ~self.constants:
                self._steps[key] = StepCost(
                    kernel_of(pair, self.itemsize), 0, 0, 0, 0, self.held(left | right), 0.0, 0.0
                )
        return self._steps[key]

    def _cost(self, pair: Pair) -> StepCost:
        problem, item = self.problem, self.itemsize
        blocked = problem.block is not None and bool((pair.feature | pair.kernel) & problem.holders[problem.block])
        times, axes = 1.0, pair.axes
        if blocked:
            times = self.blocks
            axes = tuple(
                a._replace(size=self.block, out=self.block) if a.name == problem.block else a for a in pair.axes
            )
        kernel = kernel_of(pair, self.itemsize)
        f, k = problem.elements(pair.feature), problem.elements(pair.kernel)
        out = problem.elements(pair.feature | pair.kernel)
        forward = self._forward(kernel, pair, axes)
        parallel = self._parallel(pair, forward)
        held, traffic = self.held(pair.feature | pair.kernel), self._traffic(pair) * self.machine.byte
        seconds = times * (forward / parallel + self.machine.step) + traffic + self._preparing(kernel, k)
        moved = item * (f + k + out)
        if not self.training:
            return StepCost(kernel, pair.flops, 0, moved, 0, held, seconds, 0.0)
        backward = self._feature_gradient(kernel, pair, axes) + self._kernel_gradient(kernel, pair, axes)
        backward *= _STRIDED if kernel == "im2col" and any(a.stride > 1 for a in axes) else 1.0
        back_seconds = times * (backward / parallel + 2 * self.machine.step) + 2 * traffic + self._preparing(kernel, k)
        return StepCost(kernel, pair.flops, pair.backward_flops, moved, 2 * moved, held, seconds, back_seconds)

    def _preparing(self, kernel: str, elements: int) -> float:
        """Seconds that a kernel is made ready in, once for all blocks, where they count."""
        return 3 * self.machine.gathered * elements if kernel == "winograd" else 0.0

    def _parallel(self, pair: Pair, seconds: float) -> float:
        """Cores that share a step: what does not depend on the blocks is small, and runs before them in one piece, and
        so does a short step where there is one block."""
        if self._before_blocks(pair) or (self.blocks == 1 and is_short(pair, seconds)):
            return 1.0
        return 1.0 + _SHARED * (self.machine.cores - 1) if self.blocks == 1 else self.machine.cores

    def _before_blocks(self, pair: Pair) -> bool:
        problem = self.problem
        return problem.block is not None and not (pair.feature | pair.kernel) & problem.holders[problem.block]

    def _traffic(self, pair: Pair) -> int:
        """Bytes that pass between cache and main memory: operands read, and results written to memory that is new."""
        problem, result = self.problem, pair.feature | pair.kernel
        leaves = [part for part in (pair.feature, pair.kernel) if part & (part - 1) == 0]
        elements = sum(problem.elements(part) for part in leaves)
        if self.training or result == problem.everything:
            elements += 2 * problem.elements(result)
        return elements * self.itemsize

    def _forward(self, kernel: str, pair: Pair, axes: tuple[Axis, ...]) -> float:
        """Seconds on one core, without what surrounds a step."""
        m = self.machine
        b, s, n = pair.sizes
        out = math.prod(a.out for a in axes)
        if kernel == "multiply":
            fresh = 8.0 * m.element if self._before_blocks(pair) else 0.0  # a new array, whose pages come one by one
            return m.call + b * n * out * (2 * m.element + fresh + m.row / max(out if out > 1 else n, 1))
        if kernel == "matmul":
            return m.call + m.product(b, n, s, out, self.itemsize)
        if kernel == "band":
            return self._band(b, axes)
        if kernel == "winograd":
            return self._winograd(pair.sizes, axes)
        taps = math.prod(a.taps for a in axes)
        rows = rows_axis(pair.sizes, axes, pair.room) if kernel == "rows" else None
        gather = m.copied + m.row / max(axes[-1].out, 1)
        padded = b * s * self._padded(axes) * gather
        chunks = max(1.0, b * s * taps * out * self.itemsize / m.cache / (axes[rows].taps if rows is not None else 1))
        if rows is None:
            work = b * s * taps * out * gather + padded + _COLD * m.product(b, n, s * taps, out, self.itemsize)
            return _GATHERED * work + chunks * taps * m.call
        first = axes[rows]
        columns = out // max(first.out, 1) * (first.out + (first.taps - 1) * first.dilation)
        depth = s * taps // first.taps
        passes = (first.taps - 1) * n * out * m.element
        work = _COLD * first.taps * m.product(b, n, depth, out, self.itemsize) + b * (depth * columns * gather + passes)
        return work + chunks * (taps + first.taps) * m.call

    def _band(self, b: int, axes: tuple[Axis, ...], passes: int = 4) -> float:
        """Small products with banded matrices, and ``passes`` over the outputs to add those of further taps."""
        m = self.machine
        at, block, innermost = layout_of(axes)
        banded, out = axes[at], math.prod(a.out for a in axes)
        reach = (block - 1) * banded.stride + (banded.taps - 1) * banded.dilation + 1
        columns = (axes[at - 1].out if at else 1) if innermost else math.prod(a.out for a in axes[at + 1 :])
        others = math.prod(a.taps for a in axes) // banded.taps
        products = b * out / max(block * columns, 1)
        each = m.small + 2.0 * block * min(reach, banded.size) * columns * self.itemsize / 4 / (0.55 * m.rate)
        added = (others - 1) * passes * b * out * m.element * self.itemsize / 4
        return others * (products * each + 3 * m.call) + added

    def _winograd(
        self, sizes: tuple[int, int, int], axes: tuple[Axis, ...], passes: tuple[int, int] = (24, 28)
    ) -> float:
        """Products at the points of all tiles, and ``passes`` over tiles of s and of n to come to them and back."""
        m = self.machine
        b, s, n = sizes
        convolved = [i for i, a in enumerate(axes) if not a.is_plain]
        tiles = math.prod(-(-a.out // 2) if i in convolved[-2:] else a.out for i, a in enumerate(axes))
        taps = axes[convolved[0]].taps if len(convolved) == 3 else 1
        moved = 4 * m.gathered * (s + n) + m.element * (passes[0] * s + (passes[1] + 48 * (taps - 1)) * n)
        return b * tiles * moved + _COLD * m.product(16 * taps * b, n, s, tiles, self.itemsize) + 40 * m.call

    def _feature_gradient(self, kernel: str, pair: Pair, axes: tuple[Axis, ...]) -> float:
        """The same product with the gradient as the feature map and the sizes of kernel rows exchanged."""
        m = self.machine
        b, s, n = pair.sizes
        if kernel == "multiply" and n == 1:
            return self._forward(kernel, pair, axes)
        if kernel in ("multiply", "matmul"):
            return m.call + m.product(b, s, n, math.prod(a.out for a in axes), self.itemsize)
        turned = tuple(Axis(a.name, a.out, a.taps, max(a.size // a.stride, 1), 1, a.before, a.dilation) for a in axes)
        swapped = Pair(pair.feature, pair.kernel, pair.b, pair.n, pair.s, turned, (), (b, n, s), pair.room, SPARE)
        if kernel == "band":
            return self._band(b, turned)
        if self.itemsize == 4 and tiles_at_once((b, n, s), turned, pair.room, SPARE):
            return self._winograd((b, n, s), turned)
        return self._forward("im2col" if rows_axis((b, n, s), turned, pair.room) is None else "rows", swapped, turned)

    def _kernel_gradient(self, kernel: str, pair: Pair, axes: tuple[Axis, ...]) -> float:
        m = self.machine
        b, s, n = pair.sizes
        out, taps = math.prod(a.out for a in axes), math.prod(a.taps for a in axes)
        if kernel in ("multiply", "matmul"):
            return m.call + m.product(b, n, out, s, self.itemsize)
        if kernel == "band":
            return taps * (3 * b * out * m.element * self.itemsize / 4 + 6 * m.call)
        if self.itemsize == 4 and tiles_at_once(pair.sizes, axes, pair.room, SPARE):
            return self._winograd(pair.sizes, axes, (24, 24))
        gather = m.copied + m.row / max(axes[-1].out, 1)
        work = b * s * (taps * out + self._padded(axes)) * gather
        return work + _COLD * m.product(b, n, out, s * taps, self.itemsize) + taps * m.call

    def _padded(self, axes: tuple[Axis, ...]) -> int:
        """Positions of the padded copy from which windows with strides are gathered."""
        if all(a.stride == 1 or a.taps == 1 for a in axes):
            return 0
        return math.prod((a.out - 1) * a.stride + (a.taps - 1) * a.dilation + 1 for a in axes)
