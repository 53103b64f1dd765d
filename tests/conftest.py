"""Fixtures for all tests: the array libraries, read-only arrays, and the marker for tests that need a GPU."""

from __future__ import annotations

import importlib.util
import os

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores; BLAS reads it once, when NumPy is imported
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("GROWARRAY_FAST", "0")  # the library as it is without Numba; test_compiled.py takes it back

from collections.abc import Callable
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
    "cupy": Library("cupy", lambda host: library("cuda").asarray(np.asarray(host))),
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


OPTIONAL = {"jax": _jax, "torch": _torch}  # imported at the first array: a run without them stays light
LIBRARIES |= {name: Library(name, make) for name, make in OPTIONAL.items() if importlib.util.find_spec(name)}

COMPILED_ELSEWHERE = {  # JAX compiles an operation for every shape: what other tests have it run is not run again here
    "compression/test_compress.py", "contraction/test_run.py", "contraction/test_convolutions.py",
    "contraction/test_slicing.py", "contraction/test_transpose.py", "factorized/test_conv.py::test_layer_contract",
    "factorized/test_convert.py", "factorized/test_dropout.py", "factorized/test_growth.py", "factorized/test_lasso.py",
    "decompose/test_cp.py", "factorized/test_report.py", "factorized/test_tensor.py", "growing/test_adapter.py",
    "growing/test_linear.py", "growing/test_merge.py", "networks/graph/test_libraries.py", "networks/test_block.py",
    "networks/test_growth_loop.py::test_a_line_search", "networks/test_mlp.py",
    "networks/test_prune.py", "networks/test_transformer.py", "nn/test_contract.py", "nn/test_freezing.py",
    "nn/test_sized.py", "ops/test_conv.py", "ops/test_pool.py",
}  # fmt: skip


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each array library in turn for a test that takes ``xp``; CuPy where there is a GPU."""
    if "xp" in metafunc.fixturenames:
        where = f"{metafunc.definition.path.relative_to(Path(__file__).parent).as_posix()}::{metafunc.definition.name}"
        elsewhere = any(where.startswith(place) for place in COMPILED_ELSEWHERE)
        names = [name for name in LIBRARIES if name != "jax" or not elsewhere]
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
