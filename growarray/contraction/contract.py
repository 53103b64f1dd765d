"""An equation planned and run in one call."""

from __future__ import annotations

from typing import Any

from growarray.backend import Array, device_of, is_array, namespace
from growarray.contraction.checks import check_arrays
from growarray.contraction.plan import plan, shapes_of


def contract(equation: str, *arrays: Array | float, **options: Any) -> Array:
    """Plan and run in one call; options as in :func:`plan`. A Python number is an operand of the arrays' dtype.

    >>> import numpy as np
    >>> contract("ij,jk->ik", np.ones((2, 3)), np.ones((3, 4))).shape
    (2, 4)
    >>> contract("i,->i", np.ones(2), 3).tolist()
    [3.0, 3.0]
    """
    like: Any = next((x for x in arrays if is_array(x)), None)
    if like is not None and any(type(x) in (int, float) for x in arrays):
        xp, place = namespace(like), {"dtype": like.dtype, "device": device_of(like)}
        arrays = tuple(xp.asarray(float(x), **place) if type(x) in (int, float) else x for x in arrays)
    check_arrays(equation, arrays)
    shapes, dtype, device = shapes_of(arrays)
    return plan(equation, *shapes, dtype=dtype, device=device, **options)(*arrays)
