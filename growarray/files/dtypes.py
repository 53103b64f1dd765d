"""Element types of the files, and how those that NumPy lacks are widened to it exactly."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class DType:
    """One element type: ``raw`` is how its bytes are viewed, ``name`` what it is called here and by ``ml_dtypes``."""

    name: str
    raw: str
    """Little-endian NumPy type of the stored element."""
    wide: str
    """NumPy type that holds every value exactly."""
    bits: int
    """Bits an element takes in a packed file: below 8, several elements share a byte."""

    @property
    def itemsize(self) -> int:
        """Bytes of one stored element; types below 8 bits are unpacked to one byte an element."""
        return max(1, self.bits // 8)

    @property
    def wide_size(self) -> int:
        """Bytes of one element as it is handed out."""
        return np.dtype(self.wide).itemsize

    @property
    def native(self) -> bool:
        """Whether NumPy has this type itself."""
        return self.raw == self.wide

    def widen(self, raw: Array, *, ml_dtypes: bool = False) -> Array:
        """Values of stored elements: as they are, widened exactly, or as an ``ml_dtypes`` array of the same bits."""
        if self.native:
            return raw
        if ml_dtypes and self.name != "complex32":
            typed: Array = np.ascontiguousarray(raw).view(_ml_dtype(self.name))
            return typed.reshape(raw.shape)  # a contiguous array has an axis at least
        if self.name == "bfloat16":
            wide = raw.astype(np.uint32)
            wide <<= np.uint32(16)
            return wide.view(np.float32)
        if self.name == "complex32":
            halves = np.ascontiguousarray(raw).reshape(*raw.shape, 1).view(np.float16)
            return halves.astype(np.float32).view(np.complex64).reshape(raw.shape)
        if self.name == "int4":
            return ((raw ^ np.uint8(8)).astype(np.int8) - np.int8(8)).astype(np.int8)
        if self.name == "int2":
            return ((raw ^ np.uint8(2)).astype(np.int8) - np.int8(2)).astype(np.int8)
        return np.asarray(float_table(self.name)[raw])


def _ml_dtype(name: str) -> Any:
    """The type of this name in ``ml_dtypes``, imported only when it is asked for."""
    try:
        library = importlib.import_module("ml_dtypes")
    except ImportError:
        raise ImportError("ml_dtypes=True needs the package ml_dtypes: pip install ml_dtypes") from None
    return np.dtype(getattr(library, name))


def _rows() -> list[DType]:
    plain = ["float16", "float32", "float64", "complex64", "complex128", "bool"]
    plain += [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
    rows = []
    for name in plain:
        code = np.dtype(name).str.replace(">", "<").replace("=", "<")
        rows.append(DType(name, code, code, 8 * np.dtype(name).itemsize))
    rows += [DType("bfloat16", "<u2", "<f4", 16), DType("complex32", "<u4", "<c8", 32)]
    rows += [DType(name, "|u1", "<f4", 8) for name in _FLOATS if name != "float4_e2m1fn"]
    rows += [DType("float4_e2m1fn", "|u1", "<f4", 4)]
    rows += [DType("int4", "|u1", "|i1", 4), DType("uint4", "|u1", "|u1", 4)]
    rows += [DType("int2", "|u1", "|i1", 2), DType("uint2", "|u1", "|u1", 2)]
    return rows


_FLOATS = {  # name: bits of exponent, bits of mantissa, bias, what the special codes mean
    "float8_e4m3fn": (4, 3, 7, "fn"),
    "float8_e5m2": (5, 2, 15, "ieee"),
    "float8_e4m3fnuz": (4, 3, 8, "fnuz"),
    "float8_e5m2fnuz": (5, 2, 16, "fnuz"),
    "float8_e8m0fnu": (8, 0, 127, "scale"),
    "float4_e2m1fn": (2, 1, 1, "finite"),
}


@cache
def float_table(name: str) -> Array:
    """Value of every code of a small float, as float32: 256 entries, 16 for four bits.

    ``fn``: no infinities, all ones is NaN. ``fnuz``: moreover one zero, and its negative is NaN.
    Source: Micikevicius et al. 2022, and the OCP microscaling specification 1.0.

    >>> float_table("float8_e4m3fn")[[0x38, 0x7E, 0x01]].tolist()
    [1.0, 448.0, 0.001953125]
    """
    exponent_bits, mantissa_bits, bias, special = _FLOATS[name]
    if special == "scale":
        values = 2.0 ** (np.arange(256.0) - bias)
        values[255] = np.nan
        return values.astype(np.float32)
    codes = np.arange(2 ** (1 + exponent_bits + mantissa_bits))
    mantissa = codes & (2**mantissa_bits - 1)
    exponent = (codes >> mantissa_bits) & (2**exponent_bits - 1)
    normal = exponent > 0
    fraction = mantissa / 2.0**mantissa_bits + normal
    values = fraction * 2.0 ** (np.where(normal, exponent, 1) - float(bias))
    negative = codes >= len(codes) // 2
    values = np.where(negative, -values, values)
    full = exponent == 2**exponent_bits - 1
    if special == "ieee":
        values[full & (mantissa == 0)] *= np.inf
        values[full & (mantissa > 0)] = np.nan
    elif special == "fn":
        values[full & (mantissa == 2**mantissa_bits - 1)] = np.nan
    elif special == "fnuz":
        values[len(codes) // 2] = np.nan
    result: Array = values.astype(np.float32)
    return result


BY_NAME = {row.name: row for row in _rows()}
"""Every element type by its name."""

NUMPY_NAMES = {row.raw: row for row in BY_NAME.values() if row.native and row.bits >= 8}
"""Element types of NumPy itself, by their little-endian type string (``'<f4'``, ``'|u1'``)."""
