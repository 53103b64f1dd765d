"""What a pickle may name and build, none of which can do anything: names, and containers that take a state."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from growarray.files.dtypes import DType
from growarray.files.errors import Malformed, quote

_MOST_IN_KEY = 64


@dataclass(frozen=True, slots=True, eq=False)
class Global:
    """A name of the allow-list: ``build`` is what a call stands for, storage classes and dtypes have ``dtype``."""

    name: str
    build: Callable[[Any, tuple[Any, ...]], Any] | None = None
    dtype: DType | None = None
    storage: bool = False


def name_of(value: Any) -> str:
    """A value in a message: the name of a global, and of anything else what :func:`quote` says."""
    return value.name if type(value) is Global else quote(value)


class Build(ABC):
    """A value that the opcode BUILD may complete."""

    @abstractmethod
    def set_state(self, state: Any) -> None:
        """Take the state over, or refuse it."""


class OrderedTree(dict[Any, Any], Build):
    """An ``OrderedDict``; a state dict of torch carries the versions of its modules as ``_metadata``."""

    metadata: dict[Any, Any] | None = None

    def set_state(self, state: Any) -> None:
        """Take ``{'_metadata': …}`` over: any other attribute would change how the mapping behaves."""
        if type(state) is not dict or len(state) > 1 or (state and "_metadata" not in state):
            entries = sorted(map(quote, islice(state, 3))) if type(state) is dict else quote(state)
            raise Malformed(f"state of an OrderedDict is {entries}; expected {{'_metadata': …}}")
        versions = state.get("_metadata")
        if versions is not None and type(versions) not in (dict, OrderedTree):
            raise Malformed(f"_metadata is {quote(versions)}; expected a dictionary")
        self.metadata = versions


def check_key(key: Any) -> bool:
    """Refuse keys that cannot be hashed, or that make dictionaries crawl; tell whether the key is a tuple.

    Strings and bytes are hashed with a secret of the process; ints below 2**61 - 1 hash to themselves, and a
    dictionary tells them apart within a dozen probes. The hash of a tuple can be chosen, so the caller counts them.
    """
    _measure_key(key, _MOST_IN_KEY)
    return type(key) is tuple


def _measure_key(key: Any, most: int) -> int:
    """Values in a key, at most ``most``: what a tuple shares with itself is hashed each time."""
    kind = type(key)
    if kind in (str, bytes, bool, type(None), float) or (kind is int and abs(key) < 2**61 - 1):
        return 1
    size = 1
    if kind is tuple:
        for part in key:
            if size >= most:
                break
            size += _measure_key(part, most - size)
        else:
            return size
    raise Malformed(f"key is {quote(key)}; expected a string, a number below 2**61 or a short tuple of them")


_UNREAD = (  # part of the name, what it is, what to do
    ("sparse", "a sparse tensor", "save tensor.to_dense()"),
    ("qtensor", "a quantized tensor", "save tensor.dequantize()"),
    ("nested_tensor", "a nested tensor", "save its parts one by one"),
    ("meta_tensor", "a meta tensor, without values", "save the model after its weights are loaded"),
)


def unknown_global(module: object, name: object) -> Malformed:
    """The error for a global that is not in the table, with what to do about it."""
    both = f"{module}.{name}" if type(module) is type(name) is str else f"{quote(module)}, {quote(name)}"
    full = both.encode("ascii", "backslashreplace").decode()[:200]
    for part, what, remedy in _UNREAD:
        if part in full:
            return Malformed(f"{full!r} rebuilds {what}; that is not read: {remedy}")
    if re.fullmatch(r"torch\.(q?u?int\d+(x2)?|bits\w+|b?float\d\w*)", full):
        return Malformed(f"{full!r} is an element type that is not read; save tensor.view(torch.uint8) or a wider type")
    if full.startswith("torch.nn.modules."):
        return Malformed(f"{full!r}: a whole module was pickled, which is code; save its state_dict() in its place")
    return Malformed(
        f"global {full!r} is not among those that are read as data; only tensors and plain values are, "
        "so save a state_dict() without other objects"
    )
