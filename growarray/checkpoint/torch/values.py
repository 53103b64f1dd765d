"""Reconstructions of plain values that pickles hold besides tensors: sets, bytes, sizes, devices, NumPy values."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import numpy as np

from growarray.checkpoint.torch.allowlist import Build, Global, OrderedTree
from growarray.files.dtypes import NUMPY_NAMES
from growarray.files.errors import Malformed, quote
from growarray.files.source import Region, Source
from growarray.files.tensor import StoredTensor, count_of


def unpack(arguments: tuple[Any, ...], *lengths: int) -> tuple[Any, ...]:
    """The arguments, if there are as many as one of ``lengths``."""
    if len(arguments) not in lengths:
        raise Malformed(f"gets {len(arguments)} arguments; expected {' or '.join(map(str, lengths))}")
    return arguments


def _ordered_dict(machine: Any, arguments: tuple[Any, ...]) -> OrderedTree:
    """An empty one, or the list of pairs that Python 2 wrote."""
    pairs = unpack(arguments, 0, 1)[0] if arguments else []
    if type(pairs) is not list:
        raise Malformed(f"gets {quote(pairs)}; expected a list of pairs")
    machine.charge(80 + 100 * len(pairs))
    result = OrderedTree()
    for pair in pairs:
        if type(pair) not in (list, tuple) or len(pair) != 2:
            raise Malformed(f"gets {quote(pair)} in its list; expected pairs")
        machine.check_key(pair[0])
        result[pair[0]] = pair[1]
    return result


def _counter(machine: Any, arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """A ``Counter`` as a dictionary."""
    counts = unpack(arguments, 0, 1)[0] if arguments else {}
    if type(counts) is not dict:
        raise Malformed(f"gets {quote(counts)}; expected a dictionary")
    machine.charge(100 * len(counts))
    return dict(counts)


def _size(machine: Any, arguments: tuple[Any, ...]) -> tuple[int, ...]:
    """``torch.Size`` as a tuple."""
    (axes,) = unpack(arguments, 1)
    count_of(axes, itemsize=1, what="Size")
    return tuple(axes)


def _device(machine: Any, arguments: tuple[Any, ...]) -> str:
    """``torch.device`` as its name: ``'cpu'``, ``'cuda:0'``."""
    kind, *index = unpack(arguments, 1, 2)
    if type(kind) is not str or len(kind) > 64 or any(type(i) is not int for i in index):
        raise Malformed(f"gets {quote(kind)}; expected a name and an index")
    return ":".join([kind, *(quote(i) for i in index)])


def _encode(machine: Any, arguments: tuple[Any, ...]) -> bytes:
    """``_codecs.encode(text, 'latin1')``: how protocol 2 writes bytes. No other codec is known here."""
    text, codec = unpack(arguments, 2)
    if type(text) is not str or codec not in ("latin1", "latin-1"):
        raise Malformed(f"gets {quote(text)}, {quote(codec)}; expected a string and 'latin1'")
    machine.charge(64 + len(text))
    try:
        return text.encode("latin1")
    except UnicodeEncodeError:
        raise Malformed("gets characters that are not in latin1") from None


def _bytes(machine: Any, arguments: tuple[Any, ...]) -> bytes:
    """``bytes()``: how protocol 2 writes empty bytes."""
    unpack(arguments, 0)
    return b""


def _bytearray(machine: Any, arguments: tuple[Any, ...]) -> bytearray:
    """``bytearray(bytes)`` or ``bytearray(text, 'latin-1')``; never of a number, which would allocate."""
    if len(arguments) == 2:
        return bytearray(_encode(machine, arguments))
    data = unpack(arguments, 0, 1)[0] if arguments else b""
    if type(data) is not bytes:
        raise Malformed(f"gets {quote(data)}; expected bytes")
    machine.charge(64 + len(data))
    return bytearray(data)


def _set(machine: Any, arguments: tuple[Any, ...]) -> set[Any]:
    items = unpack(arguments, 0, 1)[0] if arguments else []
    if type(items) is not list:
        raise Malformed(f"gets {quote(items)}; expected a list")
    machine.charge(300 + 100 * len(items))
    for item in items:
        machine.check_key(item)
    return set(items)


def _frozenset(machine: Any, arguments: tuple[Any, ...]) -> frozenset[Any]:
    return frozenset(_set(machine, arguments))


def _complex(machine: Any, arguments: tuple[Any, ...]) -> complex:
    parts = unpack(arguments, 2)
    if any(type(part) is not float for part in parts):
        raise Malformed(f"gets {quote(parts[0])}, {quote(parts[1])}; expected two floats")
    return complex(*parts)


@lru_cache(maxsize=256)
def _numpy_dtype(code: str, big_endian: bool) -> np.dtype[Any]:
    return np.dtype(code.lstrip("<>|=")).newbyteorder(">" if big_endian else "<")


class PickledDType(Build):
    """``numpy.dtype``: the byte order comes with its state."""

    def __init__(self, code: str) -> None:
        self.code = code
        self.big_endian = code.startswith(">")

    @property
    def numpy(self) -> np.dtype[Any]:
        """As NumPy's own."""
        return _numpy_dtype(self.code, self.big_endian)

    def set_state(self, state: Any) -> None:
        """``(3, '<', None, None, None, -1, -1, 0)``: only plain types, without fields."""
        if type(state) is not tuple or len(state) != 8 or state[1] not in ("<", ">", "|", "="):
            raise Malformed(f"state of a numpy.dtype is {quote(state)}; expected a tuple of 8")
        if any(part is not None for part in state[2:5]):
            raise Malformed("numpy.dtype has fields; expected a plain number")
        self.big_endian = state[1] == ">"


def _dtype(machine: Any, arguments: tuple[Any, ...]) -> PickledDType:
    code = unpack(arguments, 1, 2, 3)[0]
    if type(code) is not str or not re.fullmatch(r"[<>|=]?(b1|[iu][1248]|f[248]|c8|c16)", code):
        raise Malformed(f"gets {quote(code)}; expected a bool, an integer, a float or a complex number")
    return PickledDType(code)


def _scalar(machine: Any, arguments: tuple[Any, ...]) -> Any:
    """A NumPy scalar as the Python number of the same value."""
    dtype, data = unpack(arguments, 2)
    if type(dtype) is not PickledDType or type(data) is not bytes or len(data) != dtype.numpy.itemsize:
        raise Malformed(f"gets {quote(dtype)}, {quote(data)}; expected a dtype and its bytes")
    if dtype.numpy.kind == "b" and data not in (b"\0", b"\1"):
        raise Malformed(f"bool is {quote(data)}")
    return np.frombuffer(data, dtype.numpy)[0].item()


class PickledArray(Build):
    """A NumPy array inside a pickle: empty until its state is there, then a tensor over the pickled bytes."""

    def __init__(self, machine: Any) -> None:
        self.tensor: StoredTensor | None = None
        self._machine = machine

    def set_state(self, state: Any) -> None:
        """``(version, shape, dtype, fortran_order, bytes)``."""
        if type(state) is not tuple or len(state) != 5 or type(state[3]) is not bool or self.tensor is not None:
            raise Malformed(f"state of a numpy.ndarray is {quote(state)}; expected a tuple of 5, once")
        _, shape, dtype, fortran, data = state
        self.fill(shape, dtype, data, fortran=fortran)

    def fill(self, shape: Any, dtype: Any, data: Any, *, fortran: bool) -> None:
        """Take shape, element type and bytes over, if they fit together."""
        if type(dtype) is not PickledDType or type(data) not in (bytes, bytearray) or type(shape) is not tuple:
            raise Malformed(
                f"numpy.ndarray gets {quote(shape)}, {quote(dtype)}, {quote(data)}; expected shape, dtype, bytes"
            )
        code = dtype.numpy
        if count_of(shape, itemsize=code.itemsize) * code.itemsize != len(data):
            raise Malformed(f"numpy.ndarray of shape {shape} and dtype {code} has {len(data)} bytes")
        strides = [1]
        for n in shape if fortran else shape[::-1]:
            strides.append(strides[-1] * n)
        ordered = tuple(strides[:-1]) if fortran else tuple(strides[-2::-1])
        region = Region(Source.of_bytes(data, "array in a pickle"), "bytes", 0, len(data), big_endian=dtype.big_endian)
        self._machine.charge(500)
        self.tensor = StoredTensor(region, NUMPY_NAMES[code.newbyteorder("<").str], shape, ordered)


def _reconstruct(machine: Any, arguments: tuple[Any, ...]) -> PickledArray:
    """``_reconstruct(numpy.ndarray, (0,), b'b')``: an array whose state follows."""
    kind, shape, code = unpack(arguments, 3)
    if type(kind) is not Global or kind.name != "numpy.ndarray" or shape != (0,) or code not in (b"b", "b"):
        raise Malformed("expected numpy.ndarray, (0,), b'b'")
    return PickledArray(machine)


def _frombuffer(machine: Any, arguments: tuple[Any, ...]) -> PickledArray:
    """``_frombuffer(bytes, dtype, shape, order)``, of protocol 5."""
    data, dtype, shape, order = unpack(arguments, 4)
    if order not in ("C", "F"):
        raise Malformed(f"order is {quote(order)}; expected 'C' or 'F'")
    array = PickledArray(machine)
    array.fill(shape, dtype, data, fortran=order == "F")
    return array


_FUNCTIONS = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("collections", "Counter"): _counter,
    ("torch", "Size"): _size,
    ("torch", "device"): _device,
    ("_codecs", "encode"): _encode,
    ("numpy", "dtype"): _dtype,
}
for _module in ("builtins", "__builtin__"):
    _FUNCTIONS |= {
        (_module, "bytes"): _bytes,
        (_module, "bytearray"): _bytearray,
        (_module, "set"): _set,
        (_module, "frozenset"): _frozenset,
        (_module, "complex"): _complex,
    }
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _FUNCTIONS |= {(_module, "scalar"): _scalar, (_module, "_reconstruct"): _reconstruct}
for _module in ("numpy.core.numeric", "numpy._core.numeric"):
    _FUNCTIONS |= {(_module, "_frombuffer"): _frombuffer}

TABLE = {
    ("numpy", "ndarray"): Global("numpy.ndarray"),
    **{(module, name): Global(f"{module}.{name}", build=build) for (module, name), build in _FUNCTIONS.items()},
}
"""Globals of plain values: their functions rebuild data, and no other is ever looked up."""
