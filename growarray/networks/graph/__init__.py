"""Graphs that grow: their nodes and edges, what may be added, and what is known of it."""

from growarray.networks.graph.addition import ExpansionType
from growarray.networks.graph.dag import GrowingDAG
from growarray.networks.graph.expansion import Expansion
from growarray.networks.graph.statistics import GraphStatistics

__all__ = ["Expansion", "ExpansionType", "GraphStatistics", "GrowingDAG"]
