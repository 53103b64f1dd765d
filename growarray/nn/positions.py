"""Which positions of an axis a slice takes."""

from __future__ import annotations

__all__ = ["positions"]


def positions(size: int, start: int, end: int, step: int) -> range:
    """Every ``step``-th position from ``start`` to before ``end`` of an axis; negative ones count from its end.

    What lies outside is moved to the nearest position, so that a negative step begins at 0 where ``start`` is before
    the axis; there a Python slice is empty. Source: the operator Slice of ONNX.

    >>> list(positions(5, 1, 9, 2)), list(positions(3, -5, -7, -2)), list(range(3))[-5:-7:-2]
    ([1, 3], [0], [])
    """
    start, end = (place + size if place < 0 else place for place in (start, end))
    if step > 0:
        return range(min(max(start, 0), size), min(max(end, 0), size), step)
    return range(min(max(start, 0), size - 1), min(max(end, -1), size - 1), step)
