"""Widths among the arguments of networks: one for all, or one for each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from growarray.contraction.checks import is_ordered, is_whole
from growarray.errors import ShapeError, shown
from growarray.ops.sizes import whole_number


def sample_width(where: str, in_features: int | Sequence[int], *, flatten: bool = True) -> int:
    """Numbers that one sample, or without ``flatten`` each of its last axes, is made of: from its width or its shape.

    >>> sample_width("doc", (3, 4)), sample_width("doc", (3, 4), flatten=False)
    (12, 4)
    """
    sizes = listed_widths(where, "in_features", in_features, 1)
    if not sizes and not flatten:
        raise ValueError(f"{where}: in_features is an empty shape; without flatten it needs a last axis")
    return math.prod(sizes if flatten else sizes[-1:])


def listed_widths(where: str, option: str, widths: Any, count: int) -> list[int]:
    """``count`` times one width, or the widths of a sequence, whose number the caller checks.

    Raises TypeError if one is not a whole number, ValueError if one is negative.

    >>> listed_widths("doc", "hidden_size", 2, count=3), listed_widths("doc", "hidden_size", (5, 4), count=1)
    ([2, 2, 2], [5, 4])
    """
    if is_whole(widths):
        return [whole_number(where, option, widths, 0)] * count
    if not is_ordered(widths):
        raise TypeError(f"{where}: {option} must be a whole number or a sequence of them, found {shown(widths)}")
    return [whole_number(where, f"{option}[{i}]", width, 0) for i, width in enumerate(widths)]


def check_widths(where: str, inputs: int, parts: Sequence[tuple[int, int]], outputs: int) -> None:
    """Raise ShapeError unless each of ``parts``, (in, out), takes what the one before it gives, from end to end."""
    outgoing, incoming = [inputs, *(part[1] for part in parts)], [*(part[0] for part in parts), outputs]
    if outgoing != incoming:
        raise ShapeError(f"{where}: parts that give widths {outgoing} are followed by parts that take {incoming}")


def check_chain(where: str, inputs: int, chain: Sequence[Any], outputs: int) -> None:
    """:func:`check_widths` of parts with ``in_features`` and ``out_features``."""
    check_widths(where, inputs, [(part.in_features, part.out_features) for part in chain], outputs)
