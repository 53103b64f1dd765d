"""Cost of one pairwise product, forward and backward: operations, bytes, routines, seconds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from growarray.contraction.machine import Machine
from growarray.contraction.objective import Amounts, Objective
from growarray.contraction.problem import Operations, Pair, Problem, Product
from growarray.contraction.routines.choice import choose
from growarray.contraction.routines.protocol import D_FEATURE, D_KERNEL, FORWARD, Routine

_SHORT = 0.3e-3  # seconds of a product, or of a compiled loop, below which a second thread gains nothing, measured
_SHORT_CALLS = 9  # times that for what makes many short calls: threads wait for the interpreter's lock at each
_FAR = 1 << 25  # bytes that the caches of all cores hold together
_SEVERAL = 4  # caches of a core that a copy may take before it comes from memory, measured
_WAIT = 4.5e-6  # seconds for which each call of one of several threads waits for the interpreter's lock, measured


@dataclass(frozen=True, slots=True)
class StepCost:
    """A pairwise product: forward, and the two products of the backward pass if a plan is for training.

    routine : name of what runs it    d_feature, d_kernel : of what runs its gradients, if the plan is for training
    elements : of the result that are held at a time    bytes : of operands and result
    """

    routine: str
    d_feature: str
    d_kernel: str
    flops: int
    backward_flops: int
    bytes: int
    backward_bytes: int
    elements: int
    seconds: float
    backward_seconds: float


def is_short(product: Product, routine: type[Routine], seconds: float) -> bool:
    """Whether a step of a single block, of so many seconds on one core, is left to one thread."""
    return seconds < _shortest(product, routine)


def _shortest(product: Product, routine: type[Routine]) -> float:
    return _SHORT * (_SHORT_CALLS if product.is_conv and routine.name != "compiled" else 1)


class Costs:
    """Costs of the products of one problem, each computed once.

    problem : with the block mode at its full size    block : positions of the block mode that run at a time
    constants : mask of the operands that are contracted once, so that steps among them cost nothing
    library : of the arrays that will be contracted
    tree : whose partial results lie as its products leave them; for others only the operands' order is known
    """

    def __init__(
        self, problem: Problem, machine: Machine, *, training: bool, block: int, constants: int = 0,
        library: str = "numpy", tree: Sequence[tuple[int, int]] = (),
    ) -> None:  # fmt: skip
        self.problem, self.machine, self.training = problem, machine, training
        self.constants, self.library = constants, library
        whole = problem.size[problem.block] if problem.block is not None else 1
        self.block = max(min(block, whole), 1)
        self.blocks = whole / self.block
        waits = library == "numpy" and self.blocks > 1 and machine.cores > 1
        self._beside = replace(machine, call=machine.call + _WAIT) if waits else machine  # for steps of the blocks
        self._steps: dict[tuple[int, int], StepCost | None] = {}
        self._held: dict[int, int] = {}
        self._orders = {1 << i: one.modes for i, one in enumerate(problem.operands)}
        for pair in filter(None, itertools.starmap(problem.pair, tree)):
            self._orders[pair.feature_mask | pair.kernel_mask] = (
                *pair.b,
                *pair.n,
                *(a.name for a in pair.product.axes),
            )

    def held(self, operands: int) -> int:
        """Elements that a partial result takes at a time: of a block a core, unless a backward pass keeps it whole."""
        found = self._held.get(operands)
        if found is None:
            found = self._held[operands] = self._hold(operands)
        return found

    def _hold(self, operands: int) -> int:
        problem, elements = self.problem, self.problem.elements(operands)
        if self.training or operands == problem.everything or problem.block is None:
            return elements
        if not operands & problem.operands_with_mode[problem.block]:
            return elements
        return min(elements, -(-elements * self.block * self.machine.cores // max(problem.size[problem.block], 1)))

    def value(self, objective: Objective, left: int, right: int) -> float | None:
        """What a search counts for the product of two partial results; None if there is no such product."""
        key = (left, right) if left < right else (right, left)
        if objective.is_priced:
            step = self.step(*key)
            return None if step is None else objective.value(step)
        found = self.problem.operations(*key)
        if found is None:
            return None
        flops, written = found.flops, found.elements
        if self.training:
            flops, written = flops + found.backward_flops, written + found.operands
        if not (left | right) & ~self.constants:
            flops = written = 0
        return objective.value(Amounts(flops, written, self.held(left | right)))

    def step(self, left: int, right: int) -> StepCost | None:
        """Cost of the product of two partial results; None if there is no such product."""
        key = (left, right) if left < right else (right, left)
        if key not in self._steps:
            pair, found = self.problem.pair(*key), self.problem.operations(*key)
            if pair is None or found is None:
                self._steps[key] = None
            elif not (left | right) & ~self.constants:
                held, routine = self.held(left | right), choose(pair.product, FORWARD, self.library)
                self._steps[key] = StepCost(routine.name, "", "", 0, 0, 0, 0, held, 0.0, 0.0)
            else:
                self._steps[key] = self._cost(pair, found)
        return self._steps[key]

    def _cost(self, pair: Pair, found: Operations) -> StepCost:
        problem, product, times, before = self.problem, pair.product, 1.0, self._before_blocks(pair)
        machine = self.machine if before else self._beside
        if not before and problem.block is not None:
            axes = [a._replace(size=self.block, out=self.block) if a.name == problem.block else a for a in product.axes]
            product, times = product.over(tuple(axes)), self.blocks
        routine = choose(product, FORWARD, self.library)
        forward = routine.seconds(product, machine, FORWARD)
        if before and product.s == product.n == 1 and self.library != "numpy":
            forward += machine.call  # among kernels no step shares a launch
        parallel = self._parallel(pair, routine, forward)
        held, traffic = self.held(pair.feature_mask | pair.kernel_mask), self._traffic(pair) * machine.byte
        reordering = self._reordering(pair, routine) / parallel
        seconds = times * (forward / parallel + machine.step) + traffic + reordering
        seconds += routine.preparing(product, machine)
        moved = problem.itemsize * (found.elements + found.operands)
        if not self.training:
            return StepCost(routine.name, "", "", found.flops, 0, moved, 0, held, seconds, 0.0)
        by_feature = choose(product, D_FEATURE, self.library)
        again = product.backward
        by_kernel = choose(again, D_KERNEL, self.library)
        back = by_feature.seconds(product, machine, D_FEATURE) + by_kernel.seconds(again, machine, D_KERNEL)
        back_seconds = times * (back / parallel + 2 * machine.step) + 2 * traffic
        back_seconds += by_feature.preparing(product, machine) + reordering
        return StepCost(
            routine.name, by_feature.name, by_kernel.name, found.flops, found.backward_flops, moved, 2 * moved, held,
            seconds, back_seconds,
        )  # fmt: skip

    def _parallel(self, pair: Pair, routine: type[Routine], seconds: float) -> float:
        """How many times faster all cores run a step: blocks one a core, what comes before them on one core.

        The pieces of a single block take longer to begin; so much that a step which just is not short gains nothing.
        """
        cores = self.machine.cores
        if self.blocks > 1:
            return 1.0 if self._before_blocks(pair) else cores
        if cores == 1:
            return 1.0
        return max(1.0, cores * seconds / (seconds + (cores - 1) * _shortest(pair.product, routine)))

    def _reordering(self, pair: Pair, routine: type[Routine]) -> float:
        """Seconds to copy both sides into the order of modes in which they meet, unless they lie so."""
        b, s, axes = pair.b, pair.s, [a.name for a in pair.product.axes]
        each = [(name,) for name in axes]
        if pair.product.s == 1 and not pair.product.is_conv:
            return self._across(pair)
        depth = [(*s, *axes)] if routine.name == "im2col" else [s, *each]  # its taps are columns beside those of s
        seconds = self._copied(pair.kernel_mask, (b, pair.n, *depth))
        if pair.product.is_conv and routine.name != "kn2row":  # which is a product of whole images too
            return seconds + self._copied(pair.feature_mask, (b, s, *each))
        images = self._copied(pair.feature_mask, (b, axes[:1], s, axes[1:]))  # one product after the other
        return seconds + min(images, self._copied(pair.feature_mask, (b, s, axes)))

    def _across(self, pair: Pair) -> float:
        """Seconds more that a multiplication takes if its longer side is not read as it lies, innermost mode first."""
        by_feature = pair.product.columns > 1
        operands = pair.feature_mask if by_feature else pair.kernel_mask
        modes = (*pair.b, *((a.name for a in pair.product.axes) if by_feature else pair.n))
        if self.library != "numpy" or operands not in self._orders:
            return 0.0
        stored, wanted = (
            [m for m in order if self.problem.extent(m, operands) > 1] for order in (self._orders[operands], modes)
        )
        result = self.problem.elements(pair.feature_mask | pair.kernel_mask)
        return result * self.machine.gathered if stored[-1:] != wanted[-1:] else 0.0

    def _copied(self, operands: int, groups: Sequence[Sequence[str]]) -> float:
        """Seconds to bring a partial result into an order of modes, each group of them one axis; 0 for a view."""
        if self.library != "numpy" or operands not in self._orders:
            return 0.0
        size = {m: n for m in self._orders[operands] if (n := self.problem.extent(m, operands)) > 1}
        stored, wanted = list(size), [[m for m in group if m in size] for group in groups]
        places = [[stored.index(m) for m in group] for group in wanted]
        if all(later - place == 1 for group in places for place, later in itertools.pairwise(group)):
            return 0.0
        run = 1
        for one, other in zip(reversed(stored), reversed(list(itertools.chain(*wanted))), strict=False):
            if one != other:
                break
            run *= size[one]
        machine, elements, item = self.machine, math.prod(size.values()), self.problem.itemsize
        each = machine.gathered if run == 1 else machine.copied + machine.row / run
        far = elements * item > _SEVERAL * machine.cache * self.blocks  # read, and written to what is fetched first
        return elements * (each + 3 * item * machine.byte if far else each)

    def _before_blocks(self, pair: Pair) -> bool:
        problem = self.problem
        return (
            problem.block is not None
            and not (pair.feature_mask | pair.kernel_mask) & problem.operands_with_mode[problem.block]
        )

    def _traffic(self, pair: Pair) -> int:
        """Bytes that pass between a core's cache and what lies behind it: operands read, and results that are kept or
        that no cache holds; memory that is written is fetched first.

        The routines of a GPU count what they read and write themselves.
        """
        if self.library != "numpy":
            return 0
        problem, result, item = self.problem, pair.feature_mask | pair.kernel_mask, self.problem.itemsize
        sides = [part for part in (pair.feature_mask, pair.kernel_mask) if self._is_far(part)]
        elements, written = sum(problem.elements(part) for part in sides), problem.elements(result)
        if self.training:
            elements += 2 * written
        elif result == problem.everything:
            elements += written
        elif self._is_far(result) or (self._before_blocks(pair) and written * item > self.machine.cache):
            elements += 2 * written
        return elements * item

    def _is_far(self, operands: int) -> bool:
        """Whether an operand or a partial result comes from memory."""
        return operands & (operands - 1) == 0 or self.held(operands) * self.problem.itemsize > _FAR
