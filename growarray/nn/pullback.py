"""Pullbacks that need not give the gradient of the input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from growarray.backend import Array


def for_parameters(pullback: Callable[..., Any], *gradients: Array) -> None:
    """Run a pullback for what it adds to parameters; one that takes ``wrt_x=False`` is spared the input's gradient.

    >>> import numpy as np
    >>> from growarray.nn.linear import Linear
    >>> layer = Linear(3, 2)
    >>> for_parameters(layer.vjp(np.ones((4, 3), np.float32))[1], np.ones((4, 2), np.float32))
    >>> layer.weight.grad.shape
    (2, 3)
    """
    options = {"wrt_x": False} if "wrt_x" in (getattr(pullback, "__kwdefaults__", None) or ()) else {}
    pullback(*gradients, **options)
