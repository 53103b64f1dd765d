"""Data to learn from, in batches, and the task: its loss and its figure of merit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from growarray.backend import Array, asarray, is_array, is_cupy, namespace, to_host
from growarray.errors import GrowthError, ShapeError, shown
from growarray.ops import cross_entropy, mse

_LOOKED_AT = 2**22  # values that are looked at at a time, of an array that may lie on disk

Loss = Callable[[Array, Array], tuple[Any, Callable[..., Array]]]


def accuracy(logits: Array, labels: Array) -> float:
    """Share of samples whose greatest logit is the label's; logits (n, c, *), labels (n, *) or probabilities (n, c, *).

    Raises ShapeError if the labels have another shape.

    >>> import numpy as np
    >>> accuracy(np.array([[2.0, 1.0], [0.0, 3.0]]), np.array([0, 0]))
    0.5
    """
    return float(_accuracy(logits, labels))


def _accuracy(logits: Array, labels: Array) -> Any:
    xp = namespace(logits, labels)
    if tuple(labels.shape) == tuple(logits.shape):
        labels = xp.argmax(labels, axis=1)
    elif tuple(labels.shape) != (logits.shape[0], *logits.shape[2:]):
        raise ShapeError(
            f"accuracy: labels have shape {tuple(labels.shape)}, expected {(logits.shape[0], *logits.shape[2:])} "
            f"or probabilities {tuple(logits.shape)}"
        )
    right = xp.astype(xp.argmax(logits, axis=1), labels.dtype) == labels
    return _read(xp.mean(xp.astype(right, xp.float64)))


def _read(number: Array) -> Any:
    """A float, or the array itself on a GPU, where the host would wait."""
    return number if is_cupy(number) else float(number)


def f1(predicted: Array, labels: Array, *, average: str = "macro") -> float:
    """F1 of predicted classes (n,): the mean over all true classes (``'macro'``), or of all counts (``'micro'``).

    A class that is never predicted has F1 0. Raises ValueError for another average, ShapeError for other shapes.

    >>> import numpy as np
    >>> f1(np.array([0, 1, 1, 1]), np.array([0, 0, 1, 1]))
    0.7333333333333334
    """
    if average not in ("macro", "micro"):
        raise ValueError(f"f1: average must be 'macro' or 'micro', found {shown(average)}")
    if tuple(predicted.shape) != tuple(labels.shape) or labels.ndim != 1:
        raise ShapeError(f"f1: predictions {tuple(predicted.shape)} and labels {tuple(labels.shape)} must both be (n,)")
    xp = namespace(predicted, labels)
    counts = [
        tuple(int(xp.count_nonzero(members)) for members in (chosen & true, chosen | true))
        for chosen, true in ((predicted == label, labels == label) for label in xp.unique_values(labels))
    ]  # 2 TP + FP + FN is TP and all that is in either
    groups = counts if average == "macro" else [tuple(map(sum, zip(*counts, strict=True)))]
    return sum(2 * both / (both + either) for both, either in groups) / len(groups)


def _r2(prediction: Array, target: Array) -> Any:
    """1 - residual over total sum of squares: 1 is perfect, 0 the mean's, and of targets that are all equal."""
    xp, target = namespace(prediction, target), _columns(target, prediction)
    residual, total = (xp.sum((target - y) ** 2) for y in (prediction, xp.mean(target, axis=0)))
    zeros, ones = xp.zeros_like(total), xp.ones_like(total)
    return _read(xp.where(total == 0.0, zeros, 1.0 - residual / xp.where(total == 0.0, ones, total)))


def _columns(target: Array, y: Array) -> Array:
    """Targets (n,) as (n, 1) if there is one prediction a sample: its axis may be left out."""
    return target[..., None] if target.ndim == y.ndim - 1 and y.shape[-1] == 1 else target


def _mean_square(y: Array, target: Array) -> tuple[Any, Callable[..., Array]]:
    target = _columns(target, y)
    if tuple(y.shape) != tuple(target.shape):
        raise ShapeError(f"targets have shape {tuple(target.shape)}, predictions {tuple(y.shape)}; make them (n, t)")
    return mse(y, target)


@dataclass(frozen=True)
class Task:
    """A mean loss ``(y, target) -> (loss, pullback)`` and a figure of merit ``(y, target) -> number``, larger better.

    weights : what each sample counts in the loss, ``target -> (n,)``, or None if all count the same
    """

    name: str
    loss: Loss
    score: Callable[[Array, Array], Any]  # on a GPU it may be an array, which is not waited for
    score_name: str
    weights: Callable[[Array], Array] | None = None


_TASKS = {
    "classification": Task("classification", cross_entropy, _accuracy, "accuracy"),
    "regression": Task("regression", _mean_square, _r2, "r2"),
}


def task_named(name: str, score: str | None = None) -> Task:
    """``'classification'`` (cross entropy, accuracy) or ``'regression'`` (mean squared error, R²).

    Regression targets are (n, t), or (n,) if there is one a sample.
    score : ``'f1_macro'`` or ``'f1_micro'`` for another figure of merit of a classification: :func:`f1` of the greatest
        logits, labels (n,)

    >>> task_named("regression").score_name, task_named("classification", score="f1_macro").score_name
    ('r2', 'f1_macro')
    """
    if name not in _TASKS:
        raise ValueError(f"unknown task {shown(name)}; known: {', '.join(_TASKS)}")
    task = _TASKS[name]
    if score in (None, task.score_name):
        return task
    if name != "classification" or score not in ("f1_macro", "f1_micro"):
        known = ("accuracy", "f1_macro", "f1_micro") if name == "classification" else (task.score_name,)
        raise ValueError(f"task_named: score of a {name} must be one of {', '.join(known)}, found {shown(score)}")
    average = score.removeprefix("f1_")
    return replace(
        task, score=lambda y, labels: f1(namespace(y).argmax(y, axis=1), labels, average=average), score_name=score
    )


def numbers(values: Sequence[Any]) -> list[float]:
    """Losses as numbers; those on a GPU with one wait for all.

    >>> numbers([np.float32(0.5), 2.0])
    [0.5, 2.0]
    """
    return list(map(float, to_host(values)))


def batches(
    x: Array, target: Array, size: int, rng: np.random.Generator | None = None
) -> Iterator[tuple[Array, Array]]:
    """Batches of at most ``size`` samples, in order, or shuffled by ``rng``; the last one may be smaller.

    The permutation is drawn in NumPy, so that every library gets the same batches.
    """
    if x.shape[0] != target.shape[0]:
        raise ShapeError(f"batches: {x.shape[0]} samples, {target.shape[0]} targets; the numbers must agree")
    if size < 1:
        raise ValueError(f"batches: size must be at least 1, found {size}")
    xp = namespace(x, target)
    order = None if rng is None else asarray(rng.permutation(int(x.shape[0])), like=x)
    count = int(x.shape[0])
    for start in range(0, count, size):
        stop = min(start + size, count)
        if order is None:
            yield x[start:stop, ...], target[start:stop, ...]
        else:
            chosen = order[start:stop]
            yield xp.take(x, chosen, axis=0), xp.take(target, chosen, axis=0)


def is_pair(data: Any) -> bool:
    """Whether data are a pair of arrays, and not batches to iterate over."""
    return isinstance(data, tuple | list) and len(data) == 2 and all(map(is_array, data))


def batches_of(data: Any, size: int, rng: np.random.Generator | None = None) -> Iterator[tuple[Array, Array]]:
    """:func:`batches` of a pair of arrays; anything else already is batches, each loaded as it is reached.

    Raises TypeError for one array.

    >>> [target for _, target in batches_of([("x", "y"), lambda: ("u", "v")], 8)]
    ['y', 'v']
    """
    if is_array(data):
        raise TypeError(f"expected a pair of arrays (x, target), or batches, found {shown(data)}")
    return batches(data[0], data[1], size, rng) if is_pair(data) else map(loaded, data)


def loaded(part: Any) -> Any:
    """A batch: what a function gives if it is one, and arrays for frames and series.

    >>> loaded(lambda: ("x", "y"))
    ('x', 'y')
    """
    batch = part() if callable(part) else part
    if not isinstance(batch, tuple | list):
        return batch
    return tuple(array.to_numpy() if hasattr(array, "to_numpy") else array for array in batch)


def _check_batches(data: Any, validation: Any) -> tuple[int, Array]:
    if isinstance(data, Iterator):
        raise TypeError(
            f"Growth: data is {shown(data)}, expected a pair of arrays, or batches that can be iterated over in every "
            "epoch, such as Batches(x, target) or a list; a generator is exhausted after one"
        )
    if validation is None or not is_pair(validation):
        raise TypeError("Growth: data given as batches needs separate validation data; pass validation=(x, target)")
    count, first = 0, None
    for index, part in enumerate(map(loaded, data)):
        if not is_pair(part):
            raise TypeError(f"Growth: batch {index} of data is {shown(part)}, expected a pair of arrays (x, target)")
        _check_part(f"batch {index} of data", part)
        count += int(part[0].shape[0])
        if first is None:
            first = namespace(part[0]).asarray(part[0][:1, ...], copy=True)  # nothing keeps the batch
    if first is None or not count:
        raise GrowthError("Growth: there are no training samples")
    return count, first


def check_data(data: Any, validation: Any) -> tuple[int, Array]:
    """Check the data; returns the number of samples, and all of them or the first batch.

    Raises TypeError, ShapeError or GrowthError if something is neither a pair nor batches that can be iterated over
    again, its parts differ in number, a value is not finite, or there are no samples.
    """
    if isinstance(data, Iterable) and not (isinstance(data, tuple) or is_pair(data)):
        count, first = _check_batches(data, validation)
    else:
        _check_pair("data", data)
        count, first = int(data[0].shape[0]), data[0]
        if not count:
            raise GrowthError("Growth: there are no training samples")
    if validation is not None:
        _check_pair("validation", validation)
        if validation[0].shape[0] == 0:
            raise GrowthError("Growth: there are no validation samples; omit validation to use the training data")
    return count, first


def _check_pair(name: str, part: Any) -> None:
    if not is_pair(part):
        raise TypeError(f"Growth: {name} must be a pair of arrays (x, target), found {_kinds(part)}")
    _check_part(name, part)


def _kinds(part: Any) -> str:
    """What there is in place of a pair of arrays, and how Dask's become batches."""
    if not isinstance(part, tuple | list):
        return type(part).__name__
    text = f"{type(part).__name__} of {', '.join(type(array).__name__ for array in part[:5]) or 'nothing'}"
    if any(hasattr(array, "to_delayed") for array in part):
        return f"{text}; growarray.distributed.from_dask(x, target) makes batches of Dask's"
    return f"{text}; numpy.asarray makes an array of a list or a frame"


def _check_part(name: str, part: tuple[Array, Array]) -> None:
    if part[0].shape[0] != part[1].shape[0]:
        raise ShapeError(f"Growth: {name} has {part[0].shape[0]} samples and {part[1].shape[0]} targets")
    for what, array in zip(("features", "targets"), part, strict=True):
        _check_finite(f"Growth: the {what} of {name}", array)


def _check_finite(where: str, array: Array) -> None:
    """Raise if a sample holds NaN or infinite values: one is enough to spoil every weight. Looks at rows in parts."""
    xp = namespace(array, where=f"{where}: ")
    if not xp.isdtype(array.dtype, "real floating"):
        return
    rows = max(1, _LOOKED_AT // max(1, math.prod(array.shape[1:])))
    for start in range(0, array.shape[0], rows):
        part = array[start : min(start + rows, array.shape[0]), ...]
        if bool(xp.all(xp.isfinite(part))):
            continue
        broken = xp.any(xp.reshape(~xp.isfinite(part), (part.shape[0], -1)), axis=1)
        first = start + int(xp.argmax(xp.astype(broken, xp.int64)))
        raise GrowthError(f"{where}: sample {first} holds NaN or infinite values; correct it or remove it")
