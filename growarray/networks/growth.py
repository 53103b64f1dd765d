"""The loop: train, collect statistics, plan, choose a place, search the scaling, grow, go on."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from growarray.backend import Array, asarray, is_array, namespace
from growarray.errors import GrowthError, ShapeError
from growarray.growing import GrowthRule
from growarray.networks.data import Task, batches, task_named
from growarray.networks.history import History
from growarray.networks.line_search import LineSearch, line_search
from growarray.networks.network import is_frozen
from growarray.networks.part import as_growing
from growarray.networks.progress import showing
from growarray.networks.settings import GrowthSettings
from growarray.nn import Module
from growarray.optim import Optimizer, clip_gradients

__all__ = ["Growth"]

Callback = Callable[["Growth", dict[str, Any]], None]


class Growth:
    """Trains a network with a growing part and lets it grow; every epoch and every growth is an entry of ``history``.

    network : a :class:`GrowingNetwork`, or a module with one inside: a convolutional stem before a GrowingMLP
    optimizer : it holds the network's parameters; its state grows with them
    data : (x, target) to train on;  validation : (x, target) for figures and choices, default the training data
    task : ``'classification'``, ``'regression'`` or a :class:`Task`
    schedule : learning rate by step, called with the number of optimizer steps done, or None to leave it
    callbacks : called with (loop, entry) after each entry

    :meth:`run` may be stopped after any epoch and gone on with: :meth:`state` holds what is not in the network or
    the optimizer's slots. A batch whose loss is NaN or infinite raises ``GrowthError`` before any weight moves.

    Raises
    ------
    TypeError
        Network, optimizer, task or data are of another kind.
    GrowthError, ShapeError
        There are no samples, one is not finite, samples and targets differ in number, or the optimizer holds none of
        the parameters.

    Examples
    --------

    >>> import numpy as np
    >>> from growarray.networks import GrowingMLP
    >>> from growarray.optim import Adam
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((64, 4)).astype(np.float32)
    >>> network = GrowingMLP(4, 2, hidden_size=1, rng=rng)
    >>> settings = GrowthSettings(epochs=3, every=1, first=1, neurons=2)
    >>> loop = Growth(network, Adam(network, lr=1e-2), (x, (x[:, 0] > 0).astype(np.int64)), settings=settings, rng=rng)
    >>> history = loop.run()
    >>> len(history.of("train")), network.widths[0] > 1
    (3, True)
    """

    def __init__(
        self,
        network: Module,
        optimizer: Any,
        data: tuple[Array, Array],
        *,
        validation: tuple[Array, Array] | None = None,
        task: str | Task = "classification",
        settings: GrowthSettings | None = None,
        schedule: Callable[[int], float] | None = None,
        rng: np.random.Generator | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        network = as_growing(network)
        _check_trained(network, optimizer, task)
        for name, part in (("data", data), ("validation", validation)):
            if part is None:
                continue
            if len(part) != 2 or not all(is_array(array) for array in part):
                raise TypeError(f"Growth: {name} must be a pair of arrays (x, target), found {type(part).__name__}")
            if part[0].shape[0] != part[1].shape[0]:
                raise ShapeError(f"Growth: {name} has {part[0].shape[0]} samples and {part[1].shape[0]} targets")
            for what, array in zip(("features", "targets"), part, strict=True):
                _check_finite(f"Growth: the {what} of {name}", array)
        if data[0].shape[0] == 0:
            raise GrowthError("Growth: there are no training samples")
        if validation is not None and validation[0].shape[0] == 0:
            raise GrowthError("Growth: there are no validation samples; leave validation out to use the training data")
        self.network, self.optimizer, self.data = network, optimizer, data
        self.validation = data if validation is None else validation
        self.task = task_named(task) if isinstance(task, str) else task
        self.settings = GrowthSettings() if settings is None else settings
        self.schedule = schedule
        self.rng = np.random.default_rng() if rng is None else rng
        self.callbacks = list(callbacks)
        self.history = History()
        self.epoch = 0
        self.steps = 0
        self.growths = 0
        self.finished_growing = False

    # The loop.

    def run(self, until: int | None = None, *, progress: bool | Callable[[str], Any] = False) -> History:
        """Go on to epoch ``until``, by default to the last; returns the history.

        progress : True for a line on standard error after each entry, or a function that takes the lines
        """
        last = self.settings.epochs if until is None else min(until, self.settings.epochs)
        with showing(self, progress):
            while self.epoch < last:
                self.train_epoch()
                if self.is_growth_due():
                    self.grow()
        return self.history

    def is_growth_due(self) -> bool:
        """Whether a growth follows the epoch that has just ended; never after the last one."""
        due = self.epoch - self.settings.first
        growing = not self.finished_growing and self.epoch < self.settings.epochs
        limit = self.settings.growths
        return growing and due >= 0 and due % self.settings.every == 0 and (limit is None or self.growths < limit)

    def train_epoch(self) -> dict[str, Any]:
        """One pass over the shuffled training data; returns its entry."""
        self.network.train()
        total, count = 0.0, 0
        for x, target in batches(*self.data, self.settings.batch_size, self.rng):
            if self.schedule is not None:
                self.optimizer.lr = self.schedule(self.steps)
            y, pullback = self.network.vjp(x)
            loss, loss_pullback = self.task.loss(y, target)
            value = float(loss)
            if not math.isfinite(value):
                raise GrowthError(
                    f"Growth: the loss of a batch in epoch {self.epoch + 1} is {value}; look for NaN in the data, or "
                    "lower the learning rate; the weights are those before this batch"
                )
            self.optimizer.zero_grad()
            pullback(loss_pullback(), wrt_x=False)
            if self.settings.clip is not None:
                clip_gradients(self.network.parameters(), self.settings.clip)
            self.optimizer.step()
            total, count = total + value * int(x.shape[0]), count + int(x.shape[0])
            self.steps += 1
        self.epoch += 1
        loss, score = self.evaluate(self.validation)
        return self._record(
            "train",
            epoch=self.epoch,
            train_loss=total / count,
            validation_loss=loss,
            validation_score=score,
            parameters=self.network.number_of_parameters(),
            widths=list(self.network.widths),
            lr=float(self.optimizer.lr),
        )

    def evaluate(self, data: tuple[Array, Array], batch_size: int = 4096) -> tuple[float, float]:
        """Mean loss and score (accuracy or R²) on ``data``, in evaluation mode."""
        training = self.network.training
        self.network.eval()
        outputs = [self.network(x) for x, _ in batches(*data, batch_size)]
        y = namespace(*outputs).concat(outputs, axis=0)
        self.network.train(training)
        return float(self.task.loss(y, data[1])[0]), self.task.score(y, data[1])

    # One growth.

    def grow(self) -> dict[str, Any]:
        """Collect, plan, choose, search, grow; the entry says what was promised and what came of it."""
        rule = replace(self.settings.rule, max_new=self.settings.neurons)
        if not any(self.affordable(place) for place in self.network.growing_layers):
            self.finished_growing = True
            refused = "the network has no place to grow"
            if self.network.growing_layers:
                frozen = all(is_frozen(place) for place in self.network.growing_layers)
                refused = "every place is frozen" if frozen else "the budget is used up"
            return self._record("growth", epoch=self.epoch, refused=refused, added=0)
        self._check_start(rule)
        samples, notes, place, search = self._plan(rule)
        if place is None:
            return self._record("growth", epoch=self.epoch, refused="no place has neurons to add", added=0)
        index = self.network.growing_layers.index(place)
        entry: dict[str, Any] = {"epoch": self.epoch, "where": place.name, "place": index, "samples": samples}
        entry["notes"] = notes
        promised = place.first_order_improvement
        first_order = place.predicted_decrease
        train_before, before = self.evaluate(self.data)[0], self.evaluate(self.validation)[0]
        if search is not None and search.factor == 0.0:
            self.network.delete_update()
            return self._record("growth", **entry, refused="no scaling lowers the loss", added=0, promised=promised)
        factor = 1.0 if search is None else search.factor
        added = place.new_neurons
        self.network.select_update(index)
        self.network.apply_change(factor)
        self.network.delete_update()
        self.growths += 1
        train_after, (after, score) = self.evaluate(self.data)[0], self.evaluate(self.validation)
        return self._record(
            "growth",
            **entry,
            added=added,
            scaling=factor,
            promised=promised,
            predicted_change=-first_order * factor**2,
            train_change=train_after - train_before,
            train_loss=train_after,
            validation_change=after - before,
            validation_loss=after,
            validation_score=score,
            parameters=self.network.number_of_parameters(),
            widths=list(self.network.widths),
        )

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
                    f"{place.function_before!r}; use ReLU(at_zero=1.0) or a smooth activation"
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
        return place, self.search(place, self.data) if searches else None

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
        if settings.max_parameters is not None:
            left = settings.max_parameters - network.number_of_parameters()
            allowed = min(allowed, left // place.parameters_per_neuron)
        if settings.max_flops is not None:
            allowed = min(
                allowed, (settings.max_flops - network.flops_per_sample()) // (2 * place.parameters_per_neuron)
            )
        return max(allowed, 0)

    def _record(self, event: str, **figures: Any) -> dict[str, Any]:
        self.history.add(event, **figures)
        entry = self.history.steps[-1]
        for callback in self.callbacks:
            callback(self, entry)
        return entry

    # Going on later.

    def state(self) -> dict[str, Any]:
        """Plain data to go on from: counters, generator, history. Weights and slots are saved beside it."""
        return {
            "epoch": self.epoch,
            "steps": self.steps,
            "growths": self.growths,
            "finished_growing": self.finished_growing,
            "rng": self.rng.bit_generator.state,
            "history": [dict(entry) for entry in self.history.steps],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state` gave."""
        epoch, steps, growths = (int(state[name]) for name in ("epoch", "steps", "growths"))
        finished, history = bool(state["finished_growing"]), History(state["history"])
        self.rng.bit_generator.state = state["rng"]  # first: a state of another kind of generator raises
        self.epoch, self.steps, self.growths = epoch, steps, growths
        self.finished_growing, self.history = finished, history


def _check_finite(where: str, array: Array) -> None:
    """Raise where a sample holds NaN or infinite values: one is enough to spoil every weight."""
    xp = namespace(array)
    if not xp.isdtype(array.dtype, "real floating") or bool(xp.all(xp.isfinite(array))):
        return
    broken = xp.any(xp.reshape(~xp.isfinite(array), (array.shape[0], -1)), axis=1)
    first = int(xp.argmax(xp.astype(broken, xp.int64)))
    raise GrowthError(f"{where}: sample {first} holds NaN or infinite values; mend it or leave it out")


def _check_trained(network: Any, optimizer: Any, task: Any) -> None:
    """Raise where one is of another kind than the loop needs, or the optimizer would move nothing of the network."""
    if not (hasattr(optimizer, "step") and hasattr(optimizer, "zero_grad")):
        raise TypeError(f"Growth: optimizer is a {type(optimizer).__name__}, expected one such as AdamW(network)")
    if not isinstance(task, str | Task):
        raise TypeError(f"Growth: task is a {type(task).__name__}, expected 'classification', 'regression' or a Task")
    held = {id(parameter) for parameter in getattr(optimizer, "parameters", ())}
    if isinstance(optimizer, Optimizer) and not held & {id(parameter) for parameter in network.parameters()}:
        raise GrowthError("Growth: the optimizer holds no parameter of the network; make it with AdamW(network)")
