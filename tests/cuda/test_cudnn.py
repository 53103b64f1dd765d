"""Convolutions by cuDNN's double: the numbers of NumPy, and what becomes of what cuDNN does not take."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench import predicted
from bench.factorized import QUICK
from bench.suite import CASES
from growarray.backend import to_numpy
from growarray.contraction import plan
from growarray.contraction.routines import cudnn as routine
from growarray.cuda import convolution
from growarray.errors import DeviceError
from growarray.testing import check_vjp
from tests.cuda.cudnn import Cudnn, cudnn
from tests.cuda.device import Cuda, cuda
from tests.cuda.test_products import CP, DENSE, GROUPED, TT, TUCKER, compare, shapes_of

__all__ = ["cuda", "cudnn"]

ALL = ["forward", "d_feature", "d_kernel"]
SHAPES = shapes_of(DENSE, {"y": 6, "x": 5})


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_padding_stride_and_dilation(cuda: Cuda, cudnn: Cudnn, mode: str) -> None:
    options = {"padding": ((2, 1), (0, 2)), "stride": (2, 1), "dilation": (1, 2), "padding_mode": mode}
    launches = compare(cuda, DENSE, SHAPES, **options)
    assert cudnn.runs == ALL
    assert launches == (4 if mode == "zeros" else 6)  # padding by hand: of the kernel's gradient, and of every way


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_every_dtype(cuda: Cuda, cudnn: Cudnn, dtype: str) -> None:
    assert compare(cuda, DENSE, SHAPES, dtype, padding=1) == 3
    summed = {"float16": "FLOAT", "float32": "FLOAT", "float64": "DOUBLE"}[dtype]
    for graph in cudnn.graphs:
        assert [one.name for one in graph.types[1:]] == [summed] * 2
        assert ("TENSOR_CORE" in graph.notes) == (dtype == "float32")
        assert graph.limit == convolution.WORKSPACE


EQUATIONS = {
    "groups": (GROUPED.replace("r, g o r, c r, y r, x r", "g o c y x"), [(2, 2, 5, 6, 5), (2, 3, 5, 3, 2)]),
    "order 1": ("n c x, o c x -> n o x | x", [(2, 3, 7), (4, 3, 3)]),
    "order 3": ("n c z y x, o c z y x -> n o z y x | z, y, x", [(1, 2, 4, 3, 3), (2, 2, 2, 2, 1)]),
    "one axis of two": ("n c y x, o c y -> n o y x | y", [(2, 3, 6, 5), (4, 3, 3)]),
    "depthwise, multiplied": ("n c y x, c o y x -> n c o y x | y, x", [(2, 3, 5, 4), (3, 2, 3, 3)]),
    "one image": ("c y x, o c y x -> o y x | y, x", [(3, 6, 5), (4, 3, 3, 3)]),
    "taps of one": ("n c y x, o c y x -> n o y x | y, x", [(2, 3, 6, 5), (4, 3, 1, 1)]),
}


@pytest.mark.parametrize("case", EQUATIONS.values(), ids=EQUATIONS)
def test_other_convolutions(cuda: Cuda, cudnn: Cudnn, case: Any) -> None:
    equation, shapes = case
    assert compare(cuda, equation, shapes, padding=1, stride=2) == 3
    assert cudnn.runs == ALL


@pytest.mark.parametrize("equation", [CP, TUCKER, TT], ids=["cp", "tucker", "tt"])
def test_a_reconstructed_kernel_lies_as_cudnn_has_it(cuda: Cuda, cudnn: Cudnn, equation: str) -> None:
    cuda.dry, shapes = True, shapes_of(equation, {"y": 5, "x": 4})
    p = plan(equation, *shapes, optimize="reconstructed", padding=1, device="cuda")
    y, back = p.vjp(*(cuda.array(np.zeros(shape, np.float32)) for shape in shapes))
    back(y)
    assert cudnn.runs == ALL


def test_what_lies_in_another_way_takes_the_own_kernel(cuda: Cuda, cudnn: Cudnn) -> None:
    equation = "n c y x, o c y x -> o n y x | y, x"  # the result is neither NCHW nor NHWC
    compare(cuda, equation, SHAPES, padding=1)
    assert cudnn.runs == []
    compare(cuda, "n y x c, o y x c -> n y x o | y, x", [(2, 6, 5, 3), (4, 3, 3, 3)], padding=1)
    assert cudnn.runs == ALL


def test_addresses_that_cudnn_does_not_take(cuda: Cuda, cudnn: Cudnn) -> None:
    rng = np.random.default_rng(0)
    whole, kernel = rng.standard_normal(301), rng.standard_normal(SHAPES[1])
    p = plan(DENSE, *SHAPES, padding=1, device="cuda", dtype="float64")
    host = plan(DENSE, *SHAPES, padding=1, dtype="float64")
    for start in (0, 1):  # the second is a multiple of 8 bytes only
        x = whole[start : start + 300].reshape(SHAPES[0])
        np.testing.assert_allclose(to_numpy(p(cuda.array(x), cuda.array(kernel))), host(x, kernel), atol=1e-12)
    assert (cudnn.runs, cuda.launches) == (["forward"], ["cudnn", "kernel"])


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(data=st.data())
def test_any_geometry(cuda: Cuda, cudnn: Cudnn, data: st.DataObject) -> None:
    mode = data.draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"]))
    taps, stride, dilation, groups = (data.draw(st.integers(1, 3)) for _ in range(4))
    size = data.draw(st.integers((taps - 1) * dilation + 1, 9))
    most = 4 if mode in ("zeros", "replicate") else max(size - 1, 0)
    padding = data.draw(st.integers(0, most)), data.draw(st.integers(0, most))
    options = {"padding": [padding], "stride": stride, "dilation": dilation, "padding_mode": mode}
    compare(cuda, "n g c x, g o c x -> n g o x | x", [(2, groups, 3, size), (groups, 2, 3, taps)], **options)


def test_finite_differences(cuda: Cuda, cudnn: Cudnn) -> None:
    rng = np.random.default_rng(0)
    for mode in ("zeros", "reflect"):
        arrays = [cuda.array(rng.standard_normal(shape)) for shape in ((2, 2, 4, 3), (2, 2, 2, 2))]
        options = {"padding": ((1, 0), (0, 1)), "padding_mode": mode, "device": "cuda", "dtype": "float64"}
        check_vjp(plan(DENSE, *(x.shape for x in arrays), **options).vjp, *arrays)
    assert cudnn.runs


def test_a_graph_is_built_once_and_follows_the_stream(cuda: Cuda, cudnn: Cudnn) -> None:
    arrays = [cuda.array(np.ones(shape, np.float32)) for shape in SHAPES]
    cuda.stream = 5
    plan(DENSE, *SHAPES, padding=1, device="cuda")(*arrays)
    cuda.stream = 6
    plan(DENSE, *SHAPES, padding=1, device="cuda", training=True)(*arrays)
    assert (len(cudnn.graphs), cudnn.streams) == (1, [5, 6])


def test_it_is_in_the_plan_only_where_it_is_worth_its_call(cudnn: Cudnn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routine, "_LEAST", 1 << 27)
    small, large = ((2, 4, 8, 8), (4, 4, 3, 3)), ((64, 64, 28, 28), (64, 64, 3, 3))
    assert [plan(DENSE, *s, padding=1, device="cuda").steps[0].routine for s in (small, large)] == ["implicit", "cudnn"]
    assert (
        plan("n c y x, c y x -> n c y x | y, x", (64, 64, 28, 28), (64, 3, 3), padding=1, device="cuda")
        .steps[0]
        .routine
        == "depthwise"
    )


def test_without_cudnn_the_own_kernel_runs(cuda: Cuda, cudnn: Cudnn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROWARRAY_CUDNN", "0")
    convolution.available.cache_clear()
    assert plan(DENSE, *SHAPES, padding=1, device="cuda").steps[0].routine == "implicit"
    compare(cuda, DENSE, SHAPES, padding=1)
    assert cudnn.runs == []


def test_a_cudnn_that_does_not_work_is_an_error(cuda: Cuda, cudnn: Cudnn, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = [cuda.array(np.ones(shape, np.float32)) for shape in SHAPES]
    p = plan(DENSE, *SHAPES, padding=1, device="cuda")
    cudnn.broken = "Unable to find symbol cudnnCreate"
    with pytest.raises(DeviceError, match=r"no handle can be made \(Unable to find symbol cudnnCreate\); pip install"):
        p(*arrays)
    cudnn.broken = ""

    def version(name: str) -> str:
        if name != "nvidia-cudnn-cu13":
            raise importlib.metadata.PackageNotFoundError(name)
        return "9.24"

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(
        DeviceError, match=r'cu13 is installed, but CuPy is for CUDA 12; pip install "growarray\[cudnn12\]"'
    ):
        p(*arrays)
    monkeypatch.undo()


@pytest.mark.parametrize("number", QUICK)
def test_launches_of_the_suite(cuda: Cuda, cudnn: Cudnn, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(routine, "_LEAST", 1 << 27)
    cuda.dry, layer = True, CASES[number - 1].layer()
    arrays = [cuda.array(np.broadcast_to(np.float32(0), shape).copy()) for shape in layer.shapes]
    for way in ("auto", "factorized"):
        p = plan(layer.equation, *layer.shapes, optimize=way, device="cuda", training=True, **layer.geometry)
        cuda.launches.clear()
        y, back = p.vjp(*arrays)
        forward = len(cuda.launches)
        back(y)
        counts = forward, len(cuda.launches)
        limits = {"cp": (3, 12), "tucker": (6, 22), "tt": (4, 16), "dense": (1, 3)}[layer.format]
        assert counts <= limits, way
        assert counts[1] <= limits[1], way
        assert forward <= counts[1] <= predicted.launches(p)
