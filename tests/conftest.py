"""Fixtures for all tests: the array libraries, read-only arrays, and the marker for tests that need a GPU."""

from __future__ import annotations

import importlib.util
import os

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores; BLAS reads it once, when NumPy is imported
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("GROWARRAY_FAST", "0")  # the library as it is without Numba; test_compiled.py takes it back

import gc
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import array_api_strict
import hypothesis
import numpy as np
import pytest

from growarray.backend import library, to_numpy
from growarray.errors import DeviceError
from growarray.nn.module import Module, Parameter
from tests import doubles

hypothesis.settings.register_profile("loaded", deadline=None)  # a busy machine is not a fault
hypothesis.settings.load_profile("loaded")


def frozen(array: Any) -> np.ndarray:
    """A read-only copy: whoever writes into it raises."""
    copy = np.array(array)
    copy.setflags(write=False)
    return copy


@dataclass(frozen=True)
class Library:
    """An array library under test: ``asarray`` takes a host array, read-only where the library knows that."""

    name: str
    asarray: Callable[[Any], Any]

    def adopt(self, module: Module) -> Module:
        """Move all parameters and buffers of a module to this library."""
        for part in module.modules():
            for _, value in part._fields():
                if isinstance(value, Parameter):
                    value.data = self.asarray(to_numpy(value.data))
            for name in part._buffers:
                if getattr(part, name) is not None:
                    setattr(part, name, self.asarray(to_numpy(getattr(part, name))))
        return module


LIBRARIES = {
    "numpy": Library("numpy", frozen),
    "array_api_strict": Library(
        "array_api_strict",
        lambda host: array_api_strict.asarray(np.asarray(host), device=array_api_strict.Device("device1")),
    ),
    "double": Library("double", lambda host: doubles.DoubleArray(frozen(host))),
}


def _jax(host: Any) -> Any:
    """JAX compiles every operation for every shape and most run once: compiling is what takes time."""
    jax = importlib.import_module("jax")
    if jax.__version_info__[:2] == (0, 10):  # an XLA that does not know a flag ends the process
        os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_disable_most_optimizations", True)
    return jax.numpy.asarray(np.asarray(host))


def _torch(host: Any) -> Any:
    return importlib.import_module("torch").asarray(np.array(host))


def _cupy(host: Any) -> Any:
    return library("cuda").asarray(np.asarray(host))


OPTIONAL = {"jax": _jax, "torch": _torch}  # imported at the first array: a run without them stays light
INSTALLED = {name: make for name, make in {"cupy": _cupy, **OPTIONAL}.items() if importlib.util.find_spec(name)}
LIBRARIES |= {name: Library(name, make) for name, make in INSTALLED.items()}

JAX_RUNS = (  # it compiles an operation for every shape: these and nn/test_libraries.py have it run each kind once
    "contraction/test_execute.py", "contraction/test_kernels.py", "contraction/test_operand.py",
    "contraction/test_plan.py", "decompose/test_tt.py",
    "factorized/test_conv.py::test_every_library", "factorized/test_linear.py",
    "growing/test_dependence.py", "growing/test_initialise.py::test_normalisation", "growing/test_moment.py",
    "growing/test_stream.py", "growing/test_update.py::test_a_triangle", "growing/test_update.py::test_every_library",
    "networks/test_data.py", "networks/test_growth_loop.py::test_every_library", "networks/test_loader.py",
    "networks/test_true_fisher.py", "nn/test_arithmetic.py", "nn/test_cast.py", "nn/test_embedding.py",
    "nn/test_graph.py", "nn/test_load_state.py", "nn/test_module.py", "nn/test_operation.py", "onnx/test_export.py",
    "ops/test_attention.py", "ops/test_dropout.py", "ops/test_loss.py", "ops/test_moments.py", "test_backend.py",
    "test_optim.py", "test_optim_state.py", "test_testing.py",
)  # fmt: skip


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """Tests in their thousands are kept to the end: looking for garbage among them again and again finds none."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each installed array library in turn for a test that takes ``xp``."""
    if "xp" in metafunc.fixturenames:
        where = f"{metafunc.definition.path.relative_to(Path(__file__).parent).as_posix()}::{metafunc.definition.name}"
        names = [name for name in LIBRARIES if name != "jax" or where.startswith(JAX_RUNS)]
        marked = [pytest.param(n, marks=pytest.mark.gpu) if n == "cupy" else n for n in names]
        metafunc.parametrize("xp", marked, indirect=True)


@pytest.fixture
def xp(request: pytest.FixtureRequest) -> Library:
    """One of the array libraries, see :func:`pytest_generate_tests`."""
    return LIBRARIES[request.param]


def _gpu_missing() -> str:
    try:
        library("cuda")
    except DeviceError as error:
        return str(error)
    return ""


def _compiled_again(items: list[pytest.Item]) -> list[pytest.Item]:
    """The cases of a test that JAX would compile after its first; nn/test_libraries.py has every kind of layer."""
    seen, again = set(), []
    for item in items:
        if isinstance(item, pytest.Function) and "xp" in item.fixturenames and item.callspec.params["xp"] == "jax":
            test = item.path, item.originalname
            if test in seen:
                again.append(item)
            seen.add(test)
    return again


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    moving = [item.nodeid for item in items if " at 0x" in item.nodeid]
    if moving:
        raise pytest.UsageError(f"{moving[0]}: an address in a name; give ids= that are the same in every process")
    again = set(_compiled_again(items))
    config.hook.pytest_deselected(items=list(again))
    items[:] = [item for item in items if item not in again]
    marked = [item for item in items if item.get_closest_marker("gpu")]
    reason = _gpu_missing() if marked else ""
    for item in marked if reason else ():
        item.add_marker(pytest.mark.skip(reason=reason))
