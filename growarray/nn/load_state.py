"""Matching a state dict to the arrays of a module: renaming, shapes and dtypes first, values last."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from growarray.backend import asarray, is_numpy
from growarray.errors import ShapeError
from growarray.nn.cast import RangeError, cast, dtype_name, largest_rounding
from growarray.nn.load_report import Cast, LoadReport, Misshapen

Array = Any
Rename = Mapping[str, str | None] | Callable[[str], str | None]
"""How names change: old to new, see :func:`renamed`."""

_INTEGERS = ("int", "uint")
_KINDS = (("bool",), _INTEGERS, ("float", "bfloat"), ("complex",))  # each holds those before it


class Renamed(NamedTuple):
    """Old names by new ones, and the entries of the mapping that applied to none."""

    old: dict[str, str]
    unused: tuple[str, ...] = ()


def renamed(names: Iterable[str], rename: Rename | None) -> Renamed:
    """The names after ``rename``: a mapping from old to new, or a function of the name.

    In a mapping a name stands for itself, and one that ends in a dot for that prefix (``''`` for that of every name).
    The name itself goes before a prefix, a longer prefix before a shorter one, and each name changes once. ``None`` in
    place of the new name leaves it out; a function does the same by returning None.

    >>> renamed(["a.w", "a.b", "head.w"], {"a.": "body.", "a.b": "bias", "head.": None}).old
    {'body.w': 'a.w', 'bias': 'a.b'}

    Raises TypeError: a name is not a string; ``rename`` is neither, or gives something else than a name or None;
    ValueError: two names become one, a name becomes empty, or a prefix would lose its dot.
    """
    names = list(names)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"expected names, found {name!r} as a key; pass the part of the state that has the weights")
    if rename is None:
        return Renamed({name: name for name in names})
    used: set[str] = set()
    if isinstance(rename, Mapping):
        change: Callable[[str], Any] = _by_mapping(rename, used)
    elif callable(rename):
        change = rename
    else:
        raise TypeError(f"rename: expected a mapping of names or a function, found {type(rename).__name__}")
    old: dict[str, str] = {}
    for name in names:
        new = change(name)
        if new is None:
            continue
        if not isinstance(new, str):
            raise TypeError(f"rename: {name!r} became {type(new).__name__}; expected a name, or None to leave it out")
        if not new:
            raise ValueError(f"rename: {name!r} became ''; give it a name, or None to leave it out")
        if new in old:
            raise ValueError(
                f"rename: {old[new]!r} and {name!r} both become {new!r}; give one another name, or None to leave it out"
            )
        old[new] = name
    unused = tuple(entry for entry in rename if entry not in used) if isinstance(rename, Mapping) else ()
    return Renamed(old, unused)


def _by_mapping(rename: Mapping[str, str | None], used: set[str]) -> Callable[[str], str | None]:
    """The function that a mapping stands for; it notes the entries that it uses."""
    for old, new in rename.items():
        if not isinstance(old, str) or not (new is None or isinstance(new, str)):
            raise TypeError(f"rename: expected names, found {old!r}: {new!r}")
        if old.endswith(".") and new and not new.endswith("."):
            raise ValueError(f"rename: {old!r} is a prefix, so expected {new + '.'!r}, found {new!r}")
        if old == "" and new and not new.endswith("."):
            raise ValueError(f"rename: '' is the prefix of every name, so expected {new + '.'!r}, found {new!r}")
    prefixes = sorted((old for old in rename if old == "" or old.endswith(".")), key=len, reverse=True)

    def change(name: str) -> str | None:
        if name in rename:
            used.add(name)
            return rename[name]
        for prefix in prefixes:
            if name.startswith(prefix):
                used.add(prefix)
                new = rename[prefix]
                return None if new is None else new + name[len(prefix) :]
        return name

    return change


class _Entry(NamedTuple):
    """One array of a state: its name there, shape, dtype, and its value unless that is still to be read."""

    key: str
    shape: tuple[int, ...]
    dtype: Any
    value: Any


def match_state(
    targets: Mapping[str, Array],
    state: Mapping[str, Any],
    rename: Rename | None = None,
    since: Mapping[str, int] = MappingProxyType({}),
) -> tuple[LoadReport, dict[str, _Entry]]:
    """What of ``state`` fits the arrays ``targets``, and the entries to take the values from, by the target's name.

    ``since`` maps a target to the version of its module that added it: a state of an earlier version may lack it.

    A state with an attribute ``stored``, shapes and dtypes by name as a checkpoint has it, is not read here; of any
    other mapping the values that the targets need are taken, each once. A further name
    of a tensor that a checkpoint holds (``tied``) matches too, and is not unexpected if no target has it.
    """
    if not isinstance(state, Mapping):
        raise TypeError(
            f"expected a mapping of names to arrays, found {type(state).__name__}; pass the state_dict() of a network, "
            "or load_checkpoint(path) for a file"
        )
    stored = getattr(state, "stored", None)
    stored = stored if isinstance(stored, Mapping) else None
    aliases = {} if stored is None else _aliases(stored, getattr(state, "tied", ()))
    names, unused = renamed([*state, *aliases], rename)
    entries: dict[str, _Entry] = {}
    misshapen, casts, refused = [], [], []
    for name, target in targets.items():
        if name not in names:
            continue
        entry = _entry(state, stored, aliases.get(names[name], names[name]))
        if entry.shape != tuple(target.shape):
            misshapen.append(Misshapen(name, entry.shape, tuple(target.shape)))
            continue
        of, to = dtype_name(entry.dtype), dtype_name(target.dtype)
        if of != to:
            if not _holds(to, of):
                refused.append(Cast(name, of, to))
                continue
            casts.append(Cast(name, of, to))
        entries[name] = entry
    lacking = [name for name in targets if name not in names]
    kept = tuple(name for name in lacking if name in since and _version(state, name, names) < since[name])
    missing = tuple(name for name in lacking if name not in kept)
    unexpected = tuple(name for name, key in names.items() if name not in targets and key not in aliases)
    shapes = {name: tuple(targets[name].shape) for name in missing}
    if unexpected:
        shapes |= _shapes(state, stored, {name: names[name] for name in unexpected})
    report = LoadReport(
        missing,
        unexpected,
        tuple(misshapen),
        tuple(refused),
        matched=tuple(entries),
        casts=tuple(casts),
        unused=unused,
        kept=kept,
        shapes=shapes,
    )
    return report, entries


def _version(state: Mapping[str, Any], name: str, names: Mapping[str, str]) -> int:
    """The version of the module of a target, by the name that the state gives to it; 0 if the state has none.

    A checkpoint has ``versions``, a state dict of torch ``_metadata``.
    """
    path = name.rpartition(".")[0]
    siblings = (key.rpartition(".")[0] for new, key in names.items() if new.rpartition(".")[0] == path)
    old, metadata = next(siblings, path), getattr(state, "_metadata", None)
    if isinstance(metadata, Mapping):
        entry = metadata.get(old)
        version = entry.get("version") if isinstance(entry, Mapping) else None
    else:
        versions = getattr(state, "versions", None)
        version = versions.get(old) if isinstance(versions, Mapping) else None
    return version if type(version) is int else 0


class Values(NamedTuple):
    """Arrays by the target's name; those of them that were rounded, and the values that did not fit."""

    arrays: dict[str, Array]
    rounded: dict[str, float]
    beyond: dict[str, Any]


def values_for(targets: Mapping[str, Array], state: Mapping[str, Any], entries: Mapping[str, _Entry]) -> Values:
    """Copies of the values, of the library, device and dtype of their targets, from what :func:`match_state` gave."""
    values = Values({}, {}, {})
    for name, entry in entries.items():
        like = targets[name]
        try:
            value = _value(state, entry, like)
            if tuple(value.shape) != tuple(like.shape):
                raise ShapeError(f"{name} was read with shape {tuple(value.shape)}, expected {tuple(like.shape)}")
            result = cast(value, like.dtype, name, copy=True)
            change = largest_rounding(value, result)
            values.arrays[name] = result
            if change:
                values.rounded[name] = change
        except RangeError as error:
            values.beyond[name] = error.value
        except Exception as error:
            error.add_note(f"while {entry.key!r} was read for {name!r}; nothing has been changed")
            raise
    return values


def _value(state: Mapping[str, Any], entry: _Entry, like: Array) -> Array:
    """The array of an entry in its own dtype, on the device of ``like``; an error names the entry."""
    value = state[entry.key] if entry.value is None else entry.value
    if is_numpy(value) and value.dtype.kind == "V":  # of ml_dtypes, which other libraries do not take
        value = value.astype(np.float32)
    if type(value) is type(like) and is_numpy(like):
        return value
    try:
        return asarray(value, like=like)
    except TypeError as error:
        raise TypeError(f"{entry.key!r}: {error}") from error


def check_strictly(report: LoadReport, where: str) -> None:
    """Raise unless all fits: ``KeyError`` (names), ``ShapeError`` (shapes), ``TypeError`` (dtypes), ``ValueError``.

    The last is for values beyond the range of a dtype that could hold others. The message is one line; the table is a
    note of the exception, which tracebacks show.
    """
    if not report:
        return
    kind: type[Exception] = TypeError
    if report.missing or report.unexpected:
        kind = KeyError
    elif report.misshapen:
        kind = ShapeError
    elif all(entry.name in report.beyond for entry in report.refused):
        kind = ValueError
    error = kind(f"{where}: {report.sentence()}; pass strict=False to load what fits")
    error.add_note(str(report))
    raise error


def _aliases(stored: Mapping[str, Any], tied: Iterable[Iterable[str]]) -> dict[str, str]:
    """Names that a file gives to a tensor beside the one it is stored under."""
    groups = [tuple(group) for group in tied]
    held = [next((name for name in group if name in stored), None) for group in groups]
    return {name: key for group, key in zip(groups, held, strict=True) if key for name in group if name not in stored}


def _entry(state: Mapping[str, Any], stored: Any, key: str) -> _Entry:
    if stored is not None:
        tensor = stored[key]
        return _Entry(key, tuple(tensor.shape), tensor.dtype.name, None)
    value = state[key]
    what = f"the value of {key!r} is a {type(value).__module__}.{type(value).__qualname__}".replace("builtins.", "")
    try:
        plain = not hasattr(value, "shape") or not hasattr(value, "dtype")
        shape, dtype = (None, None) if plain else (tuple(value.shape), value.dtype)
    except Exception as error:  # of whichever library it is: a parameter of torch may not know its shape yet
        raise TypeError(f"{what}; expected an array that has a shape and values") from error
    if shape is not None:
        return _Entry(key, shape, dtype, value)
    try:
        value = np.asarray(value)
    except ValueError as error:
        error.add_note(f"{what}; expected an array")
        raise
    return _Entry(key, value.shape, value.dtype, value)


def _shapes(state: Mapping[str, Any], stored: Any, keys: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """Shapes by new name, if they are known without reading the arrays."""
    if stored is not None:
        return {name: tuple(stored[key].shape) for name, key in keys.items()}
    if not isinstance(state, dict):
        return {}
    values = {name: state[key] for name, key in keys.items()}
    return {name: tuple(value.shape) for name, value in values.items() if hasattr(value, "shape")}


@lru_cache(maxsize=256)
def _holds(expected: str, found: str) -> bool:
    """Whether values of dtype ``found`` may become ``expected``: precision may be lost, parts and wholes may not.

    A real number may become complex and an integer real, never the other way round; an integer type must hold
    all that the stored one can.
    """
    to, of = _kind(expected), _kind(found)
    if to is None or of is None or of > to:
        return False
    if _KINDS[to] == _INTEGERS and of == to:
        return np.can_cast(_whole_bytes(found), _whole_bytes(expected), "safe")
    return True


def _kind(name: str) -> int | None:
    """Place in :data:`_KINDS`, by the letters that a dtype's name begins with; None for text, objects and dates."""
    letters = re.match("[a-z]*", name)[0]  # type: ignore[index]
    return next((i for i, names in enumerate(_KINDS) if letters in names), None)


def _whole_bytes(name: str) -> str:
    """``'int8'`` for the integers of 2 and 4 bits: they are handed out as bytes."""
    return re.sub("int[24]$", "int8", name)
