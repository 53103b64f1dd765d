"""The structure of a checkpoint: checked once, without recursion, and resolved into plain data when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from growarray.checkpoint.inert import Global, OrderedTree
from growarray.checkpoint.limits import Limits
from growarray.checkpoint.plain_values import PickledArray
from growarray.checkpoint.rebuild import Storage
from growarray.checkpoint.refusal import Malformed, quote
from growarray.checkpoint.tensor import StoredTensor

__all__ = ["CONTAINERS", "as_tensor", "check_tree", "full_parts", "resolve"]

CONTAINERS = (dict, OrderedTree, list, tuple)
_PLAIN = (str, int, float, bool, type(None), bytes, bytearray, complex, set, frozenset)


def _children(node: Any) -> Iterator[Any]:
    """Values of a mapping, items of a sequence."""
    return iter(node.values() if isinstance(node, dict) else node)


def as_tensor(leaf: Any) -> StoredTensor | None:
    """The tensor that a leaf of the structure stands for, if it does."""
    if type(leaf) is PickledArray:
        return leaf.tensor
    return leaf if isinstance(leaf, StoredTensor) else None


def check_tree(root: Any, limits: Limits) -> None:
    """Refuse leaves that are no data, nesting beyond the limit, and sharing that blows a small file up.

    A list or dictionary may contain itself; a tuple may not, for it could not be rebuilt.
    """
    if type(root) not in CONTAINERS:
        _check_leaf(root)
        return
    done: dict[int, tuple[int, int]] = {}  # container -> leaves below it, depth below it
    open_: list[list[Any]] = [[root, _children(root), 0, 0]]
    inside = {id(root)}
    while open_:
        frame = open_[-1]
        for child in frame[1]:
            if type(child) not in CONTAINERS:
                _check_leaf(child)
                frame[2] += 1
            elif id(child) in done:
                leaves, depth = done[id(child)]
                frame[2], frame[3] = frame[2] + leaves, max(frame[3], depth)
            elif id(child) in inside:
                if type(child) is tuple:
                    raise Malformed("structure has a tuple that contains itself")
                frame[2] += 1
            else:
                inside.add(id(child))
                open_.append([child, _children(child), 0, 0])
                break
        else:
            node, _, leaves, depth = open_.pop()
            inside.discard(id(node))
            done[id(node)] = (leaves, depth + 1)
            if open_:
                open_[-1][2] += leaves
                open_[-1][3] = max(open_[-1][3], depth + 1)
            if leaves > limits.items:
                raise Malformed(f"structure has more than {limits.items} leaves (Limits.items)")
        if len(open_) > limits.depth or (not open_ and done[id(root)][1] > limits.depth):
            raise Malformed(f"structure is nested deeper than {limits.depth} (Limits.depth)")


def _check_leaf(leaf: Any) -> None:
    if type(leaf) in _PLAIN or isinstance(leaf, StoredTensor):
        return
    if type(leaf) is PickledArray and leaf.tensor is not None:
        return
    if type(leaf) is Global and leaf.dtype is not None and not leaf.storage:
        return
    if type(leaf) is Storage:
        raise Malformed(f"structure holds a bare storage {quote(leaf.key)}, which is no tensor; save the tensor")
    name = leaf.name if type(leaf) is Global else quote(leaf)
    raise Malformed(f"structure holds {name}, which is neither a tensor nor a plain value")


def full_parts(root: Any) -> set[int]:
    """``id`` of every container that has a tensor anywhere below it; each is visited once."""
    holders: dict[int, list[int]] = {}  # container -> containers that hold it
    waiting, full = [root] if type(root) in CONTAINERS else [], []
    holders[id(root)] = []
    while waiting:
        node = waiting.pop()
        has = False
        for child in _children(node):
            if type(child) not in CONTAINERS:
                has = has or as_tensor(child) is not None
            elif id(child) in holders:
                holders[id(child)].append(id(node))
            else:
                holders[id(child)] = [id(node)]
                waiting.append(child)
        if has:
            full.append(id(node))
    found: set[int] = set()
    while full:
        part = full.pop()
        if part not in found:
            found.add(part)
            full.extend(holders[part])
    return found


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
