"""Fewer cases than a product of three axes has."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any


def pairs(first: Collection[Any], second: Collection[Any], third: Sequence[Any]) -> list[tuple[Any, Any, Any]]:
    """Cases in which every two values of two axes meet: those of ``third``, the shortest axis, take turns."""
    return [(a, b, third[(i + j) % len(third)]) for i, a in enumerate(first) for j, b in enumerate(second)]
