"""Shards that are chunks of Dask arrays or partitions of Dask frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from growarray.errors import GrowthError, ShapeError


@dataclass(frozen=True, eq=False)
class DaskShard:
    """Features and targets of one chunk, computed by the worker that calls it."""

    x: Any
    target: Any

    def __call__(self) -> tuple[Any, Any]:
        """The two as arrays or frames."""
        from dask.base import compute

        return compute(self.x, self.target, scheduler="synchronous")  # type: ignore[no-untyped-call,no-any-return]


def from_dask(x: Any, y: Any) -> list[DaskShard]:
    """The chunks of Dask arrays, or the partitions of Dask frames and series, as shards for :func:`collect` or batches.

    x, y : features and targets, cut at the same samples, and along the first axis alone

    With a Dask client as its executor ``collect`` leaves the chunks where they are computed or persisted. ``Growth``
    and ``fit_batches`` of the estimators take them as batches, each computed when it is reached. Frames need pandas and
    pyarrow: ``pip install "dask[dataframe]"``.

    Raises ShapeError: they are cut elsewhere, or along another axis: ``rechunk`` or ``repartition`` one of them;
    GrowthError: their number of chunks differs, as with frames, whose lengths are not known; TypeError: they are no
    Dask collections.
    """
    for name, part in (("x", x), ("y", y)):
        if not hasattr(part, "to_delayed"):
            raise TypeError(f"from_dask: {name} is a {type(part).__name__}, expected a Dask array, frame or series")
        chunks = getattr(part, "chunks", None)
        if chunks is not None and any(len(axis) > 1 for axis in chunks[1:]):
            whole = dict.fromkeys(range(1, part.ndim), -1)
            raise ShapeError(f"from_dask: {name} is chunked along several axes; call {name}.rechunk({whole})")
    pieces = [np.ravel(part.to_delayed()).tolist() for part in (x, y)]
    if len(pieces[0]) != len(pieces[1]):
        raise GrowthError(
            f"from_dask: x has {len(pieces[0])} chunks, y has {len(pieces[1])}; chunk both at the same samples by "
            "rechunk or repartition"
        )
    lengths = [part.chunks[0] for part in (x, y) if hasattr(part, "chunks")]
    if len(lengths) == 2 and not np.array_equal(lengths[0], lengths[1], equal_nan=True):
        raise ShapeError("from_dask: x and y are chunked at different samples; call y.rechunk({0: x.chunks[0]})")
    return [DaskShard(*pair) for pair in zip(*pieces, strict=True)]
