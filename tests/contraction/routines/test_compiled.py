"""The routine that Numba compiles, against the portable one: values, views, pieces, threads, and when it is taken."""

from __future__ import annotations

import importlib
import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from growarray.contraction import Plan, plan
from growarray.contraction.problem import Axis, Product
from growarray.contraction.routines import compiled, planes, scatter
from growarray.contraction.routines.choice import choose
from growarray.contraction.routines.compiled import Compiled
from growarray.contraction.routines.portable import Portable
from growarray.contraction.routines.protocol import D_FEATURE, D_KERNEL, FORWARD
from growarray.contraction.routines.scatter import Scatter
from growarray.testing import assert_close
from tests.contraction.reference import random_arrays
from tests.contraction.routines.test_routines import (
    CASES,
    RTOL,
    d_kernel_of,
    defined,
    forward,
    nothing,
    on_numpy,
    operands,
    portably,
    run,
    shrunk,
    step_for,
)  # fmt: skip

CACHED = importlib.import_module("growarray.contraction.plan")._cached  # the function has the module's name
BANDS = [name for name in CASES if name.startswith("band")]
each_case = pytest.mark.parametrize("name", BANDS)
DEPTHWISE = Product(3, 1, 1, (Axis("n", 2, 1, 2), Axis("y", 6, 3, 6, 1, 1), Axis("x", 7, 3, 7, 1, 1)))


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The routine may be taken, as where Numba is installed."""
    set_available(monkeypatch, True)


def set_available(monkeypatch: pytest.MonkeyPatch, value: bool) -> None:
    for module in (compiled, scatter):
        monkeypatch.setattr(module, "available", lambda: value)


@pytest.fixture
def tiny_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((compiled, "_PIECE"), (planes, "_PLANE"), (planes, "_SMALL")):
        monkeypatch.setattr(module, name, shrunk(getattr(module, name)) // 4)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cut", [False, True], ids=["whole", "pieces"])
@each_case
def test_it_is_the_portable_product_forward_and_backward(name, cut, dtype, request):
    if cut:
        request.getfixturevalue("tiny_pieces")
    step = step_for(*CASES[name], dtype=dtype)
    assert step.routines == ("compiled", "transposed", "compiled")
    arrays = operands(step, dtype)
    for what, found, wanted in zip("ykf", on_numpy(step, *arrays), portably(step, *arrays), strict=True):
        assert found.dtype == dtype
        assert_close(found, wanted, rtol=RTOL[dtype], what=what)


@st.composite
def products(draw: st.DrawFn, summed: bool = False) -> Product:
    """Planes of one to three axes, alone or several for each kernel, with strides, dilations and any padding."""
    many = draw(st.integers(1, 3))
    axes = [Axis("n", many, 1, many)] if draw(st.booleans()) else []
    for name in "zyx"[draw(st.integers(0, 2)) :]:
        size, taps = draw(st.integers(1, 9)), draw(st.integers(1, 4))
        stride, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 3))
        before, after = draw(st.integers(0, 4)), draw(st.integers(0, 4))
        out = (size + before + after - (taps - 1) * dilation - 1) // stride + 1
        assume(out > 0)
        axes.append(Axis(name, size, taps, out, stride, before, dilation))
    sizes = (draw(st.integers(1, 4)), *((draw(st.integers(1, 3)), draw(st.integers(1, 3))) if summed else (1, 1)))
    product = Product(*sizes, tuple(axes), itemsize=8)
    assume(product.is_conv)
    return product


@settings(max_examples=200, deadline=None)
@given(products(), st.integers(1, 3), st.integers(1, 3))
def test_any_geometry(product, summed, results):
    product = replace(product, s=summed, n=results)
    rng = np.random.default_rng(0)
    kernel, feature, d_out = (
        rng.standard_normal(shape) for shape in (product.kernel_shape, product.feature_shape, product.shape)
    )
    routine = Compiled(product)
    y, d_kernel = nothing(product.shape, "float64"), nothing(product.kernel_shape, "float64")
    run(list(routine.forward(kernel, feature, y)), y)
    run(list(routine.d_kernel(d_out, feature, d_kernel)), d_kernel)
    assert_close(y, defined(feature, kernel, product.axes), rtol=1e-12)
    assert_close(d_kernel, np.asarray(Portable(product).d_kernel(np, d_out, feature)), rtol=1e-12)


@pytest.mark.parametrize("x", [Axis("x", 7, 3, 7, 1, 1), Axis("x", 7, 4, 7, 1, 5, 2), Axis("x", 2, 5, 2, 1, 2)])
@pytest.mark.parametrize("more", [(), (Axis("z", 4, 2, 2, 2, 1),)], ids=["plane", "volume"])
def test_rows_that_lie_end_to_end_give_the_same_bits_as_padded_ones(x, more, monkeypatch):
    product = Product(3, 2, 3, (*more, Axis("y", 5, 3, 5, 1, 1), x), itemsize=8)
    rng, found = np.random.default_rng(0), []
    kernel, feature = rng.standard_normal(product.kernel_shape), rng.standard_normal(product.feature_shape)
    feature[0, 0] = np.nan  # of a plane of its own
    for most in (80, -1):
        monkeypatch.setattr(planes, "_COPIES", most)
        assert planes.keeps_rows(x) is (most > 0)
        planes.tables.cache_clear()
        found.append(nothing(product.shape, "float64"))
        run(list(Compiled(product).forward(kernel, feature, found[-1])), found[-1][1:])
    planes.tables.cache_clear()
    assert np.array_equal(*found, equal_nan=True)
    assert_close(found[0][1:], defined(feature, kernel, product.axes)[1:], rtol=1e-12)


@settings(max_examples=100, deadline=None)
@given(products(summed=True))
def test_the_gradient_by_the_feature_map_is_added_up_for_any_geometry(product):
    rng = np.random.default_rng(0)
    kernel, d_out = rng.standard_normal(product.kernel_shape), rng.standard_normal(product.shape)
    wanted = np.asarray(Portable(product).d_feature(np, kernel, d_out))
    d_feature = nothing((*wanted.shape[:-1], 2 * wanted.shape[-1]), "float64")
    run(list(Scatter(product).d_feature(kernel, d_out, d_feature[..., ::-2])), d_feature)
    assert_close(d_feature[..., ::-2], wanted, rtol=1e-12)
    assert np.isnan(d_feature[..., ::2]).all()


def test_strides_are_added_up_where_that_is_less_than_windows(monkeypatch):
    axes = (Axis("y", 8, 3, 4, 2, 1), Axis("x", 8, 3, 4, 2, 1))
    assert choose(Product(1, 4, 8, axes), D_FEATURE) is Scatter
    assert choose(Product(1, 8, 4, axes), D_FEATURE).name == "transposed"
    assert choose(Product(1, 4, 8, axes, itemsize=2), D_FEATURE).name == "transposed"
    set_available(monkeypatch, False)
    assert choose(Product(1, 4, 8, axes), D_FEATURE).name == "transposed"


@each_case
def test_views_of_any_strides_are_taken_and_filled(name):
    step = step_for(*CASES[name])
    feature, kernel, d_out = operands(step, "float64")
    wanted, _, wanted_kernel = on_numpy(step, feature, kernel, d_out)
    feature, d_out = np.ascontiguousarray(feature.T[::-1]).T[..., ::-1], np.ascontiguousarray(d_out[::-1])[::-1]
    wide = nothing((*wanted.shape[:-1], 3 * wanted.shape[-1]), "float64")
    run(forward(step, feature, kernel, wide[..., ::-3]), wide)
    assert np.array_equal(wide[..., ::-3], wanted)
    assert np.isnan(wide[..., 1::3]).all()  # what lies between is not touched
    d_kernel = nothing(kernel.shape, "float64")
    assert_close(run(d_kernel_of(step, d_out, feature, d_kernel), d_kernel), wanted_kernel, rtol=1e-13)


@each_case
def test_pieces_write_parts_of_their_own_in_any_order(name, tiny_pieces):
    step = step_for(*CASES[name])
    feature, kernel, d_out = operands(step, "float64")
    wanted = on_numpy(step, feature, kernel, d_out)
    y, d_kernel = nothing(d_out.shape, "float64"), nothing(kernel.shape, "float64")
    run(forward(step, feature, kernel, y)[::-1], y)
    run(d_kernel_of(step, d_out, feature, d_kernel)[::-1], d_kernel)
    assert np.array_equal(y, wanted[0])
    assert np.array_equal(d_kernel, wanted[2])


def test_a_nan_stays_in_the_windows_that_read_it():
    feature = np.ones((1, 1, 20))
    feature[0, 0, 10] = np.nan
    product = Product(1, 1, 1, (Axis("x", 20, 3, 20, 1, 1),), itemsize=8)
    y = np.zeros((1, 1, 20))
    Compiled(product).forward(np.ones((1, 1, 1, 3)), feature, y)
    assert np.isnan(y[0, 0]).nonzero()[0].tolist() == [9, 10, 11]


@pytest.mark.parametrize("optimize", ["factorized", "auto"])
def test_a_plan_prices_and_runs_it_with_the_same_bits_for_any_number_of_threads(optimize, monkeypatch):
    equation = "n c y x, r, o r, c r, y r, x r -> n o y x | y, x"
    arrays = random_arrays([(6, 32, 28, 28), (40,), (32, 40), (32, 40), (3, 40), (3, 40)], dtype="float32")

    def planned() -> Plan:
        CACHED.cache_clear()  # not one of before
        return plan(equation, *arrays, optimize=optimize, training=True, padding=1)

    found = []
    for threads in ("1", "2"):
        monkeypatch.setenv("GROWARRAY_THREADS", threads)
        made = planned()
        assert [step.routine for step in made.steps].count("compiled") in (1, 2)
        y, pullback = made.vjp(*arrays)
        found.append([y, *pullback(np.ones_like(y))])
    assert all(np.array_equal(*pair) for pair in zip(*found, strict=True))
    set_available(monkeypatch, False)
    made = planned()
    assert "compiled" not in {step.routine for step in made.steps}
    y, pullback = made.vjp(*arrays)
    for one, other in zip(found[0], [y, *pullback(np.ones_like(y))], strict=True):
        assert_close(one, other, rtol=2e-5)
    CACHED.cache_clear()


def test_it_is_taken_where_it_fits_and_nowhere_else(monkeypatch):
    assert choose(DEPTHWISE, FORWARD) is choose(DEPTHWISE, D_KERNEL) is Compiled
    assert choose(replace(DEPTHWISE, itemsize=2), FORWARD).name == "band"
    for s, n, name in ((2, 1, "compiled"), (8, 4, "compiled"), (32, 1, "compiled"), (1, 5, "im2col"), (9, 4, "im2col")):
        assert choose(replace(DEPTHWISE, s=s, n=n), FORWARD).name == name, (s, n)
    assert choose(DEPTHWISE, FORWARD, "array_api_strict").name == "portable"
    assert not Compiled.fits(replace(DEPTHWISE, s=0), "numpy")
    monkeypatch.undo()
    for value, found in (("0", False), ("1", True)):
        monkeypatch.setenv("GROWARRAY_FAST", value)
        planes.available.cache_clear()
        assert planes.available() is found
    planes.available.cache_clear()


def test_a_thread_that_looks_for_work_sees_it_without_the_interpreters_lock():
    from growarray.contraction.routines.loops import _look

    count = np.zeros(1, np.int64)
    _look(count, count[0], 3)  # nothing comes: it gives up
    thread = threading.Thread(target=_look, args=(count, count[0], 1 << 40), daemon=True)
    thread.start()
    thread.join(0.05)
    assert thread.is_alive()
    count[0] += 1
    thread.join(120)
    assert not thread.is_alive()
