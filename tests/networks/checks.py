"""Checks that every growing network passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from growarray.backend import to_numpy
from growarray.networks import GrowingNetwork
from growarray.testing import check_vjp


def check_all_gradients(network: GrowingNetwork, x: np.ndarray) -> None:
    """Gradients of the input and of every parameter, against finite differences."""
    parameters = network.parameters()

    def function(x: np.ndarray, *values: np.ndarray) -> Any:
        for parameter, value in zip(parameters, values, strict=True):
            parameter.data = value
        y, pullback = network.vjp(x)

        def gradients(dy: np.ndarray) -> Any:
            network.zero_grad()
            dx = pullback(dy)
            return (dx, *[parameter.grad for parameter in parameters])

        return y, gradients

    check_vjp(function, np.array(x), *[np.array(p.data) for p in parameters])


def grown_weights(
    network: GrowingNetwork, x: Any, gradient: Callable[[Any], Any], rule: Any, places: Sequence[int]
) -> list[np.ndarray]:
    """Weights after one growth at each of ``places``, statistics collected anew before each."""
    for place in places:
        network.init_computation()
        y, pullback = network.vjp(x)
        pullback(gradient(y))
        network.update_computation()
        network.compute_optimal_updates(rule, max_new=2, force_pseudo_inverse=True)
        network.reset_computation()
        network.select_update(place)
        network.apply_change(0.2)
        network.delete_update()
    return [to_numpy(p.data) for p in network.parameters()]
