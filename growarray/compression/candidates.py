"""What it would cost to factorize a layer at each rank, and about what error it would make, without decomposing it.

The errors come from singular values. Discarding tails of unfoldings bounds the error of Tucker and of a tensor train
from above and is close; CP lies between the tail of a balanced unfolding, which no sum of r terms can beat, and that of
the singular values of the kernel's slices, which r terms reach. All are relative and squared, in the norm of the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from growarray.backend import Array, asarray, namespace, to_numpy
from growarray.compression.observe import Shape, Target, dense_plan
from growarray.contraction import Plan
from growarray.decompose import Candidate, largest_cp_rank
from growarray.decompose.unfolding import mode_product, unfold
from growarray.factorized.equation import conv_plan
from growarray.factorized.linear_plan import linear_plan
from growarray.factorized.settings import ConvSettings
from growarray.factorized.tensor import FactorizedTensor, target_of

__all__ = ["Choice", "Tail", "candidates_of", "cost_of", "plans_of", "weighted_error", "weighted_kernel"]

_LEVELS = tuple(np.geomspace(8.0, 1e-4, 32))  # squared errors for which ranks are chosen; all modes share one
_RANKS = 48  # ranks of CP and of a matrix that are looked at
_PLANNED = 10  # of each format where every candidate is planned
_WIDEST = 2048  # rows of an unfolding above which its singular values are not computed

Tail = np.ndarray
"""Entry r: the share of the squared norm that is lost when r singular values are kept."""


class Choice(NamedTuple):
    """A format and a rank; format None leaves the layer as it is."""

    format: str | None
    rank: Any = None


def _tail(values: Array) -> Tail:
    """From squared singular values in any order."""
    squares = np.sort(np.maximum(to_numpy(values).reshape(-1), 0.0))
    lost = np.concatenate([np.cumsum(squares)[::-1], [0.0]])
    return np.asarray(lost / lost[0] if lost[0] else lost)


def _squares(matrix: Array) -> Array:
    """Squared singular values of a matrix, or of each of a stack, from the Gram matrix of the shorter side."""
    xp = namespace(matrix)
    turned = xp.matrix_transpose(matrix)
    wide = matrix.shape[-2] <= matrix.shape[-1]
    return xp.linalg.eigvalsh(matrix @ turned if wide else turned @ matrix)


def _at(tail: Tail, rank: int) -> float:
    return float(tail[min(rank, len(tail) - 1)])


def _fewest(tail: Tail, level: float) -> int:
    """The fewest singular values, at least one, whose rest is within the level."""
    return max(1, int(np.sum(tail > level)))


def weighted_kernel(target: Target) -> Array:
    """The kernel in float64, its input channels times the root of their second moment where that is known."""
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
    """All ways to factorize the layer that cost less than it does, and the layer itself.

    formats : of convolutions; a linear layer becomes a product of two matrices, CP of one mode each
    by : 'parameters', 'flops' or 'time'
    """
    kernel = weighted_kernel(target)
    dense = Candidate(Choice(None), cost_of(target, Choice(None), by), 0.0)
    if target.is_linear:
        found = list(_low_rank(kernel))
    else:
        spectra = _Spectra(kernel)
        found = [c for name in formats for c in _thinned(list(_MAKERS[name](spectra)), by)]
    costed = (Candidate(choice, cost_of(target, choice, by), target.influence * error) for choice, error in found)
    return [dense, *(c for c in costed if c.cost < dense.cost)]


def _thinned(found: list[tuple[Choice, float]], by: str) -> list[tuple[Choice, float]]:
    """Every rank once, of those that may lose everything the smallest; where each has to be planned only some."""
    least = min(found, key=lambda pair: np.sum(pair[0].rank))
    unique = sorted(dict([least, *(pair for pair in found if pair[1] < 1.0)]).items(), key=lambda pair: pair[1])
    if by == "parameters" or len(unique) <= _PLANNED:
        return unique
    return [unique[i] for i in sorted({round(k) for k in np.linspace(0, len(unique) - 1, _PLANNED)})]


def _low_rank(matrix: Array) -> Iterator[tuple[Choice, float]]:
    o, i = matrix.shape
    if min(o, i) > _WIDEST:  # few of very many: the norm alone is not enough to judge, so take a sketch of the rows
        matrix = _sketch(matrix)
    tail = _tail(_squares(matrix))
    for rank in _geometric(min(o, i, max(1, o * i // (o + i + 1)), len(tail) - 1)):
        yield Choice("CP", rank), _at(tail, rank)


def _sketch(matrix: Array) -> Array:
    """Random sums of rows: their singular values are about those of the matrix (with fewer of them)."""
    draw = np.random.default_rng(0).standard_normal((_WIDEST, matrix.shape[0])) / math.sqrt(_WIDEST)
    return asarray(draw, like=matrix) @ matrix


def _geometric(largest: int) -> list[int]:
    return sorted({round(r) for r in np.geomspace(1, max(largest, 1), _RANKS)})


class _Spectra:
    """Tails of the unfoldings of a kernel (o, c, *taps)."""

    def __init__(self, kernel: Array) -> None:
        self.shape: Shape = tuple(int(n) for n in kernel.shape)
        xp, axes = namespace(kernel), kernel.ndim - 2
        self.modes = [_tail(_squares(unfold(kernel, k))) for k in range(kernel.ndim)]
        train = xp.moveaxis(kernel, 0, -1)  # c, *taps, o
        inner = []
        for k in range(2, axes + 1):
            rows = math.prod(train.shape[:k])
            matrix = xp.reshape(train, (rows, -1))
            inner.append(_tail(_squares(matrix)) if min(matrix.shape) <= _WIDEST else self.modes[1])
        self.bonds = [self.modes[1], *inner, self.modes[0]]
        for k in range(2, kernel.ndim):  # the taps in the basis in which few of them carry most
            vectors = xp.linalg.eigh(unfold(kernel, k) @ xp.matrix_transpose(unfold(kernel, k)))[1]
            kernel = mode_product(kernel, xp.matrix_transpose(vectors), k)
        slices = xp.permute_dims(xp.reshape(kernel, (*self.shape[:2], -1)), (2, 0, 1))
        self.slices = _tail(_squares(slices))


def _cp(spectra: _Spectra) -> Iterator[tuple[Choice, float]]:
    shape = spectra.shape
    largest = min(largest_cp_rank(shape), max(1, math.prod(shape) // (sum(shape) + 1)))
    for rank in _geometric(largest):
        least = max(_at(tail, rank) for tail in (*spectra.modes, *spectra.bonds))
        yield Choice("CP", rank), (least + _at(spectra.slices, rank)) / 2


def _tucker(spectra: _Spectra) -> Iterator[tuple[Choice, float]]:
    """All modes at one level, and the channels alone with the taps whole."""
    shape = spectra.shape
    whole = [min(n, math.prod(shape) // n) for n in shape]
    for level in _LEVELS:
        each = [min(_fewest(t, level / len(shape)), w) for t, w in zip(spectra.modes, whole, strict=True)]
        channels = [min(_fewest(t, level / 2), w) for t, w in zip(spectra.modes[:2], whole, strict=False)]
        for ranks in (tuple(each), (*channels, *whole[2:])):
            limited = tuple(min(r, math.prod(ranks) // r) for r in ranks)  # more than the others span is of no use
            yield Choice("Tucker", limited), min(1.0, sum(map(_at, spectra.modes, limited)))


def _train(spectra: _Spectra) -> Iterator[tuple[Choice, float]]:
    sizes = (*spectra.shape[1:], spectra.shape[0])
    for level in _LEVELS:
        ranks = [1]
        for k, tail in enumerate(spectra.bonds, start=1):
            ranks.append(min(_fewest(tail, level / len(spectra.bonds)), ranks[-1] * sizes[k - 1], math.prod(sizes[k:])))
        yield Choice("TT", (*ranks, 1)), min(1.0, sum(map(_at, spectra.bonds, ranks[1:])))


_MAKERS: dict[str, Callable[[_Spectra], Iterator[tuple[Choice, float]]]] = {"CP": _cp, "Tucker": _tucker, "TT": _train}


def plans_of(target: Target, choice: Choice) -> list[Plan]:
    """The contraction of each use of the layer."""
    if choice.format is None:
        return [dense_plan(target, shape) for shape in target.shapes]
    parts, place = _part_shapes(target, choice), target_of(target.kernel)
    if target.is_linear:
        (out, inner), name = target.kernel.shape, choice.format
        return [
            linear_plan(name, math.prod(shape[:-1]), (inner,), (out,), parts, "auto", False, *place)
            for shape in target.shapes
        ]
    layer = target.layer
    settings = ConvSettings.of(layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.padding_mode)
    return [
        conv_plan(choice.format, shape, parts, layer.groups, settings, "auto", False, *place) for shape in target.shapes
    ]


def _part_shapes(target: Target, choice: Choice) -> tuple[Shape, ...]:
    kind = FactorizedTensor.kind(choice.format)
    shape = tuple(int(n) for n in target.kernel.shape)
    return kind.part_shapes((*shape[1:], shape[0]) if kind.output_last else shape, choice.rank)


def cost_of(target: Target, choice: Choice, by: str) -> float:
    """Parameters, FLOPs or predicted seconds of the layer in a form."""
    if by == "parameters":
        shapes = [tuple(target.kernel.shape)] if choice.format is None else _part_shapes(target, choice)
        return float(sum(map(math.prod, shapes)) + target.bias_size)
    return float(sum(p.flops if by == "flops" else p.seconds for p in plans_of(target, choice)))
