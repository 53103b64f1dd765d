"""Learning rates by step, and the norm of gradients limited."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from growarray.backend import accurate_dtype, is_cupy, load, namespace
from growarray.nn import Owner, Parameter
from growarray.optim.optimizer import at_least_zero

Schedule = Callable[[int], float]


def constant(lr: float) -> Schedule:
    """The same learning rate at every step.

    >>> constant(0.1)(1000)
    0.1
    """
    return lambda step: lr


def cosine(lr: float, steps: int, final: float = 0.0) -> Schedule:
    """From ``lr`` at step 0 along half a cosine to ``final`` at step ``steps``, and ``final`` from there on.

    Raises ValueError if ``steps`` is less than 1.

    >>> schedule = cosine(1.0, 10)
    >>> schedule(0), round(schedule(5), 6), schedule(10), schedule(11)
    (1.0, 0.5, 0.0, 0.0)
    """
    if steps < 1:
        raise ValueError(f"cosine: steps must be at least 1, found {steps}")
    return lambda step: final + (lr - final) * (1.0 + math.cos(math.pi * min(step, steps) / steps)) / 2.0


def warm_up(schedule: Schedule, steps: int) -> Schedule:
    """Rise linearly to ``schedule(0)`` over the first ``steps`` steps, then follow ``schedule`` from its start.

    Raises ValueError if ``steps`` is negative.

    >>> rising = warm_up(constant(1.0), 4)
    >>> [rising(step) for step in (0, 1, 3, 4)]
    [0.25, 0.5, 1.0, 1.0]
    """
    if steps < 0:
        raise ValueError(f"warm_up: steps must not be negative, found {steps}")
    return lambda step: schedule(0) * (step + 1) / steps if step < steps else schedule(step - steps)


def clip_gradients(parameters: Owner | Parameter | Iterable[Parameter], max_norm: float) -> float:
    """Scale all gradients by ``min(1, max_norm / (norm + 1e-6))``; returns the L2 norm of all of them before.

    On a GPU the norm is an array without axes, so that the host need not wait.
    Raises ValueError for a negative ``max_norm``.

    >>> import numpy as np
    >>> p = Parameter(np.zeros(2))
    >>> p.accumulate(np.array([3.0, 4.0]))
    >>> clip_gradients([p], 1.0), p.grad.round(4).tolist()
    (5.0, [0.6, 0.8])
    """
    at_least_zero("clip_gradients", max_norm=max_norm)
    found = [parameters] if isinstance(parameters, Parameter) else parameters
    found = found.parameters() if isinstance(found, Owner) else found
    held = [(p, p.grad) for p in {id(p): p for p in found}.values() if p.grad is not None and p.requires_grad]
    if held and is_cupy(held[0][1]):
        there: Any = load("growarray.cuda.update").clip_together(held, float(max_norm))
        if there is not None:
            return there  # type: ignore[no-any-return]
    squares: Any = 0.0
    for _, gradient in held:
        values = namespace(gradient).astype(gradient, accurate_dtype(namespace(gradient), gradient), copy=False)
        squares = squares + namespace(gradient).sum(values * values)
    norm = math.sqrt(float(squares))
    scale = min(float(max_norm) / (norm + 1e-6), 1.0)
    if scale != 1.0:
        for p, gradient in held:
            p.grad = gradient * scale
    return norm
