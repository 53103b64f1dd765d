"""Arguments as what can be a key of a cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from growarray.backend import is_array, is_numpy, kind_of, namespace
from growarray.errors import PlanError, shown

__all__ = ["frozen", "shapes_of"]


def frozen(value: Any) -> Any:
    """Lists and mappings as what can be a key. Raises PlanError for what cannot be one, such as arrays and sets."""
    if isinstance(value, Mapping):
        return _Mapping({k: frozen(v) for k, v in value.items()})
    if isinstance(value, list | tuple):
        return tuple(frozen(v) for v in value)
    try:
        hash(value)
    except TypeError as error:
        raise PlanError(
            f"plan: found {shown(value)} among the arguments, expected numbers, strings, "
            "tuples, lists or mappings; convert it with tolist() or tuple()"
        ) from error
    return value


def shapes_of(given: Sequence[Any], dtype: Any = None, device: Any = None) -> tuple[list[Any], Any, Any]:
    """Shapes of the arrays among ``given``, and if those are None the dtype and the device that a plan takes."""
    arrays = [x for x in given if is_array(x)]
    if arrays:
        namespace(*arrays, where="plan: ")
        for x in arrays:
            if kind_of(x) != "f":
                raise PlanError(f"plan: expected a shape, or an array of real floats that has it, found {shown(x)}")
        dtype = str(arrays[0].dtype).rpartition(".")[2] if dtype is None else dtype
        device = ("cpu" if all(map(is_numpy, arrays)) else "gpu") if device is None else device
    return [tuple(x.shape) if is_array(x) else x for x in given], dtype, device


class _Mapping(dict[str, Any]):
    """A mapping by mode that can be a key; nobody changes it."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))
