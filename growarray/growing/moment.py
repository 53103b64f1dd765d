"""Cross moments of streams, and the statistic that sums them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from growarray.backend import Array, asarray, assign, device_of, is_cupy, is_numpy, load, namespace, to_device, to_numpy
from growarray.contraction.kernels import Rows, block_products, row_products
from growarray.contraction.sums import RunningSum
from growarray.errors import GrowthError, ShapeError
from growarray.growing.checks import declared_shape, sample_count, saved_statistic
from growarray.growing.stream import JoinedStream, Layout, Stream, StreamLike, arranged, square_columns, window_blocks
from growarray.ops.windows import Windows

UpdateFunction = Callable[..., tuple[Array, int]]


def _stream(x: StreamLike | Array) -> StreamLike:
    return x if isinstance(x, Stream | JoinedStream | Windows) else Stream(x)


def cross_moment(
    left: StreamLike | Array, right: StreamLike | Array | None = None, *, out: Array | None = None
) -> Array:
    """Sum over all rows of ``left^T right``, float64: E[.] of the growth literature before the division.

    left, right : :class:`Stream`, :class:`JoinedStream`, the :class:`Windows` of convolutions on both sides, or plain
        arrays (n, d) or (n, t, d); ``right=None`` is ``left``
    out : float64 array of the result's shape to write into, None for a new one, or a :class:`RunningSum` to add to,
        which comes back if that was possible: on NumPy, for values whose products stay finite in single precision and
        a sum of the same shape; if not, a new array does
    Returns (left.width, right.width). Divide by ``left.samples`` for the mean.

    Joined streams are never put together: each pair of parts is one product, an array that stands in several
    parts is multiplied once, and the moment of a stream with itself computes one triangle.

    Raises ShapeError: the two have different numbers of rows; TypeError: they belong to two libraries or devices, are
    no arrays, or are complex; or windows are paired with plain features.

    >>> import numpy as np
    >>> x = np.ones((4, 2), dtype=np.float32)
    >>> cross_moment(Stream(x, bias=True)).tolist()
    [[4.0, 4.0, 4.0], [4.0, 4.0, 4.0], [4.0, 4.0, 4.0]]
    """
    left = _stream(left)
    symmetric = right is None or right is left
    right = left if symmetric else _stream(right)
    lefts, rights = left.parts, () if symmetric else right.parts
    for part in (*lefts, *rights):
        if isinstance(part, Windows):
            return window_blocks(left, right, symmetric)
    if is_cupy(lefts[0].array):
        there = _by_kernels(lefts, rights, out)
        if there is not None:
            return there
    arrays, layout = arranged((*lefts, *rights))
    if symmetric and isinstance(out, RunningSum) and out.add_square(arrays, square_columns(layout)):
        return out
    xp = namespace(*(r.array for r in arrays))
    lengths = {int(r.array.shape[0]) for r in arrays}
    if len(lengths) > 1:
        raise ShapeError(f"cross_moment: streams have {sorted(lengths)} rows; both sides must come from the same batch")
    todo = _planned(layout[: len(lefts)], layout[len(lefts) :])
    if isinstance(out, RunningSum):
        if not symmetric and _added(out, arrays, todo):
            return out
        out = None
    if out is None:
        out = xp.empty(todo.shape, dtype=xp.float64, device=arrays[0].array.device)
    elif tuple(out.shape) != todo.shape or out.dtype != xp.float64:
        raise ShapeError(f"cross_moment: out has shape {tuple(out.shape)}, expected {todo.shape} float64")
    views = {pair: out[places[0][0]] for pair, places in todo.products.items()} if is_numpy(out) else {}
    products, totals = row_products(arrays, list(todo.products), list(todo.sums), views)
    for pair, places in todo.products.items():
        for place, mirrored in places[1:] if views else places:
            out = assign(out, place, products[pair].T if mirrored else products[pair])
    for i, there in todo.sums.items():
        for place in there:
            out = assign(out, place, totals[i])
    for place in todo.counts:
        out = assign(out, place, float(arrays[0].array.shape[0]))
    return out


def _added(total: RunningSum, arrays: Sequence[Rows], todo: _Moment) -> bool:
    """Add a moment to a sum in place, product by product; False, and nothing is added, if that cannot be.

    The products of moderate arrays are finite, so none need be kept until all are checked.
    """
    if not all(is_numpy(a.array) and a.is_moderate for a in arrays):
        return False
    whole = total.writable(todo.shape)
    if whole is None:
        return False
    for key, value in block_products(arrays, list(todo.products), list(todo.sums)):
        for place, _ in todo.products.get(key) or [(place, False) for place in todo.sums[key]]:
            whole[place] += value
    for place in todo.counts:
        whole[place] += float(arrays[0].array.shape[0])
    return True


def _by_kernels(lefts: Sequence[Stream], rights: Sequence[Stream], out: Any) -> Any:
    """The moment on CuPy, added to a sum that holds something; None if kernels do not take the arrays."""
    total = out.array if isinstance(out, RunningSum) else out
    adds = total is not None and total is not out
    moment = load("growarray.cuda.moment").moment(lefts, rights, total, adds)
    return out if adds and moment is not None else moment


_Place = tuple[Any, Any]


class _Moment(NamedTuple):
    """The products and sums that a moment is made of, and the place of each in it."""

    shape: tuple[int, int]
    products: dict[tuple[int, int], list[tuple[_Place, bool]]]  # where each goes, and whether it is mirrored there
    sums: dict[int, list[_Place]]
    counts: list[_Place]


@lru_cache(maxsize=256)
def _planned(left: Layout, right: Layout) -> _Moment:
    """The moment of parts on both sides; ``right`` is empty for the moment of a stream with itself."""
    todo = _Moment((_ends(left)[-1], _ends(right or left)[-1]), {}, {}, [])
    for (i, height, ones), top in zip(left, _ends(left), strict=False):
        for (j, width, more), start in zip(right or left, _ends(right or left), strict=False):
            rows, columns = slice(top, top + height), slice(start, start + width)
            mirrored = not right and i > j
            todo.products.setdefault((j, i) if mirrored else (i, j), []).append(((rows, columns), mirrored))
            for index, place in [(j, (rows.stop, columns))] * ones + [(i, (rows, columns.stop))] * more:
                todo.sums.setdefault(index, []).append(place)
            todo.counts.extend([(rows.stop, columns.stop)] * (ones and more))
    return todo


def _ends(layout: Layout) -> list[int]:
    """Where each part begins, and where the last one ends."""
    return [0, *itertools.accumulate(width + ones for _, width, ones in layout)]


class TensorStatistic:
    """A running mean kept as a float64 sum and a number of samples; two of them add.

    shape : declared shape, checked at every update, or None (then the first update declares it)
    update_function : called by :meth:`update` without a value; returns (sum over the batch, samples)
    trace_precision : None, or the relative change of the trace of the covariance below which it is no longer
        computed; then :meth:`error` estimates how far the mean still is from its expectation.
    reuse : the update function is given the sum as ``out=``, for :func:`cross_moment` to add to; if it cannot, what
        comes back is added. This spares a matrix and its passes

    Differs from the original: sums are float64, the caller's arrays are neither kept nor changed, a value
    that is not finite raises before anything is added (on a GPU, when its mean is planned from), and statistics of two
    workers add with ``+``.

    >>> import numpy as np
    >>> half = TensorStatistic().update(np.array([2.0]), 4), TensorStatistic().update(np.array([4.0]), 2)
    >>> total = sum(half, TensorStatistic())
    >>> total.samples, float(total()[0])
    (6, 1.0)
    """

    def __init__(
        self,
        shape: tuple[int, ...] | None = None,
        update_function: UpdateFunction | None = None,
        device: Any = None,
        name: str | None = None,
        *,
        trace_precision: float | None = None,
        reuse: bool = False,
    ) -> None:
        self.name = name or "statistic"
        self.shape = declared_shape(self.name, shape)
        self.device = device
        self.trace_precision = trace_precision
        self._update_function = update_function
        self._reuse = reuse
        self._total: RunningSum | None = None
        self.host_mean: np.ndarray | None = None  # while somebody has brought it there
        self.samples = 0
        self.updated = False
        self._start_trace()

    @property
    def total(self) -> Array | None:
        """The sum over all samples, float64, or None before the first; not a copy."""
        return None if self._total is None else self._total.array

    def _start_trace(self) -> None:
        self.batches = 0
        self.trace: float | None = None
        self.computes_trace = self.trace_precision is not None
        self._square_norm_sum, self._traced_batches = 0.0, 0

    def init(self) -> None:
        """Forget every sample."""
        self._total, self.samples, self.updated = None, 0, False
        self._start_trace()

    reset = init

    def update(
        self, value: Array | None = None, samples: int | None = None, *, count_samples: bool = True, **options: Any
    ) -> TensorStatistic:
        """Add the sum over one batch and its number of samples; returns the statistic.

        Without ``value`` the update function is called (with ``options``), once per batch: while ``updated``
        is set nothing happens, so that two owners of one statistic may both ask. Forward passes unset it.
        ``count_samples=False`` adds a sum without counting its samples (several passes over one batch).

        Raises ShapeError: the value has another shape than declared, or than before; nothing is added; GrowthError: the
        value is not finite, or no value was given and there is no update function.
        """
        owned = value is None and self._reuse
        total = RunningSum() if self._total is None else self._total
        if value is None:
            if self.updated:
                return self
            if self._update_function is None:
                raise GrowthError(f"{self.name}: no value given and no update function; call update(value, samples)")
            if self._reuse and self.trace_precision is None and (self._total or self.device in (None, "cpu")):
                options = {"out": total, **options}
            value, samples = self._update_function(**options)
        samples = sample_count(self.name, samples)
        counted = samples if count_samples else 0
        if value is total:  # it has been added to, after a check
            self._check_shape(total.shape)
            self._total, self.samples = total, self.samples + counted
        else:
            self._check(value)
            self._add(value, counted, traced=count_samples, owned=owned)
        self.updated = True
        return self

    def _check(self, value: Any) -> None:
        xp = namespace(value, where=f"{self.name}: ")
        self._check_shape(tuple(value.shape))
        flat = xp.reshape(xp.astype(value, xp.float64, copy=False), (-1,))  # its square cannot cancel infinities
        if not is_cupy(value) and not math.isfinite(float(flat @ flat)):  # there the host would wait
            raise GrowthError(
                f"{self.name}: the update holds NaN or infinite values; check the activations and the loss, "
                "lower the learning rate, or leave this batch out"
            )

    def _check_shape(self, shape: tuple[int, ...] | None) -> None:
        expected = self.shape if self._total is None else self._total.shape
        if expected is not None and shape != expected:
            raise ShapeError(
                f"{self.name}: update has shape {shape}, expected {expected}; run a batch since the layer has grown, "
                "or reset() first"
            )

    def _add(self, value: Array, samples: int, *, traced: bool, owned: bool = False) -> None:
        value = value if self.device is None else to_device(value, self.device)
        xp = namespace(value, self.total)
        if self._total is None:
            self._total = RunningSum(xp.astype(value, xp.float64, copy=not owned))
        else:
            self._total.add(xp.astype(value, xp.float64, copy=False))
        self.samples += samples
        if self.trace_precision is not None and traced and samples:
            self._follow_trace(float(xp.sum(xp.astype(value, xp.float64, copy=False) ** 2)), samples)

    def _follow_trace(self, square_norm: float, samples: int) -> None:
        """Trace of the covariance of one batch's mean: E|m_b|^2 - |mean|^2, until it no longer moves."""
        self.batches += 1
        if not self.computes_trace:
            return
        self._square_norm_sum += square_norm / samples**2
        self._traced_batches += 1
        old, self.trace = self.trace, self._square_norm_sum / self._traced_batches - self._square_norm_of_mean()
        if old is not None and abs(self.trace - old) < (self.trace_precision or 0.0) * abs(self.trace):
            self.computes_trace = False

    def _square_norm_of_mean(self) -> float:
        if self.total is None or self.samples == 0:
            return 0.0
        return float(namespace(self.total).sum(self.total**2)) / self.samples**2

    def __call__(self) -> Array:
        """The mean, float64.

        Raises GrowthError: there are no samples.
        """
        if self.total is None or self.samples == 0:
            raise GrowthError(f"{self.name}: there are no samples, so there is no mean; call update() first")
        return self.total / self.samples if self.host_mean is None else self.host_mean

    def error(self) -> float:
        """Estimate of ``E|mean - expectation|^2``: trace of the covariance over the number of batches."""
        if self.trace_precision is None:
            raise GrowthError(f"{self.name}: no error is estimated; construct it with trace_precision=1e-3")
        if self.trace is None or self.batches < 2:
            return math.inf
        return self.trace / self.batches

    def relative_error(self) -> float:
        """``sqrt(error()) / |mean|``, infinite while there are fewer than two batches."""
        norm = math.sqrt(self._square_norm_of_mean()) if self.total is not None else 0.0
        error = self.error()
        return math.inf if norm == 0.0 or math.isinf(error) else math.sqrt(max(error, 0.0)) / norm

    def precise(self, relative_error: float) -> bool:
        """The stopping rule: whether the mean is known to ``relative_error``, from at least two batches.

        >>> import numpy as np
        >>> s = TensorStatistic(trace_precision=1e-3)
        >>> _ = s.update(np.array([1.0]), 1).update(np.array([1.1]), 1)
        >>> s.precise(0.2), s.precise(0.01)
        (True, False)
        """
        return self.relative_error() <= relative_error

    def __add__(self, other: TensorStatistic) -> TensorStatistic:
        """A new statistic with the samples of both; settings are the left one's, or the right one's if it is empty."""
        if not isinstance(other, TensorStatistic):
            return NotImplemented
        first = self if self.total is not None or other.total is None else other
        precision = first.trace_precision
        total = TensorStatistic(
            first.shape, first._update_function, self.device or other.device, first.name, trace_precision=precision
        )
        for part in (self, other):
            if part.total is not None:
                if total.total is not None and part.total.shape != total.total.shape:
                    raise ShapeError(
                        f"statistics of shapes {tuple(total.total.shape)} and {tuple(part.total.shape)} cannot be added"
                    )
                total._add(part.total, part.samples, traced=False)
            total.batches += part.batches
            total._square_norm_sum += part._square_norm_sum
            total._traced_batches += part._traced_batches
        if total._traced_batches:
            total.trace = total._square_norm_sum / total._traced_batches - total._square_norm_of_mean()
            total.computes_trace = all(part.computes_trace for part in (self, other) if part._traced_batches)
        return total

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to resume: sum, samples, batches, and the trace's sums."""
        array = None if self.total is None else np.array(to_numpy(self.total))
        names = ("samples", "batches", "trace", "computes_trace", "_square_norm_sum", "_traced_batches")
        return {"sum": array, **{name.lstrip("_"): getattr(self, name) for name in names}}

    def load_state_dict(self, state: Mapping[str, Any], *, like: Array | None = None) -> None:
        """Restore what :meth:`state_dict` returned; raises ``GrowthError`` or ``ShapeError`` before any change.

        like : an array of the library and device to go on with; default those of the present sum, else NumPy.
        """
        saved = saved_statistic(self.name, state, TensorStatistic().state_dict(), self.shape)
        array = saved["sum"]
        if array is not None:
            array = asarray(array, like=self.total if like is None else like)
            array = array if self.device is None else to_device(array, self.device)
        self._total = None if array is None else RunningSum(array)
        self.samples, self.batches = saved["samples"], saved["batches"]
        self.trace, self.computes_trace = saved["trace"], saved["computes_trace"]
        self._square_norm_sum, self._traced_batches = saved["square_norm_sum"], saved["traced_batches"]

    def __repr__(self) -> str:
        where = "" if self.total is None else f", shape={tuple(self.total.shape)}, device={device_of(self.total)}"
        return f"{type(self).__name__}({self.name!r}, samples={self.samples}{where})"


class TensorStatisticWithEstimationError(TensorStatistic):
    """A :class:`TensorStatistic` that estimates its error from the start (``trace_precision=1e-3``)."""

    def __init__(
        self,
        shape: tuple[int, ...] | None = None,
        update_function: UpdateFunction | None = None,
        device: Any = None,
        name: str | None = None,
        trace_precision: float = 1e-3,
    ) -> None:
        super().__init__(shape, update_function, device, name, trace_precision=trace_precision)
