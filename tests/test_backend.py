"""The arrays choose the library; the double forbids what CuPy forbids."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import array_api_strict
import numpy as np
import pytest
from scipy import special

from growarray import backend, nn
from growarray.errors import DeviceError
from growarray.factorized import FactorizedConv
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
    with pytest.raises(
        TypeError, match=f"two libraries cannot be mixed: .*{type(a).__name__} and .*{type(b).__name__}"
    ):
        backend.namespace(a, b)


def test_two_devices_are_refused_by_name() -> None:
    a = array_api_strict.asarray([1.0])
    with pytest.raises(TypeError, match=r"two devices cannot be mixed: .*CPU_DEVICE.* and .*device1"):
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
    with pytest.raises(TypeError, match="two libraries cannot be mixed"):
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


# Arrays that change and arrays that do not.


def test_assign_gives_the_array_with_the_values_and_changes_it_where_it_can(xp: Library) -> None:
    x = backend.namespace(xp.asarray(np.ones(1))).asarray(xp.asarray(np.arange(6.0).reshape(2, 3)), copy=True)
    y = backend.assign(x, (slice(None), slice(0, 3, 2)), 9.0)
    assert backend.to_numpy(y).tolist() == [[9.0, 1.0, 9.0], [9.0, 4.0, 9.0]]
    assert (y is x) == (xp.name != "jax")
    z = backend.assign(y, (0, ...), y[1, :], add=True)
    assert backend.to_numpy(z).tolist() == [[18.0, 5.0, 18.0], [9.0, 4.0, 9.0]]
    assert type(z) is type(x)


def test_the_factor_of_what_is_not_positive_definite_is_none(xp: Library) -> None:
    factor = backend.cholesky(xp.asarray([[4.0, 2.0], [2.0, 5.0]]))
    assert_close(backend.to_numpy(factor), [[2.0, 0.0], [1.0, 2.0]])
    assert backend.cholesky(xp.asarray([[1.0, 2.0], [2.0, 1.0]])) is None


def test_a_network_moves_to_the_library_of_an_array_and_back(xp: Library) -> None:
    network = nn.Sequential(nn.Linear(3, 2, rng=np.random.default_rng(0)), nn.BatchNorm1d(2))
    x = np.float32([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]])
    expected = network.predict(x)
    network(x)
    state = {name: value.copy() for name, value in network.state_dict().items()}
    moved = xp.asarray(x)
    y, pullback = network.to(moved).vjp(moved)
    dx = pullback(y)
    assert type(y) is type(dx) is type(network[0].weight.grad) is type(network[1].running_mean) is type(moved)
    assert str(y.dtype).endswith("float32")
    network.to(x).load_state_dict(state)
    assert isinstance(network[0].weight.grad, np.ndarray)
    assert network[1].running_mean.tolist() == state["1.running_mean"].tolist()
    network.load_state_dict({**state, "1.running_mean": np.zeros(2), "1.running_var": np.ones(2)})
    assert_close(network.predict(x), expected)


@pytest.mark.skipif("jax" not in LIBRARIES, reason="JAX is not installed")
def test_jax_in_single_precision_is_refused_with_the_remedy() -> None:
    code = "import jax.numpy as jnp; from growarray.nn import ReLU; ReLU()(jnp.ones(2))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "TypeError: JAX arrays need float64; call jax.config.update('jax_enable_x64', True) before" in run.stderr


# Tensors of torch: computed with as they are; what is read from a module of torch is NumPy.


@pytest.fixture
def torch() -> Any:
    return pytest.importorskip("torch")


def test_tensors_stay_tensors_and_those_that_numpy_lacks_become_single_precision(torch: Any) -> None:
    x = torch.ones(2)
    assert backend.is_array(x)
    assert backend.asarray(x) is x
    assert nn.Parameter(x).data is x
    assert nn.Linear.of(torch.ones(1, 2))(x).tolist() == [2.0]
    assert backend.asarray(x.bfloat16()).dtype == torch.float32
    assert backend.asarray(torch.complex(x, x).conj().imag).tolist() == [-1.0, -1.0]
    assert backend.to_numpy(x).tolist() == [1.0, 1.0]
    assert type(backend.asarray(x, like=np.ones(1))) is np.ndarray


def test_tensors_that_cannot_be_computed_with_say_why(torch: Any) -> None:
    for take in (nn.ReLU(), backend.asarray, backend.to_numpy):
        with pytest.raises(TypeError, match=r"requires a gradient cannot be taken; pass x\.detach\(\)"):
            take(torch.ones(2, requires_grad=True))
    with pytest.raises(TypeError, match=r"two libraries cannot be mixed: torch\.Tensor and numpy\.ndarray"):
        backend.namespace(torch.ones(2), np.ones(2))
    with pytest.raises(TypeError, match=r"expected an array of real numbers, found .*bfloat16"):
        nn.ReLU()(torch.ones(2).bfloat16())
    with pytest.raises(TypeError, match="without values cannot be taken"):
        backend.asarray(torch.ones(2, device="meta"))


def test_a_module_of_torch_is_read_into_numpy(torch: Any) -> None:
    theirs = torch.nn.Conv2d(3, 4, 3)
    ours = FactorizedConv.from_conv(theirs, rank=(4, 3, 3, 3), factorization="tucker")
    assert all(isinstance(p.data, np.ndarray) for p in ours.parameters())
    layer = nn.Conv2d(3, 4, 3)
    layer.load_state_dict(theirs.state_dict())
    assert isinstance(layer.weight.data, np.ndarray)
    assert_close(layer(np.ones((1, 3, 5, 5), np.float32)), theirs(torch.ones(1, 3, 5, 5)).detach().numpy())
