"""What is known of a graph: second moments between all its nodes, summed batch by batch in one pass."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from growarray.backend import Array, assign, namespace, to_numpy
from growarray.errors import GrowthError
from growarray.growing import TensorStatistic
from growarray.growing.rule import LayerMeans, Mean
from growarray.growing.update import pseudo_inverse, rounding_floor
from growarray.networks.graph.features import Features, Sampled
from growarray.networks.graph.reading import AsFeatures, Reading
from growarray.networks.graph.site import Seen, Site, block


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


class Shown(NamedTuple):
    """What new neurons show a node that reads each as one number: the means of :class:`Seen`, as functions."""

    s: Mean
    m_prev: Mean
    p: Mean


class GraphStatistics:
    """Second moments of all activities (with one column of ones) and all gradients, and the moments between them.

    Every candidate of a graph is planned from blocks of these, so memory depends on the widths of the nodes, not on
    the number of samples or of candidates. Among the features are neurons that may be added, see
    :mod:`growarray.networks.graph.sampled`.

    dag : its nodes keep activity and gradient of each batch until :meth:`stop`
    s, m, e : (d, d) features, (d, o) features against the gradients of all nodes but the root, (o, o) gradients; if
        there are images, of the nodes of features alone
    sites : all moments, for each size of images and for features; see :class:`growarray.networks.graph.site.Site`
    seen : where taps of a kernel stand between new neurons and a node that reads them, by what they read and that node
    """

    def __init__(self, dag: Any, trace_precision: float | None = None) -> None:
        self.signature, self.end, self._rng = dag.signature, dag.end, dag.rng
        self.merges = dict(dag.merges)
        self._outputs = [node for node in self.merges if node != dag.root]
        self._shape = {node: dag.shape_of(node) for node in self.merges}
        self.sampled: dict[str, Sampled] = {}
        known: dict[tuple[str, Reading], str] = {}
        drawn: dict[tuple[str, Reading], str] = {}
        seen: dict[Any, Features] = {}
        for node in self.merges:
            known |= dict.fromkeys(dag.reads(node).parts, node)
        for expansion in dag.growing_layers:
            for node in expansion.next_nodes:
                reading, front = expansion.read_by(node), expansion.front
                if expansion.is_edge:
                    known[str(expansion.previous_node), reading] = node
                    continue
                if reading != AsFeatures():
                    seen[front, node, reading] = dag.reads(node)
                if dag.sampled:
                    key = expansion.sampled_as
                    count = max(1, dag.sampled // 4) if front.shape else dag.sampled
                    self.sampled.setdefault(key, Sampled(front, expansion.function_before, count))
                    drawn[key, reading] = node
        self.sites = {
            shape: self._site(shape, known, drawn, trace_precision)
            for shape in dict.fromkeys(self._shape[node] for node in self._outputs)
        }
        if () in self.sites:
            self.s, self.m, self.e = self.sites[()].s, self.sites[()].m, self.sites[()].e
        self.seen = {
            (front, node, reading): Seen(f"{node} {reading}", front, reading, reads, node, self._batch)
            for (front, node, reading), reads in seen.items()
        }
        self._solved: dict[Any, dict[Any, Any]] = {}
        self._kept: Any = None
        for merge in self.merges.values():
            merge.request("activity", self)
            merge.request("input", self)

    def _site(self, shape: tuple[int, ...], known: Any, drawn: Any, trace_precision: float | None) -> Site:
        widths = {node: merge.in_features for node, merge in self.merges.items()}
        outputs = {node: widths[node] for node in self._outputs if self._shape[node] == shape}
        rank = {node: index for index, node in enumerate(self.merges)}
        first = sorted((part for part, node in known.items() if self._shape[node] == shape), key=lambda p: rank[p[0]])
        then = [part for part, node in drawn.items() if self._shape[node] == shape]
        sources = [(source, reading, widths[source]) for source, reading in first]
        candidates = [(key, reading, self.sampled[key].count) for key, reading in then]
        name = f"the graph at {shape}" if shape else "the graph"
        return Site(name, sources, candidates, outputs, self._batch, trace_precision)

    def named(self) -> Iterator[tuple[str, TensorStatistic]]:
        """Every statistic with a name of its own; those of features are ``s``, ``m`` and ``e``."""
        for shape, site in self.sites.items():
            prefix = "x".join(map(str, shape)) + "." if shape else ""
            yield from ((prefix + name, statistic) for name, statistic in site.all.items())
        for index, held in enumerate(self.seen.values()):
            yield from ((f"seen.{index}.{name}", statistic) for name, statistic in held.all.items())

    @property
    def all(self) -> tuple[TensorStatistic, ...]:
        """All statistics."""
        return tuple(statistic for _, statistic in self.named())

    def stop(self) -> None:
        """Release what was kept for these statistics."""
        for merge in self.merges.values():
            merge.release("activity", self)
            merge.release("input", self)

    def _forget(self) -> None:
        self._kept = None
        for site in self.sites.values():
            site.forget()
        for held in self.seen.values():
            held.forget()

    def expect(self) -> None:
        """A new batch comes, which no statistic includes yet."""
        self._forget()
        for _, statistic in self.named():
            statistic.updated = False

    def update(self, fisher: bool = True) -> None:
        """Add the last batch, once; E with ``fisher``."""
        if len(self.sites) > 1 or self.seen:
            self._check_finite()
        for name, statistic in self.named():
            if fisher or name.rpartition(".")[2] != "e":
                statistic.update()
        self._forget()
        self._solved = {}

    def _check_finite(self) -> None:
        """Raise GrowthError for a broken batch before it is in any of several statistics."""
        for array in itertools.chain(*(found.values() for found in self._batch()[:2])):
            if not bool(namespace(array).all(namespace(array).isfinite(array))):
                raise GrowthError(
                    "GrowingDAG: the batch has NaN or infinite activities or gradients; check the data and the loss, "
                    "lower the learning rate, or leave this batch out"
                )

    def update_e(self, count_samples: bool = True) -> None:
        """Add the present gradients to E once more."""
        self._forget()  # they may be those of another pullback
        for site in self.sites.values():
            site.e.update(*site.e_of_batch(), count_samples=count_samples)
        self._forget()
        self._solved = {}

    def relative_error(self) -> float:
        """Largest estimated relative error of the moments of activities and gradients."""
        return max(site.m.relative_error() for site in self.sites.values())

    def _batch(self) -> tuple[dict[str, Array], dict[str, Array], Array | None]:
        """Activities and gradients of the last batch, and roots of weights; neurons are drawn from the first one."""
        if self._kept is None:
            activities = {node: merge.recorder.need("activity") for node, merge in self.merges.items()}
            gradients = {node: self.merges[node].recorder.need("gradient") for node in self._outputs}
            roots = self.merges[self.end].recorder.roots
            if roots is not None and any(self._shape.values()):
                raise NotImplementedError("GrowingDAG: sample weights are not supported for nodes of images; omit them")
            for key, candidates in self.sampled.items():
                if candidates.weights is None:
                    candidates.draw(activities, gradients[self.end], self._rng)
                activities[key] = candidates.hidden(activities)
            self._kept = activities, gradients, roots
        return self._kept  # type: ignore[no-any-return]

    def columns(self, node: str, features: Features, *more: np.ndarray) -> np.ndarray:
        """Columns of features that ``node`` reads, and of more after them, in S and M of its site."""
        columns = self.sites[self._shape[node]].columns
        ones = [columns["ones"]] if features.ones else []
        parts = [*(columns[part] for part in features.parts), *ones, *more]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def second_moment(self, node: str, rows: np.ndarray, columns: np.ndarray) -> Array:
        """Mean of the products of some features with others, at the site of ``node``."""
        return block(self.sites[self._shape[node]].s(), rows, columns)

    def moment(self, node: str, rows: np.ndarray) -> Array:
        """Mean of some features against the gradient of ``node``."""
        site = self.sites[self._shape[node]]
        return block(site.m(), rows, site.rows[node])

    def gradient_moment(self, nodes: Sequence[str]) -> Array:
        """Mean of ``dA^T dA`` over the gradients of ``nodes`` side by side; 0 between those at other positions."""
        shapes = {self._shape[node] for node in nodes}
        if len(shapes) == 1:
            site = self.sites[shapes.pop()]
            index = np.concatenate([site.rows[node] for node in nodes])
            return block(site.e(), index, index)
        blocks, start = [self.gradient_moment([node]) for node in nodes], 0
        xp, size = namespace(*blocks), sum(int(e.shape[0]) for e in blocks)
        moment = xp.zeros((size, size), dtype=blocks[0].dtype, device=blocks[0].device)
        for e in blocks:
            part = slice(start, start + int(e.shape[0]))
            moment, start = assign(moment, (part, part), e), part.stop
        return moment

    def shown(self, node: str, front: Features, reading: Reading, reads: np.ndarray) -> Shown | Seen:
        """Means of what new neurons that read ``front`` show a node, which reads the columns ``reads`` already."""
        held = self.seen.get((front, node, reading))
        if held is not None:
            return held
        columns = self.columns(node, front)
        return Shown(
            lambda: self.second_moment(node, columns, columns),
            lambda: self.moment(node, columns),
            lambda: self.second_moment(node, columns, reads),
        )

    def target(self, node: str, reads: np.ndarray, front: Shown | Seen | None = None) -> TargetMeans:
        """Means of a node that reads the columns ``reads``; with ``front``, of what new neurons before it show it."""
        weights = [layer.weight.data for layer in self.merges[node].previous_modules]
        floor = max(map(rounding_floor, weights), default=float(np.finfo(np.float64).eps))

        def s() -> Array:
            return self.second_moment(node, reads, reads)

        def m() -> Array:
            return self.moment(node, reads)

        m_prev, p = (m, s) if front is None else (front.m_prev, front.p)
        solved = self._solved.setdefault((node, reads.tobytes()), {})
        return TargetMeans(s, m, lambda: self.gradient_moment([node]), m_prev, p, floor, solved=solved)

    def left_undone(self, node: str, reads: np.ndarray, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Second moment of features, and their moment with the gradient of a node, with what it reads taken off."""
        s, m = self.second_moment(node, features, features), self.moment(node, features)
        if len(reads):
            means = self.target(node, reads)
            shared = self.second_moment(node, reads, features)
            inverse = pseudo_inverse(means.s(), means.floor)
            supplied = namespace(shared).matrix_transpose(shared) @ inverse
            s, m = s - supplied @ shared, m - supplied @ means.m()
        return to_numpy(s), to_numpy(m)

    def candidates(self, node: str, key: str, reading: Reading) -> np.ndarray:
        """Columns of the sampled neurons ``key`` as ``node`` reads them."""
        return self.sites[self._shape[node]].columns[key, reading]
