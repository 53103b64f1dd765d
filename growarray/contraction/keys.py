"""Arguments as what can be a key of a cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from growarray.errors import PlanError

__all__ = ["frozen"]


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
            f"plan: found {type(value).__name__} {value!r} among the arguments, expected numbers, strings, "
            "tuples, lists or mappings; convert it with tolist() or tuple()"
        ) from error
    return value


class _Mapping(dict[str, Any]):
    """A mapping by mode that can be a key; nobody changes it."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))
