"""A gradient of another shape than the result is refused, where it would broadcast to a wrong one too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from growarray.errors import ShapeError
from growarray.ops import adaptive_avg_pool, avg_pool, batch_norm, group_norm, layer_norm, linear, max_pool

X = np.random.default_rng(0).standard_normal((3, 4))
IMAGES = np.random.default_rng(0).standard_normal((2, 4, 6, 6))

OPS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "linear": lambda: linear(X, np.ones((4, 4))),
    "layer_norm": lambda: layer_norm(X, np.ones(4)),
    "batch_norm": lambda: batch_norm(X, np.ones(4)),
    "group_norm": lambda: group_norm(X, 2, np.ones(4)),
    "max_pool": lambda: max_pool(IMAGES, 2),
    "avg_pool": lambda: avg_pool(IMAGES, 2),
    "adaptive_avg_pool": lambda: adaptive_avg_pool(IMAGES, 2),
    "global mean": lambda: adaptive_avg_pool(IMAGES, 1),
}


@pytest.mark.parametrize("name", OPS)
def test_a_gradient_of_another_shape_is_refused(name: str) -> None:
    y, pullback = OPS[name]()
    pullback(np.ones_like(y))
    for shape in ((1, *y.shape[1:]), (*y.shape[:-1], y.shape[-1] + 1), y.shape[1:]):
        with pytest.raises(ShapeError, match=r"pullback of .*: the gradient has shape .*, the result has"):
            pullback(np.ones(shape))
