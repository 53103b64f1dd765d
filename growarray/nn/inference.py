"""Evaluation mode and gradients as they were, and values of a module for many samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from growarray.backend import Array, namespace


@contextmanager
def evaluating(module: Any) -> Iterator[None]:
    """Evaluation mode inside, every module's own mode afterwards.

    >>> from growarray.nn.dropout import Dropout
    >>> layer = Dropout()
    >>> with evaluating(layer):
    ...     print(layer.training)
    False
    >>> layer.training
    True
    """
    modes = [(inner, inner.training) for inner in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for inner, mode in modes:
            inner.training = mode


@contextmanager
def gradients_kept(module: Any) -> Iterator[None]:
    """Inside, pullbacks may add to gradients; afterwards every parameter has the one it had before."""
    gradients = [(parameter, parameter.grad) for parameter in module.parameters()]
    try:
        yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient


def in_batches(module: Any, inputs: Sequence[Array], batch_size: int) -> Any:
    """Value of the module in evaluation mode, put together from batches along the first axis of the inputs.

    Raises ValueError if ``batch_size`` is not positive, or there are no samples.

    >>> import numpy as np
    >>> from growarray.nn.dropout import Dropout
    >>> in_batches(Dropout(), [np.ones((3, 1))], 2).shape
    (3, 1)
    """
    namespace(*inputs, where=f"{type(module).__name__}.predict: ")
    count = int(inputs[0].shape[0]) if inputs and inputs[0].ndim else 0
    if batch_size < 1 or count < 1:
        raise ValueError(
            f"{type(module).__name__}.predict: found {count} samples and batch_size={batch_size}, expected at least 1 "
            "of each; samples lie along the first axis"
        )
    with evaluating(module):
        parts = [module(*[x[start : start + batch_size, ...] for x in inputs]) for start in range(0, count, batch_size)]
    if isinstance(parts[0], tuple):  # a graph of several outputs
        return tuple(namespace(*values).concat(values, axis=0) for values in zip(*parts, strict=True))
    return namespace(*parts).concat(parts, axis=0)
