"""Cost and estimated error of a layer at each rank, without decomposing it.

The errors are those of the formats, see ``factorized/spectra.py``: relative and squared, in the norm of the data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from growarray.backend import Array, asarray, namespace, target_of
from growarray.compression.targets import Shape, Target
from growarray.contraction import Plan
from growarray.decompose import Candidate
from growarray.decompose.unfolding import mode_product
from growarray.factorized import CPTensor, DenseTensor
from growarray.factorized.equation import conv_plan, stored_sizes
from growarray.factorized.linear_plan import linear_equation, linear_plan
from growarray.factorized.settings import ConvSettings
from growarray.factorized.spectra import WIDEST, Spectra, Tail, geometric
from growarray.factorized.tensor import FactorizedTensor

_PLANNED = 10  # of each format if every candidate is planned
MATRIX = CPTensor
"""The format of a linear layer's weight: with one mode a side it is a product of two matrices."""


class Choice(NamedTuple):
    """A format and a rank; format None leaves the layer as it is."""

    format: str | None
    rank: Any = None


def weighted_kernel(target: Target) -> Array:
    """The kernel in float64, its input channels times the root of their second moment if that is known."""
    xp = namespace(target.kernel)
    kernel = xp.astype(target.kernel, xp.float64)
    return kernel if target.root is None else mode_product(kernel, target.root, 1)


def weighted_error(target: Target, kernel: Array) -> float:
    """Squared relative error of another kernel in the norm of the candidates."""
    xp = namespace(kernel)
    gap, own = xp.astype(kernel, xp.float64) - xp.astype(target.kernel, xp.float64), weighted_kernel(target)
    gap = gap if target.root is None else mode_product(gap, target.root, 1)
    size = float(xp.sum(own * own))
    return float(xp.sum(gap * gap)) / size if size else 0.0


def candidates_of(target: Target, formats: Sequence[str], by: str) -> list[Candidate]:
    """The layer itself, and all ways to factorize it at a lower cost.

    formats : of convolutions; a linear layer becomes a product of two matrices, CP of one mode each
    by : 'parameters', 'flops' or 'time'
    """
    kernel = weighted_kernel(target)
    dense = Candidate(Choice(None), cost_of(target, Choice(None), by), 0.0)
    if target.is_linear:
        found = list(_low_rank(kernel))
    else:
        spectra = Spectra(kernel)
        kinds = [FactorizedTensor.kind(name) for name in formats]
        offers = [[(Choice(k.name, rank), error) for rank, error in k.format.candidates(spectra)] for k in kinds]
        found = [choice for offer in offers for choice in _thinned(offer, by)]
    costed = (Candidate(choice, cost_of(target, choice, by), target.influence * error) for choice, error in found)
    return [dense, *(c for c in costed if c.cost < dense.cost)]


def _thinned(found: list[tuple[Choice, float]], by: str) -> list[tuple[Choice, float]]:
    """Each rank once, only the smallest of those that may lose everything, and only some if each must be planned."""
    least = min(found, key=lambda pair: np.sum(pair[0].rank))
    unique = sorted(dict([least, *(pair for pair in found if pair[1] < 1.0)]).items(), key=lambda pair: pair[1])
    if by == "parameters" or len(unique) <= _PLANNED:
        return unique
    return [unique[i] for i in sorted({round(k) for k in np.linspace(0, len(unique) - 1, _PLANNED)})]


def _low_rank(matrix: Array) -> Iterator[tuple[Choice, float]]:
    o, i = matrix.shape
    if min(o, i) > WIDEST:  # random sums of rows: their singular values are about those of the matrix
        draw = np.random.default_rng(0).standard_normal((WIDEST, o)) / math.sqrt(WIDEST)
        matrix = asarray(draw, like=matrix) @ matrix
    tail = Tail(matrix)
    for rank in geometric(min(o, i, max(1, o * i // (o + i + 1)), len(tail.values) - 1)):
        yield Choice(MATRIX.name, rank), tail.at(rank)


def plans_of(target: Target, choice: Choice) -> list[Plan]:
    """The contraction of each use of the layer."""
    machine, layer, name = target_of(target.kernel), target.layer, choice.format or DenseTensor.name
    if target.is_linear:
        inner, factors = target.kernel.shape[1], _factor_shapes(target, choice)
        return [
            linear_plan(linear_equation(name, 1, 1), ((math.prod(s[:-1]), inner), *factors), "auto", False, *machine)
            for s in target.shapes
        ]
    if choice.format is None:
        return [layer.plan(shape) for shape in target.shapes]
    settings = ConvSettings.of(layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.padding_mode)
    factors = _factor_shapes(target, choice)
    return [conv_plan(name, shape, factors, layer.groups, settings, "auto", False, *machine) for shape in target.shapes]


def _factor_shapes(target: Target, choice: Choice) -> tuple[Shape, ...]:
    if choice.format is None:
        return (tuple(target.kernel.shape),)
    kind = FactorizedTensor.kind(choice.format).format
    return kind.factor_shapes(stored_sizes(kind, tuple(map(int, target.kernel.shape))), choice.rank)


def cost_of(target: Target, choice: Choice, by: str) -> float:
    """Parameters, FLOPs or predicted seconds of the layer in a form."""
    if by == "parameters":
        return float(sum(map(math.prod, _factor_shapes(target, choice))) + target.bias_size)
    return float(sum(p.flops if by == "flops" else p.seconds for p in plans_of(target, choice)))
