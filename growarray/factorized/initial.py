"""How the factors of a factorized tensor are drawn: with the entries, and the speed of training, of a dense one.

K a tensor of n drawn factors, linear in each · s_p standard deviation of the entries of factor p · R the product of the
ranks, as many products as an entry of K sums: ``std^2 = R prod(s_p^2)``. A step of an optimizer moves every entry
alike, and K by ``sum(1 / s_p^2)`` where it moves a dense tensor by 1: equal factors, of about 0.3, train slowly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from growarray.decompose.arguments import is_real
from growarray.decompose.inputs import check_rng
from growarray.errors import shown
from growarray.factorized.format import TensorFormat

_SMALL = 0.5  # entries of the leading factor over those of K; at 1 CP trains behind the decomposition of a dense layer


def drawn_factors(
    where: str, kind: TensorFormat, shape: Sequence[int], rank: Any, std: float, rng: np.random.Generator | None
) -> list[np.ndarray]:
    """Factors that give the entries of a tensor the standard deviation ``std``, in every format and at every rank.

    The leading factor, that with most entries or the core of the output in a tensor train, is uniform as the weight of
    a dense layer is, with half of ``std``. The columns of the others are orthogonal, or their rows if there are
    fewer, so that the size of K, and of what it makes of an input, varies little from draw to draw. The weights of CP
    are one.
    """
    rng = _checked(where, std, rng)
    shapes, fixed = kind.factor_shapes(shape, rank), [s is None for s in kind.factor_std(len(shape), rank, 1.0)]
    sizes = [0 if of_ones else math.prod(sizes) for sizes, of_ones in zip(shapes, fixed, strict=True)]
    lead = len(shapes) - 1 if kind.output_last else int(np.argmax(sizes))
    others = len(shapes) - sum(fixed) - 1
    small = _SMALL if others else 1.0
    scale = (1.0 / (small * math.sqrt(math.prod(kind.sizes_of(shape, rank))))) ** (1.0 / max(others, 1))
    drawn = []
    for i, factor in enumerate(shapes):
        if fixed[i]:
            drawn.append(np.ones(factor))
        elif i == lead:
            bound = math.sqrt(3.0) * small * std
            drawn.append(rng.uniform(-bound, bound, factor))
        else:
            drawn.append(scale * _orthogonal((math.prod(factor[:-1]), factor[-1]), rng).reshape(factor))
    return drawn


def _orthogonal(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A random matrix with orthogonal columns, or rows if there are fewer, whose entries have mean square one."""
    rows, columns = max(shape), min(shape)
    basis = np.linalg.qr(rng.standard_normal((rows, columns)))[0] * math.sqrt(rows)
    return basis if shape[0] == rows else basis.T


def normal_factors(
    where: str, kind: TensorFormat, shape: Sequence[int], rank: Any, std: float, rng: np.random.Generator | None
) -> list[np.ndarray]:
    """Normal factors with the standard deviations of the format, ones if it has None."""
    rng = _checked(where, std, rng)
    factors = zip(kind.factor_shapes(shape, rank), kind.factor_std(len(shape), rank, std), strict=True)
    return [np.ones(sizes) if s is None else rng.normal(0.0, s, sizes) for sizes, s in factors]


def _checked(where: str, std: Any, rng: Any) -> np.random.Generator:
    """The generator, a fresh one for None; raises if ``std`` or ``rng`` makes no sense."""
    if not is_real(std) or not 0.0 <= std < math.inf:
        raise ValueError(f"{where}: std is {shown(std)}, expected a number of at least 0")
    return np.random.default_rng() if rng is None else check_rng(rng, where)
