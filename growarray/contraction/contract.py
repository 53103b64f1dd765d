"""An equation planned and run in one call."""

from __future__ import annotations

from typing import Any

from growarray.backend import Array
from growarray.contraction.checks import check_arrays
from growarray.contraction.plan import plan, shapes_of

__all__ = ["contract"]


def contract(equation: str, *arrays: Array, **options: Any) -> Array:
    """Plan and run in one call; options as in :func:`plan`.

    >>> import numpy as np
    >>> contract("ij,jk->ik", np.ones((2, 3)), np.ones((3, 4))).shape
    (2, 4)
    """
    check_arrays(equation, arrays)
    shapes, dtype, device = shapes_of(arrays)
    return plan(equation, *shapes, dtype=dtype, device=device, **options)(*arrays)
