"""Running a plan: the steps for given arrays, by their sizes, dtype and library."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from growarray.backend import Array, is_cupy, is_numpy, namespace
from growarray.contraction import run, run_arrays, run_cupy
from growarray.contraction.checks import check_arrays, check_gradient, check_out, operands
from growarray.contraction.equation import Equation
from growarray.contraction.operand import prepare
from growarray.contraction.problem import Problem
from growarray.contraction.program import Program
from growarray.contraction.run import Schedule
from growarray.contraction.tree import Tree
from growarray.errors import ShapeError, shown

_KEPT = 16  # batch sizes whose steps and schedules are kept

Arrays = Sequence[Array]
Pullback = Callable[[Array], tuple[Array | None, ...]]

_facts = operator.attrgetter("__class__", "dtype", "shape")  # of each array, on which a schedule depends


class Execution:
    """The steps of one tree, made once for every batch size, dtype and library that it meets.

    output : modes of the result    mode : the block mode or None    holder, axis : the operand that has it, and where
    """

    def __init__(
        self, equation: Equation, problem: Problem, geometry: Mapping[str, Any], tree: Tree, block: int,
        precision: str | None = None,
    ) -> None:  # fmt: skip
        self._equation, self._problem, self._geometry, self._tree = equation, problem, dict(geometry), tree
        self.output, self.precision = problem.output, precision
        self.block, self.mode, self.holder, self.axis = block, problem.block, -1, -1
        if self.mode is not None:
            self.holder = problem.operands_with_mode[self.mode].bit_length() - 1
            self.axis = problem.terms[self.holder].index(self.mode)
        self._programs: dict[Any, Program] = {}
        self._schedules: dict[Any, Schedule] = {}
        self._launches: dict[Any, run_cupy.Launched | None] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {
            **vars(self),
            "_programs": {},
            "_schedules": {},
            "_launches": {},
        }  # they are made again sooner than sent

    def value(self, arrays: Arrays, out: Array | None = None, folded: dict[int, Array] | None = None) -> Array:
        """The result, in ``out`` if it is given; ``folded`` partial results, by mask, are not computed again."""
        schedule = self.schedule(arrays)
        if schedule is None:
            if out is not None:
                raise TypeError("out= is for NumPy arrays; other libraries return a new array")
            return self._beside_numpy(arrays, 0, folded)[0]
        if out is not None:
            check_out(out, arrays, schedule.shape)
        return run.forward(schedule, arrays, out=out, folded=folded)[0]

    def vjp(
        self, arrays: Arrays, wrt: Sequence[int] | None = None, folded: dict[int, Array] | None = None
    ) -> tuple[Array, Pullback]:
        """The result, and the way back to the operands in ``wrt``."""
        schedule = self.schedule(arrays)
        chosen = range(len(arrays)) if wrt is None else operands("wrt", wrt, len(arrays))
        wanted = sum(1 << i for i in set(chosen))
        y, backward = self.way_back(schedule, arrays, wanted, folded)

        def pullback(dy: Array) -> tuple[Array | None, ...]:
            check_gradient(str(self._equation), dy, y)
            gradients = backward(dy) if wanted else {}
            return tuple(gradients.get(1 << i) for i in range(len(arrays)))

        return y, pullback

    def way_back(
        self, schedule: Schedule | None, arrays: Arrays, wanted: int, folded: dict[int, Array] | None
    ) -> tuple[Array, Callable[[Array], dict[int, Array]]]:
        """The result and a function from its gradient to those by the operands in ``wanted``, by mask."""
        if schedule is not None:
            y, saved = run.forward(schedule, arrays, keep=True, folded=folded)
            return y, lambda dy: run.backward(schedule, arrays, saved, dy, wanted)
        return self._beside_numpy(arrays, wanted, folded)

    def _beside_numpy(
        self, arrays: Arrays, wanted: int, folded: dict[int, Array] | None
    ) -> tuple[Array, Callable[[Array], dict[int, Array]]]:
        """:meth:`way_back` for other libraries: launches on CuPy, operations of the array API elsewhere."""
        launched = self._launched(arrays, wanted != 0, folded or {}) if is_cupy(arrays[0]) else None
        if launched is not None:
            return launched.way_back(arrays, folded or {}, wanted)
        xp, program = namespace(*arrays), self.program(arrays, library="any")
        y, values = run_arrays.forward(xp, program, arrays, folded)
        return y, lambda dy: run_arrays.backward(xp, program, arrays, values, dy, wanted)

    def _launched(self, arrays: Arrays, keep: bool, folded: dict[int, Array]) -> run_cupy.Launched | None:
        """The launches for these arrays; None if there are none to make, because nothing is multiplied."""
        key = (keep, *map(run_cupy.layout, arrays), *folded)
        known = self._launches  # as it is now: other threads put another one in its place
        if key in known:
            return known[key]
        self._check(arrays)
        program = self.program(arrays, library="cupy")
        runs = program.steps and not any(step.empty for step in program.steps)
        made = run_cupy.Launched(program, arrays, folded, keep, self.precision == "tf32") if runs else None
        self._launches = _with(self._launches, key, made)
        return made

    def schedule(self, arrays: Arrays) -> Schedule | None:
        """How a run over these arrays is cut, None if they are not NumPy's. Raises unless they fit the plan."""
        try:
            key = tuple(map(_facts, arrays))
            found = self._schedules.get(key)
        except (AttributeError, TypeError):  # no arrays, or of another library
            found = None
        if found is not None:
            return found
        if arrays and is_cupy(arrays[0]):  # checked when its launches are made
            return None
        self._check(arrays)
        if not is_numpy(arrays[0]):
            return None
        made = Schedule(self.program(arrays), self.block, lambda size: self.program(arrays, size))
        if all(type(x) is np.ndarray for x in arrays):
            self._schedules = _with(self._schedules, key, made)
        return made

    def program(self, arrays: Arrays, size: int | None = None, library: str = "numpy") -> Program:
        """The steps for these arrays, or for a block of ``size`` of them."""
        whole = self.batch(arrays)
        return self._sized(arrays[0], whole, whole if size is None else size, library)

    def _sized(self, like: Array, whole: int, size: int, library: str) -> Program:
        bits = 8 * like.dtype.itemsize if is_numpy(like) else int(str(like.dtype).rpartition("float")[2])
        key = (size, whole, bits, library)
        found = self._programs.get(key)
        if found is None:
            shapes = [list(shape) for shape in self._problem.shapes]
            if self.mode is not None:
                shapes[self.holder][self.axis] = size
            blocks = whole / max(size, 1)
            problem = Problem(self._equation, shapes, blocks=blocks, itemsize=bits // 8, **self._geometry)
            found = Program.of(problem, self._tree, library)
            self._programs = _with(self._programs, key, found)
        return found

    def batch(self, arrays: Arrays) -> int:
        """Size of the block mode in these arrays; 1 if there is none."""
        return 1 if self.mode is None else int(arrays[self.holder].shape[self.axis])

    def fold(self, factors: Mapping[int, Array]) -> dict[int, Array]:
        """Partial results among operands that are bound, by mask."""
        like, whole = next(iter(factors.values())), self._problem.size.get(self.mode or "", 1)
        program = self._sized(like, whole, whole, "numpy" if is_numpy(like) else "any")
        xp = np if is_numpy(like) else namespace(*factors.values())
        ready = {1 << i: prepare(xp, x, program.problem.operands[i]) for i, x in factors.items()}
        return run.fold(program, ready) if is_numpy(like) else run_arrays.fold(xp, program, ready)

    def _check(self, arrays: Arrays) -> None:
        """Raise unless the arrays are of one library, device and real floating dtype, and of the plan's shapes."""
        equation, shapes = self._equation, self._problem.shapes
        check_arrays(str(equation), arrays)
        if len(arrays) != len(shapes):
            raise ShapeError(f"'{equation}' has {len(shapes)} operands, found {len(arrays)} arrays")
        for i, (x, shape) in enumerate(zip(arrays, shapes, strict=True)):
            if x.shape != shape and not self._fits(i, x.shape):
                free = f"only {shown(self.mode)} may differ: " if self.mode else ""
                raise ShapeError(
                    f"operand {i} of '{equation}' has shape {tuple(x.shape)}, the plan was made for {shape}; "
                    f"{free}plan again for these shapes"
                )
        namespace(*arrays)

    def _fits(self, operand: int, shape: Sequence[int]) -> bool:
        """Whether an operand may have this shape: that of the plan, but for the block mode."""
        made_for = self._problem.shapes[operand]
        if self.mode is None or operand != self.holder or len(shape) != len(made_for):
            return False
        return all(axis == self.axis or a == b for axis, (a, b) in enumerate(zip(shape, made_for, strict=True)))


def _with(kept: dict[Any, Any], key: Any, value: Any) -> dict[Any, Any]:
    """One more, without the oldest: a new one, not a change, without a lock that an interrupt or a fork could hold."""
    return dict([*kept.items(), (key, value)][-_KEPT:])
