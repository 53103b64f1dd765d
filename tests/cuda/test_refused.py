"""What a GPU, its driver and its memory do not allow, and streams that are the user's."""

from __future__ import annotations

import sys
import types
import weakref
from typing import Any

import numpy as np
import pytest

from growarray import backend, nn
from growarray.backend import to_numpy
from growarray.contraction import plan
from growarray.cuda import device
from growarray.errors import DeviceError
from tests import doubles
from tests.cuda import emulator
from tests.cuda.cudnn import Cudnn, cudnn
from tests.cuda.device import Cuda, CUDARuntimeError, cuda
from tests.cuda.test_products import CP, DENSE, shapes_of

__all__ = ["cuda", "cudnn"]

SHAPES = shapes_of(DENSE, {"y": 6, "x": 5})


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (CUDARuntimeError("cudaErrorInsufficientDriver: CUDA driver version is insufficient"), "update an old driver"),
        (CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected"), "nvidia-smi shows driver and GPUs"),
        (ImportError("libcudart.so.12: cannot open shared object file"), r"pip install \"growarray\[cuda12\]\""),
    ],
    ids=["old driver", "no gpu", "no cuda"],
)
def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch, error: Exception, remedy: str) -> None:
    def count() -> int:
        raise error

    runtime = types.SimpleNamespace(getDeviceCount=count)
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=runtime)))
    with pytest.raises(
        DeviceError, match=rf"device 'cuda' needs CuPy and an NVIDIA GPU \(.*{str(error)[:20]}.*{remedy}"
    ):
        backend.library("cuda")


def test_a_gpu_that_does_not_exist(cuda: Cuda) -> None:
    with pytest.raises(DeviceError, match=r"device 'cuda:3' does not exist; this machine has 1 GPU"):
        backend.library("cuda:3")


def test_cusolver_is_asked_whether_a_matrix_is_positive_definite(cuda: Cuda) -> None:
    assert to_numpy(backend.cholesky(cuda.array([[4.0, 2.0], [2.0, 5.0]]))).tolist() == [[2.0, 0.0], [1.0, 2.0]]
    assert backend.cholesky(cuda.array([[1.0, 2.0], [2.0, 1.0]])) is None
    assert cuda.linalg == "ignore"  # as before


def test_a_gpu_that_is_named_is_the_one_in_use(cuda: Cuda) -> None:
    cuda.count = 2
    backend.library("cuda")
    assert cuda.number == 0
    backend.library("cuda:1")
    assert cuda.number == 1
    backend.library("cuda")  # the one in use
    assert cuda.number == 1
    nn.Linear(2, 2, device="cuda:0")
    assert cuda.number == 0


def test_what_is_there_is_not_copied(cuda: Cuda) -> None:
    x = cuda.array(np.ones(3))
    assert backend.to_device(x, "cuda") is x
    cuda.count = 2
    assert backend.to_device(x, "cuda:1") is not x
    assert cuda.waits == ["get"]


def test_arrays_on_two_gpus(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(type(doubles.DEVICE)):  # type: ignore[misc]
        id = 1

        def __repr__(self) -> str:
            return "double:1"

    first, second = (cuda.array(np.ones((4, 4), np.float32)) for _ in range(2))
    there: Any = Other()
    monkeypatch.setattr(
        doubles.DoubleArray, "device", property(lambda self: there if self is second else doubles.DEVICE)
    )
    with pytest.raises(TypeError, match=r"arrays on two devices .*: double:0 and double:1; move one with"):
        plan("i k, k j -> i j", (4, 4), (4, 4), device="cuda")(first, second)
    assert cuda.launches == []


def test_work_space_belongs_to_a_stream(cuda: Cuda) -> None:
    found = {}
    for stream in (1, 2, 1):
        cuda.stream = stream
        found.setdefault(stream, []).append(device.workspace(100).ptr)
    assert found[1][0] == found[1][1] != found[2][0]


def test_memory_that_runs_out_on_the_way_back_changes_nothing(cuda: Cuda, cudnn: Cudnn) -> None:
    arrays = [cuda.array(np.ones(shape, np.float32)) for shape in SHAPES]
    y, back = plan(DENSE, *SHAPES, padding=1, device="cuda", training=True).vjp(*arrays)
    cuda.room = 100
    with pytest.raises(DeviceError, match=r"the GPU has no 1200 bytes left \(Out of memory.*cut the batch"):
        back(y)
    cuda.room = 1 << 20
    expected = plan(DENSE, *SHAPES, padding=1, training=True).vjp(*map(to_numpy, arrays))[1](to_numpy(y))
    for found, value in zip(back(y), expected, strict=True):
        np.testing.assert_allclose(to_numpy(found), value, rtol=1e-5)


@pytest.mark.parametrize("by", ["own kernel", "cudnn"])
def test_what_is_not_finite_stays_where_it_is(cuda: Cuda, request: pytest.FixtureRequest, by: str) -> None:
    if by == "cudnn":
        request.getfixturevalue("cudnn")
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape) for shape in SHAPES)
    x[1, 2, 0, 3] = np.nan
    options: dict[str, Any] = {"padding": 1, "stride": 2, "dtype": "float64"}
    expected = plan(DENSE, *SHAPES, **options)(x, w)
    found = to_numpy(plan(DENSE, *SHAPES, **options, device="cuda")(cuda.array(x), cuda.array(w)))
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    assert 0 < np.isnan(found).sum() < found.size / 2


def test_work_space_that_goes_back_to_the_pool_is_held_until_all_is_launched(
    cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    spaces, held, launch = [], [], emulator.run

    class Space:
        def __init__(self, ptr: int) -> None:
            self.ptr = ptr

    def alloc(count: int) -> Any:
        piece = Space(cuda.alloc(count).ptr)
        spaces.append(weakref.ref(piece))
        return piece

    def launched(*arguments: Any) -> None:
        held.append(spaces[-1]() is not None)
        launch(*arguments)

    shapes = shapes_of(CP, {"y": 6, "x": 5})
    p = plan(CP, *shapes, padding=1, device="cuda", optimize="factorized", training=True)
    y, back = p.vjp(*(cuda.array(np.ones(shape, np.float32)) for shape in shapes))
    monkeypatch.setattr(device, "_KEPT", 0)
    device._here.__dict__.clear()
    monkeypatch.setattr(sys.modules["cupy"].cuda, "alloc", alloc)
    monkeypatch.setattr(emulator, "run", launched)
    back(y)
    assert held
    assert all(held)
