"""Softmax cross entropy by class indices: rows in pieces and their sum, two launches, and one for the gradient."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from growarray.backend import Array, is_cupy
from growarray.cuda.device import NAMES, WIDE, contiguous, current, empty, fits, gradient, run
from growarray.cuda.late import record
from growarray.cuda.text import ACCUMULATED, BLOCK_SUMS, THREADS, each_of, kernel_text

_BLOCKS = 1024  # at most, so that the second launch, one block, is short
_FEW = 64  # classes up to which one thread has a row; of more, one block

_LABEL = (
    "const long long label = target[r]; const bool counted = label != ignored;",
    "const bool broken = counted && (label < 0 || label >= classes), used = counted && !broken;",
    "const A own = used ? (weight ? load(weight + label) : (A)1) : (A)0;",
)


@lru_cache(maxsize=64)
def _rows(dtype: str, few: bool, smooth: float, wide: bool) -> str:
    """Of each row largest logit, logarithm of the sum of powers, and sum of q; of each block loss, weights, a label."""
    lane, lanes, row = ("0", "1", f"(I)blockIdx.x * {THREADS} + threadIdx.x") if few else (
        "threadIdx.x", str(THREADS), "(I)blockIdx.x")  # fmt: skip
    every = f"for (I c = {lane}; c < classes; c += {lanes})"

    def joined(name: str, how: str) -> str:
        return "" if few else f"{name} = {how}_of({name}, held);"

    rest = [
        "A spread = 0, q = 0;",
        f"if (used) {every} {{ const A w = weight ? load(weight + c) : (A)1;",
        "if (w != 0) spread += w * (logarithm - (load(at + c * rest) - top)); q += w; }",
        joined("spread", "sum"), joined("q", "sum"),
        f"const A by = (A){smooth!r} / classes;",
        f"const A value = own == 0 ? (A)0 : (A){1.0 - smooth!r} * own * (logarithm - (load(at + label * rest) - top));",
        f"const A mine = value + by * spread, whole = (A){1.0 - smooth!r} * own + by * q;",
    ] if smooth else [
        "const A mine = own == 0 ? (A)0 : own * (logarithm - (load(at + label * rest) - top)), whole = own;",
    ]  # fmt: skip
    lines = [
        "__shared__ A held[256]; __shared__ long long labels[256]; A loss = 0, weights = 0; long long bad = none;",
        f"for (I r = {row}; r < rows; r += (I)gridDim.x * {THREADS if few else 1}) {{",
        *_LABEL, "if (broken && (bad == none || label > bad)) bad = label;",
        "const T* at = x + r / rest * classes * rest + r % rest; A top = load(at), sum = 0;",
        f"{every} {{ const A v = load(at + c * rest); top = v > top || v != v ? v : top; }}", joined("top", "max"),
        f"{every} sum += exp(load(at + c * rest) - top);", joined("sum", "sum"),
        "const A logarithm = log(sum);", *rest,
        f"if ({lane} == 0) {{ loss += mine; weights += own; }}",
        f"if ({lane} == 0 && each) store(each + r, mine);",
        f"if ({lane} == 0) {{ kept[3 * r] = top; kept[3 * r + 1] = logarithm; kept[3 * r + 2] = whole; }} }}",
        "loss = sum_of(loss, held); weights = sum_of(weights, held); bad = max_of(bad, labels);",
        "if (threadIdx.x == 0) { parts[2 * blockIdx.x] = loss; parts[2 * blockIdx.x + 1] = weights;",
        "  found[blockIdx.x] = bad; }",
    ]  # fmt: skip
    arguments = "const T* x, const long long* target, const T* weight, A* kept, A* parts, long long* found, T* each"
    return kernel_text(dtype, f"{arguments}, {_NUMBERS}", lines, wide, BLOCK_SUMS)


_NUMBERS = "I rows, I rest, I classes, long long ignored, long long none"


@lru_cache(maxsize=8)
def _total(dtype: str, mean: bool) -> str:
    """The loss, what a gradient is divided by, and the record of what is wrong."""
    lines = [
        "__shared__ A held[256]; __shared__ long long labels[256]; A loss = 0, weights = 0; long long bad = none;",
        f"for (I i = threadIdx.x; i < blocks; i += {THREADS}) {{",
        "loss += parts[2 * i]; weights += parts[2 * i + 1]; bad = found[i] > bad ? found[i] : bad; }",
        "loss = sum_of(loss, held); weights = sum_of(weights, held); bad = max_of(bad, labels);",
        f"const A by = {'weights' if mean else '(A)1'};",
        "if (threadIdx.x == 0) { if (y) store(y, loss / by); total[0] = by;",
        "  const int what = bad != none ? 1 : by == 0 ? 2 : 0;",
        "  if (what && !wrong[0]) { wrong[0] = what; wrong[1] = bad; wrong[2] = classes; wrong[3] = ignored; } }",
    ]
    arguments = "const A* parts, const long long* found, T* y, A* total, long long* wrong, I blocks"
    return kernel_text(dtype, f"{arguments}, I classes, long long ignored, long long none", lines, False, BLOCK_SUMS)


@lru_cache(maxsize=16)
def _slopes(dtype: str, smooth: float, wide: bool) -> str:
    """softmax times the sum of q, minus q, times the gradient at the loss."""
    lines = [
        each_of("rows * classes"),
        "const I c = i / rest % classes, r = i / (rest * classes) * rest + i % rest;", *_LABEL,
        "const A w = used ? (weight ? load(weight + c) : (A)1) : (A)0;",
        f"const A q = (A){smooth!r} / classes * w + (c == label ? (A){1.0 - smooth!r} * w : (A)0);",
        "const A p = exp(load(x + i) - kept[3 * r] - kept[3 * r + 1]) * kept[3 * r + 2] - q;",
        "store(dx + i, p * (slope * (slopes ? load(slopes + r * each) : (A)1) / total[0]));",
    ]  # fmt: skip
    kept = "const A* kept, const A* total, A slope, const T* slopes, I each, T* dx"
    arguments = f"const T* x, const long long* target, const T* weight, {kept}"
    return kernel_text(dtype, f"{arguments}, {_NUMBERS}", lines, wide)


def _judged(wrong: np.ndarray) -> Exception | None:
    """What a record says."""
    what, label, classes, ignored = wrong.tolist()
    return (None, label_error(label, classes, ignored), nothing_to_average())[what]


def label_error(label: int, classes: int, ignore_index: int) -> ValueError:
    """A label is out of range."""
    return ValueError(
        f"cross_entropy: label {label} is not one of the {classes} classes 0 to {classes - 1}; "
        f"labels that do not count are marked with ignore_index={ignore_index}"
    )


def nothing_to_average() -> ValueError:
    """No target counts."""
    return ValueError(
        "cross_entropy: every target is ignored, so there is no mean; use reduction='sum' for such a batch"
    )


def entropy(
    logits: Array, target: Array, weight: Array | None, label_smoothing: float, reduction: str, ignore_index: int
) -> tuple[Array, Callable[[Any], Array]] | None:
    """As in :mod:`growarray.ops.loss`; a label out of range is found late. Keeps the logits and three numbers a row."""
    n, classes, *rest = logits.shape
    if target.shape != (n, *rest) or target.dtype.kind not in "iu" or not fits(logits, weight):
        return None
    if not is_cupy(target) or (weight is not None and weight.shape != (classes,)):
        return None
    dtype, rows, few, smooth = NAMES[logits.dtype], target.size, classes <= _FEW, float(label_smoothing)
    wide = max(logits.size, 3 * rows) >= WIDE  # three numbers a row are kept
    of_sums, index = np.dtype(ACCUMULATED[dtype]).type, np.int64 if wide else np.int32
    blocks = min(_BLOCKS, -(-rows // THREADS) if few else rows)
    none, ignored = np.int64(np.iinfo(np.int64).min), np.int64(ignore_index)
    numbers = index(rows), index(rows // n), index(classes), ignored, none
    with current(logits):
        target = contiguous(target, "int64")
        shapes: list[tuple[int, ...]] = [(rows, 3), (blocks, 2), (1,)]
        kept, parts, total = (empty(shape, of_sums) for shape in shapes)
        faulty, wrong = empty((blocks,), "int64"), record(_judged, logits)
        loss = empty(target.shape if reduction == "none" else (), dtype)
        each, scalar = (loss, None) if reduction == "none" else (None, loss)
        text = _rows(dtype, few, smooth, wide)
        run(text, blocks, logits, target, weight, kept, parts, faulty, each, *numbers)
        count = np.int32(blocks), np.int32(classes), ignored, none
        run(_total(dtype, reduction == "mean"), 1, parts, faulty, scalar, total, wrong, *count)

    shape = loss.shape

    def vjp(dloss: Any) -> Array:
        slope, slopes, step = (dloss, None, 0) if isinstance(dloss, float) else (1.0, dloss, int(bool(shape)))
        with current(logits):
            slopes = None if slopes is None else gradient(slopes, shape, dtype, logits)
            dx, operands = empty(logits.shape, dtype), (logits, target, weight, kept, total, of_sums(slope), slopes)
            text, blocks = _slopes(dtype, smooth, wide), -(-logits.size // THREADS)
            run(text, blocks, *operands, index(step), dx, *numbers)
        return dx

    return loss, vjp
