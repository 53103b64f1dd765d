"""Values in another dtype: one that does not fit is refused with its name, and the largest rounding is measured."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from growarray.backend import device_of, is_numpy, library_of, to_numpy

Array = Any

_DIGITS = {  # bits of the mantissa and of the exponent
    "float16": (11, 5), "bfloat16": (8, 8), "float32": (24, 8), "float64": (53, 11), "complex64": (24, 8),
    "complex128": (53, 11), "bool": (1, 0), "int8": (7, 0), "uint8": (8, 0), "int16": (15, 0), "uint16": (16, 0),
    "int32": (31, 0), "uint32": (32, 0), "int64": (63, 0), "uint64": (64, 0),
}  # fmt: skip
_REALS = ("float", "bfloat", "complex")
_BLOCK = 2**16  # entries whose rounding is measured at once


class RangeError(ValueError):
    """A finite value, ``value``, that another dtype does not hold."""

    value: Any = None


def cast(
    values: Array,
    dtype: Any,
    name: str,
    remedy: str = "take a wider dtype",
    *,
    copy: bool = False,
    nonzero: bool = False,
) -> Array:
    """``values`` in ``dtype``, rounded to the nearest; infinities and NaN stay what they are.

    Raises RangeError, a ValueError, if a finite value would become infinite, with ``name``, the value and its index;
    with ``nonzero`` also if one would become zero.

    >>> import numpy as np
    >>> cast(np.array([0.1, np.inf]), np.float32, "weight").tolist()
    [0.10000000149011612, inf]
    >>> cast(np.array([0.1, 1e5]), np.float16, "weight")
    Traceback (most recent call last):
    growarray.nn.cast.RangeError: weight: 100000.0 at (1,) is beyond the range of float16; take a wider dtype
    """
    found, expected = dtype_name(values.dtype), dtype_name(dtype)
    xp: Any = np if is_numpy(values) else library_of(values)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        result = values.astype(dtype, copy=copy) if xp is np else xp.astype(values, dtype, copy=copy)
    if found == expected or _exact(found, expected) or not expected.startswith(_REALS):
        return result
    lost = ~xp.isfinite(result)
    if nonzero:
        lost = lost | ((result == 0) & (values != 0))
    if xp.any(lost):
        lost = lost & xp.isfinite(values) if found.startswith(_REALS) else lost
        index = tuple(map(int, np.unravel_index(int(np.argmax(to_numpy(lost))), tuple(values.shape))))
        if lost[index]:
            value = to_numpy(values[index]).item()
            where = f" at {index}" if index else ""
            error = RangeError(f"{name}: {value!r}{where} is beyond the range of {expected}; {remedy}")
            error.value = value
            raise error
    return result


def largest_rounding(values: Array, result: Array) -> float:
    """The largest change of a value by a cast, relative to the value: 1 if one became zero, 0 if none changed.

    >>> import numpy as np
    >>> values = np.array([0.5, 1.0 + 2.0**-24, np.nan])
    >>> largest_rounding(values, values.astype(np.float32)) == 2.0**-24 / (1.0 + 2.0**-24)
    True
    """
    found, expected = dtype_name(values.dtype), dtype_name(result.dtype)
    if found == expected or _exact(found, expected):
        return 0.0
    xp = library_of(values)
    wide = xp.complex128 if "complex" in expected else xp.float64
    before, after = xp.reshape(values, (-1,)), xp.reshape(result, (-1,))
    if found.startswith(("int", "uint")):
        return _of_integers(to_numpy(before), to_numpy(after), _DIGITS[expected][0])
    size = int(before.shape[0])
    blocks = ([part[i : min(i + _BLOCK, size)] for part in (before, after)] for i in range(0, size, _BLOCK))
    wider = ([xp.astype(part, wide, copy=False) for part in block] for block in blocks)
    return max((_relative(xp, *pair) for pair in wider), default=0.0)


def _relative(xp: Any, before: Array, after: Array) -> float:
    """The largest relative difference of the finite values."""
    if is_numpy(before):
        with np.errstate(all="ignore"):
            share = np.abs(after - before)
            share /= np.abs(before)
            return float(np.fmax.reduce(share, initial=0.0))
    finite, zero = xp.isfinite(before), xp.zeros_like(before)
    gap = xp.abs(xp.where(finite, after, zero) - xp.where(finite, before, zero))
    return float(xp.max(gap / xp.where(gap > 0.0, xp.abs(before), xp.ones_like(gap))))


def _of_integers(before: Array, after: Array, digits: int) -> float:
    """The largest rounding of integers: those of few digits have none, and the others Python compares exactly."""
    long = np.abs(before.astype(np.float64)) >= 2.0**digits
    pairs = zip(before[long].tolist(), after[long].real.tolist(), strict=True)
    return max((abs(int(b) - a) / abs(a) for a, b in pairs), default=0.0)


def rounded(values: Array, name: str) -> Array:
    """The nearest values of the dtype ``name``, of few digits, in the dtype that ``values`` have; infinite beyond it.

    Ties go to the even digit. It is for ``'float16'`` and ``'bfloat16'``, which libraries of the array API may lack.

    >>> import numpy as np
    >>> rounded(np.array([0.47892547, 1e6]), "float16").tolist(), rounded(np.array([0.1]), "bfloat16").tolist()
    ([0.47900390625, inf], [0.10009765625])
    """
    xp = library_of(values)
    native = getattr(xp, name, None) if is_numpy(values) else None  # XLA makes 0 of a result that is subnormal
    if native is not None:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            return xp.astype(xp.astype(values, native), values.dtype)
    digits, bits = _DIGITS[name]
    most = 2 ** (bits - 1) - 1
    powers = [2.0**exponent for exponent in range(1 - most, most + 2)]
    wide = xp.reshape(xp.astype(values, xp.float64), (-1,))
    table = xp.asarray(powers, dtype=xp.float64, device=None if is_numpy(values) else device_of(values))
    index = xp.clip(xp.searchsorted(table, xp.abs(wide), side="right") - 1, 0, len(powers) - 1)
    unit = xp.take(table, index) * 2.0 ** (1 - digits)
    nearest = xp.round(wide / unit) * unit
    infinite = xp.full_like(nearest, xp.inf)
    nearest = xp.where(nearest >= powers[-1], infinite, xp.where(nearest <= -powers[-1], -infinite, nearest))
    return xp.reshape(xp.astype(nearest, values.dtype), values.shape)


def dtype_name(dtype: Any) -> str:
    """``'float32'`` for a dtype of any library, or for that name.

    >>> import numpy as np
    >>> dtype_name(np.dtype("float32")), dtype_name("torch.bfloat16")
    ('float32', 'bfloat16')
    """
    if isinstance(dtype, type) and issubclass(dtype, np.generic):
        dtype = np.dtype(dtype)
    return _numpy_name(dtype) if isinstance(dtype, np.dtype) else str(dtype).rpartition(".")[2]


@lru_cache(maxsize=128)
def _numpy_name(dtype: np.dtype[Any]) -> str:
    """The name, which NumPy puts together at each access."""
    return dtype.name


def _exact(found: str, expected: str) -> bool:
    """Whether the expected dtype has every value of the found one."""
    if found not in _DIGITS or expected not in _DIGITS:
        return False
    return all(a <= b for a, b in zip(_DIGITS[found], _DIGITS[expected], strict=True))
