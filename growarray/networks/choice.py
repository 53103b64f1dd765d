"""Choosing where to grow: the value of each planned growth."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from growarray.growing.dependence import place_dependence
from growarray.networks.data import Task


def _per(gain: float, cost: int) -> float:
    return gain / cost if cost else 0.0


WORTH: dict[str, Callable[[Any], float]] = {
    "first_order": lambda place: float(place.first_order_improvement),
    "per_parameter": lambda place: _per(place.new_neurons_fo_improvement, place.parameters_added),
    "per_flop": lambda place: _per(place.new_neurons_fo_improvement, place.flops_added),
    "narrowest": lambda place: -float(place.in_neurons),
    "hsic": place_dependence,
}
"""What a place promises, by all of its plan or for each parameter or FLOP that this adds; or how narrow it is; or how
much the gradient there depends on what new neurons would read."""

JUDGED = ("validation", "score", "bic")
"""Ways to choose that carry every plan out on the validation data, at the scaling that a line search finds."""

CHOICES = (*WORTH, *JUDGED)


def bic(parameters: int, loss: float, samples: int, task: Task) -> float:
    """Bayesian information criterion, lower is better: ``k ln n - 2 ln L`` for k parameters and n samples.

    ``-2 ln L`` is ``2 n loss`` if the loss is a mean negative log-likelihood, as cross entropy is, and ``n ln(loss)``
    for the mean squared error of a regression, whose variance is fitted. (The original takes the loss itself for L, so
    that a larger loss is better.)

    >>> from growarray.networks import task_named
    >>> bic(10, 0.5, 100, task_named("classification")) < bic(10, 0.6, 100, task_named("classification"))
    True
    """
    deviance = samples * math.log(loss) if task.name == "regression" else 2.0 * samples * loss
    return parameters * math.log(samples) + deviance
