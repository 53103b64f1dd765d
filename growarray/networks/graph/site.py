"""Sites: the moments of all nodes whose sums have the same positions, and what they would read of new neurons."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from growarray.backend import Array, asarray, namespace
from growarray.growing import JoinedStream, Stream, TensorStatistic, cross_moment
from growarray.growing.stream import StreamLike
from growarray.networks.graph.features import Features, joined
from growarray.networks.graph.reading import Reading
from growarray.ops.windows import windows

Columns = Sequence[tuple[str, Reading, int]]
Batch = tuple[JoinedStream, Any]


class Site:
    """Second moments of all that is read at some positions (with one column of ones), and of the gradients there.

    s : (d, d) features    m : (d, o) features against the gradients of all nodes of the site    e : (o, o) gradients

    known, drawn : what is read of nodes, and of neurons that may be added: names, how, and numbers of channels
    rows : widths of the nodes of the site    batch : activities and gradients of the last batch, by name
    """

    def __init__(
        self, name: str, known: Columns, drawn: Columns, rows: Mapping[str, int], batch: Callable[[], Any],
        trace_precision: float | None,
    ) -> None:  # fmt: skip
        self._batch, self._streams = batch, cast(Batch | None, None)
        self._parts = [*_by_reading(known).items(), *_by_reading(drawn).items()]
        sizes: dict[Any, int] = {}
        for reading, sources in self._parts:
            sizes |= {(source, reading): count * reading.taps for source, count in sources.items()}
            sizes.setdefault("ones", 1)  # after the first part
        sizes.setdefault("ones", 1)
        self.columns = ranges(sizes)
        self.rows = ranges(rows)
        d, o = (sum(map(len, part.values())) for part in (self.columns, self.rows))
        self.s = TensorStatistic((d, d), self._s_of_batch, name=f"S of {name}", reuse=True)
        self.m = TensorStatistic(
            (d, o), self._m_of_batch, name=f"M of {name}", trace_precision=trace_precision, reuse=True
        )
        self.e = TensorStatistic((o, o), self.e_of_batch, name=f"E of {name}", reuse=True)

    @property
    def all(self) -> dict[str, TensorStatistic]:
        """The statistics by name, in the order of their update: what is not finite raises in the first."""
        return {"m": self.m, "s": self.s, "e": self.e}

    def forget(self) -> None:
        """Drop the streams of the last batch."""
        self._streams = None

    def streams(self) -> Batch:
        """Features and gradients of the last batch."""
        if self._streams is None:
            activities, gradients, roots = self._batch()
            gradient: Any = gradient_stream(joined((gradients[node] for node in self.rows), axis=1))
            parts: list[Any] = [
                reading.stream(joined((activities[source] for source in sources), axis=1), bias=not index)
                for index, (reading, sources) in enumerate(self._parts)
            ] or [_ones(gradient)]
            if roots is not None:
                parts = [part.weighted(roots) for part in parts]
                gradient = gradient.weighted(roots, over=True)
            self._streams = JoinedStream(parts), gradient
        return self._streams

    def _s_of_batch(self, *, out: Any = None) -> tuple[Array, int]:
        features, _ = self.streams()
        return cross_moment(features, out=out), features.samples

    def _m_of_batch(self, *, out: Any = None) -> tuple[Array, int]:
        features, gradients = self.streams()
        return cross_moment(features, gradients, out=out), features.samples

    def e_of_batch(self, *, out: Any = None) -> tuple[Array, int]:
        """Sum of ``dA^T dA`` over the last batch, and its samples."""
        _, gradients = self.streams()
        return cross_moment(gradients, out=out), gradients.samples


class Seen:
    """What new neurons would show a node that reads them tap by tap: S, M_prev and P of growth before a layer.

    front : what they read    reading : how the node reads them    reads : what it reads already
    s : (p, p) summed over the taps    m_prev : (p, o * taps)    p : (taps, p, d)
    """

    def __init__(self, name: str, front: Features, reading: Reading, reads: Features, node: str, batch: Any) -> None:
        self._front, self._reading, self._reads, self._node, self._batch = front, reading, reads, node, batch
        self._views: list[Any] | None = None
        self.s = TensorStatistic(None, self._s_of_batch, name=f"S seen by {name}")
        self.m_prev = TensorStatistic(None, self._m_prev_of_batch, name=f"M_prev of {name}")
        self.p = TensorStatistic(None, self._p_of_batch, name=f"P of {name}")

    @property
    def all(self) -> dict[str, TensorStatistic]:
        """The statistics by name."""
        return {"m_prev": self.m_prev, "p": self.p, "s": self.s}

    def forget(self) -> None:
        """Drop the views of the last batch."""
        self._views = None

    def views(self) -> list[tuple[StreamLike, Any]]:
        """For each tap what it reads, and the outputs that read it, of the last batch."""
        if self._views is None:
            activities, _, _ = self._batch()
            self._views = self._reading.views(self._front.stream(activities))
        return self._views

    def _s_of_batch(self) -> tuple[Array, int]:
        moments = [cross_moment(seen) for seen, _ in self.views()]
        return sum(moments[1:], moments[0]), self.views()[0][0].samples

    def _m_prev_of_batch(self) -> tuple[Array, int]:
        gradient = gradient_stream(self._batch()[1][self._node])
        moments = [cross_moment(seen, _cropped(gradient, outputs)) for seen, outputs in self.views()]
        xp, (p, o) = namespace(moments[0]), moments[0].shape
        return xp.reshape(xp.stack(moments, axis=-1), (p, o * len(moments))), gradient.samples

    def _p_of_batch(self) -> tuple[Array, int]:
        reads, views = self._reads.stream(self._batch()[0]), self.views()
        if not reads.streams:  # no edge leads into the node
            moment = cross_moment(views[0][0])
            empty = namespace(moment).zeros((len(views), moment.shape[0], 0), dtype=moment.dtype, device=moment.device)
            return empty, views[0][0].samples
        moments = [cross_moment(seen, _cropped(reads, outputs)) for seen, outputs in views]
        return namespace(moments[0]).stack(moments, axis=0), reads.samples


def gradient_stream(gradient: Array) -> StreamLike:
    """Gradients (n, o), or of images as windows of one tap."""
    return Stream(gradient) if gradient.ndim == 2 else windows(gradient, (1,) * (gradient.ndim - 2))


def _ones(gradient: Any) -> Any:
    """One column of ones at the positions of a gradient, for a site at which nothing can be read."""
    array = gradient.array[:, :0, ...]
    return Stream(array, bias=True) if gradient.array.ndim == 2 else windows(array, (1,) * (array.ndim - 2), bias=True)


def _cropped(stream: Any, outputs: Any) -> Any:
    if outputs is None:
        return stream
    return JoinedStream([part.cropped(outputs) for part in stream.parts])


def _by_reading(parts: Columns) -> dict[Reading, dict[str, int]]:
    """Sources that are read in one way together, with their channels."""
    sources: dict[Reading, dict[str, int]] = {}
    for source, reading, count in parts:
        sources.setdefault(reading, {})[source] = count
    return sources


def ranges(sizes: Mapping[Any, int]) -> dict[Any, np.ndarray]:
    """The columns of each of some parts, side by side.

    >>> ranges({"a": 2, "b": 1})
    {'a': array([0, 1]), 'b': array([2])}
    """
    ends = np.cumsum([0, *sizes.values()])
    return {name: np.arange(start, end) for name, (start, end) in zip(sizes, itertools.pairwise(ends), strict=True)}


def block(matrix: Array, rows: np.ndarray, columns: np.ndarray) -> Array:
    """Some rows and columns of a matrix."""
    xp = namespace(matrix)
    chosen = xp.take(matrix, asarray(rows, like=matrix), axis=0)
    return xp.take(chosen, asarray(columns, like=matrix), axis=1)
