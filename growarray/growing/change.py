"""GrowthUpdate: a planned growth as one frozen value."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from growarray.backend import Array, asarray, is_numpy, namespace
from growarray.display import fields_of
from growarray.nn import Parameter

DELTA, INPUT = "delta", "input extension"
_Part = TypeVar("_Part")


class Weighted(Protocol):
    """A plain layer: weights (out, in, *kernel), and biases (out,) or None."""

    weight: Parameter
    bias: Parameter | None


_P = TypeVar("_P", bound=Weighted)


@dataclass(frozen=True, eq=False)
class GrowthUpdate(Generic[_Part]):
    """A planned growth as a frozen value; a changed plan is a new value.

    A rule gives the parts as float64 matrices, whose columns are the features of a stream (the ones of a bias last). A
    layer holds them as layers of its own kind, with the weights (out, in, *kernel) that it adds.

    deltas : to be subtracted, (o, d) for each layer that reads the place; none if the weights stay as they are
    input_extension : outgoing weights of new neurons (o, k), those of all these layers one above the other
    output_extension : incoming weights of new neurons (k, p); the layer hands it on to the module before
    singular_values : (k,) of the new neurons, largest first
    linear : the new neurons promise the sum of the singular values; else the sum of their squares
    solutions : deltas as they were solved for, float64, be they applied or not
    decreases : first-order decrease of the loss by each delta, 0 if there is none
    slopes : (k,) first-order decrease by each new neuron, behind a function with slope 1
    applied : the parts that have been carried out
    """

    deltas: tuple[_Part, ...] = ()
    input_extension: _Part | None = None
    output_extension: _Part | None = None
    singular_values: Array | None = None
    linear: bool = False
    solutions: tuple[Array, ...] = ()
    decreases: tuple[float, ...] = ()
    slopes: Array | None = None
    applied: frozenset[str] = frozenset()

    __repr__ = fields_of

    @property
    def delta(self) -> _Part | None:
        """The delta of the only layer, or None."""
        return self.deltas[0] if self.deltas else None

    @property
    def decrease(self) -> float | None:
        """First-order decrease of the loss by all deltas, or None if it is unknown."""
        return sum(self.decreases) if self.decreases else None

    @property
    def solution(self) -> Array | None:
        """The delta of the only layer before scaling, or None."""
        return self.solutions[0] if self.solutions else None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is planned: a plan that leaves everything as it is has a decrease of 0."""
        return not (self.deltas or self.decreases) and self.input_extension is None

    def on(self: GrowthUpdate[Array], like: Array) -> GrowthUpdate[Array]:
        """A plan of matrices with those that become weights on the device of ``like``; figures stay where they are."""
        arrays = [*self.deltas, *self.solutions, self.input_extension, self.output_extension]
        by_id = {id(array): array for array in arrays if array is not None}
        placed = dict(zip(by_id, moved(list(by_id.values()), like), strict=True))

        def of(array: Array | None) -> Array | None:
            return None if array is None else placed[id(array)]

        return replace(
            self, deltas=tuple(map(of, self.deltas)), solutions=tuple(map(of, self.solutions)),
            input_extension=of(self.input_extension), output_extension=of(self.output_extension),
        )  # fmt: skip

    def improvement(self, slope: float) -> float:
        """First-order improvement by the new neurons at this slope: ``slope * sum(s^2)``, or of ``s`` if linear."""
        if self.singular_values is None:
            return 0.0
        values = self.singular_values
        return slope * float(namespace(values).sum(values if self.linear else values**2))

    def exact_improvement(self, slope: float) -> float:
        """Exact first-order decrease by the new neurons, in addition to the deltas, for an activation of this slope."""
        return 0.0 if self.slopes is None else slope * float(namespace(self.slopes).sum(self.slopes))

    def with_delta(self, delta: _Part | None, decrease: float | None) -> GrowthUpdate[_Part]:
        """This plan with another delta, which has not been applied."""
        deltas, decreases = () if delta is None else (delta,), () if decrease is None else (decrease,)
        return replace(self, deltas=deltas, decreases=decreases, applied=self.applied - {DELTA})

    def with_input(
        self, extension: _Part | None, values: Array | None = None, *, linear: bool = False
    ) -> GrowthUpdate[_Part]:
        """This plan with other new neurons, not applied yet; what was known of the old ones is dropped."""
        new: dict[str, Any] = {"input_extension": extension, "singular_values": values, "linear": linear}
        return replace(self, **new, slopes=None, applied=self.applied - {INPUT})

    def with_neurons(self, extension: _Part | None, keep: int, zeros: int = 0) -> GrowthUpdate[_Part]:
        """This plan with its first ``keep`` neurons, then ``zeros`` of no value; ``extension`` holds their weights."""

        def cut(values: Array | None) -> Array | None:
            if values is None:
                return None
            xp = namespace(values)
            return xp.concat([values[:keep], xp.zeros_like(values[keep : keep + zeros])])

        values, slopes = cut(self.singular_values), cut(self.slopes)
        return replace(self, input_extension=extension, singular_values=values, slopes=slopes)

    def times(self, extension: _Part | None, factors: float | np.ndarray) -> GrowthUpdate[_Part]:
        """This plan with the improvement by each neuron times ``factors``; ``extension`` holds their weights.

        The singular values follow by the square root, or by the factor itself if they count linearly.
        """

        def follow(values: Array | None, by: Any) -> Array | None:
            return None if values is None else values * asarray(by, like=values, dtype=values.dtype)

        by = np.asarray(factors, dtype=np.float64)
        values = follow(self.singular_values, by if self.linear else np.sqrt(by))
        return replace(self, input_extension=extension, singular_values=values, slopes=follow(self.slopes, by))


def moved(arrays: Sequence[Array], like: Array) -> list[Array]:
    """Float64 matrices with the library and device of ``like``; from NumPy in one copy, of which each is a view."""
    if is_numpy(like) or not all(map(is_numpy, arrays)):
        return [asarray(array, like=like) for array in arrays]
    joined = asarray(np.concatenate([np.ravel(array) for array in arrays] or [np.zeros(0)]), like=like)
    ends = np.cumsum([0, *(array.size for array in arrays)]).tolist()
    spans = zip(arrays, itertools.pairwise(ends), strict=True)
    return [namespace(joined).reshape(joined[start:stop], array.shape) for array, (start, stop) in spans]


def like(part: _P, weight: Array, bias: Array | None = None) -> _P:
    """A layer of the kind of ``part`` with these weights and biases."""
    layer = object.__new__(type(part))
    vars(layer).update(vars(part))
    layer.weight, layer.bias = Parameter(weight), None if bias is None else Parameter(bias)
    return layer


def scaled(part: _P, factor: float) -> _P:
    """A layer like ``part`` with weights and biases times ``factor``."""
    return like(part, part.weight.data * factor, None if part.bias is None else part.bias.data * factor)


def scaled_columns(part: _P, factors: np.ndarray) -> _P:
    """A layer like ``part`` with the weights of each input times its factor."""
    weight = part.weight.data
    shape = (1, -1, *(1 for _ in weight.shape[2:]))
    return like(part, weight * asarray(factors.reshape(shape), like=weight, dtype=weight.dtype))


def kept_rows(part: _P, keep: int, zeros: int = 0) -> _P:
    """A layer like ``part`` with its first ``keep`` outputs, and after them ``zeros`` more that are zero."""

    def cut(array: Array) -> Array:
        rows, xp = array[: keep + zeros, ...], namespace(array)
        return xp.concat([rows[:keep, ...], xp.zeros_like(rows[keep:, ...])], axis=0) if zeros else rows

    return like(part, cut(part.weight.data), None if part.bias is None else cut(part.bias.data))


def kept_columns(part: _P, keep: int, zeros: int = 0) -> _P:
    """A layer like ``part`` with its first ``keep`` inputs, and after them ``zeros`` more that have zero weights."""
    weight, xp = part.weight.data[:, : keep + zeros, ...], namespace(part.weight.data)
    if zeros:
        weight = xp.concat([weight[:, :keep, ...], xp.zeros_like(weight[:, keep:, ...])], axis=1)
    return like(part, weight)
