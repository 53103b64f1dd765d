"""A plan at work one slice after the other: results and gradients are put together, and partial results stay small."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from growarray.backend import Array, assign, device_of, is_numpy, namespace
from growarray.contraction.checks import check_out
from growarray.contraction.equation import Equation
from growarray.contraction.execution import Execution
from growarray.contraction.problem import Problem
from growarray.contraction.slices import Piece, geometry_of, pieces
from growarray.contraction.tree import Tree

_KEPT = 64  # kinds of slices whose steps are kept


class SlicedExecution(Execution):
    """The steps of one tree for slices of the operands; the backward pass runs each slice forward once more.

    cuts : in how many pieces each mode is cut
    """

    def __init__(
        self, equation: Equation, problem: Problem, geometry: Mapping[str, Any], tree: Tree, block: int,
        precision: str | None, cuts: Mapping[str, int],
    ) -> None:  # fmt: skip
        super().__init__(equation, problem, geometry, tree, block, precision)
        self.cuts = dict(cuts)
        self._parts: dict[Any, Execution] = {}
        self._is_sum = any(mode not in self.output for mode in cuts)

    def value(self, arrays: Sequence[Array], out: Array | None = None, folded: Any = None) -> Array:
        """The result, in ``out`` if it is given; nothing is folded."""
        self._check(arrays)
        problem = self._sized_problem(arrays)
        shape = tuple(problem.extent(m, problem.everything) for m in self.output)
        if out is None:
            y = _zeros(shape, arrays[0])
        elif not is_numpy(arrays[0]):
            raise TypeError("out= is for NumPy arrays; other libraries return a new array")
        else:
            check_out(out, arrays, shape)
            y = out
            y[...] = 0
        for piece, run in self._runs(problem):
            parts = _parts(arrays, piece)
            if is_numpy(y) and not self._is_sum:
                run.value(parts, y[piece.output])
            else:
                y = assign(y, piece.output, run.value(parts), add=True)
        return y

    def way_back(
        self, schedule: Any, arrays: Sequence[Array], wanted: int, folded: dict[int, Array] | None
    ) -> tuple[Array, Callable[[Array], dict[int, Array]]]:
        """The result and a function from its gradient to those by the operands in ``wanted``, by mask."""
        y = self.value(arrays) if not folded else arrays[0]  # a transpose has no result
        problem = self._sized_problem(arrays)

        def backward(dy: Array) -> dict[int, Array]:
            chosen = [i for i in range(len(arrays)) if wanted >> i & 1]
            found = {i: _zeros(arrays[i].shape, dy) for i in chosen}
            for piece, run in self._runs(problem):
                _, back = run.vjp(_parts(arrays, piece), chosen)
                for i, gradient in enumerate(back(dy[piece.output] if piece.output else dy)):
                    if gradient is not None:
                        found[i] = assign(found[i], piece.operands[i], gradient, add=True)
            return {1 << i: found[i] for i in chosen}

        return y, backward

    def fold(self, factors: Mapping[int, Array]) -> dict[int, Array]:
        """Nothing: what bound operands make among themselves is made for each slice."""
        return {}

    def _sized_problem(self, arrays: Sequence[Array]) -> Problem:
        """The problem at the batch of these arrays."""
        shapes = tuple(tuple(x.shape) for x in arrays)
        if shapes == self._problem.shapes:
            return self._problem
        return Problem(self._equation, shapes, itemsize=self._problem.itemsize, **self._geometry)

    def _runs(self, problem: Problem) -> Iterator[tuple[Piece, Execution]]:
        """Every slice with what runs it; slices of equal shapes share it."""
        for piece in pieces(problem, self.cuts):
            key = (piece.shapes, piece.axes)
            run = self._parts.get(key)
            if run is None:
                geometry = geometry_of(piece.axes)
                part = Problem(self._equation, piece.shapes, itemsize=problem.itemsize, **geometry)
                run = Execution(self._equation, part, geometry, self._tree, self.block, self.precision)
                self._parts = dict([*self._parts.items(), (key, run)][-_KEPT:])
            yield piece, run


def _parts(arrays: Sequence[Array], piece: Piece) -> list[Array]:
    """What one slice takes of the operands; a scalar whole, which NumPy would make a number."""
    return [x[index] if index else x for x, index in zip(arrays, piece.operands, strict=True)]


def _zeros(shape: Sequence[int], like: Array) -> Array:
    return namespace(like).zeros(tuple(shape), dtype=like.dtype, device=device_of(like))
