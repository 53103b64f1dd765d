"""Errors of files: a fault is described where it is found, and the file's name is added once, at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from growarray.errors import CheckpointError


class Malformed(Exception):
    """What is wrong, expected and found; :func:`naming` turns it into a ``CheckpointError`` that names the file."""


@contextmanager
def at(place: str) -> Iterator[None]:
    """Put the place in the file before the message of a fault."""
    try:
        yield
    except Malformed as fault:
        raise Malformed(f"{place}: {fault}") from None


@contextmanager
def naming(file: str) -> Iterator[None]:
    """Turn every fault, and every lack of memory, disk or stack, into a ``CheckpointError`` that names the file."""
    try:
        yield
    except Malformed as fault:
        raise CheckpointError(f"{file}: {fault}") from None
    except OSError as fault:
        raise CheckpointError(f"{file}: cannot be read: {fault.strerror or fault}") from fault
    except MemoryError:
        raise CheckpointError(
            f"{file}: needs more memory than this process may use; use select=, or a larger machine"
        ) from None
    except RecursionError:
        raise CheckpointError(f"{file}: is nested deeper than Python's stack allows") from None


def quote(value: object, most: int = 120) -> str:
    """A value of a foreign file in a message: quoted, printable, cut to ``most`` characters.

    >>> quote("weight")
    "'weight'"
    """
    if type(value) in (list, tuple, dict, set):
        return f"a {type(value).__name__} of {len(value)}"  # type: ignore[arg-type]
    if type(value) is int and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    if type(value) in (str, bytes, bytearray):
        text = ascii(value[:most])  # type: ignore[index]
        return text + "…" if len(value) > most else text  # type: ignore[arg-type]
    if type(value) in (int, float, bool, complex, type(None)):
        return repr(value)
    return f"a {type(value).__name__}"
