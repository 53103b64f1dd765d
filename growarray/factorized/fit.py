"""How a decomposition into the factors of a format went."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

from growarray.decompose import Degeneracy
from growarray.decompose.arguments import is_share
from growarray.errors import shown


class Fit(NamedTuple):
    """What a format's decomposition reports; None if the format does not say.

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


def checked_kwargs(where: str, kwargs: Any) -> dict[str, Any]:
    """``decomposition_kwargs`` as a dictionary; TypeError if they are not a mapping from names.

    >>> checked_kwargs("doc", None)
    {}
    """
    given = {} if kwargs is None else kwargs
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise TypeError(
            f"{where}: decomposition_kwargs={shown(kwargs)}, expected a mapping from names of options, such as "
            "{'max_iterations': 100}"
        )
    return dict(given)


def warn_lowered(where: str, asked: Any, valid: Any, found: Any, stacklevel: int) -> None:
    """Warn if a rank that was given as such, not as a share of the parameters, could not be used.

    stacklevel : of the user's line, 1 being the caller of this function
    """
    if found != valid and not is_share(asked):
        warnings.warn(
            f"{where}: rank {valid} is above what the tensor can use, lowered to {found}", stacklevel=stacklevel + 1
        )
