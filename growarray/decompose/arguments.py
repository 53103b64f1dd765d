"""Numbers, sizes, modes and options as users write them, of Python or of NumPy, checked without looking at an array."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from numbers import Real
from typing import Any

from growarray.contraction.checks import is_ordered, is_whole
from growarray.errors import ShapeError, shown


def is_real(value: Any) -> bool:
    """Whether ``value`` is a number, of Python or NumPy, but not a bool.

    >>> import numpy as np
    >>> is_real(np.float32(0.5)), is_real(True), is_real("1")
    (True, False, False)
    """
    return isinstance(value, Real) and not isinstance(value, bool)


def is_share(rank: Any) -> bool:
    """Whether a rank is given as a share of the parameters, a word or a number that is not whole.

    >>> is_share("same"), is_share(0.5), is_share(2), is_share((1, 2))
    (True, True, False, False)
    """
    return isinstance(rank, str) or (is_real(rank) and not is_whole(rank))


def check_count(value: Any, name: str, where: str, least: int = 0) -> int:
    """A whole number of at least ``least``."""
    if not is_whole(value) or value < least:
        raise ValueError(f"{where}: expected {name} as a whole number of at least {least}, found {shown(value)}")
    return int(value)


def check_choice(value: Any, choices: Sequence[str], name: str, where: str) -> str:
    """One of some words."""
    if not isinstance(value, str) or value not in choices:
        *most, last = map(repr, choices)
        raise ValueError(f"{where}: found {name} {shown(value)}, expected {', '.join(most)} or {last}")
    return value


def check_sizes(shape: Any, where: str) -> tuple[int, ...]:
    """A shape of at least one mode, each of at least one entry.

    Raises TypeError, ShapeError: not whole numbers; no modes, or one without entries.
    """
    if not is_ordered(shape):
        raise TypeError(f"{where}: expected a shape, one whole number for each mode, found {shown(shape)}")
    sizes = tuple(shape)
    if not all(map(is_whole, sizes)):
        raise TypeError(f"{where}: expected a shape of whole numbers, found {shown(shape)}")
    if not sizes or min(sizes) < 1:
        raise ShapeError(f"{where}: expected a shape of at least one mode with sizes of at least 1, found {sizes}")
    return tuple(map(int, sizes))


def check_modes(modes: Any, order: int, where: str, name: str = "modes") -> tuple[int, ...]:
    """Axes of a tensor, counted from the front; negative ones count from the end.

    Raises TypeError, ShapeError: not whole numbers; an axis that is not there, or one that is named twice.
    """
    if not is_ordered(modes) or not all(map(is_whole, given := tuple(modes))):
        raise TypeError(f"{where}: expected {name} as whole numbers, axes of {order} modes, found {shown(modes)}")
    counted = tuple(int(m) + order if m < 0 else int(m) for m in given)
    if len(set(counted)) != len(counted) or not set(counted) <= set(range(order)):
        raise ShapeError(
            f"{where}: expected {name} as different axes of a tensor of order {order}, found {shown(modes)}"
        )
    return counted


def options_of(function: Callable[..., Any], without: Collection[str] = ()) -> tuple[str, ...]:
    """Names of the keyword options of a function.

    >>> def fitted(x, *, steps=3, rng=None): ...
    >>> options_of(fitted, without=["rng"])
    ('steps',)
    """
    parameters = inspect.signature(function).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in without)


def check_options(options: Any, known: Collection[str], where: str) -> dict[str, Any]:
    """Options by name; TypeError names one that does not exist, and lists those that do."""
    if not isinstance(options, Mapping):
        raise TypeError(f"{where}: expected options as a mapping from their names, found {shown(options)}")
    for name in options:
        if name not in known:
            there = f"it has {', '.join(known)}" if known else "it has none"
            raise TypeError(f"{where}: unknown option {shown(name)}; {there}")
    return dict(options)
