"""A stand-in for CuPy on machines without a GPU: NumPy inside, and what CuPy forbids forbidden.

No silent way to NumPy (``np.asarray``, ufuncs), no mixing with NumPy arrays, and no function outside
the array API. The one way out is DLPack, which ``growarray.backend.to_numpy`` takes.
"""

from __future__ import annotations

import operator
from typing import Any

import array_api_compat.numpy as compat
import array_api_strict
import numpy as np

__all__ = ["DEVICE", "DoubleArray", "xp"]


class _Device:
    def __repr__(self) -> str:
        return "double:0"


DEVICE = _Device()
_ENTRANCES = {"asarray", "from_dlpack"}


def _unwrap(value: Any, entrance: bool = False) -> Any:
    if isinstance(value, DoubleArray):
        return value._values
    if isinstance(value, np.ndarray | np.generic) and not isinstance(value, float) and not entrance:
        raise TypeError(f"Unsupported type {type(value)}: NumPy arrays do not mix with double arrays")
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(_unwrap(v, entrance) for v in value)
    return value


def _wrap(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return DoubleArray(np.asarray(value))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*[_wrap(v) for v in value])
    return type(value)(_wrap(v) for v in value) if isinstance(value, list | tuple) else value


class _Function:
    """A function of the array API that takes and gives double arrays only."""

    def __init__(self, name: str, function: Any) -> None:
        self._name, self._function = name, function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("device") not in (None, DEVICE):
            raise TypeError(f"{self._name}: device {kwargs['device']!r} is not {DEVICE!r}")
        kwargs.pop("device", None)
        entrance = self._name in _ENTRANCES
        inner = {k: _unwrap(v, entrance) for k, v in kwargs.items()}
        return _wrap(self._function(*[_unwrap(a, entrance) for a in args], **inner))


class _Info:
    def devices(self) -> list[Any]:
        return [DEVICE]

    def default_device(self) -> Any:
        return DEVICE


class _Namespace:
    """The names of the array API, each wrapped."""

    def __init__(self, inner: Any, allowed: Any, name: str) -> None:
        self._inner, self._allowed, self.__name__ = inner, allowed, name

    def __getattr__(self, name: str) -> Any:
        if not hasattr(self._allowed, name):
            raise AttributeError(f"{self.__name__} has no {name!r}: it is not in the array API")
        value = getattr(self._inner, name)
        if name in ("linalg", "fft"):
            return _Namespace(value, getattr(self._allowed, name), f"{self.__name__}.{name}")
        return _Function(name, value) if callable(value) and not isinstance(value, type) else value

    def __array_namespace_info__(self) -> _Info:
        return _Info()


xp = _Namespace(compat, array_api_strict, "double")


class DoubleArray:
    """An array of the double."""

    __array_ufunc__ = None  # NumPy must hand binary operations over, so that they can be refused
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    def __array_namespace__(self, api_version: str | None = None) -> Any:
        return xp

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed; use growarray.backend.to_numpy(x)")

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self._values.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._values.__dlpack_device__()

    def to_device(self, device: Any, /, stream: Any = None) -> DoubleArray:
        if device is not DEVICE:
            raise ValueError(f"double arrays live on {DEVICE!r} only, found {device!r}")
        return self

    @property
    def device(self) -> Any:
        return DEVICE

    @property
    def T(self) -> DoubleArray:
        return DoubleArray(self._values.T)

    @property
    def mT(self) -> DoubleArray:
        return DoubleArray(self._values.mT)

    def __getattr__(self, name: str) -> Any:
        if name in ("dtype", "shape", "ndim", "size"):
            return getattr(self._values, name)
        raise AttributeError(f"a double array has no {name!r}: it is not in the array API")

    def __getitem__(self, key: Any) -> Any:
        return _wrap(self._values[_unwrap(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self._values[_unwrap(key)] = _unwrap(value)

    def __float__(self) -> float:
        return float(self._values)

    def __int__(self) -> int:
        return int(self._values)

    def __bool__(self) -> bool:
        return bool(self._values)

    def __index__(self) -> int:
        return operator.index(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"DoubleArray({self._values!r})"


def _binary(name: str) -> Any:
    def method(self: DoubleArray, other: Any) -> Any:
        return _wrap(getattr(self._values, name)(_unwrap(other)))

    return method


def _in_place(name: str) -> Any:
    def method(self: DoubleArray, other: Any) -> DoubleArray:
        getattr(self._values, name)(_unwrap(other))
        return self

    return method


def _unary(name: str) -> Any:
    return lambda self: _wrap(getattr(self._values, name)())


for _word in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor"):
    setattr(DoubleArray, f"__{_word}__", _binary(f"__{_word}__"))
    setattr(DoubleArray, f"__r{_word}__", _binary(f"__r{_word}__"))
    setattr(DoubleArray, f"__i{_word}__", _in_place(f"__i{_word}__"))
for _word in ("lt", "le", "eq", "ne", "gt", "ge"):
    setattr(DoubleArray, f"__{_word}__", _binary(f"__{_word}__"))
for _word in ("neg", "pos", "abs", "invert"):
    setattr(DoubleArray, f"__{_word}__", _unary(f"__{_word}__"))
