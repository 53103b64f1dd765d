"""What growing modules keep of the data: parts of the last batch, and statistics summed over all batches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from growarray.backend import Array, is_numpy, namespace
from growarray.contraction.sums import RunningSum
from growarray.errors import GrowthError
from growarray.growing.moment import TensorStatistic, cross_moment
from growarray.growing.stream import JoinedStream, Stream

_T = TypeVar("_T")


class BatchRecorder:
    """Parts of the last batch, each kept while it is requested.

    Requests are kept by requester, so that one module's reset never takes away what another still needs
    (the original counts with mixed booleans and integers, and its counters go negative). ``derived`` names parts
    that nobody requests, each with those beside which it is kept.

    >>> recorder = BatchRecorder("layer", gradient=("pre_activity",))
    >>> recorder.request("input", by="me")
    >>> recorder.start("a batch", input=1.0, pre_activity=2.0)
    >>> recorder.get("input"), recorder.get("pre_activity")
    (1.0, None)
    """

    def __init__(self, name: str, **derived: tuple[str, ...]) -> None:
        self.name, self._derived = name, derived
        self._requests: dict[str, set[Any]] = {}
        self._batch: Any = None
        self._kept: dict[str, Any] = {}
        self._computed: dict[Any, tuple[Any, Any]] = {}
        self.roots: Array | None = None  # of the samples' weights, which then count in every stream
        self.pool: dict[Any, Any] = {}  # what the layers before one merge make of a batch; keys name what values hold

    def request(self, what: str, by: object) -> None:
        """Keep ``what`` of every batch until ``by`` releases it."""
        self._requests.setdefault(what, set()).add(by)

    def release(self, what: str, by: object) -> None:
        """End a request of ``by``; a part that is no longer requested is dropped."""
        self._requests.get(what, set()).discard(by)
        if not self.is_requested(what):
            self.forget(what, *(part for part, sources in self._derived.items() if what in sources))

    def is_requested(self, what: str) -> bool:
        """Whether ``what`` is requested."""
        return bool(self._requests.get(what))

    @property
    def is_active(self) -> bool:
        """Whether anything is requested."""
        return any(self._requests.values())

    def start(self, batch: Any, **parts: Any) -> None:
        """Drop the last batch, and keep the requested parts of this one, which ``batch`` identifies."""
        self._batch, self._computed, self.pool = batch, {}, {}
        self._kept = {what: part for what, part in parts.items() if self.is_requested(what)}

    def is_latest(self, batch: Any) -> bool:
        """Whether ``batch`` is the one that was started last."""
        return self._batch is batch

    def add(self, what: str, part: Any) -> None:
        """Keep a part that the latest batch supplies later."""
        self._kept[what] = part

    def get(self, what: str) -> Any:
        """A part of the last batch, or None if it is not kept."""
        return self._kept.get(what)

    def need(self, what: str) -> Any:
        """A part of the last batch; ``GrowthError`` with what to do if it is not kept."""
        part, kind = self._kept.get(what), self._derived[what][0] if what in self._derived else what
        if part is not None and self._requests.get(kind):
            return part
        hint = "run a forward pass and its pullback"
        hint = hint if self.is_requested(kind) else f"set store_{kind} or call init_computation()"
        name = f"pre_activity {what}" if what == "gradient" else what
        raise GrowthError(f"{self.name}: no {name} is kept; {hint} first")

    def forget(self, *parts: str) -> None:
        """Drop these parts, and everything computed from them."""
        self._computed, self.pool = {}, {}
        for what in parts:
            self._kept.pop(what, None)
        if not self._kept:
            self._batch = None

    def once(self, what: Any, source: Any, make: Callable[[], _T]) -> _T:
        """The result of ``make`` for ``source``, a part of the batch; computed once and kept until the next batch."""
        kept = self._computed.get(what)
        if kept is None or kept[0] is not source:
            kept = self._computed[what] = source, make()
        value: _T = kept[1]
        return value

    def hand_on(self, what: str, part: Any, recorders: Sequence[BatchRecorder]) -> None:
        """Keep a part that the latest batch supplies later; others that get it share what they make of the batch."""
        self.add(what, part)
        pool: dict[Any, Any] = {}
        for recorder in recorders:
            recorder.pool = pool

    def pooled(self, key: Any, make: Callable[[], _T]) -> _T:
        """The result of ``make``, computed once for all recorders with this pool."""
        if key not in self.pool:
            self.pool[key] = make()
        value: _T = self.pool[key]
        return value

    def stream(self, what: str, array: Array, *, bias: bool = False, weighted: bool = False) -> Stream:
        """The stream of a part, made once for all moments of a batch.

        weighted : the array carries the weights of the samples already, as gradients do
        """

        def make() -> Stream:
            if self.roots is not None:
                return Stream(array, bias).weighted(self.roots, over=weighted)
            return self.pooled((id(array), bias), lambda: Stream(array, bias))

        return self.once((what, bias), array, make)


def _counts(statistics: LayerStatistics | MergeStatistics) -> str:
    counts = (f"{statistic.name.partition('(')[0]} {statistic.samples}" for statistic in statistics.all)
    return f"{type(statistics).__name__}(samples: {', '.join(counts)})"


class LayerStatistics:
    """S, M, M_prev, P and E of a layer of any kind: cross moments of its streams and its neighbour's.

    Methods that end in ``of_batch`` give the sum over the last batch, and its number of samples.
    """

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.declare()

    __repr__ = _counts

    def declare(self) -> None:
        """Reset all statistics for the current widths."""
        name, d, o = self.layer.name, self.layer.stream_width, self.layer.out_features
        self.own_s = TensorStatistic((d, d), self.s_of_batch, name=f"S({name})", reuse=True)
        precision = self.layer.trace_precision
        self.m = TensorStatistic((d, o), self.m_of_batch, name=f"M({name})", trace_precision=precision, reuse=True)
        self.m_prev = TensorStatistic(None, self.m_prev_of_batch, name=f"M_prev({name})", reuse=True)
        self.p = TensorStatistic(None, self.p_of_batch, name=f"P({name})", reuse=True)
        self.e = TensorStatistic((o, o), self.e_of_batch, name=f"E({name})", reuse=True)

    def expect(self) -> None:
        """A new batch comes, which no statistic includes yet."""
        for statistic in self.all:
            statistic.updated = False

    @property
    def all(self) -> tuple[TensorStatistic, ...]:
        """All statistics that belong to the layer."""
        return self.own_s, self.m, self.m_prev, self.p, self.e

    @property
    def s(self) -> TensorStatistic:
        """Second moment of the input; after a merge, that of the merge, whose last row and column are of ones."""
        shared = self.layer.shared_statistic
        return self.own_s if shared is None else shared

    def mean_s(self) -> Array:
        """The mean S in the shape of the layer: a shared one loses its ones if the layer has no bias."""
        d = self.layer.stream_width
        return self.s()[:d, :d]

    @property
    def sees_front(self) -> bool:
        """Whether growth before the layer is planned from its own statistics; False after a merge, which plans it."""
        return self.layer.front is not None and not self.layer.front.plans_for_readers

    def check_front(self) -> None:
        """Raise ``GrowthError`` if this layer and the module before read different kinds of input."""
        previous = self.layer.previous
        if previous.spatial:
            raise GrowthError(
                f"{self.layer.name}: the previous module {previous.name} is a convolution, and this layer reads "
                "features without positions; growth between the two is not supported; omit previous_module"
            )

    @property
    def s_prev(self) -> TensorStatistic:
        """Second moment of the input of new neurons before the layer, which the neighbour keeps."""
        return self.layer.previous.growth_statistic  # type: ignore[no-any-return]

    def s_of_batch(self, *, out: Any = None) -> tuple[Array, int]:
        """Sum of ``B^T B``, (d, d) with the ones last."""
        stream = self.layer.input_stream
        return cross_moment(stream, out=out), stream.samples

    def m_of_batch(self, desired_activation: Array | None = None, *, out: Any = None) -> tuple[Array, int]:
        """Sum of ``B^T dA``, (d, o); ``desired_activation`` replaces dA."""
        stream, moment = self.layer.input_stream, self.layer.recorder.get("moment")
        if desired_activation is None and moment is not None:
            return stacked([moment], out), stream.samples
        return cross_moment(stream, self.layer.gradient_stream(desired_activation), out=out), stream.samples

    def m_prev_of_batch(self, desired_activation: Array | None = None, *, out: Any = None) -> tuple[Array, int]:
        """Sum of ``B_prev^T dA``, (p, o); after a merge B_prev is its full activity."""
        stream = self.layer.previous.input_stream
        return cross_moment(stream, self.layer.gradient_stream(desired_activation), out=out), stream.samples

    def p_of_batch(self, *, out: Any = None) -> tuple[Array, int]:
        """Sum of ``B_prev^T B``, (p, d); after a merge B is without its ones, as in the original."""
        stream, inputs = self.layer.previous.input_stream, self.layer.input_stream
        if self.layer.shared_statistic is not None:
            recorder = self.layer.recorder
            inputs = recorder.stream("input alone", recorder.need("input"))
        return cross_moment(stream, inputs, out=out), stream.samples

    def e_of_batch(self, *, out: Any = None) -> tuple[Array, int]:
        """Sum of ``dA^T dA``, (o, o)."""
        stream = self.layer.gradient_stream()
        return cross_moment(stream, out=out), stream.samples

    def update(self, fisher: bool = True) -> None:
        """Add the last batch to every statistic, E with ``fisher``; a batch that is not finite is added to none.

        After a merge that is S, M and E; the merge collects what growth through it needs.
        """
        statistics, squares = [self.m], [self.s]  # first those of both ends: what is not finite raises there
        if self.sees_front:
            self.check_front()
            statistics += [self.m_prev, self.p]
            squares.append(self.s_prev)
        if fisher:
            statistics.append(self.e)
        for statistic in statistics + squares:
            statistic.update()


class MergeStatistics:
    """Statistics of a merge: of its activity, of the full activity before it, and what growth through it needs.

    s : of the activity with ones    previous_s, previous_m : of the full activity, None if nothing comes before
    m_prev, p, e : over the gradients of all next layers side by side; if these are convolutions, which see new channels
        tap by tap, m_prev and p are what each of them makes of it, side by side
    """

    def __init__(self, merge: Any, device: Any) -> None:
        self.merge, self.device = merge, device
        self.declare()

    __repr__ = _counts

    def declare(self) -> None:
        """Reset all statistics for the current widths."""
        merge, total = self.merge, self.merge.total_in_features

        def declared(name: str, of_batch: Any, *shape: int) -> TensorStatistic:
            return TensorStatistic(shape or None, of_batch, self.device, f"{name}({merge.name})", reuse=True)

        self.s = declared("S", self.s_of_batch, merge.activity_width, merge.activity_width)
        self.previous_s = declared("S[-1]", self.previous_s_of_batch, total, total) if total else None
        self.previous_m = declared("M[-1]", self.previous_m_of_batch, total, merge.in_features) if total else None
        self.m_prev = declared("M_prev", self.m_prev_of_batch)
        self.p = declared("P", self.p_of_batch)
        self.e = declared("E", self.e_of_batch)

    def expect(self) -> None:
        """A new batch comes, which no statistic includes yet."""
        for statistic in self.all:
            statistic.updated = False

    @property
    def by_reader(self) -> bool:
        """Whether the next layers read windows, each its own."""
        return any(reader.reads is not None for reader in self.merge.readers)

    @property
    def s_prev(self) -> TensorStatistic:
        """Second moment of the input of new neurons."""
        readers = self.merge.readers
        return readers[0].statistics.s_prev if self.by_reader else self.merge.growth_statistic  # type: ignore[no-any-return]

    @property
    def all(self) -> tuple[TensorStatistic, ...]:
        """All statistics."""
        statistics = (self.s, self.previous_s, self.previous_m, self.m_prev, self.p, self.e)
        return tuple(statistic for statistic in statistics if statistic is not None)

    def s_of_batch(self, *, out: Any = None) -> tuple[Array, int]:
        """Sum of ``B^T B`` of the activity with ones, (d + 1, d + 1)."""
        stream = self.merge.activity_stream
        return cross_moment(stream, out=out), stream.samples

    def previous_s_of_batch(self, *, out: Any = None) -> tuple[Array, int]:
        """Sum of ``B^T B`` of the full activity; blocks that layers share are computed once."""
        stream = self.merge.input_stream
        return cross_moment(stream, out=out), stream.samples

    def previous_m_of_batch(self, *, out: Any = None) -> tuple[Array, int]:
        """Sum of ``B^T dz``, full activity against the gradient at the merge, (total_in_features, in_features).

        Each layer's block is its weight gradient, which its pullback has computed already.
        """
        gradient = self.merge.recorder.need("gradient")
        blocks = [layer.moment_with(gradient) for layer in self.merge.layers_before]
        return stacked(blocks, out), int(gradient.shape[0])

    def _gradients(self) -> JoinedStream:
        return JoinedStream(tuple(layer.gradient_stream() for layer in self.merge.next_modules))

    def m_prev_of_batch(self, *, out: Any = None) -> tuple[Array, int]:
        """Sum of ``B_prev^T dA``, full activity against the gradients of all next layers."""
        if self.by_reader:
            return self._side_by_side([reader.statistics.m_prev_of_batch() for reader in self.merge.readers])
        stream = self.merge.input_stream
        return cross_moment(stream, self._gradients(), out=out), stream.samples

    def p_of_batch(self, *, out: Any = None) -> tuple[Array, int]:
        """Sum of ``B_prev^T B``, full activity against the activity with ones."""
        if self.by_reader:
            return self._side_by_side([reader.statistics.p_of_batch() for reader in self.merge.readers])
        stream = self.merge.input_stream
        return cross_moment(stream, self.merge.activity_stream, out=out), stream.samples

    def p_of_readers(self) -> list[Array]:
        """P of each next layer."""
        p, widths = self.p(), [reader.stream_width for reader in self.merge.readers]
        ends = [0, *itertools.accumulate(widths)] if self.by_reader else [0] * len(widths)
        return [p[..., start : start + width] for start, width in zip(ends, widths, strict=False)]

    def _side_by_side(self, sums: Sequence[tuple[Array, int]]) -> tuple[Array, int]:
        moments = [moment for moment, _ in sums]
        return namespace(*moments).concat(moments, axis=-1), sums[0][1]

    def e_of_batch(self, *, out: Any = None) -> tuple[Array, int]:
        """Sum of ``dA^T dA`` over the gradients of all next layers."""
        stream = self._gradients()
        return cross_moment(stream, out=out), stream.samples

    def update(self, fisher: bool = True) -> None:
        """Add the last batch to every statistic, E with ``fisher``."""
        statistics = [] if self.previous_m is None else [self.previous_m]  # a gradient that is not finite raises here
        if self.merge.allow_growing:
            statistics += [self.m_prev, self.p, self.s_prev, *([self.e] if fisher else [])]
            statistics += [kept for layer in self.merge.readers for kept in (layer.tensor_m, layer.tensor_s)]
        statistics += [self.s] if self.previous_s is None else [self.s, self.previous_s]
        for statistic in statistics:
            statistic.update()


def stacked(blocks: Sequence[Array], out: Any) -> Array:
    """Blocks (d_i, o) one above the other: added to the running sum ``out`` if that can be, else a new array."""
    whole = None
    if isinstance(out, RunningSum) and all(map(is_numpy, blocks)):
        different = {id(block): block for block in blocks}.values()
        if all(math.isfinite(np.vdot(block, block)) for block in different):  # else whoever updates names what is not
            whole = out.writable((sum(map(len, blocks)), blocks[0].shape[1]))
    if whole is None:
        return namespace(*blocks).concat(list(blocks), axis=0)
    start = 0
    for block in blocks:
        whole[start : start + len(block)] += block
        start += len(block)
    return out
