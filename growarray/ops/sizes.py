"""Whole numbers among arguments, one or one for each spatial axis, as torch takes them."""

from __future__ import annotations

import operator
from typing import Any

from growarray.contraction.checks import is_whole
from growarray.errors import ShapeError, shown


def whole_number(where: str, option: str, value: Any, least: int) -> int:
    """``value`` as an int; raises TypeError if it is not a whole number, ValueError if it is below ``least``.

    >>> whole_number("doc", "groups", 2, least=1)
    2
    """
    if not is_whole(value):
        raise TypeError(f"{where}: {option} must be a whole number, found {shown(value)}")
    if value < least:
        raise ValueError(f"{where}: {option} must be at least {least}, found {shown(value)}")
    return operator.index(value)


def checked_groups(where: str, in_channels: Any, out_channels: Any, groups: Any, least: int) -> int:
    """The groups; raises ShapeError unless they divide both numbers of channels, which are at least ``least``."""
    count = whole_number(where, "groups", groups, 1)
    for label, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
        if whole_number(where, label, channels, least) % count:
            raise ShapeError(
                f"{where}: {label}={channels} does not divide into groups={count}; choose a common divisor of "
                f"{in_channels} and {out_channels}"
            )
    return count


def each_axis(where: str, option: str, value: Any, axes: int, least: int) -> tuple[int, ...]:
    """One whole number for each axis, none below ``least``, from one for all or a sequence.

    Raises TypeError if one is not a whole number, ValueError if one is too small or their number is not ``axes``.

    >>> each_axis("doc", "kernel_size", 3, axes=2, least=1)
    (3, 3)
    """
    values = tuple(value) if isinstance(value, tuple | list) else (value,) * axes
    if len(values) != axes:
        raise ValueError(
            f"{where}: {option} has {len(values)} entries for {axes} spatial axes, found {shown(value)}; "
            "give one number, or one for each axis"
        )
    if not all(is_whole(v) for v in values):
        raise TypeError(f"{where}: {option} must be one whole number, or one for each axis, found {shown(value)}")
    if any(v < least for v in values):
        raise ValueError(f"{where}: {option} must be at least {least}, found {shown(value)}")
    return tuple(operator.index(v) for v in values)
