"""Two graphs as one: where the first ends, the second goes on."""

from __future__ import annotations

from typing import Any

from growarray.errors import GrowthError, ShapeError, shown
from growarray.networks.graph.graph import LayerGraph
from growarray.networks.graph.structure import arrow


def append(dag: Any, other: Any) -> None:
    """Let ``other`` go on where this graph ends: its root and this end become one node, which can get wider.

    The value is ``other(self(x))``; nodes keep their names but for the root of ``other``, whose layers are this
    graph's from now on. That the place between two graphs grows is the original's ``InterMergeExpansion``.

    Raises TypeError, ShapeError or GrowthError, before anything changes: ``other`` is no other graph, reads another
    width, has a node of the same name, or both nodes that become one have a function.

    >>> import numpy as np
    >>> from growarray.networks import GrowingDAG
    >>> first, second = GrowingDAG(4, 3, name="a"), GrowingDAG(3, 2, name="b")
    >>> first.append(second)
    >>> first(np.zeros((5, 4), np.float32)).shape, first.edges
    ((5, 2), [('start@a', 'end@a'), ('end@a', 'end@b')])
    >>> [str(expansion) for expansion in first.define_next_actions()][-1]
    'wider node end'
    """
    if not isinstance(other, LayerGraph) or other is dag:
        raise TypeError(f"GrowingDAG.append: expected another GrowingDAG, found {shown(other)}")
    joint, root = dag.end, other.root
    if dag.out_features != other.in_features:
        raise ShapeError(
            f"GrowingDAG.append: the graph ends in {dag.out_features} features, the other one reads "
            f"{other.in_features}; they must be as many"
        )
    meet = [dag.images_of(joint), other.images_of(root)]
    if meet[0] != meet[1]:
        first, second = ("features" if images is None else str(images) for images in meet)
        raise ShapeError(
            f"GrowingDAG.append: the graph ends in {first}, the other one reads {second}; they must be the same"
        )
    for node in other.merges:
        if node != root:
            dag._check_new(node)
    plain = {"activation": "id", "use_layer_norm": False}
    applied = [{name: of[name] for name in plain} for of in (dag._attributes[joint], other._attributes[root])]
    ahead = applied[0] == plain
    if plain not in applied:
        raise GrowthError(
            f"GrowingDAG.append: {joint} and {root} become one node and both have a function, "
            "expected one with activation 'id' and no layer norm"
        )
    merge = dag.merges[joint]
    merge.allow_growing = True
    if ahead:
        merge.post_merge_function = other.merges[root].post_merge_function
        dag._attributes[joint] = other._attributes[root]
    dag.merges |= {node: held for node, held in other.merges.items() if node != root}
    dag._attributes |= {node: held for node, held in other._attributes.items() if node != root}
    for edge, (source, target) in other._ends.items():
        pair = (joint if source == root else source, target)
        dag.layers[arrow(pair)], dag._ends[arrow(pair)] = other.layers[edge], pair
    dag.end, dag.out_features = other.end, other.out_features
    dag._connect()
