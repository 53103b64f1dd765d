"""New neurons whose weights are as large as those beside them, for functions that do not see the difference."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np

from growarray.backend import Array, asarray, assign, namespace
from growarray.nn import Module


def balance(place: Any, added: int) -> None:
    """Bring the incoming weights of the last ``added`` neurons before a layer or merge to the norm of the others'.

    A rule shares the size of a neuron between both sides as it likes, and leaves one with incoming weights of 0.03
    beside others of 0.6: the first steps of Adam, as long for all weights, then turn it off for good. Its outgoing
    weights take the inverse factor, so that what the network computes stays the same; behind a function that is not
    positively homogeneous nothing is changed.
    """
    readers = place.readers  # what grows in a graph has none, and neurons of finite size
    before = place.front.layers_before if readers else ()
    if not added or not before or not all(is_homogeneous(place.function_before, layer.weight.data) for layer in before):
        return
    xp = namespace(before[0].weight.data)
    rows = [xp.reshape(layer.weight.data, (layer.weight.shape[0], -1)) for layer in before]
    norms = xp.linalg.vector_norm(xp.concat(rows, axis=1), axis=1)
    old = int(norms.shape[0]) - added
    wanted = xp.mean(norms[:old]) if old else len(before) ** 0.5 / math.sqrt(3.0)  # as large as a layer is drawn
    new = norms[old:]
    factors = xp.where(new > 0, wanted / xp.where(new > 0, new, xp.ones_like(new)), xp.ones_like(new))
    for layer in before:
        _scale(layer.weight, 0, old, factors)
        if layer.bias is not None:
            _scale(layer.bias, 0, old, factors)
    for reader in readers:
        _scale(reader.weight, 1, old, 1.0 / factors)


def _scale(parameter: Any, axis: int, start: int, factors: Array) -> None:
    """Multiply the entries from ``start`` on along an axis."""
    data, xp = parameter.data, namespace(factors)
    place = (*(slice(None),) * axis, slice(start, None))
    spread = xp.reshape(factors, (-1, *(1,) * (data.ndim - axis - 1)))
    parameter.data = assign(xp.asarray(data, copy=True), place, data[place] * xp.astype(spread, data.dtype))


def is_homogeneous(function: Module, weight: Array) -> bool:
    """Whether ``f(c x) = c f(x)`` for factors c > 0, one for each neuron, in training and in evaluation mode.

    weight : (neurons, …) of the layer before it; tried on copies, so that running averages and random numbers stay as
    they are; the factors are powers of two, so that rounding makes no difference

    >>> from growarray.nn import ReLU, Tanh
    >>> [is_homogeneous(function, np.zeros((3, 2))) for function in (ReLU(), Tanh())]
    [True, False]
    """
    xp, neurons, ones = namespace(weight), int(weight.shape[0]), (1,) * (weight.ndim - 2)
    if neurons == 0:
        return True
    values = np.stack([np.roll(np.geomspace(2.0**-6, 2.0**6, 13), i) for i in range(neurons)], axis=1)
    x = asarray(np.concatenate([values, -values]).reshape(-1, neurons, *ones), like=weight, dtype=weight.dtype)
    c = asarray(2.0 ** (np.arange(neurons) % 5 + 1).reshape(-1, *ones), like=weight, dtype=weight.dtype)
    for training in (True, False):
        small, large = (copy.deepcopy(function).train(training)(value) for value in (x, x * c))
        if float(xp.max(xp.abs(large - small * c))) > 1e-6 * float(xp.max(xp.abs(large))):
            return False
    return True
