"""How the factors of a factorized tensor are drawn: with the entries, and the speed of training, of a dense one.

K a tensor of n drawn factors, linear in each · s_p standard deviation of the entries of factor p · R the product of the
ranks, as many products as an entry of K sums: ``std^2 = R prod(s_p^2)``. A step of an optimizer moves every entry
alike, and K by ``sum(1 / s_p^2)`` where it moves a dense tensor by 1: equal factors, of about 0.3, train slowly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from growarray.decompose.arguments import is_real
from growarray.decompose.inputs import check_rng
from growarray.errors import shown
from growarray.nn.module import Parameter

__all__ = ["draw_weight", "drawn_factors", "normal_factors"]

_SMALL = 0.5  # entries of the leading factor over those of K; at 1 CP trains behind the decomposition of a dense layer


class _Tensor(Protocol):
    """What is asked of a factorized tensor."""

    @property
    def output_last(self) -> bool: ...
    def all_factors(self) -> tuple[Parameter, ...]: ...
    def factor_std(self, std: float) -> tuple[float | None, ...]: ...
    def rank_sizes(self) -> Sequence[int]: ...
    def draw_(self, std: float, rng: np.random.Generator | None) -> Any: ...
    def normal_(self, mean: float, std: float, rng: np.random.Generator | None) -> Any: ...


def drawn_factors(tensor: _Tensor, std: float, rng: np.random.Generator | None) -> list[np.ndarray]:
    """Factors that give the entries of ``tensor`` the standard deviation ``std``, in every format and at every rank.

    The leading factor, that with most entries or the core of the output in a tensor train, is uniform as the weight of
    a dense layer is, with half of ``std``. The columns of the others are orthogonal, or their rows if there are
    fewer, so that the size of K, and of what it makes of an input, varies little from draw to draw. The weights of CP
    are one.
    """
    rng = _checked(tensor, "draw_", std, rng)
    factors, fixed = tensor.all_factors(), [own is None for own in tensor.factor_std(1.0)]
    sizes = [0 if one else factor.size for factor, one in zip(factors, fixed, strict=True)]
    lead = len(factors) - 1 if tensor.output_last else int(np.argmax(sizes))
    others = len(factors) - sum(fixed) - 1
    small = _SMALL if others else 1.0
    scale = (1.0 / (small * math.sqrt(math.prod(tensor.rank_sizes())))) ** (1.0 / max(others, 1))
    drawn = []
    for i, factor in enumerate(factors):
        if fixed[i]:
            drawn.append(np.ones(factor.shape))
        elif i == lead:
            bound = math.sqrt(3.0) * small * std
            drawn.append(rng.uniform(-bound, bound, factor.shape))
        else:
            drawn.append(
                scale * _orthogonal((math.prod(factor.shape[:-1]), factor.shape[-1]), rng).reshape(factor.shape)
            )
    return drawn


def _orthogonal(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A random matrix with orthogonal columns, or rows if there are fewer, whose entries have mean square one."""
    rows, columns = max(shape), min(shape)
    basis = np.linalg.qr(rng.standard_normal((rows, columns)))[0] * math.sqrt(rows)
    return basis if shape[0] == rows else basis.T


def normal_factors(tensor: _Tensor, mean: float, std: float, rng: np.random.Generator | None) -> list[np.ndarray]:
    """Normal factors with the standard deviations of :meth:`FactorizedTensor.factor_std`, ones if it has None."""
    name = type(tensor).__name__
    if mean != 0.0:
        raise ValueError(f"{name}.normal_: mean is {mean}, only a mean of 0 can be drawn in factors")
    rng = _checked(tensor, "normal_", std, rng)
    own = zip(tensor.all_factors(), tensor.factor_std(std), strict=True)
    return [np.ones(factor.shape) if s is None else rng.normal(0.0, s, factor.shape) for factor, s in own]


def draw_weight(
    where: str, tensor: _Tensor, std: float | str | None, fan_in: int, original: float,
    rng: np.random.Generator | None,
) -> None:  # fmt: skip
    """Draw the weight of a layer: as large as that of a dense one, ``1 / sqrt(3 fan_in)``, unless ``std`` says else.

    std : of the entries; ``'original'`` is ``original``, by :meth:`FactorizedTensor.normal_`
    Raises ValueError if it is neither.
    """
    if isinstance(std, str) and std == "original":
        tensor.normal_(0.0, original, rng)
        return
    size: Any = 1.0 / math.sqrt(3.0 * fan_in) if std is None else std
    if not is_real(size) or not 0.0 <= size < math.inf:
        raise ValueError(
            f"{where}: std is {shown(std)}, expected a number of at least 0, 'original', or None for that of a "
            "dense layer"
        )
    tensor.draw_(size, rng)


def _checked(tensor: _Tensor, method: str, std: Any, rng: Any) -> np.random.Generator:
    """The generator, a fresh one for None; raises if ``std`` or ``rng`` makes no sense."""
    where = f"{type(tensor).__name__}.{method}"
    if not is_real(std) or not 0.0 <= std < math.inf:
        raise ValueError(f"{where}: std is {shown(std)}, expected a number of at least 0")
    return np.random.default_rng() if rng is None else check_rng(rng, where)
