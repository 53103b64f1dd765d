"""The structure of a checkpoint: checked once, without recursion, and resolved into plain data when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from growarray.checkpoint.torch.allowlist import Global, OrderedTree, name_of
from growarray.checkpoint.torch.rebuild import Storage
from growarray.checkpoint.torch.values import PickledArray
from growarray.files.errors import Malformed, quote
from growarray.files.limits import Limits
from growarray.files.tensor import StoredTensor

CONTAINERS = frozenset((dict, OrderedTree, list, tuple))
_PLAIN = frozenset((str, int, float, bool, type(None), bytes, bytearray, complex, set, frozenset))
_SMALL = 16  # leaves of a container that is looked through again, not remembered, if it is shared
_RECORD = 300  # bytes to remember a container


def _children(node: Any) -> Iterator[Any]:
    """Values of a mapping, items of a sequence."""
    return iter(node.values() if isinstance(node, dict) else node)


def _split(node: Any) -> tuple[list[Any], list[Any]]:
    """The containers in a container, and its leaves that are not plain values."""
    rest = [child for child in _children(node) if type(child) not in _PLAIN]
    inner = [child for child in rest if type(child) in CONTAINERS]
    return inner, rest if not inner else [child for child in rest if type(child) not in CONTAINERS]


def as_tensor(leaf: Any) -> StoredTensor | None:
    """The tensor that a leaf of the structure stands for, if it does."""
    if type(leaf) is PickledArray:
        return leaf.tensor
    return leaf if isinstance(leaf, StoredTensor) else None


def check_tree(root: Any, limits: Limits, memory: int) -> None:
    """Refuse leaves that are not data, nesting beyond the limit, and sharing that blows a small file up.

    A list or dictionary may contain itself; a tuple may not, for it could not be rebuilt. ``memory`` bounds the bytes
    that it takes to remember which containers were seen, here and in :func:`full_parts`.
    """
    if type(root) not in CONTAINERS:
        _check_leaf(root)
        return
    done: dict[int, tuple[int, int]] = {}  # container -> leaves below it, depth below it
    open_ = [_Frame(root)]
    inside = {id(root)}
    while open_:
        frame = open_[-1]
        for child in frame.inner:
            if id(child) in done:
                frame.add(*done[id(child)])
            elif id(child) in inside:
                if type(child) is tuple:
                    raise Malformed("structure has a tuple that contains itself")
                frame.leaves += 1
            else:
                below = _Frame(child)
                if not below.small:
                    inside.add(id(child))
                    open_.append(below)
                    break
                frame.add(below.leaves, 1)
        else:
            open_.pop()
            inside.discard(id(frame.node))
            done[id(frame.node)] = (frame.leaves, frame.depth + 1)
            if open_:
                open_[-1].add(frame.leaves, frame.depth + 1)
        if frame.leaves > limits.items:
            raise Malformed(f"structure has more than {limits.items} leaves (Limits.items)")
        if len(open_) > limits.depth or (not open_ and frame.depth >= limits.depth):
            raise Malformed(f"structure is nested deeper than {limits.depth} (Limits.depth)")
        if len(done) * _RECORD > memory:
            raise Malformed(f"structure needs more than {limits.memory} bytes and the file's size (Limits.memory)")


class _Frame:
    """A container that is being looked through: what it has inside, and what was found below so far."""

    __slots__ = ("depth", "inner", "leaves", "node", "small")

    def __init__(self, node: Any) -> None:
        inner, leaves = _split(node)
        for leaf in leaves:
            _check_leaf(leaf)
        self.node = node
        self.inner = iter(inner)
        self.leaves = len(node) - len(inner)
        self.depth = 0
        self.small = not inner and self.leaves <= _SMALL

    def add(self, leaves: int, depth: int) -> None:
        """Count what a container inside has."""
        self.leaves += leaves
        self.depth = max(self.depth, depth)


def _check_leaf(leaf: Any) -> None:
    if type(leaf) in _PLAIN or isinstance(leaf, StoredTensor):
        return
    if type(leaf) is PickledArray and leaf.tensor is not None:
        return
    if type(leaf) is Global and leaf.dtype is not None and not leaf.storage:
        return
    if type(leaf) is Storage:
        raise Malformed(f"structure holds a bare storage {quote(leaf.key)}, which is not a tensor; save the tensor")
    raise Malformed(f"structure holds {name_of(leaf)}, which is neither a tensor nor a plain value")


def full_parts(root: Any) -> set[int]:
    """``id`` of every container that has a tensor anywhere below it; each is visited once."""
    holders: dict[int, list[int]] = {}  # container -> containers that hold it
    holders[id(root)] = []
    waiting = [(root, *_split(root))] if type(root) in CONTAINERS else []
    full = []
    while waiting:
        node, inner, leaves = waiting.pop()
        if any(as_tensor(leaf) is not None for leaf in leaves):
            full.append(id(node))
        for child in inner:
            if id(child) in holders:
                holders[id(child)].append(id(node))
            elif any(below := _split(child)) or len(child) > _SMALL:
                holders[id(child)] = [id(node)]
                waiting.append((child, *below))
    result: set[int] = set()
    while full:
        part = full.pop()
        if part not in result:
            result.add(part)
            full.extend(holders[part])
    return result


def resolve(root: Any, read: Callable[[StoredTensor], Any]) -> Any:
    """The structure as plain dictionaries, lists, tuples, values and what ``read`` makes of each tensor.

    What is shared in the file is shared in the result. The depth has been checked, so recursion is bounded.
    """
    done: dict[int, Any] = {}

    def convert(node: Any) -> Any:
        if id(node) in done:
            return done[id(node)]
        result: Any = node
        if isinstance(node, dict):
            result = done[id(node)] = {}
            result.update((key, convert(value)) for key, value in node.items())
        elif type(node) is list:
            result = done[id(node)] = []
            result.extend(convert(value) for value in node)
        elif type(node) is tuple:
            result = done[id(node)] = tuple(convert(value) for value in node)
        elif type(node) is Global:
            result = node.name
        elif (tensor := as_tensor(node)) is not None:
            result = done[id(node)] = read(tensor)
        return result

    return convert(root)
