"""Statistics of a graph: cross moments of all its nodes, summed batch by batch in one pass."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from growarray.backend import Array, asarray, namespace, to_numpy
from growarray.growing import JoinedStream, Stream, TensorStatistic, cross_moment
from growarray.growing.rule import LayerMeans
from growarray.growing.update import pseudo_inverse, rounding_floor
from growarray.networks.graph.sampled import neurons_between
from growarray.nn import Module


class Features(NamedTuple):
    """Activities of some nodes side by side, and with ``ones`` a last column of ones for their biases."""

    nodes: tuple[str, ...]
    ones: bool

    def values(self, matrix: Array, activities: Mapping[str, Array]) -> Array:
        """The product of ``matrix`` (k, width of all) with the features of a batch: (n, k), or (k,) of ones alone."""
        total, start = None, 0
        for node in self.nodes:
            part = activities[node]
            block = matrix[:, start : start + part.shape[1]]
            start += int(part.shape[1])
            product = part @ namespace(block).matrix_transpose(block)
            total = product if total is None else total + product
        if not self.ones:
            return total
        return matrix[:, start] if total is None else total + matrix[:, start]

    def cut(self, matrix: Array, widths: dict[str, int]) -> tuple[dict[str, Array], Array | None]:
        """The columns of ``matrix`` by node, and those of the ones."""
        blocks, start = {}, 0
        for node in self.nodes:
            blocks[node] = matrix[:, start : start + widths[node]]
            start += widths[node]
        return blocks, matrix[:, start] if self.ones else None


@dataclass(eq=False)
class Sampled:
    """Candidates for neurons that read ``front``, behind ``function``; drawn from the first batch."""

    front: Features
    function: Module
    count: int
    weights: Array | None = None  # (count, width of front)

    def hidden(self, weights: Array, activities: Mapping[str, Array]) -> Array:
        """Their values on a batch, (n, count)."""
        pre = self.front.values(weights, activities)
        return self.function.extended_forward(None, pre)[1]

    def draw(self, activities: Mapping[str, Array], gradients: Array, rng: np.random.Generator) -> None:
        """Draw their weights between samples of this batch."""
        joined = _joined(activities[node] for node in self.front.nodes)
        weights = neurons_between(to_numpy(joined), to_numpy(gradients), self.count, rng, bias=self.front.ones)
        self.weights = asarray(weights, like=joined, dtype=joined.dtype)


@dataclass(frozen=True)
class TargetMeans(LayerMeans):
    """Means of all edges into a node as one layer, whose delta is solved once for all candidates there."""

    solved: dict[Any, tuple[Array, float]] = field(default_factory=dict)

    def optimal_delta(self, *, fisher: bool = False, shrinkage: float = 0.0) -> tuple[Array, float]:
        """The optimal delta (o, d) and its first-order decrease."""
        key = (fisher, shrinkage)
        if key not in self.solved:
            self.solved[key] = super().optimal_delta(fisher=fisher, shrinkage=shrinkage)
        return self.solved[key]


class GraphStatistics:
    """Second moments of all activities (with one column of ones) and all gradients, and the moments between them.

    Every candidate of a graph is planned from blocks of these, so memory depends on the widths of the nodes, not on
    the number of samples or of candidates. Among the features are neurons that may be added, see
    :mod:`growarray.networks.graph.sampled`.

    dag : its nodes keep activity and gradient of each batch until :meth:`stop`
    s : (d, d) features    m : (d, o) features against the gradients of all nodes but the root    e : (o, o) gradients
    """

    def __init__(self, dag: Any, trace_precision: float | None = None) -> None:
        self.signature, self.end, self._rng = dag.signature, dag.end, dag.rng
        self.merges = dict(dag.merges)
        self.inputs = [node for node in self.merges if node != dag.end]
        self.outputs = [node for node in self.merges if node != dag.root]
        self.sampled: dict[str, Sampled] = {}
        for expansion in dag.growing_layers if dag.sampled else ():
            if (key := expansion.sampled_as) is not None and key not in self.sampled:
                self.sampled[key] = Sampled(expansion.front, expansion.function_before, dag.sampled)
        widths = {node: merge.in_features for node, merge in self.merges.items()}
        sizes = {node: widths[node] for node in self.inputs} | {"ones": 1}
        self._columns = _ranges(sizes | dict.fromkeys(self.sampled, dag.sampled))
        self._rows = _ranges({node: widths[node] for node in self.outputs})
        d, o = (sum(map(len, ranges.values())) for ranges in (self._columns, self._rows))
        self.s = TensorStatistic((d, d), self._s_of_batch, name="S of the graph", reuse=True)
        self.m = TensorStatistic((d, o), self._m_of_batch, name="M of the graph", trace_precision=trace_precision)
        self.e = TensorStatistic((o, o), self._e_of_batch, name="E of the graph", reuse=True)
        self._solved: dict[Any, dict[Any, Any]] = {}
        self._streams: tuple[JoinedStream, Stream] | None = None
        for merge in self.merges.values():
            merge.request("activity", self)
            merge.request("input", self)

    @property
    def all(self) -> tuple[TensorStatistic, ...]:
        """All statistics."""
        return self.m, self.s, self.e

    def stop(self) -> None:
        """Release what was kept for these statistics."""
        for merge in self.merges.values():
            merge.release("activity", self)
            merge.release("input", self)

    def expect(self) -> None:
        """A new batch comes, which no statistic includes yet."""
        self._streams = None
        for statistic in self.all:
            statistic.updated = False

    def update(self, fisher: bool = True) -> None:
        """Add the last batch, once; E with ``fisher``."""
        for statistic in (self.m, self.s, *([self.e] if fisher else [])):  # what is not finite raises in the first
            statistic.update()
        self._streams, self._solved = None, {}

    def update_e(self, count_samples: bool = True) -> None:
        """Add the present gradients to E once more."""
        self._streams = None  # they may be those of another pullback
        value, samples = self._e_of_batch()
        self.e.update(value, samples, count_samples=count_samples)
        self._streams, self._solved = None, {}

    def _batch(self) -> tuple[JoinedStream, Stream]:
        """Features and gradients of the last batch; candidates are drawn from the first one."""
        if self._streams is None:
            activities = {node: self.merges[node].recorder.need("activity") for node in self.inputs}
            gradients = {node: self.merges[node].recorder.need("gradient") for node in self.outputs}
            for candidates in self.sampled.values():
                if candidates.weights is None:
                    candidates.draw(activities, gradients[self.end], self._rng)
            hidden = [each.hidden(each.weights, activities) for each in self.sampled.values()]
            parts = [Stream(_joined(activities.values()), bias=True), *([Stream(_joined(hidden))] if hidden else [])]
            gradient = Stream(_joined(gradients.values()))
            roots = self.merges[self.end].recorder.roots
            if roots is not None:
                parts, gradient = [part.weighted(roots) for part in parts], gradient.weighted(roots, over=True)
            self._streams = JoinedStream(parts), gradient
        return self._streams

    def _s_of_batch(self, *, out: Any = None) -> tuple[Array, int]:
        features, _ = self._batch()
        return cross_moment(features, out=out), features.samples

    def _m_of_batch(self) -> tuple[Array, int]:
        features, gradients = self._batch()
        return cross_moment(features, gradients), features.samples

    def _e_of_batch(self, *, out: Any = None) -> tuple[Array, int]:
        _, gradients = self._batch()
        return cross_moment(gradients, out=out), gradients.samples

    def columns(self, features: Features, *more: np.ndarray) -> np.ndarray:
        """Columns of features, and of more after them, in S and M."""
        ones = [self._columns["ones"]] if features.ones else []
        parts = [*(self._columns[node] for node in features.nodes), *ones, *more]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def second_moment(self, rows: np.ndarray, columns: np.ndarray) -> Array:
        """Mean of the products of some features with others."""
        return _block(self.s(), rows, columns)

    def moment(self, rows: np.ndarray, nodes: Sequence[str]) -> Array:
        """Mean of some features against the gradients of ``nodes`` side by side."""
        return _block(self.m(), rows, self._gradients(nodes))

    def gradient_moment(self, nodes: Sequence[str]) -> Array:
        """Mean of ``dA^T dA`` over the gradients of ``nodes`` side by side."""
        index = self._gradients(nodes)
        return _block(self.e(), index, index)

    def target(self, node: str, reads: np.ndarray, front: np.ndarray | None = None) -> TargetMeans:
        """Means of a node that reads the columns ``reads``; with ``front``, of what new neurons before it would."""
        before = reads if front is None else front
        weights = [layer.weight.data for layer in self.merges[node].previous_modules]
        floor = max(map(rounding_floor, weights), default=float(np.finfo(np.float64).eps))
        return TargetMeans(
            lambda: self.second_moment(reads, reads),
            lambda: self.moment(reads, [node]),
            lambda: self.gradient_moment([node]),
            lambda: self.moment(before, [node]),
            lambda: self.second_moment(before, reads),
            floor,
            solved=self._solved.setdefault((node, reads.tobytes()), {}),
        )

    def left_undone(self, node: str, reads: np.ndarray, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Second moment of features, and their moment with the gradient of a node, with what it reads taken off."""
        s, m = self.second_moment(features, features), self.moment(features, [node])
        if len(reads):
            means = self.target(node, reads)
            shared = self.second_moment(reads, features)
            inverse = pseudo_inverse(means.s(), means.floor)
            taken = namespace(shared).matrix_transpose(shared) @ inverse
            s, m = s - taken @ shared, m - taken @ means.m()
        return to_numpy(s), to_numpy(m)

    def candidates(self, key: str) -> tuple[Array, np.ndarray]:
        """Weights of the candidates ``key``, and their columns."""
        return self.sampled[key].weights, self._columns[key]

    def _gradients(self, nodes: Iterable[str]) -> np.ndarray:
        return np.concatenate([self._rows[node] for node in nodes])


def _ranges(sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Where each of some parts stands, side by side."""
    ends = np.cumsum([0, *sizes.values()])
    return {name: np.arange(start, end) for name, (start, end) in zip(sizes, itertools.pairwise(ends), strict=True)}


def _joined(arrays: Iterable[Array]) -> Array:
    found = list(arrays)
    return found[0] if len(found) == 1 else namespace(*found).concat(found, axis=-1)


def _block(matrix: Array, rows: np.ndarray, columns: np.ndarray) -> Array:
    xp = namespace(matrix)
    taken = xp.take(matrix, asarray(rows, like=matrix), axis=0)
    return xp.take(taken, asarray(columns, like=matrix), axis=1)
