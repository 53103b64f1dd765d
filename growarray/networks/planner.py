"""Planning a growth: collect statistics, plan an update for every place, choose one, search its scaling."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np

from growarray.backend import Array, asarray, namespace
from growarray.errors import GrowthError, shown
from growarray.growing import GrowthRule
from growarray.networks.data import Task, batches
from growarray.networks.line_search import LineSearch, line_search
from growarray.networks.network import GrowingNetwork, is_frozen
from growarray.networks.settings import GrowthSettings

__all__ = ["GrowthPlanner", "default_budget"]


class GrowthPlanner:
    """What :class:`Growth` does to find a growth; nothing of the network's weights changes here."""

    network: GrowingNetwork
    data: tuple[Array, Array]
    validation: tuple[Array, Array]
    task: Task
    settings: GrowthSettings
    rng: np.random.Generator
    budget: int | None

    def _plan(self, rule: GrowthRule) -> tuple[int, list[str], Any, LineSearch | None]:
        """Collect, plan and choose in evaluation mode: samples seen, notes, the place or None, its line search.

        Without a place, and where something raises, no plan, request or gradient is left behind.
        """
        training, place = self.network.training, None
        self.network.eval()
        try:
            samples = self.collect(fisher=rule.use_fisher)
            with warnings.catch_warnings(record=True) as caught:  # a singular S is worth a note, not a stop
                warnings.simplefilter("always")
                self.network.compute_optimal_updates(rule)
            place, search = self.choose(rule)
        finally:
            self.network.reset_computation()
            self.network.zero_grad()
            self.network.train(training)
            if place is None:
                self.network.delete_update()
        return samples, sorted({str(warning.message) for warning in caught}), place, search

    def _check_start(self, rule: GrowthRule) -> None:
        """Refuse neurons that would start at zero behind a function that passes no gradient there."""
        for place in self.network.growing_layers if rule.alpha_zero else ():
            if not place.function_before.starts_at_zero:
                raise GrowthError(
                    f"{place.name}: neurons with zero incoming weights would never learn behind "
                    f"{shown(place.function_before)}; use ReLU(at_zero=1.0) or a smooth activation"
                )

    def collect(self, *, fisher: bool = False) -> int:
        """Collect statistics over the training data, or until precise enough; returns the samples seen.

        The gradient is that of the sum of the sample losses, so that promised improvements are of their mean.
        """
        tolerance = self.settings.relative_error
        self.network.init_computation(trace_precision=None if tolerance is None else 1e-3)
        seen = 0
        for x, target in batches(*self.data, self.settings.collect_batch, self.rng):
            y, pullback = self.network.vjp(x)
            pullback(self.task.loss(y, target)[1](float(x.shape[0])), wrt_x=False)
            self.network.update_computation(update_covariance_loss_gradient=fisher)
            seen += int(x.shape[0])
            if tolerance is not None and self.network.relative_error() <= tolerance:
                break
        self.network.zero_grad()
        return seen

    def choose(self, rule: GrowthRule) -> tuple[Any, LineSearch | None]:
        """The place to grow, or None, and the line search of its scaling.

        The search looks at the validation data. On few samples an update fits what is chance in the training data too,
        and the scaling that the training loss likes best goes too far for all others.

        Neurons that start at zero on one side change nothing at any scaling: without a delta there is nothing to search
        (None), and their other side takes the mean norm of what exists.
        """
        for place in self.network.growing_layers:
            place.sub_select_optimal_added_parameters(keep_neurons=self.affordable(place))
        places = [place for place in self.network.growing_layers if place.new_neurons]
        worth = {index: float(place.first_order_improvement) for index, place in enumerate(places)}
        if rule.alpha_zero or rule.omega_zero:  # after the places were compared: each then has a scale of its own
            for place in places:
                place.normalize_optimal_updates(normalization_type="gradmax_normalization")
        if not places:
            return None, None
        searches = not (rule.alpha_zero or rule.omega_zero) or rule.compute_delta
        if self.settings.choose == "validation" and searches:
            found = {index: self.search(place, self.validation) for index, place in enumerate(places)}
            best = min(found, key=lambda index: found[index].loss)
            return places[best], found[best]
        place = places[max(worth, key=lambda index: worth[index])]
        return place, self.search(place, self.validation) if searches else None

    def search(self, place: Any, data: tuple[Array, Array]) -> LineSearch:
        """Line search of one place's scaling on samples from all over ``data``; all other places stand still."""
        count, most = int(data[0].shape[0]), int(self.settings.search_samples)
        x, target = data
        if count > most:  # not the first ones: data that are sorted would show few classes
            rows = asarray(np.arange(most) * count // most, like=x)
            x, target = (namespace(array).take(array, rows, axis=0) for array in data)

        def loss(factor: float) -> float:
            self.network.set_scaling_factor(0.0)
            place.scaling_factor = factor
            return float(self.task.loss(self.network.extended_forward(x), target)[0])

        self.network.eval()
        result = line_search(loss)
        self.network.set_scaling_factor(0.0)
        return result

    def affordable(self, place: Any) -> int:
        """Neurons that the budget still allows at ``place``, at most ``settings.neurons``; 0 where it is frozen."""
        if is_frozen(place):
            return 0
        settings, network, allowed = self.settings, self.network, self.settings.neurons
        if self.budget is not None:
            left = self.budget - network.number_of_parameters()
            allowed = min(allowed, left // place.parameters_per_neuron)
        if settings.max_flops is not None:
            allowed = min(
                allowed, (settings.max_flops - network.flops_per_sample()) // (2 * place.parameters_per_neuron)
            )
        return max(allowed, 0)


def default_budget(network: GrowingNetwork, x: Array, neurons: int) -> int:
    """Parameters that a network may grow to on the samples ``x``: one for every number that it is to learn.

    These are samples times outputs of a sample. A network that has more from the start, because a sample is wide, may
    still add one growth: ``neurons`` neurons where it is cheapest, and no more than there are samples.

    >>> import numpy as np
    >>> from growarray.networks import GrowingMLP
    >>> network = GrowingMLP(4, 2, hidden_size=2, dtype=np.float64)
    >>> default_budget(network, np.zeros((100, 4)), 8), default_budget(network, np.zeros((3, 4)), 8)
    (200, 37)
    """
    samples = int(x.shape[0])
    learnt = samples * math.prod(int(size) for size in _outputs(network, x[:1, ...]).shape[1:])
    costs = [int(place.parameters_per_neuron) for place in network.growing_layers]
    return max(learnt, network.number_of_parameters() + min(neurons, samples) * min(costs, default=0))


def _outputs(network: GrowingNetwork, x: Array) -> Array:
    training = network.training
    network.eval()
    try:
        return network(x)
    finally:
        network.train(training)
