"""Planning a growth: statistics, the plan of every layer, the layer to grow, and how far."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from growarray.backend import Array, asarray, namespace
from growarray.errors import GrowthError, shown
from growarray.growing import GrowthRule, Rule
from growarray.networks.choice import JUDGED, WORTH, bic
from growarray.networks.data import Task, batches_of
from growarray.networks.line_search import LineSearch, line_search
from growarray.networks.network import GrowingNetwork, is_frozen
from growarray.networks.settings import GrowthSettings
from growarray.nn.inference import evaluating

Data = tuple[Array, Array]  # features and targets


@dataclass(frozen=True, eq=False)
class Choice:
    """The layer to grow, the line search of its scaling, if there is something to search, and why not to grow."""

    layer: Any = None
    search: LineSearch | None = None
    refused: str | None = None


@dataclass(eq=False)
class Planner:
    """Finds the layer of a network that grows next, and the scaling; the network's weights stay as they are.

    budget : most parameters of the network, or None;  samples : of the last collection
    """

    network: GrowingNetwork
    task: Task
    settings: GrowthSettings
    rng: np.random.Generator
    budget: int | None = None
    samples: int = 0

    def __post_init__(self) -> None:
        if self.settings.exact_fisher and self.task.name == "regression":
            raise GrowthError("exact_fisher: a regression has no softmax; leave exact_fisher out")

    @contextmanager
    def planning(self) -> Iterator[list[str]]:
        """Inside, the network is in evaluation mode; at the end the list holds the warnings, sorted.

        Afterwards no request, statistic or gradient is left behind, and if something raises no plan either.
        """
        notes: list[str] = []
        try:
            with evaluating(self.network), warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")  # a singular S is worth a note, not a stop
                yield notes
        except BaseException:
            self.network.delete_update()
            raise
        finally:
            self.network.reset_computation()
            self.network.zero_grad()
        notes += sorted({str(warning.message) for warning in caught})

    @property
    def rule(self) -> Rule:
        """The rule of the settings; one of the library's own adds at most ``settings.neurons``."""
        rule = self.settings.rule
        return replace(rule, max_new=self.settings.neurons) if isinstance(rule, GrowthRule) else rule

    def check(self, rule: Rule) -> None:
        """Refuse neurons that would start at zero behind a function that passes no gradient there."""
        for layer in self.network.growing_layers if isinstance(rule, GrowthRule) and rule.alpha_zero else ():
            if not layer.function_before.starts_at_zero:
                raise GrowthError(
                    f"{layer.name}: neurons with zero incoming weights would never learn behind "
                    f"{shown(layer.function_before)}; use ReLU(at_zero=1.0) or a smooth activation"
                )

    def collect(self, data: Data, *, fisher: bool = False) -> int:
        """Collect statistics over the data, or until they are precise enough; returns the samples seen.

        fisher : E too
        """
        tolerance, exact = self.settings.relative_error, self.settings.exact_fisher
        takes_e = fisher or self.settings.choose == "hsic"
        self.network.init_computation(trace_precision=None if tolerance is None else 1e-3)
        seen = 0
        for x, target in batches_of(data, self.settings.collect_batch, self.rng):
            weights = None if self.task.weights is None else self.task.weights(target)
            self.network.collect_batch(x, target, self.task.loss, fisher=takes_e, exact=exact, weights=weights)
            seen += int(x.shape[0])
            if tolerance is not None and self.network.relative_error() <= tolerance:
                break
        self.network.zero_grad()
        self.samples = seen
        return seen

    def choose(self, rule: Rule, validation: Data) -> Choice:
        """The layer to grow, with the line search of its scaling.

        The search looks at the validation data. On few samples an update fits what is chance in the training data too,
        and the scaling that the training loss likes best goes too far for all others.

        Neurons that start at zero on one side change nothing at any scaling: without a delta there is nothing to
        search, and their other side takes the mean norm of what exists.
        """
        for layer in self.network.growing_layers:
            layer.sub_select_optimal_added_parameters(keep_neurons=self.affordable(layer))
        layers = [layer for layer in self.network.growing_layers if layer.parameters_added]
        if not layers:
            return Choice(refused="no layer has neurons to add")
        worth = [WORTH.get(self.settings.choose, WORTH["first_order"])(layer) for layer in layers]
        best = layers[worth.index(max(worth))]
        if isinstance(rule, GrowthRule) and (rule.alpha_zero or rule.omega_zero):
            for layer in layers:  # after they were compared: each then has a scale of its own
                layer.normalize_optimal_updates(normalization_type="gradmax_normalization")
            if not rule.compute_delta:
                return Choice(best)
        if self.settings.choose in JUDGED:
            return self._judged(layers, validation)
        return Choice(best, self.search(best, validation))

    def _judged(self, layers: list[Any], validation: Data) -> Choice:
        """The layer whose growth, carried out as far as helps, leaves the lowest loss or BIC, or the best score."""
        trials = [(layer, self.search(layer, validation)) for layer in layers]
        if self.settings.choose == "validation":
            return Choice(*min(trials, key=lambda pair: pair[1].loss))
        if self.settings.choose == "score":
            scores = [(self.score(layer, trial.factor, validation), -trial.loss) for layer, trial in trials]
            return Choice(*trials[scores.index(max(scores))])
        size = self.network.number_of_parameters()

        def value(loss: float, added: int) -> float:
            return bic(size + added, loss, self.samples, self.task)

        layer, trial = min(trials, key=lambda pair: value(pair[1].loss, pair[0].parameters_added))
        lowers = value(trial.loss, layer.parameters_added) < value(trial.start, 0)
        return Choice(layer, trial, None if lowers else "no growth lowers the BIC")

    def search(self, layer: Any, data: Data) -> LineSearch:
        """Line search of one layer's scaling on samples from all over ``data``; all other layers stay as they are."""
        x, target = self._sampled(data)
        with evaluating(self.network):
            result = line_search(lambda factor: float(self.task.loss(self._output(layer, factor, x), target)[0]))
        self.network.set_scaling_factor(0.0)
        return result

    def score(self, layer: Any, factor: float, data: Data) -> float:
        """The task's figure of merit with what is planned for one layer, at this scaling, on the same samples."""
        x, target = self._sampled(data)
        with evaluating(self.network):
            score = float(self.task.score(self._output(layer, factor, x), target))
        self.network.set_scaling_factor(0.0)
        return score

    def _sampled(self, data: Data) -> Data:
        x, target = data
        count, most = int(x.shape[0]), int(self.settings.search_samples)
        if count <= most:
            return x, target
        # From all over: the first ones of data that are sorted show few classes.
        rows = asarray(np.arange(most) * count // most, like=x)
        return namespace(x).take(x, rows, axis=0), namespace(target).take(target, rows, axis=0)

    def _output(self, layer: Any, factor: float, x: Array) -> Array:
        self.network.set_scaling_factor(0.0)
        layer.scaling_factor = factor
        return self.network.extended_forward(x)

    def affordable(self, layer: Any) -> int:
        """Neurons that the budgets still allow before ``layer``, at most ``settings.neurons``; 0 if it is frozen."""
        if is_frozen(layer):
            return 0
        settings, cost, allowed = self.settings, layer.parameters_per_neuron, self.settings.neurons
        if self.budget is not None:
            allowed = min(allowed, (self.budget - self.network.number_of_parameters()) // cost)
        if settings.max_flops is not None:
            allowed = min(allowed, (settings.max_flops - self.network.flops_per_sample()) // (2 * cost))
        return max(allowed, 0)


def default_budget(network: GrowingNetwork, x: Array, neurons: int, samples: int | None = None) -> int:
    """Parameters that a network may grow to on the samples ``x``, or on ``samples`` like them: one a number to learn.

    These are samples times outputs of a sample. A network that has more from the start, because a sample is wide, may
    still add one growth: ``neurons`` neurons where it costs least, and no more than there are samples.

    >>> import numpy as np
    >>> from growarray.networks import GrowingMLP
    >>> network = GrowingMLP(4, 2, hidden_size=2, dtype=np.float64)
    >>> default_budget(network, np.zeros((100, 4)), 8), default_budget(network, np.zeros((3, 4)), 8)
    (200, 37)
    """
    samples = int(x.shape[0]) if samples is None else samples
    with evaluating(network):
        outputs = network(x[:1, ...])
    learnt = samples * math.prod(int(size) for size in outputs.shape[1:])
    costs = [int(layer.parameters_per_neuron) for layer in network.growing_layers]
    return max(learnt, network.number_of_parameters() + min(neurons, samples) * min(costs, default=0))


def needs_fisher(rule: Rule) -> bool:
    """Whether a rule may ask for E: one that is not the library's own may ask for anything."""
    return not isinstance(rule, GrowthRule) or rule.use_fisher
