"""JSON of a foreign file: UTF-8, no key twice, no NaN, and its memory known before it is parsed."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from growarray.files.errors import Malformed, quote

_COSTS = (("{", 700), ("[", 110), (",", 48), (":", 24))  # bytes of Python objects, at most


def parse_json(raw: bytes | memoryview, *, memory: int) -> dict[str, Any]:
    """The object that ``raw`` holds. Raises Malformed for anything that two parsers could read differently.

    >>> parse_json(b'{"a": [1, 2]}', memory=10_000)
    {'a': [1, 2]}
    """
    try:
        text = str(raw, "utf-8")
        if len(text) + sum(text.count(mark) * cost for mark, cost in _COSTS) > memory:
            raise Malformed(f"JSON of {len(raw)} bytes needs more than {memory} bytes of memory (Limits.memory)")
        result = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_int=_integer)
    except UnicodeDecodeError:
        raise Malformed("JSON is not UTF-8") from None
    except RecursionError:
        raise Malformed("JSON is nested too deeply") from None
    except ValueError as fault:
        raise Malformed(f"JSON is damaged: {str(fault)[:200]}") from None
    if type(result) is not dict:
        raise Malformed(f"JSON is {quote(result)}; expected an object")
    return result


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise Malformed(f"JSON has the key {quote(key)} twice")
            seen.add(key)
    for key in result:
        expect_string(key, "key")
    return result


def _integer(digits: str) -> int:
    if len(digits) > 20:
        raise Malformed(f"JSON has an integer of {len(digits)} digits")
    return int(digits)


def _no_constant(name: str) -> NoReturn:
    raise Malformed(f"JSON has {name}, which JSON does not allow")


def expect_string(value: object, what: str) -> str:
    """The value, if it is a string that can be written out again (no lone surrogate)."""
    if type(value) is not str:
        raise Malformed(f"{what} is {quote(value)}; expected a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise Malformed(f"{what} {quote(value)} has a lone surrogate") from None
    return value
