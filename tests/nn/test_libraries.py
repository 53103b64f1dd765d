"""Every layer gives NumPy's values and gradients on the libraries whose operations are compiled for each shape."""

from __future__ import annotations

import re

import numpy as np
import pytest

from growarray.backend import to_numpy
from growarray.nn import Module
from growarray.testing import assert_close
from tests.conftest import LIBRARIES, OPTIONAL
from tests.nn.layers import EXAMPLES


def ran(layer: Module, x: np.ndarray, dy: np.ndarray, library: str) -> dict[str, np.ndarray]:
    """Value, gradients and buffers after one step there and back; all stay in the library."""
    there = LIBRARIES[library]
    y, pullback = there.adopt(layer).vjp(there.asarray(x))
    found = {"y": y, "dx": pullback(there.asarray(dy)), **layer.state_dict()}
    found |= {f"{name}.grad": parameter.grad for name, parameter in layer.named_parameters()}
    assert library == "numpy" or {type(value) for value in found.values()} == {type(there.asarray(x))}
    return {name: to_numpy(value) for name, value in found.items()}


def family(layer: Module) -> str:
    """``Conv`` for ``Conv1d`` and ``ConvNd``, ``LayerNorm`` for ``GrowingLayerNorm``: they run the same operations."""
    return re.sub(r"^Growing|[123N]d$", "", type(layer).__name__)


def cases() -> list[tuple[str, str]]:
    """Every example, for JAX the first of each family: it compiles all that an option or another axis changes."""
    first = {family(example.build()): name for name, example in reversed(EXAMPLES.items())}
    names = {library: EXAMPLES if library != "jax" else sorted(first.values()) for library in OPTIONAL}
    return [(name, library) for library in OPTIONAL if library in LIBRARIES for name in names[library]]


@pytest.mark.parametrize(("name", "library"), cases())
def test_every_layer_gives_numpy_s_numbers(name: str, library: str) -> None:
    example, rng = EXAMPLES[name], np.random.default_rng(7)
    x = rng.standard_normal(example.shape)
    x = np.abs(x) + 0.5 if example.positive else x
    dy = rng.standard_normal(example.output)
    expected = ran(example.build(), x, dy, "numpy")
    found = ran(example.build(), x, dy, library)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert_close(found[key], value, what=key)
