"""Graphs by the names of their nodes: the order of computation, ancestors, and what fits in without a cycle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

from growarray.errors import GrowthError

Edge = tuple[str, str]


def arrow(edge: Edge) -> str:
    """An edge as text.

    >>> arrow(("start", "end"))
    'start->end'
    """
    return "->".join(edge)


def in_order(where: str, nodes: Iterable[str], edges: Iterable[Edge]) -> list[str]:
    """The nodes so that every edge leads forward; ``GrowthError`` that names a cycle, if there is one.

    >>> in_order("doc", ["end", "start", "1"], [("start", "1"), ("1", "end")])
    ['start', '1', 'end']
    """
    before: dict[str, list[str]] = {node: [] for node in nodes}
    for source, target in edges:
        before[target].append(source)
    try:
        return list(TopologicalSorter(before).static_order())
    except CycleError as error:
        cycle = " -> ".join(error.args[1])
        raise GrowthError(f"{where}: the edges run in a cycle, {cycle}; remove or reverse one of them") from error


def ancestors(order: Sequence[str], edges: Iterable[Edge]) -> dict[str, frozenset[str]]:
    """For every node, itself and all nodes from which it can be reached.

    >>> sorted(ancestors(["start", "1", "end"], [("start", "1"), ("1", "end")])["1"])
    ['1', 'start']
    """
    before: dict[str, frozenset[str]] = {}
    edges = list(edges)
    for node in order:
        before[node] = frozenset({node}).union(*(before[source] for source, target in edges if target == node))
    return before


def possible_edges(before: Mapping[str, frozenset[str]], edges: Iterable[Edge]) -> list[Edge]:
    """Edges that are missing and would close no cycle, sorted by name.

    >>> possible_edges({"start": {"start"}, "1": {"1", "start"}, "end": {"end", "1", "start"}}, [("start", "1")])
    [('1', 'end'), ('start', 'end')]
    """
    existing = set(edges)
    return [edge for edge in _forward(before) if edge not in existing]


def possible_paths(before: Mapping[str, frozenset[str]], edges: Iterable[Edge]) -> list[Edge]:
    """Pairs of nodes between which a new node may be added: forward, and with no path over one node yet; sorted.

    >>> before = {"start": {"start"}, "1": {"1", "start"}, "end": {"end", "1", "start"}}
    >>> possible_paths(before, [("start", "1"), ("1", "end")])
    [('1', 'end'), ('start', '1')]
    """
    edges = list(edges)
    one_hop = {(a, d) for a, b in edges for c, d in edges if b == c}
    return [pair for pair in _forward(before) if pair not in one_hop]


def _forward(before: Mapping[str, frozenset[str]]) -> list[Edge]:
    return sorted((source, target) for source in before for target in before if target not in before[source])


def candidate_suffix(index: int) -> str:
    """Letters that distinguish candidates of one name.

    >>> [candidate_suffix(i) for i in (0, 25, 26, 701, 702)]
    ['a', 'z', 'aa', 'zz', 'aaa']
    """
    letters = ""
    while index >= 0:
        letters = chr(ord("a") + index % 26) + letters
        index = index // 26 - 1
    return letters
