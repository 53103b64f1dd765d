"""From the structure of a checkpoint to flat names: which part is the state dict, and which prefixes come off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from growarray.checkpoint.torch.tree import CONTAINERS, as_tensor, full_parts
from growarray.errors import shown
from growarray.files.errors import Malformed, quote
from growarray.files.tensor import StoredTensor

Select = str | int | Sequence[Any] | None

PREFIXES = ("module.", "_orig_mod.")
"""Prefixes that wrappers put before every name: data parallelism, and compilation."""

_USUAL = ("state_dict", "model_state_dict", "model", "module", "network", "net", "weights", "params")


@dataclass
class Selection:
    """The part of a structure that holds the weights, the keys that lead to it, and why it was taken."""

    node: Any
    keys: tuple[Any, ...] = ()
    notes: list[str] = field(default_factory=list)


def select_state(root: Any, select: Select) -> Selection:
    """The part named by ``select`` (a key, or keys from the outside in), or the one that looks like a state dict.

    A number may be given as text. Raises Malformed if a key is not there, or leads to a plain value.

    Without ``select``: the first of the usual keys (``'state_dict'``, ``'model'``, …) that has tensors below it; else
    the whole, if tensors lie in it directly; else the only part that has tensors; else the whole.
    """
    if select is not None:
        return _follow(root, tuple(select) if isinstance(select, list | tuple) else (select,))
    if not isinstance(root, dict):
        return Selection(root)
    parts = full_parts(root)
    full = {key: value for key, value in root.items() if isinstance(value, dict) and id(value) in parts}
    usual = [key for key in _USUAL if key in full]
    direct = any(as_tensor(value) is not None for value in root.values())
    if not usual and (direct or len(full) != 1):
        return Selection(root)
    key = usual[0] if usual else next(iter(full))
    inner = _unwrap(full[key], parts)
    notes = [f"weights were taken from {quote(key)}"]
    others = [other for other, value in root.items() if id(value) in parts and other != key]
    if others:
        listed = ", ".join(map(quote, others[:8]))
        notes = [f"{notes[0]}; tensors are also in {listed} (pass select= to take those)"]
    return Selection(inner[1], (key, *inner[0]), notes)


def _unwrap(node: Any, parts: set[int]) -> tuple[tuple[Any, ...], Any]:
    """Go on into ``{'state_dict': {…}}`` if that is all that has tensors."""
    keys: tuple[Any, ...] = ()
    while isinstance(node, dict) and not any(as_tensor(value) is not None for value in node.values()):
        full = [key for key, value in node.items() if isinstance(value, dict) and id(value) in parts]
        if len(full) != 1 or full[0] not in _USUAL or len(keys) > 8:
            break
        keys, node = (*keys, full[0]), node[full[0]]
    return keys, node


def _follow(root: Any, keys: tuple[Any, ...]) -> Selection:
    node, path = root, []
    for key in keys:
        children = (
            list(node) if isinstance(node, dict) else list(range(len(node))) if type(node) in (list, tuple) else []
        )
        if key not in children and type(key) is str and key.isascii() and key.isdecimal() and int(key) in children:
            key = int(key)  # a command line has no other way to say it
        if key not in children:
            names = ", ".join(quote(name) for name in children[:12]) or "none"
            raise Malformed(f"select={shown(keys)}: there is no {shown(key)}; keys there: {names}")
        node = node[key]
        path.append(key)
    if type(node) not in CONTAINERS and as_tensor(node) is None:
        raise Malformed(f"select={shown(keys)}: there is {quote(node)}, which has no tensors; extras hold plain values")
    return Selection(node, tuple(path))


def flatten(root: Any, memory: int) -> tuple[dict[str, StoredTensor], dict[str, Any]]:
    """Tensors and other leaves by dotted name. ``memory`` bounds the bytes of the names.

    A part without tensors is one leaf, whatever it holds.
    """
    tensors: dict[str, StoredTensor] = {}
    rest: dict[str, Any] = {}
    parts = full_parts(root)
    entered: set[int] = set()

    def visit(node: Any, name: str) -> None:
        nonlocal memory
        memory -= 200 + len(name)
        if memory < 0:
            raise Malformed("names of the tensors need more memory than Limits.memory and the file's size")
        tensor = as_tensor(node)
        if tensor is None and (id(node) in entered or id(node) not in parts):
            rest[name] = node
            return
        if tensor is not None:
            if name in tensors:
                raise Malformed(f"two tensors would be called {quote(name)}; pass select= to take one part")
            tensors[name] = tensor
            return
        entered.add(id(node))
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            part = key if type(key) is str else repr(key)
            visit(child, f"{name}.{part}" if name else part)
        entered.discard(id(node))

    if as_tensor(root) is not None:
        visit(root, "tensor")
    elif type(root) in CONTAINERS and id(root) not in parts:
        pairs = root.items() if isinstance(root, dict) else enumerate(root)
        rest.update({key if type(key) is str else repr(key): value for key, value in pairs})
    elif type(root) in CONTAINERS:
        visit(root, "")
    return tensors, rest


def strip_prefixes(
    names: list[str], prefix: str | Sequence[str] | None, *, aliases: Sequence[str] = ()
) -> tuple[dict[str, str], str]:
    """New names by old ones, and the prefix that came off. ``aliases`` lose what the names lose.

    ``prefix=None``: those of ``PREFIXES`` come off if every name has them, again and again, and ``_orig_mod.`` inside
    names too. Otherwise the given ones come off wherever they stand first. Raises Malformed if two names would
    become one.

    >>> strip_prefixes(["module.a", "module.b"], None)
    ({'module.a': 'a', 'module.b': 'b'}, 'module.')
    """
    if prefix is None:
        front = _common_front(names)
        inside = any("._orig_mod." in name[len(front) :] for name in names)
        taken = f"{front}…_orig_mod." if inside else front
        result = {name: name.removeprefix(front).replace("._orig_mod.", ".") for name in (*names, *aliases)}
    else:
        prefixes = tuple(p for p in ((prefix,) if isinstance(prefix, str) else prefix) if p)
        result = {name: _strip_given(name, prefixes) for name in (*names, *aliases)}
        taken = ", ".join(p for p in prefixes if any(name.startswith(p) and name != p for name in names))
    _refuse_collision(result)
    if prefix is None and not taken:
        _refuse_collision({name: _strip_given(name, PREFIXES) for name in names})
    return result, taken


def _common_front(names: list[str]) -> str:
    """The prefixes of ``PREFIXES`` that every name has, one after another."""
    front = ""
    while names:
        first = next((p for p in PREFIXES if all(name.startswith(p) and name != p for name in names)), None)
        if first is None:
            break
        names, front = [name[len(first) :] for name in names], front + first
    return front


def _strip_given(name: str, prefixes: tuple[str, ...]) -> str:
    while front := next((p for p in prefixes if name.startswith(p) and name != p), None):
        name = name[len(front) :]
    return name


def _refuse_collision(renamed: dict[str, str]) -> None:
    back: dict[str, str] = {}
    for old, new in renamed.items():
        if new in back:
            raise Malformed(
                f"names collide without their prefix: {quote(back[new])} and {quote(old)} both become {quote(new)}; "
                "pass prefix=() to keep the names of the file"
            )
        back[new] = old
