"""Small growth runs for tests, seeded: two kinds of network, two tasks."""

from __future__ import annotations

from typing import Any

import numpy as np

from growarray.backend import to_numpy
from growarray.networks import GrowingMLP, GrowingResidualMLP, Growth, GrowthSettings
from growarray.nn import Tanh
from growarray.optim import Adam

RNG = np.random.default_rng(30)
X = RNG.standard_normal((200, 4))
LABELS = (X[:, 0] * X[:, 1] > 0).astype(np.int64)
TARGET = np.stack([np.sin(X[:, 0]), X[:, 1] * X[:, 2]], axis=1)
VALIDATION = RNG.standard_normal((60, 4))
KINDS = ["mlp", "residual"]


def network(kind: str = "mlp", outputs: int = 2, dtype: Any = np.float64) -> Any:
    options: dict[str, Any] = {"activation": Tanh(), "dtype": dtype, "rng": np.random.default_rng(1)}
    if kind == "mlp":
        return GrowingMLP(4, outputs, (2, 2), **options)
    return GrowingResidualMLP(4, outputs, 2, 2, 2, **options)


def loop(kind: str = "mlp", seed: int = 0, **options: Any) -> Growth:
    """A small run; fields of the settings may be given by name."""
    regression = options.get("task") == "regression"
    names = {name for name in GrowthSettings.__dataclass_fields__ if name in options}
    settings = GrowthSettings(
        **{"epochs": 4, "every": 1, "first": 1, "neurons": 2, **{n: options.pop(n) for n in names}}
    )
    grown = options.pop("network", None) or network(kind)
    optimizer = options.pop("optimizer", None) or Adam(grown, lr=1e-2)
    data = options.pop("data", (X, TARGET if regression else LABELS))
    return Growth(grown, optimizer, data, settings=settings, rng=np.random.default_rng(seed), **options)


def weights(grown: Any) -> dict[str, np.ndarray]:
    return {name: to_numpy(p.data).copy() for name, p in grown.named_parameters()}


def assert_same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)
