"""Operations with kernels of their own: the numbers of the portable ones, whatever the shape; finite differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from growarray import nn, ops
from growarray.backend import asarray, to_numpy
from growarray.cuda import activation, late, loss, norm, pool
from growarray.errors import DeviceError, ShapeError
from growarray.testing import check_vjp
from tests.cuda.device import Cuda, cuda

__all__ = ["cuda"]

TOLERANCE = {"float16": 4e-3, "float32": 2e-5, "float64": 1e-12}
few = settings(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
DTYPES = st.sampled_from(["float16", "float32", "float64"])


def agree(found: Any, expected: np.ndarray, dtype: str) -> None:
    values, expected = to_numpy(found), np.asarray(expected)
    assert (values.dtype, values.shape) == (np.dtype(dtype), expected.shape)
    scale = max(float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0)), 1.0)
    np.testing.assert_allclose(values / scale, expected / scale, rtol=0, atol=TOLERANCE[dtype])


def same(
    cuda: Cuda, launches: tuple[int, int], operation: Callable[..., Any], *arrays: np.ndarray, dy: Any = 0
) -> None:
    """Value and gradients there as of float64 on NumPy, in so many launches forward and back, and nothing else."""
    dtype = arrays[0].dtype.name
    y, back = operation(*(a.astype("float64") for a in arrays))
    there = [cuda.array(a) for a in arrays]
    clear(cuda)
    got, got_back = operation(*there)
    forward = len(cuda.launches)
    dy = np.random.default_rng(1).standard_normal(y.shape).astype(dtype)
    gradients = got_back(cuda.array(dy))
    assert (forward, len(cuda.launches) - forward, cuda.operations, cuda.waits) == (*launches, [], [])
    expected = back(dy.astype("float64"))
    agree(got, y, dtype)
    for one, other in zip(*((g if isinstance(g, tuple) else (g,)) for g in (gradients, expected)), strict=True):
        agree(one, other, dtype)


def clear(cuda: Cuda) -> None:
    for log in (cuda.launches, cuda.operations, cuda.waits):
        log.clear()


def drawn(data: st.DataObject, *shape: int) -> np.ndarray:
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    return rng.standard_normal(shape).astype(data.draw(DTYPES))


def moments_given(x: Any, w: Any, b: Any) -> Any:
    """In evaluation, by moments in the dtype in which kernels sum."""
    host = np.linspace(0.5, 2.0, x.shape[1])
    mean, var = (asarray(host, like=x, dtype=np.float32 if x.dtype == np.float16 else x.dtype) for _ in range(2))
    return ops.batch_norm(x, w, b, mean=mean, var=var, training=False)


@few
@given(data=st.data())
def test_batch_norm(cuda: Cuda, data: st.DataObject) -> None:
    n, c, size = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4)), data.draw(st.sampled_from([2, 7, 1500]))
    x = drawn(data, n, c, size)
    w, b = (np.linspace(0.5, 2.0, c).astype(x.dtype) for _ in range(2))
    same(cuda, (2, 2), lambda x, w, b: ops.batch_norm(x, w, b), x + x.dtype.type(3), w, b)
    same(cuda, (1, 2), moments_given, x, w, b)


@few
@given(data=st.data())
def test_layer_norm(cuda: Cuda, data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from([(1, 1), (40, 3), (7, 64), (3, 5, 300), (2, 40, 33)]))
    axes = data.draw(st.integers(1, len(shape) - 1))
    x = drawn(data, *shape)
    w, b = (np.linspace(0.5, 2.0, x[0].size).astype(x.dtype)[: x[(0,) * (x.ndim - axes)].size] for _ in range(2))
    w, b = (a.reshape(shape[-axes:]) for a in (w, b))
    same(cuda, (1, 2), lambda x, w, b: ops.layer_norm(x, w, b, axes), x + x.dtype.type(3), w, b)
    y, back = ops.layer_norm(cuda.array(x), None, None, axes)
    cuda.launches.clear()
    assert back(y)[1:] == (None, None)
    assert len(cuda.launches) == 1


@few
@given(data=st.data())
def test_group_norm(cuda: Cuda, data: st.DataObject) -> None:
    n, groups, each = (data.draw(st.integers(1, 5)) for _ in range(3))
    size = data.draw(st.sampled_from([(), (1,), (7, 3), (300,)]))
    x = drawn(data, n, groups * each, *size)
    w, b = (np.linspace(0.5, 2.0, groups * each).astype(x.dtype) for _ in range(2))
    same(cuda, (1, 2), lambda x, w, b: ops.group_norm(x, groups, w, b), x - x.dtype.type(2), w, b)


def test_rows_of_large_means_lose_nothing_and_keep_a_nan(cuda: Cuda) -> None:
    x = (1e4 + np.random.default_rng(0).standard_normal((6, 3000))).astype("float32")
    x[1, 5] = np.nan
    y, wide = to_numpy(ops.layer_norm(cuda.array(x))[0]), x.astype("float64")
    expected = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(y, expected, atol=2e-3)
    assert np.isnan(y[1]).all()


def test_batch_norm_of_large_means_loses_nothing(cuda: Cuda) -> None:
    x = (1e4 + np.random.default_rng(0).standard_normal((8, 1, 3000))).astype("float32")
    y, _ = ops.batch_norm(cuda.array(x))
    wide = x.astype("float64")
    np.testing.assert_allclose(to_numpy(y), (wide - wide.mean()) / np.sqrt(wide.var() + 1e-5), atol=2e-3)


def test_batch_norm_follows_the_batches_as_on_numpy(cuda: Cuda) -> None:
    for momentum in (0.1, None):
        here, there = nn.BatchNorm2d(3, momentum=momentum), nn.BatchNorm2d(3, momentum=momentum)
        there.to(cuda.array(np.ones(1)))
        for seed in range(3):
            x = np.random.default_rng(seed).standard_normal((4, 3, 5, 2)).astype("float32")
            np.testing.assert_allclose(to_numpy(there(cuda.array(x))), here(x), atol=1e-5)
        for name, value in here.state_dict().items():
            np.testing.assert_allclose(to_numpy(there.state_dict()[name]), value, rtol=1e-5, atol=1e-6)


@few
@given(data=st.data())
def test_relu(cuda: Cuda, data: st.DataObject) -> None:
    x = drawn(data, data.draw(st.integers(1, 5000)))
    x[::7] = 0.0
    for at_zero in (0.0, 1.0):
        same(cuda, (1, 1), lambda x: ops.relu(x, at_zero=at_zero), x)  # noqa: B023


SMOOTH = [ops.leaky_relu, ops.elu, ops.selu, ops.gelu, ops.silu, ops.sigmoid, ops.tanh, ops.softplus]


@pytest.mark.parametrize("function", SMOOTH)
def test_smooth_activations(cuda: Cuda, function: Any) -> None:
    x = np.concatenate([np.linspace(-30.0, 30.0, 301), [-1e3, 1e3]])
    for dtype in ("float64", "float16"):
        same(cuda, (1, 1), function, x.astype(dtype))
    check_vjp(function, cuda.array(np.array([-2.0, -0.5, 0.3, 1.5])))


def test_options_may_be_numbers_of_numpy(cuda: Cuda) -> None:
    x = np.linspace(-3.0, 3.0, 12).reshape(4, 3)
    labels = np.array([0, 2, 1, 1])
    same(cuda, (1, 1), lambda x: ops.leaky_relu(x, np.float64(0.3)), x)
    same(cuda, (1, 1), lambda x: ops.elu(x, np.float32(0.5)), x)
    loss, back = ops.cross_entropy(x, labels, label_smoothing=np.float64(0.2))
    got, got_back = ops.cross_entropy(cuda.array(x), cuda.array(labels), label_smoothing=np.float64(0.2))
    agree(got, loss, "float64")
    agree(got_back(), back(), "float64")


@few
@given(data=st.data())
def test_pooling(cuda: Cuda, data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(4, 9), min_size=1, max_size=3))
    x = drawn(data, 2, 3, *sizes)
    kernel, stride, dilation = (data.draw(st.integers(1, 3)) for _ in range(3))
    options: dict[str, Any] = {"stride": stride, "padding": data.draw(st.integers(0, kernel // 2))}
    options["ceil_mode"] = data.draw(st.booleans())
    dilation = dilation if dilation * (kernel - 1) < 4 else 1
    same(cuda, (1, 1), lambda x: ops.max_pool(x, kernel, dilation=dilation, **options), x)
    options |= {
        "count_include_pad": data.draw(st.booleans()),
        "divisor_override": data.draw(st.sampled_from([None, 3])),
    }
    same(cuda, (1, 1), lambda x: ops.avg_pool(x, kernel, dilation=dilation, **options), x)


@pytest.mark.parametrize(
    ("sizes", "outs", "dtype"),
    [((7,), 3, "float64"), ((9, 20), 1, "float16"), ((5, 3, 4), (2, 6, None), "float32")],
    ids=["some overlap", "all", "more outputs"],
)
def test_adaptive_pooling(cuda: Cuda, sizes: Any, outs: Any, dtype: str) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, *sizes)).astype(dtype)
    same(cuda, (1, 1), lambda x: ops.adaptive_avg_pool(x, outs), x)
    check_vjp(lambda x: ops.adaptive_avg_pool(x, outs), cuda.array(x.astype("float64")[:1, :1]))


def test_maxima_that_are_equal_missing_or_no_numbers(cuda: Cuda) -> None:
    x = np.array([[[[1, 1, np.nan, 0], [1, 1, np.nan, 5], [-np.inf] * 4, [-np.inf] * 4]]])
    for kernel in (2, 3):
        y, back = ops.max_pool(x, kernel, 1, 1)
        got, got_back = ops.max_pool(cuda.array(x), kernel, 1, 1)
        np.testing.assert_array_equal(to_numpy(got), y)
        dy = np.arange(y.size).reshape(y.shape) + 1.0
        np.testing.assert_array_equal(to_numpy(got_back(cuda.array(dy))), back(dy))


@few
@given(data=st.data())
def test_cross_entropy(cuda: Cuda, data: st.DataObject) -> None:
    c, rest = data.draw(st.sampled_from([1, 3, 64, 65, 300])), data.draw(st.sampled_from([(), (3,), (2, 2)]))
    x = 20 * drawn(data, data.draw(st.integers(1, 5)), c, *rest).astype("float32")
    target = np.random.default_rng(0).integers(0, c, (x.shape[0], *rest))
    target[0], target[-1] = data.draw(st.sampled_from([-100, c - 1])), 0
    weight = data.draw(st.sampled_from([None, np.linspace(0.5, 2.0, c, dtype="float32")]))
    if weight is not None and c > 1:
        weight[1] = 0.0
    options: dict[str, Any] = {"label_smoothing": data.draw(st.sampled_from([0.0, 0.2])), "reduction": "sum"}
    ways = ["sum", "none", *(["mean"] if (target == 0).sum() < target.size else [])]
    options["reduction"] = data.draw(st.sampled_from(ways))
    loss, back = ops.cross_entropy(x.astype("float64"), target, weight=weight, **options)
    there = None if weight is None else cuda.array(weight)
    clear(cuda)
    got, got_back = ops.cross_entropy(cuda.array(x), cuda.array(target), weight=there, **options)
    gradient = got_back(2.0)
    assert (len(cuda.launches), cuda.operations, cuda.waits) == (3, [], [])
    agree(got, loss, "float32")
    agree(gradient, back(2.0), "float32")
    slopes = np.linspace(-1.0, 2.0, loss.size).reshape(loss.shape)
    clear(cuda)
    gradient = got_back(cuda.array(slopes.astype("float32")))
    assert (len(cuda.launches), cuda.operations, cuda.waits) == (1, [], [])
    agree(gradient, back(slopes), "float32")


def test_a_label_out_of_range_is_found_late(cuda: Cuda) -> None:
    x, labels = cuda.array(np.zeros((3, 4), "float32")), cuda.array(np.array([0, 4, 1]))
    for reduction in ("mean", "none"):
        loss, _ = ops.cross_entropy(x, labels, reduction=reduction)
        assert cuda.waits == []
        with pytest.raises(ValueError, match="label 4 is not one of the 4 classes 0 to 3"):
            to_numpy(loss)
        cuda.waits.clear()
    ops.cross_entropy(x, cuda.array(np.full(3, -100)))
    with pytest.raises(ValueError, match="every target is ignored"):
        late.settle()
    ops.cross_entropy(x, cuda.array(np.array([0, 3, 1])))
    late.settle()


@few
@given(data=st.data())
def test_dropout_draws_the_numbers_of_numpy(cuda: Cuda, data: st.DataObject) -> None:
    x, p = drawn(data, data.draw(st.integers(1, 9000))), data.draw(st.sampled_from([0.3, 0.5, 1.0, 1e-17]))
    here, there = (np.random.default_rng(7) for _ in range(2))
    for rng in (here, there):
        rng.integers(0, 9, dtype=np.uint32)  # half a number is left over
    for _ in range(2):
        y, back = ops.dropout(x, p, here)
        got, got_back = ops.dropout(cuda.array(x), p, there)
        agree(got, y, x.dtype.name)
        agree(got_back(cuda.array(x)), back(x), x.dtype.name)
        np.testing.assert_array_equal(to_numpy(got) == 0, y == 0)
    assert here.bit_generator.state == there.bit_generator.state
    assert cuda.operations == []


def test_dropout_by_another_generator_moves_its_mask(cuda: Cuda) -> None:
    x = np.ones((4, 5))
    y, _ = ops.dropout(x, 0.5, np.random.Generator(np.random.Philox(1)))
    got, _ = ops.dropout(cuda.array(x), 0.5, np.random.Generator(np.random.Philox(1)))
    np.testing.assert_array_equal(to_numpy(got), y)


@pytest.mark.parametrize("module", [activation, loss, norm, pool])
def test_large_arrays_are_indexed_with_64_bits(cuda: Cuda, monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    monkeypatch.setattr(module, "WIDE", 1)
    x = np.random.default_rng(0).standard_normal((2, 4, 5)).astype("float32")
    if module is loss:
        labels = np.random.default_rng(1).integers(0, 4, (2, 5))
        value, back = ops.cross_entropy(x, labels)
        got, got_back = ops.cross_entropy(cuda.array(x), cuda.array(labels))
        agree(got, value, "float32")
        agree(got_back(), back(), "float32")
    if module is norm:
        weights = x[0, :, 0].copy(), x[1, :, 0].copy()
        same(cuda, (2, 2), ops.batch_norm, x, *weights)
        same(cuda, (1, 2), lambda x, w, b: ops.group_norm(x, 2, w, b), x, *weights)
    for operation in {
        activation: (ops.relu, ops.tanh),
        pool: (lambda x: ops.max_pool(x, 2), lambda x: ops.avg_pool(x, 2), lambda x: ops.adaptive_avg_pool(x, 2)),
    }.get(module, ()):
        same(cuda, (1, 1), operation, x)
    assert sum("typedef long long I" in text for text in cuda.texts) >= 2


def test_finite_differences(cuda: Cuda) -> None:
    rng = np.random.default_rng(0)
    x, w = cuda.array(rng.standard_normal((2, 2, 3, 2))), cuda.array(rng.standard_normal(2))
    check_vjp(ops.relu, x)
    check_vjp(lambda x, w, b: ops.batch_norm(x, w, b), x, w, w)
    check_vjp(lambda x, w, b: ops.group_norm(x, 1, w, b), x, w, w)
    check_vjp(lambda x, w, b: ops.layer_norm(x, w, b), x, w, w)
    check_vjp(lambda x: ops.max_pool(x, 3, 2, 1), x)
    check_vjp(lambda x: ops.avg_pool(x, 3, 2, 1, count_include_pad=False), x)
    check_vjp(lambda x: ops.dropout(x, 0.5, np.random.default_rng(0)), x)
    labels = cuda.array(rng.integers(0, 2, (2, 3, 2)))
    check_vjp(lambda x: ops.cross_entropy(x, labels, weight=w, label_smoothing=0.1), x)


def test_a_gradient_of_another_shape_is_refused(cuda: Cuda) -> None:
    x = cuda.array(np.ones((2, 3, 4)))
    for back in (ops.relu(x)[1], ops.batch_norm(x)[1], ops.max_pool(x, 2)[1], ops.avg_pool(x, 2)[1]):
        with pytest.raises(ShapeError, match=r"the gradient has shape \(1,\), the result has"):
            back(cuda.array(np.ones(1)))


def test_without_memory_for_a_copy_of_a_gradient(cuda: Cuda) -> None:
    _, back = ops.relu(cuda.array(np.ones((3, 400))))
    turned = cuda.array(np.ones((400, 3)).T)
    cuda.room = 5000
    with pytest.raises(DeviceError, match="the GPU has no 9600 bytes left"):
        back(turned)


def test_what_has_no_kernel_runs_as_elsewhere(cuda: Cuda) -> None:
    x = np.random.default_rng(0).standard_normal((4, 3, 6))
    turned = cuda.array(np.moveaxis(x, 0, 1).copy().transpose(1, 0, 2))
    for operation in (ops.relu, ops.batch_norm, lambda x: ops.max_pool(x, 2), lambda x: ops.relu(x, at_zero=0.5)):
        y, _ = operation(x)  # type: ignore[operator]
        got, _ = operation(turned)  # type: ignore[operator]
        np.testing.assert_allclose(to_numpy(got), y, atol=1e-14)
    assert to_numpy(ops.relu(cuda.array(np.zeros((0, 3))))[0]).shape == (0, 3)
