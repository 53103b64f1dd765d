"""How a decomposition into the parts of a format went."""

from __future__ import annotations

from typing import Any, NamedTuple

from growarray.decompose import Degeneracy

__all__ = ["Fit"]


class Fit(NamedTuple):
    """What a format's decomposition reports; None where the format does not say.

    error : relative Frobenius error of the tensor    iterations : sweeps    reason : why they ended
    asked : rank before it was lowered to what the tensor can use

    >>> Fit(0.25, 12, "converged").degeneracy is None
    True
    """

    error: float | None = None
    iterations: int | None = None
    reason: str | None = None
    degeneracy: Degeneracy | None = None
    asked: Any = None
