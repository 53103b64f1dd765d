"""Small contractions that are planned once: of a tensor's factors, of their gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from growarray.backend import Array, target_of
from growarray.contraction import Plan, plan

Arrays = tuple[Array, ...]


def run_contraction(equation: str, arrays: Sequence[Array]) -> tuple[Array, Callable[[Array], Arrays]]:
    """Value of an equation of :mod:`growarray.contraction`, and the way back to every array.

    >>> import numpy as np
    >>> y, pullback = run_contraction("a r, r -> a", [np.ones((2, 3)), np.ones(3)])
    >>> y.tolist(), [d.shape for d in pullback(y)]
    ([3.0, 3.0], [(2, 3), (3,)])
    """
    return planned(equation, tuple(tuple(a.shape) for a in arrays), *target_of(arrays[0])).vjp(*arrays)


@lru_cache(maxsize=512)
def planned(equation: str, shapes: tuple[tuple[int, ...], ...], dtype: str, device: str) -> Plan:
    """The plan of an equation, looked up without its arguments being read again."""
    return plan(equation, *shapes, dtype=dtype, device=device)
