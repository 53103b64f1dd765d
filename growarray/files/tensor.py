"""Tensors that are still in their file: where the bytes are, how they are laid out, and how to read them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from growarray.files.dtypes import DType
from growarray.files.errors import Malformed, at, naming, quote
from growarray.files.source import Region

Array = NDArray[Any]

MOST_AXES = 64  # what NumPy can hold
_MOST = 2**63 - 1


class StoredTensor:
    """Shape, element type and place of a tensor in a file; :meth:`read` gives the array.

    ``start`` counts bytes from the beginning of the region, ``strides`` count elements; None is row-major.
    """

    __slots__ = ("conj", "dtype", "neg", "region", "shape", "start", "strides")

    def __init__(
        self,
        region: Region,
        dtype: DType,
        shape: tuple[int, ...],
        strides: tuple[int, ...] | None = None,
        *,
        start: int = 0,
        conj: bool = False,
        neg: bool = False,
    ) -> None:
        self.region = region
        self.dtype = dtype
        self.shape = shape
        self.strides = strides
        self.start = start
        self.conj = conj
        self.neg = neg

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the array as it is handed out, before any ``ml_dtypes``."""
        return self.size * self.dtype.wide_size

    def read(self, *, ml_dtypes: bool = False) -> Array:
        """The array: a view of the mapped file if that is possible, else a copy.

        Either can be written to; the file stays as it is. Raises CheckpointError if the bytes are damaged.
        """
        with naming(self.region.source.name):
            raw = self._elements()
            with at(self.region.name):
                values = self.dtype.widen(_owned(raw, self.dtype), ml_dtypes=ml_dtypes)
            if self.conj:
                values = np.conjugate(values)
            return np.asarray(np.negative(values) if self.neg else values)  # of 0-d, NumPy's functions give a scalar

    def check(self) -> None:
        """Raise what :meth:`read` would raise for damaged bytes, without making the array if that is possible."""
        with naming(self.region.source.name):
            raw = self._elements()
            with at(self.region.name):
                _check_bools(raw, self.dtype)

    def _elements(self) -> Array:
        """Stored elements in the shape of the tensor: possibly unaligned, overlapping or of the other byte order."""
        code = np.dtype(self.dtype.raw)
        if self.region.big_endian:
            code = code.newbyteorder(">")
        if self.size == 0:
            return np.empty(self.shape, np.dtype(self.dtype.raw))
        strides = None if self.strides is None else tuple(s * code.itemsize for s in self.strides)
        return np.ndarray(self.shape, code, buffer=self.region.view(), offset=self.start, strides=strides)


class PackedTensor(StoredTensor):
    """A row-major tensor of 2- or 4-bit elements, the first in the lowest bits of its byte."""

    __slots__ = ()

    def _elements(self) -> Array:
        packed = np.frombuffer(self.region.view(), np.uint8)
        each = 8 // self.dtype.bits
        shifts = np.arange(each, dtype=np.uint8) * np.uint8(self.dtype.bits)
        return (
            ((packed[:, None] >> shifts) & np.uint8(2**self.dtype.bits - 1))
            .reshape(-1)[: self.size]
            .reshape(self.shape)
        )


def _owned(raw: Array, dtype: DType) -> Array:
    """The same elements in native byte order, aligned, writable, and with no element in two places."""
    _check_bools(raw, dtype)
    if dtype.name == "complex32" and not raw.dtype.isnative:
        return _swap_halves(raw)
    if not dtype.native and raw.dtype.isnative:
        return raw  # widening copies anyway
    good = raw.dtype.isnative and raw.flags.aligned and raw.flags.writeable and not _overlaps(raw)
    return raw if good else raw.astype(raw.dtype.newbyteorder("="), order="C", copy=True)


def _check_bools(raw: Array, dtype: DType) -> None:
    if dtype.name == "bool" and raw.size and raw.view(np.uint8).max() > 1:
        raise Malformed("a bool is stored as a byte other than 0 and 1")


def _swap_halves(raw: Array) -> Array:
    """Big-endian pairs of halves as native ones: each half is swapped, their order stays."""
    halves = np.ascontiguousarray(raw).reshape(*raw.shape, 1).view(">f2")
    return halves.astype(np.float16).view(np.uint32).reshape(raw.shape)


def _overlaps(raw: Array) -> bool:
    """Whether two indices may reach one element: then writing to one would change the other."""
    reach = raw.itemsize
    for stride, size in sorted((s, n) for s, n in zip(raw.strides, raw.shape, strict=True) if n > 1):
        if stride < reach:
            return True
        reach = stride * (size - 1) + reach
    return False


def count_of(shape: object, *, itemsize: int, what: str = "shape") -> int:
    """Number of elements of a shape that a file gives: a tuple or list of at most 64 plain ints, none negative."""
    if type(shape) not in (tuple, list):
        raise Malformed(f"{what} is {quote(shape)}; expected a sequence of integers")
    axes: Any = shape
    if len(axes) > MOST_AXES:
        raise Malformed(f"{what} has {len(axes)} axes; an array has at most {MOST_AXES}")
    for n in axes:
        if type(n) is not int or n < 0 or n > _MOST:
            raise Malformed(f"{what} holds {quote(n)}; expected integers from 0 to 2**63 - 1")
    if math.prod(n for n in axes if n) * max(itemsize, 1) > _MOST:
        raise Malformed(f"{what} {tuple(axes)} is larger than any array can be")
    return math.prod(axes)


def check_geometry(numel: int, offset: object, shape: object, strides: object, itemsize: int) -> int:
    """Number of elements of a strided view into ``numel`` elements, all of which must lie inside.

    A view without elements may begin anywhere: torch leaves ``empty(3, 0)[1:]`` the offset 1 in a storage of none.

    Raises Malformed for anything but plain ints >= 0, for more than 64 axes, and for a last element outside.
    """
    if type(shape) is not tuple or type(strides) is not tuple:
        raise Malformed(f"size and stride are {quote(shape)} and {quote(strides)}; expected two tuples")
    count = count_of(shape, itemsize=itemsize, what="size")
    if len(shape) != len(strides):
        raise Malformed(f"size has {len(shape)} axes, stride has {len(strides)}")
    for value in (offset, *strides):
        if type(value) is not int or not 0 <= value <= _MOST:
            raise Malformed(f"storage offset or stride is {quote(value)}; expected an integer from 0 to 2**63 - 1")
    first: Any = offset
    last = first + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if count and last >= numel:
        raise Malformed(f"size {shape}, stride {strides}, offset {first} reach element {last} of a storage of {numel}")
    return count


@dataclass
class Contents:
    """``tree`` is a structure of containers, plain values and stored tensors; ``aliases`` are names of other names."""

    kind: str
    tree: Any
    metadata: dict[str, Any] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def flat(self) -> dict[str, StoredTensor]:
        """The tree of a format that has no nesting."""
        tensors: dict[str, StoredTensor] = self.tree
        return tensors
