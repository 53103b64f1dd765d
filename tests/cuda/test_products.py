"""Plans on CuPy: launches of kernels and products that run on the CPU, against the same plan on NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.factorized import QUICK
from bench.suite import CASES
from growarray import FactorizedConv
from growarray.backend import to_numpy
from growarray.contraction import plan, run_cupy
from growarray.contraction.transpose import transpose
from growarray.errors import DeviceError
from growarray.testing import check_vjp
from tests.cuda.device import Cuda, cuda

__all__ = ["cuda"]

CP = "n c y x, r, o r, c r, y r, x r -> n o y x | y, x"
TUCKER = "n c y x, a b d e, o a, c b, y d, x e -> n o y x | y, x"
TT = "n c y x, c a, a y b, b x d, d o -> n o y x | y, x"
DENSE = "n c y x, o c y x -> n o y x | y, x"
GROUPED = "n g c y x, r, g o r, c r, y r, x r -> n g o y x | y, x"
SIZES = {"n": 2, "g": 2, "c": 5, "o": 3, "y": 3, "x": 2, "r": 4, "a": 3, "b": 4, "d": 2, "e": 2}
TOLERANCE = {"float16": 4e-3, "float32": 1e-5, "float64": 1e-13}


def shapes_of(equation: str, feature: dict[str, int], sizes: dict[str, int] = SIZES) -> list[tuple[int, ...]]:
    first, *rest = (term.split() for term in equation.partition(" ->")[0].split(","))
    return [tuple(feature.get(m, sizes[m]) for m in first), *(tuple(sizes[m] for m in term) for term in rest)]


def compare(cuda: Cuda, equation: str, shapes: list[tuple[int, ...]], dtype: str = "float32", **options: Any) -> int:
    """Value and all gradients on the device against NumPy in float64; how many launches there were."""
    rng = np.random.default_rng(1)
    host = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    p = plan(equation, *shapes, device="cuda", training=True, dtype=dtype, **options)
    options["optimize"] = p.path
    y, back = plan(equation, *shapes, **options).vjp(*(x.astype("float64") for x in host))
    dy = rng.standard_normal(y.shape).astype(dtype)
    cuda.launches.clear()
    got, got_back = p.vjp(*map(cuda.array, host))
    gradients = got_back(cuda.array(dy))
    for found, expected in zip((got, *gradients), (y, *back(dy.astype("float64"))), strict=True):
        values = to_numpy(found)
        assert (values.dtype, values.shape) == (np.dtype(dtype), expected.shape)
        scale = max(float(np.abs(expected).max()), 1e-3)
        np.testing.assert_allclose(values / scale, expected / scale, rtol=0, atol=20 * TOLERANCE[dtype])
    return len(cuda.launches)


@pytest.mark.parametrize("equation", [CP, TUCKER, TT, DENSE, GROUPED], ids=["cp", "tucker", "tt", "dense", "groups"])
@pytest.mark.parametrize("optimize", ["factorized", "reconstructed"])
def test_every_format_and_path(cuda: Cuda, equation: str, optimize: str) -> None:
    compare(cuda, equation, shapes_of(equation, {"y": 5, "x": 4}), optimize=optimize, padding=1)


@pytest.mark.parametrize("equation", [CP, TUCKER, TT, DENSE, GROUPED], ids=["cp", "tucker", "tt", "dense", "groups"])
def test_a_transpose_gives_the_gradient_by_one_operand_alone(cuda: Cuda, equation: str) -> None:
    shapes, rng = shapes_of(equation, {"y": 5, "x": 4}), np.random.default_rng(0)
    host = [rng.standard_normal(shape) for shape in shapes]
    p = plan(equation, *shapes, optimize="factorized", padding=1, dtype="float64")
    there = plan(equation, *shapes, optimize=p.path, padding=1, dtype="float64", device="cuda")
    y, back = p.vjp(*host)
    for operand, expected in enumerate(back(y)):
        others = [cuda.array(x) for i, x in enumerate(host) if i != operand]
        found = to_numpy(transpose(there, cuda.array(y), *others, operand=operand))
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("equation", [CP, DENSE], ids=["cp", "dense"])
def test_padding_stride_and_dilation(cuda: Cuda, equation: str, mode: str) -> None:
    options = {"padding": ((2, 1), (0, 2)), "stride": (2, 1), "dilation": (1, 2), "padding_mode": mode}
    compare(cuda, equation, shapes_of(equation, {"y": 6, "x": 4}), optimize="factorized", **options)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_dtypes(cuda: Cuda, dtype: str) -> None:
    compare(cuda, CP, shapes_of(CP, {"y": 5, "x": 4}), dtype, optimize="factorized", padding=1)
    compare(cuda, DENSE, shapes_of(DENSE, {"y": 5, "x": 4}), dtype, padding=1)


def test_long_sums_are_cut_and_added(cuda: Cuda) -> None:
    sizes = SIZES | {"n": 6, "c": 2, "o": 20}
    compare(cuda, DENSE, shapes_of(DENSE, {"y": 24, "x": 20}, sizes), padding=1)
    compare(cuda, "n c y x, c y x -> n c y x | y, x", [(6, 3, 24, 20), (3, 3, 3)], padding=1)
    compare(cuda, "n c x, o c -> n o x", [(5, 4, 6), (3, 4)])  # images at a distance: a product each


OTHER = {
    "order 1": ("n c x, r, o r, c r, x r -> n o x | x", [(2, 3, 7), (2,), (4, 2), (3, 2), (3, 2)]),
    "order 3": ("n c z y x, o c z y x -> n o z y x | z, y, x", [(1, 2, 4, 3, 3), (2, 2, 2, 2, 1)]),
    "outer": ("i, j -> i j", [(3,), (4,)]),
    "hadamard": ("i j, j i -> i j", [(3, 4), (4, 3)]),
    "batched": ("b i j, b j k -> b i k", [(3, 2, 4), (3, 4, 5)]),
    "sum of one": ("i j, k -> k", [(3, 4), (2,)]),
    "diagonal": ("i i j, j k -> i k", [(3, 3, 4), (4, 2)]),
    "ranks of one": (CP, [(2, 1, 4, 4), (1,), (2, 1), (1, 1), (3, 1), (3, 1)]),
    "kernel of one, padded": ("n c x, o c x -> n o x | x", [(2, 3, 4), (2, 3, 1)]),
    "two batches": ("n h i d, n h j d, n h j e -> n h i e", [(2, 3, 4, 5), (2, 3, 6, 5), (2, 3, 6, 2)]),
}


@pytest.mark.parametrize("case", OTHER.values(), ids=OTHER)
def test_other_equations(cuda: Cuda, case: Any) -> None:
    equation, shapes = case
    compare(cuda, equation, shapes, **({"padding": 1, "padding_mode": "replicate"} if "|" in equation else {}))


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(data=st.data())
def test_any_geometry(cuda: Cuda, data: st.DataObject) -> None:
    mode = data.draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    taps, stride, dilation = (data.draw(st.integers(1, 3)) for _ in range(3))
    size = data.draw(st.integers((taps - 1) * dilation + 1, 9))
    most = 4 if mode in ("zeros", "replicate") else max(size - 1, 0)
    padding = data.draw(st.integers(0, most)), data.draw(st.integers(0, most))
    options = {"padding": [padding], "stride": stride, "dilation": dilation, "padding_mode": mode}
    dtype, groups = data.draw(st.sampled_from(["float32", "float16", "float64"])), data.draw(st.integers(1, 2))
    shapes = [(2, groups, 3, size), (groups, 2, 3, taps)]
    compare(cuda, "n g c x, g o c x -> n g o x | x", shapes, dtype, **options)
    compare(cuda, "n c x, c x, c -> n c x | x", [(2, 3, size), (3, taps), (3,)], dtype, **options)


@pytest.mark.parametrize(
    ("equation", "mode"),
    [(CP, "reflect"), ("n g c y x, g o c y x -> n g o y x | y, x", "circular")],
    ids=["cp", "groups"],
)
def test_finite_differences(cuda: Cuda, equation: str, mode: str) -> None:
    rng, sizes = np.random.default_rng(0), dict.fromkeys(SIZES, 2)
    arrays = [cuda.array(rng.standard_normal(s)) for s in shapes_of(equation, {"y": 4, "x": 3}, sizes)]
    p = plan(equation, *(x.shape for x in arrays), padding=1, padding_mode=mode, stride=2, device="cuda")
    check_vjp(p.vjp, *arrays)


def test_views_are_read_where_they_lie(cuda: Cuda) -> None:
    rng = np.random.default_rng(0)
    whole, kernel = rng.standard_normal((5, 7, 2, 8)), rng.standard_normal((2, 3, 6))
    p = plan("n c x, o c x -> n o x | x", (2, 3, 7), (6, 3, 2), dtype="float64", device="cuda")
    x, w = whole.transpose(2, 0, 1, 3)[:, ::2, :, 3], kernel.transpose(2, 1, 0)
    y, back = plan("n c x, o c x -> n o x | x", (2, 3, 7), (6, 3, 2), dtype="float64").vjp(x, w)
    got, got_back = p.vjp(cuda.array(x), cuda.array(w))
    dy = rng.standard_normal((6, 6, 2)).transpose(2, 1, 0)[:, :, ::-1]
    for found, expected in zip((got, *got_back(cuda.array(dy))), (y, *back(dy)), strict=True):
        np.testing.assert_allclose(to_numpy(found), expected, atol=1e-13)
    both = plan("i k, k j -> i j", (4, 3), (3, 5), dtype="float64", device="cuda")
    a, b = rng.standard_normal((3, 4)).T, rng.standard_normal((6, 10))[::2, ::2]
    np.testing.assert_allclose(to_numpy(both(cuda.array(a), cuda.array(b))), a @ b, atol=1e-14)


def test_few_elements_far_apart_take_long_addresses(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_cupy, "WIDE", 150)
    rng, shapes = np.random.default_rng(0), [(2, 2, 5), (3, 2, 2)]
    w, near, far = rng.standard_normal(shapes[1]), rng.standard_normal(shapes[0]), rng.standard_normal((2, 2, 5, 9))
    dy = rng.standard_normal((2, 3, 4, 9))[..., 0]
    for x, wide in ((near, False), (far[..., 0], True)):
        p = plan("n a k, m a k -> n m k | k", *shapes, dtype="float64", device="cuda")
        y, back = plan("n a k, m a k -> n m k | k", *shapes, dtype="float64").vjp(x, w)
        cuda.texts.clear()
        cuda.operations.clear()
        got, got_back = p.vjp(cuda.array(x), cuda.array(w))
        assert [("typedef long long I" in text) for text in cuda.texts] == [wide]
        for found, expected in zip((got, *got_back(cuda.array(dy))), (y, *back(dy)), strict=True):
            np.testing.assert_allclose(to_numpy(found), expected, atol=1e-13)
        assert cuda.operations == ["ascontiguousarray"] * (not wide)  # the gradient lies far apart too


def test_bound_factors_and_batches_of_another_size(cuda: Cuda) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s) for s in shapes_of(CP, {"y": 5, "x": 4})]
    expected = plan(CP, *(x.shape for x in arrays), padding=1)(*arrays)
    p = plan(CP, *(x.shape for x in arrays), padding=1, device="cuda", dtype="float64")
    bound = p.bind([cuda.array(x) for x in arrays[1:]])
    np.testing.assert_allclose(to_numpy(bound(cuda.array(arrays[0]))), expected, atol=1e-12)
    single = [cuda.array(arrays[0][:1]), *map(cuda.array, arrays[1:])]
    np.testing.assert_allclose(to_numpy(p(*single)), expected[:1], atol=1e-12)
    assert to_numpy(p(cuda.array(arrays[0][:0]), *single[1:])).shape == (0, *expected.shape[1:])


def test_a_kernel_is_made_of_its_factors_in_two_launches(cuda: Cuda) -> None:
    rng, shapes = np.random.default_rng(0), shapes_of(CP, {"y": 5, "x": 4})
    arrays = [rng.standard_normal(shape) for shape in shapes]
    path = [(1, 4), (3, 4), (1, 3), (1, 2), (0, 1)]  # r, r y, r x, c r, o r, and the convolution
    p = plan(CP, *shapes, optimize=path, padding=1, dtype="float64", device="cuda")
    assert [step.routine for step in p.steps] == ["depthwise", "outer", "outer", "matmul", "implicit"]
    y = plan(CP, *shapes, optimize=path, padding=1, dtype="float64")(*arrays)
    np.testing.assert_allclose(to_numpy(p(*map(cuda.array, arrays))), y, rtol=1e-12, atol=1e-12)
    assert len(cuda.launches) == 3  # what only multiplies is one
    compare(cuda, CP, shapes, optimize=path, padding=1)  # with a way back each has its own


@pytest.mark.parametrize("number", QUICK)
def test_launches_of_the_suite(cuda: Cuda, number: int) -> None:
    cuda.dry, case = True, CASES[number - 1]
    layer = case.layer()
    shapes = layer.shapes
    arrays = [np.broadcast_to(np.float32(0), shape).copy() for shape in shapes]
    found = {}
    for way in ("auto", "factorized"):
        p = plan(layer.equation, *shapes, optimize=way, device="cuda", training=True, **layer.geometry)
        cuda.launches.clear()
        y, back = p.vjp(*map(cuda.array, arrays))
        forward = len(cuda.launches)
        back(y)
        found[way] = forward, len(cuda.launches)
    limits = {"cp": (3, 12), "tucker": (6, 22), "tt": (4, 16), "dense": (1, 4)}[case.format]
    assert all(counts <= limits for counts in found.values()), found


def test_what_a_device_refuses(cuda: Cuda) -> None:
    arrays = [cuda.array(np.ones((4, 4), np.float32))] * 2
    p = plan("i k, k j -> i j", (4, 4), (4, 4), device="cuda")
    cuda.room = 10
    with pytest.raises(DeviceError, match=r"the GPU has no 64 bytes left \(Out of memory.*cut the batch"):
        p(*arrays)
    cuda.room = 1 << 20
    with pytest.raises(TypeError, match="operand 1 of 'i k, k j -> i j' is float64, operand 0 is float32"):
        p(arrays[0], cuda.array(np.ones((4, 4))))
    with pytest.raises(TypeError, match="arrays of two libraries cannot be mixed"):
        p(arrays[0], np.ones((4, 4), np.float32))


def test_a_layer_runs_by_launches(cuda: Cuda) -> None:
    options: dict[str, Any] = {"order": 2, "padding": 1, "rank": 3, "implementation": "factorized"}
    conv = FactorizedConv(4, 6, 3, bias=True, rng=np.random.default_rng(0), **options)
    x = np.random.default_rng(1).standard_normal((2, 4, 5, 5), dtype=np.float32)
    expected = conv(x)
    for parameter in conv.parameters():
        parameter.data = cuda.array(parameter.data)
    np.testing.assert_allclose(to_numpy(conv(cuda.array(x))), expected, atol=1e-6)
    assert len(cuda.launches) == 3
