"""The arrays choose the library; the double forbids what CuPy forbids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import array_api_strict
import numpy as np
import pytest
from scipy import special

from growarray import backend
from growarray.errors import DeviceError
from growarray.ops.erf import erf, portable_erf
from growarray.testing import assert_close
from tests import doubles
from tests.conftest import LIBRARIES, Library, frozen
from tests.foreign import Tensor, Uninitialized

STRICT = LIBRARIES["array_api_strict"]
DOUBLE = LIBRARIES["double"]


def test_namespace_is_that_of_the_arrays_and_numbers_are_passed_over(xp: Library) -> None:
    x = xp.asarray(np.ones(2))
    found = backend.namespace(None, 3, x, 2.0, x)
    assert found is backend.namespace(x)
    assert type(found.exp(x)) is type(x)


@pytest.mark.parametrize("pair", [("numpy", "double"), ("double", "array_api_strict"), ("array_api_strict", "numpy")])
def test_two_libraries_are_refused_by_name(pair: tuple[str, str]) -> None:
    a, b = (LIBRARIES[name].asarray(np.ones(2)) for name in pair)
    with pytest.raises(TypeError, match=f"two libraries meet: .*{type(a).__name__} and .*{type(b).__name__}"):
        backend.namespace(a, b)


def test_two_devices_are_refused_by_name() -> None:
    a = array_api_strict.asarray([1.0])
    with pytest.raises(TypeError, match=r"two devices meet: .*CPU_DEVICE.* and .*device1"):
        backend.namespace(a, STRICT.asarray([1.0]))


@pytest.mark.parametrize("wrong", [[1.0, 2.0], "text"], ids=["list", "text"])
def test_what_is_no_array_is_refused(wrong: object) -> None:
    with pytest.raises(TypeError, match="expected an array of NumPy, CuPy or another array-API library"):
        backend.namespace(wrong)


def test_no_array_at_all_is_refused() -> None:
    with pytest.raises(TypeError, match="expected at least one array, found none"):
        backend.namespace(None, 1.0)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "bool"])
@pytest.mark.parametrize("shape", [(), (0, 2), (2, 3)], ids=str)
def test_to_numpy_and_back(dtype: str, shape: tuple[int, ...], xp: Library) -> None:
    host = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    moved = xp.asarray(host)
    back = backend.to_numpy(moved)
    assert isinstance(back, np.ndarray)
    assert back.dtype == host.dtype
    assert np.array_equal(back, host)
    again = backend.asarray(back, like=moved)
    assert type(again) is type(moved)
    assert backend.device_of(again) == backend.device_of(moved)
    assert np.array_equal(backend.to_numpy(again), host)


def test_asarray_keeps_what_is_an_array_and_converts_the_rest(xp: Library) -> None:
    x = xp.asarray(np.ones(2))
    assert backend.asarray(x) is x
    assert str(backend.asarray(x, dtype=backend.namespace(x).float32).dtype).endswith("float32")
    assert backend.asarray([1, 2]).tolist() == [1, 2]
    moved = backend.asarray(DOUBLE.asarray([1.0]), like=x)
    assert backend.namespace(moved, x) is backend.namespace(x)


def test_asarray_takes_foreign_arrays_by_dlpack() -> None:
    class Foreign:
        def __dlpack__(self, **options: Any) -> Any:
            return np.arange(3.0).__dlpack__(**options)

        def __dlpack_device__(self) -> Any:
            return np.arange(3.0).__dlpack_device__()

    assert backend.asarray(Foreign()).tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("take", [backend.asarray, backend.to_numpy, lambda x: backend.asarray(x, like=np.ones(1))])
def test_foreign_types_that_numpy_lacks_become_single_precision(take: Any) -> None:
    for dtype in ("bfloat16", "float8_e4m3fn"):
        found = take(Tensor(np.float32([1.0, -2.5]), dtype))
        assert (found.tolist(), found.dtype) == ([1.0, -2.5], np.float32)
    assert take(Tensor(np.float32([1.0, -2.5]), neg=True)).tolist() == [-1.0, 2.5]


@pytest.mark.parametrize("take", [backend.asarray, backend.to_numpy, lambda x: backend.asarray(x, like=np.ones(1))])
def test_foreign_arrays_that_cannot_be_taken_say_why(take: Any) -> None:
    with pytest.raises(TypeError, match=r"requires a gradient cannot be taken; pass x\.detach\(\)"):
        take(Tensor(np.ones(1), grad=True))
    with pytest.raises(TypeError, match=r"Tensor without values cannot be taken; load or initialize it first"):
        take(Tensor(np.ones(1), device="meta"))
    with pytest.raises(TypeError, match=r"Uninitialized without values cannot be taken"):
        take(Uninitialized(np.ones(1)))
    with pytest.raises(TypeError, match=r"on cpu cannot be taken by DLPack \(Unsupported tensor\); pass a dense array"):
        take(Tensor(np.ones(1), "qint8"))


def test_devices_of_the_cpu() -> None:
    x = frozen([1.0])
    assert backend.device_of(x) == "cpu"
    assert backend.to_device(x, "cpu") is x
    assert backend.to_device(x, None) is x
    assert backend.library(None) is backend.library("cpu") is backend.namespace(x)
    moved = backend.to_device(STRICT.asarray([1.0]), "cpu")
    assert isinstance(moved, np.ndarray)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "mps"])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"unknown device '{name}'; expected None, 'cpu', 'cuda' or 'cuda:N'"):
        backend.library(name)


def test_a_missing_gpu_is_named() -> None:
    with pytest.raises(DeviceError, match="device 'cuda:9999'"):
        backend.library("cuda:9999")


@pytest.mark.gpu
def test_cupy_arrays_go_there_and_back() -> None:
    x = backend.to_device(np.arange(3.0), "cuda")
    assert backend.to_numpy(x).tolist() == [0.0, 1.0, 2.0]
    assert_close(erf(x), special.erf(np.arange(3.0)), rtol=1e-14)
    with pytest.raises(TypeError, match="two libraries meet"):
        backend.namespace(x, np.ones(1))


def test_erf_agrees_with_scipy(xp: Library) -> None:
    x = np.concatenate([np.linspace(-7.0, 7.0, 2001), [0.0, 1e-300, -1e-8, 0.46875, 4.0, -4.0, 30.0, 1e10]])
    moved = xp.asarray(x)
    for found in (erf(moved), portable_erf(moved)):
        assert np.abs(backend.to_numpy(found) - special.erf(x)).max() <= 4e-16


def test_accurate_dtype_is_double_of_the_kind(xp: Library) -> None:
    x = xp.asarray(np.ones(1, np.float32))
    names = backend.namespace(x)
    assert backend.accurate_dtype(names, x) == names.float64
    z = xp.asarray(np.ones(1, np.complex64))
    assert backend.accurate_dtype(names, z) == names.complex128


HOST = np.ones(2)


@pytest.mark.parametrize(
    "misuse",
    [
        pytest.param(lambda x: np.asarray(x), id="np.asarray"),
        pytest.param(lambda x: np.exp(x), id="ufunc"),
        pytest.param(lambda x: x + HOST, id="right-operand"),
        pytest.param(lambda x: HOST + x, id="left-operand"),
        pytest.param(lambda x: x * np.float32(2), id="numpy-scalar"),
        pytest.param(lambda x: doubles.xp.add(x, HOST), id="function"),
        pytest.param(lambda x: doubles.xp.concat([x, HOST]), id="list"),
        pytest.param(lambda x: x[np.array([0])], id="index"),
        pytest.param(lambda x: doubles.xp.zeros(2, device="cpu"), id="device"),
        pytest.param(lambda x: x.__setitem__(0, HOST[0:1]), id="assignment"),
    ],
)
def test_the_double_forbids_what_cupy_forbids(misuse: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError):
        misuse(DOUBLE.asarray(np.ones(2)))


def test_the_double_knows_the_array_api_only_and_may_be_read_only() -> None:
    x = DOUBLE.asarray(np.ones(2))
    with pytest.raises(AttributeError, match="'transpose': it is not in the array API"):
        _ = doubles.xp.transpose
    with pytest.raises(AttributeError, match="'copy': it is not in the array API"):
        x.copy()
    with pytest.raises(ValueError, match="read-only"):
        x += 1.0
    assert backend.to_numpy(2.0 - x @ x).tolist() == 0.0
    assert type(doubles.xp.linalg.svd(DOUBLE.asarray(np.eye(2))).S) is doubles.DoubleArray
