"""Arguments as what can be a key of a cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["frozen"]


def frozen(value: Any) -> Any:
    """Lists and mappings as what can be a key."""
    if isinstance(value, Mapping):
        return _Mapping({k: frozen(v) for k, v in value.items()})
    return tuple(frozen(v) for v in value) if isinstance(value, list | tuple) else value


class _Mapping(dict[str, Any]):
    """A mapping by mode that can be a key; nobody changes it."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))
