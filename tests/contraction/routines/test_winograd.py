"""Convolutions at the points of tiles: when they are chosen, and what they give beside the definition."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from queue import SimpleQueue

import numpy as np
import pytest

from growarray.contraction import plan, threads
from growarray.contraction.problem import Axis, Product
from growarray.contraction.routines.winograd import Winograd, tiles_at_once
from growarray.contraction.workspace import release
from growarray.ops import conv

# images (None: no such axis), channels in and out, sizes, taps, padding
CASES: dict[str, tuple[int | None, int, int, tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "images": (3, 20, 24, (9, 8), (3, 3), (1, 1)),
    "padded to one side": (2, 16, 17, (10, 7), (3, 3), (0, 2)),
    "one image": (None, 16, 18, (7, 9), (3, 3), (0, 2)),
    "wide": (1, 64, 130, (6, 40), (3, 3), (1, 1)),
    "three axes": (2, 16, 18, (6, 7, 9), (3, 3, 3), (1, 1, 1)),
    "three axes of one image": (None, 16, 18, (6, 7, 9), (3, 3, 3), (1, 0, 2)),
    "two taps deep": (2, 16, 16, (9, 5, 9), (2, 3, 3), (1, 0, 2)),
    "deep and wide": (1, 17, 16, (40, 9, 30), (3, 3, 3), (1, 1, 1)),
}
each_case = pytest.mark.parametrize("name", CASES)
EPS = float(np.finfo(np.float32).eps)


def axes_of(images: int | None, sizes: Sequence[int], taps: Sequence[int], padding: Sequence[int]) -> list[Axis]:
    found = [
        Axis(f"a{i}", size, t, size + 2 * p - t + 1, 1, p)
        for i, (size, t, p) in enumerate(zip(sizes, taps, padding, strict=True))
    ]
    return found if images is None else [Axis("n", images, 1, images), *found]


def sample(name: str) -> tuple[list[Axis], np.ndarray, np.ndarray, np.ndarray]:
    """Axes, feature (1, s, ...), kernel (1, n, s, ...) and gradient (1, n, ...)."""
    images, s, n, sizes, taps, padding = CASES[name]
    axes, rng = axes_of(images, sizes, taps, padding), np.random.default_rng(0)
    shapes = [(s, *(a.size for a in axes)), (n, s, *(a.taps for a in axes)), (n, *(a.out for a in axes))]
    feature, kernel, gradient = (rng.standard_normal((1, *shape), dtype=np.float32) for shape in shapes)
    return axes, feature, kernel, gradient


def windows(feature: np.ndarray, axes: Sequence[Axis]) -> np.ndarray:
    """(1, s, *outs, *taps) in float64."""
    padding = [(0, 0), (0, 0), *((a.before, a.before) for a in axes)]
    padded = np.pad(feature.astype(np.float64), padding)
    inner = tuple(range(2, padded.ndim))
    return np.lib.stride_tricks.sliding_window_view(padded, [a.taps for a in axes], inner)


def made(kernel: np.ndarray, axes: Sequence[Axis], tiles: int) -> Winograd:
    return Winograd(Product(1, kernel.shape[2], kernel.shape[1], tuple(axes)), tiles)


def run(winograd: Winograd, feature: np.ndarray, kernel: np.ndarray, out: np.ndarray) -> np.ndarray:
    out[...] = np.nan
    for task in winograd.forward(kernel, feature, out):
        task()
    return out


@each_case
@pytest.mark.parametrize("tiles", [48, 100, 1000])
def test_value_and_gradient_are_those_of_the_definition(name, tiles):
    axes, feature, kernel, gradient = sample(name)
    d, letters = windows(feature, axes), "pqrstuvw"
    q, t = letters[: len(axes)], letters[4 : 4 + len(axes)]
    wanted = np.einsum(f"bc{q}{t},bnc{t}->bn{q}", d, kernel.astype(np.float64), optimize=True)
    d_kernel = np.einsum(f"bc{q}{t},bn{q}->bnc{t}", d, gradient.astype(np.float64), optimize=True)
    winograd = made(kernel, axes, tiles)
    y = run(winograd, feature, kernel, np.empty_like(gradient))
    found = np.full_like(kernel, np.nan)
    for task in winograd.d_kernel(gradient, feature, found):
        task()
    # rounding grows with the root of what is summed, of random signs; the largest entries are five times the usual
    for one, other in ((y, wanted), (found, d_kernel)):
        assert np.abs(one - other).max() <= 10 * EPS * np.abs(other).max()


@each_case
def test_pieces_may_run_in_any_order_and_twice(name):
    axes, feature, kernel, gradient = sample(name)
    winograd = made(kernel, axes, 48)
    wanted = run(winograd, feature, kernel, np.empty_like(gradient)).copy()
    out = np.empty_like(gradient)
    tasks = winograd.forward(kernel, feature, out)
    assert len(tasks) == len(winograd.pieces)
    for task in [*tasks, *tasks[::-1]]:
        task()
    assert np.array_equal(out, wanted)


def test_a_kernel_turned_round_has_the_points_of_its_copy():
    axes, _, kernel, _ = sample("three axes")
    winograd = made(kernel, axes, 48)
    turned = kernel[..., ::-1, ::-1]
    np.testing.assert_allclose(winograd.prepare(turned), winograd.prepare(turned.copy()), rtol=0, atol=4 * EPS)


PLAIN = Axis("n", 8, 1, 8)
EVEN = [PLAIN, Axis("y", 28, 3, 28, 1, 1), Axis("x", 28, 3, 28, 1, 1)]
REFUSED: dict[str, tuple[tuple[int, int, int], list[Axis], int]] = {
    "few channels": ((1, 31, 64), EVEN, 10**8),
    "strided": ((1, 64, 64), [PLAIN, Axis("y", 28, 3, 14, 2, 1), EVEN[2]], 10**8),
    "dilated": ((1, 64, 64), [PLAIN, Axis("y", 28, 3, 26, 1, 1, 2), EVEN[2]], 10**8),
    "five taps": ((1, 64, 64), [PLAIN, EVEN[1], Axis("x", 28, 5, 28, 1, 2)], 10**8),
    "one axis": ((1, 64, 64), [PLAIN, EVEN[2]], 10**8),
    "four axes": ((1, 64, 64), [EVEN[1], EVEN[1], EVEN[1], EVEN[2]], 10**8),
    "small": ((1, 64, 64), [PLAIN, Axis("y", 3, 3, 3, 1, 1), EVEN[2]], 10**8),
    "no room": ((1, 256, 256), EVEN, 1 << 20),
    "none": ((0, 64, 64), EVEN, 10**8),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_convolutions_are_left_to_the_direct_way(name):
    sizes, axes, working_set = REFUSED[name]
    assert tiles_at_once(Product(1, 64, 64, tuple(EVEN), 10**8)) > 0
    assert tiles_at_once(Product(*sizes, tuple(axes), working_set)) == 0


def test_only_single_precision_takes_it():
    equation, shapes = "n c y x, o c y x -> n o y x | y, x", [(2, 32, 16, 16), (32, 32, 3, 3)]
    kernels = {
        dtype: [step.routine for step in plan(equation, *shapes, padding=1, dtype=dtype).steps]
        for dtype in ("float32", "float64")
    }
    assert kernels == {"float32": ["winograd"], "float64": ["rows"]}
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape) for shape in shapes)
    # a plan for one dtype runs the other, by the routine for it
    y = plan(equation, *shapes, padding=1, dtype="float32")(x, w)
    wanted = np.einsum("ncyxij,ocij->noyx", windows(x, axes_of(None, (16, 16), (3, 3), (1, 1))), w, optimize=True)
    assert np.abs(y - wanted).max() <= 100 * np.finfo(np.float64).eps * np.abs(wanted).max()


@pytest.mark.parametrize("place", [(8, 11), (8, 10), (7, 11), (0, 19)], ids=str)
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_what_is_not_finite_reaches_the_outputs_that_read_it_and_no_others(place, value):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 32, 20, 20), dtype=np.float32)
    w = rng.standard_normal((32, 32, 3, 3), dtype=np.float32)
    clean = conv(x, w, padding=1)[0]
    x[0, 5, *place] = value
    with np.errstate(invalid="ignore"):
        y = conv(x, w, padding=1)[0]
    near = [np.abs(np.arange(20) - at) <= 1 for at in place]
    read = near[0][:, None] & near[1]
    assert not np.isfinite(y[..., read]).any()
    assert np.array_equal(y[..., ~read], clean[..., ~read])


@pytest.mark.parametrize(("channels", "side"), [(64, 56), (128, 28), (256, 14), (512, 7)])
def test_a_dense_layer_needs_half_of_its_arrays_beside_them(monkeypatch, channels, side):
    monkeypatch.setenv("GROWARRAY_THREADS", "2")
    monkeypatch.setattr(threads, "_workers", [])  # others, whose work space is still to be made
    monkeypatch.setattr(threads, "_offers", SimpleQueue())
    release()
    conv(np.ones((4, 8, 16, 16), np.float32), np.ones((8, 8, 3, 3), np.float32))  # what does not grow with the layer
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, channels, side, side), dtype=np.float32)
    w = rng.standard_normal((channels, channels, 3, 3), dtype=np.float32)
    run = plan("n c y x, o c y x -> n o y x | y, x", x.shape, w.shape, padding=1)
    tracemalloc.start()
    try:
        y = run(x, w)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert x.nbytes + w.nbytes + peak <= 1.5 * (x.nbytes + w.nbytes + y.nbytes)
