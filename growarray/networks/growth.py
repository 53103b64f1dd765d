"""The loop: train, collect statistics, plan, choose a layer, search the scaling, grow, undo or keep, go on."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from growarray.backend import Array, is_cupy, namespace
from growarray.errors import GrowthError, shown
from growarray.networks.balance import balance
from growarray.networks.data import Task, batches_of, check_data, numbers, task_named
from growarray.networks.history import History, line_of
from growarray.networks.judgement import Best, Judgement, Snapshot, judged
from growarray.networks.loader import Batches
from growarray.networks.network import is_frozen
from growarray.networks.part import as_growing
from growarray.networks.planner import Planner, default_budget, needs_fisher
from growarray.networks.settings import GrowthSettings
from growarray.nn import Module
from growarray.nn.inference import evaluating
from growarray.optim import Optimizer, clip_gradients

Callback = Callable[["Growth", dict[str, Any]], None]
_COUNTERS = ("epoch", "steps", "growths", "failures")


class Growth:
    """Trains a network with a growing part and lets it grow; every epoch and every growth is an entry of ``history``.

    network : a :class:`GrowingNetwork`, or a module with one inside: a convolutional stem before a GrowingMLP
    optimizer : it holds the network's parameters; its state grows with them
    data : (x, target) to train on; or batches to iterate over in every epoch, a list or :class:`Batches`, which keep
        their size: then ``validation`` has to be given, and all of them are read once at the start. A batch may be a
        function that loads it, as those of ``growarray.distributed.from_dask``: one at a time is in memory
    validation : (x, target) to judge by, in figures, in growth and at the end. Without it the training data are judged
        by, on which growth that only learns them by heart looks well: give some, a tenth will do
    task : ``'classification'``, ``'regression'`` or a :class:`Task`
    schedule : learning rate by step, called with the number of optimizer steps done, or None to leave it
    callbacks : called with (loop, entry) after each entry

    A growth is planned on the training data and goes as far as lowers the validation loss most. One that lowers it at
    no scaling is refused, one that raises it by more than chance is undone; several in a row, or a spent budget, end
    growing, and after the last epoch the network is the best there was: see :class:`GrowthSettings`. The history says
    each of it. ``best`` is the best network so far, ``budget`` the most parameters.

    :meth:`run` may be stopped after any epoch and gone on with: :meth:`state` and ``best`` hold what is not in the
    network or the optimizer's slots. A batch whose loss is NaN or infinite raises ``GrowthError`` before any weight
    moves; on a GPU it is found after the epoch, and the weights go back to those before it.

    Raises TypeError: network, optimizer, task or data are of another kind; GrowthError, ShapeError: there are no
    samples, one is not finite, samples and targets differ in number, or the optimizer holds none of the parameters.

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
        data: tuple[Array, Array] | Iterable[tuple[Array, Array]],
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
        _check_options(settings, schedule, rng, callbacks)
        samples, x = check_data(data, validation)
        self.network, self.optimizer = network, optimizer
        self.data: Any = data
        self.validation: Any = data if validation is None else validation
        self.task = task_named(task) if isinstance(task, str) else task
        self.settings = GrowthSettings() if settings is None else settings
        self.schedule = schedule
        self.rng = np.random.default_rng() if rng is None else rng
        limit = self.settings.max_parameters
        budget = limit if not isinstance(limit, str) else default_budget(network, x, self.settings.neurons, samples)
        self.planner = Planner(network, self.task, self.settings, self.rng, budget)
        self.callbacks = list(callbacks)
        self.history = History()
        self.epoch = 0
        self.steps = 0
        self.growths = 0
        self.failures = 0  # growths in a row that were refused or undone
        self.finished_growing = False
        self.best: Best | None = None

    def __repr__(self) -> str:
        done = f"epoch={self.epoch}, epochs={self.settings.epochs}, growths={self.growths}"
        return f"Growth({type(self.network).__name__}, widths={self.network.widths}, {done})"

    @property
    def budget(self) -> int | None:
        """The most parameters that the network may have; None without a limit."""
        return self.planner.budget

    def run(self, until: int | None = None, *, progress: bool | Callable[[str], Any] = False) -> History:
        """Run to epoch ``until``, by default the last, which restores the best network; returns the history.

        progress : True for a line on standard error after each entry, or a function that takes the lines
        """
        if not (isinstance(progress, bool) or callable(progress)):
            raise TypeError(
                f"Growth.run: progress is {shown(progress)}, expected True, False, or a function that takes a line"
            )
        callbacks = self.callbacks
        if progress is not False:
            show = _on_standard_error if progress is True else progress
            self.callbacks = [*callbacks, lambda _, e: show(line_of(e, self.settings.epochs, self.task.score_name))]
        last = self.settings.epochs if until is None else min(until, self.settings.epochs)
        try:
            while self.epoch < last:
                self.train_epoch()
                if self.is_growth_due():
                    self.grow()
                if self.epoch == self.settings.epochs:
                    self._stop("training", f"epoch {self.epoch} is the last")
        finally:
            self.callbacks = callbacks
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
        losses: list[tuple[Any, int]] = []
        before: Snapshot | None = None
        if isinstance(self.data, Batches):
            self.data.epoch = self.epoch  # what a run draws does not depend on where it was stopped
        for x, target in batches_of(self.data, self.settings.batch_size, self.rng):
            if self.schedule is not None:
                self.optimizer.lr = self.schedule(self.steps)
            y, pullback = self.network.vjp(x)
            loss, loss_pullback = self.task.loss(y, target)
            if is_cupy(loss):  # looked at after the epoch: now the host would wait
                before = before or Snapshot.of(self.network)
            else:
                self._check_losses([float(loss)], "batch")
            self.optimizer.zero_grad()
            pullback(loss_pullback(), wrt_x=False)
            del y, pullback, loss_pullback  # what they keep is free for the optimizer and for the next batch
            if self.settings.clip is not None:
                clip_gradients(self.network.parameters(), self.settings.clip)
            self.optimizer.step()
            losses.append((loss, int(x.shape[0])))
            self.steps += 1
        try:
            values = numbers([*(loss for loss, _ in losses), *self._judged()])  # the only wait of an epoch
            self._check_losses(values[: len(losses)], "epoch")
        except Exception:
            if before is not None:
                before.restore(self.network)
            raise
        counts = [count for _, count in losses]
        total, count = sum(map(operator.mul, values, counts)), sum(counts)
        self.epoch += 1
        judgement = Judgement.of(values[len(losses) :])
        self._keep(judgement)
        figures = {**self._figures(judgement), "judged_by": self._judged_by, "lr": float(self.optimizer.lr)}
        return self._record("train", train_loss=total / count, **figures)

    def _check_losses(self, values: Sequence[float], since: str) -> None:
        broken = [value for value in values if not math.isfinite(value)]
        if broken:
            raise GrowthError(
                f"Growth: the loss of a batch in epoch {self.epoch + 1} is {broken[0]}; look for NaN in the data, or "
                f"lower the learning rate; the weights are those before this {since}"
            )

    def evaluate(self, data: Any, batch_size: int = 4096, *, task: Task | None = None) -> tuple[float, float]:
        """Mean loss and score (accuracy or R²) on arrays or batches, in evaluation mode, by ``task`` or the loop's."""
        (y, target), task = self._outputs(data, batch_size), task or self.task
        loss, score = numbers([task.loss(y, target)[0], task.score(y, target)])
        return loss, score

    def _outputs(self, data: Any, batch_size: int = 4096) -> tuple[Array, Array]:
        """Outputs for all samples, and their targets."""
        batches = data.plain() if isinstance(data, Batches) else batches_of(data, batch_size)
        with evaluating(self.network):
            pairs = [(self.network(x), target) for x, target in batches]
        y, target = ([pair[i] for pair in pairs] for i in range(2))
        return namespace(*y).concat(y, axis=0), namespace(*target).concat(target, axis=0)

    def _judged(self) -> list[Any]:
        """What the current network is judged by, on the validation data; not waited for."""
        return judged(self.task, *self._outputs(self.validation))

    def _loss(self) -> Any:
        """Loss on the training data; not waited for."""
        return self.task.loss(*self._outputs(self.data))[0]

    def _keep(self, judgement: Judgement) -> None:
        """Keep the network as the best so far, if it is."""
        if self.settings.keep_best and (self.best is None or judgement.loss < self.best.judgement.loss):
            self.best = Best(self.epoch, list(self.network.widths), judgement, Snapshot.of(self.network))

    def grow(self) -> dict[str, Any]:
        """One growth: statistics, plan, choice, line search, change; the entry has the predicted and actual decrease.

        A growth that does not pay is undone, bit for bit, and ``refused`` says why.
        """
        layers, planner = self.network.growing_layers, self.planner
        if not any(planner.affordable(layer) for layer in layers):
            return self._end_growing(layers)
        rule = planner.rule
        planner.check(rule)
        with planner.planning() as notes:
            samples = planner.collect(self.data, fisher=needs_fisher(rule))
            with self.network.means_on_host():
                self.network.compute_optimal_updates(rule)
                choice = planner.choose(rule, self.validation)
        layer, search = choice.layer, choice.search
        if layer is None:
            return self._refuse(str(choice.refused))
        index = layers.index(layer)
        entry = {"where": layer.name, "widens": layer.widens, "layer_index": index, "samples": samples, "notes": notes}
        entry |= {"promised": layer.first_order_improvement, "slope": layer.predicted_decrease}
        if search is not None and search.factor == 0.0:
            return self._refuse(f"no scaling lowers the {self._judged_by} loss", **entry)
        if choice.refused is not None:
            return self._refuse(choice.refused, **entry)
        scaling = 1.0 if search is None else search.factor
        # A parabola with this slope at the start and its lowest point where the search ended falls by half the way.
        predicted = -entry["slope"] * scaling**2 / (1.0 if search is None else 2.0)
        entry |= {"scaling": scaling, "predicted_change": predicted}
        return self._carry_out(layer, index, scaling, entry)

    def _carry_out(self, layer: Any, index: int, scaling: float, entry: dict[str, Any]) -> dict[str, Any]:
        """Make the planned change of a layer, and undo it if it does not pay."""
        added, waiting = layer.new_neurons, [self._loss(), *self._judged()]
        size, snapshot = self.network.number_of_parameters(), Snapshot.of(self.network)
        self.network.select_update(index)
        self.network.apply_change(scaling)
        self.network.delete_update()
        try:
            values = numbers([*waiting, self._loss(), *self._judged()])
        except Exception:  # a check that waited on a GPU, for example
            snapshot.restore(self.network)
            raise
        (train_before, *old), (train_after, *new) = values[: len(waiting)], values[len(waiting) :]
        before, after = Judgement.of(old), Judgement.of(new)
        entry |= {"train_change": train_after - train_before, "validation_change": after.loss - before.loss}
        if after.is_worse(before, self.settings.least_gain * (self.network.number_of_parameters() - size)):
            snapshot.restore(self.network)
            how = "raised" if not after.loss < before.loss else "hardly lowered"
            change = f"{before.loss:.4f} -> {after.loss:.4f}"
            return self._refuse(f"it {how} the {self._judged_by} loss, {change}", **entry, undone=True)
        if self.settings.balance:
            balance(layer, added)
        self._keep(after)
        self.growths, self.failures = self.growths + 1, 0
        return self._record("growth", **entry, added=added, train_loss=train_after, **self._figures(after))

    @property
    def _judged_by(self) -> str:
        return "training" if self.validation is self.data else "validation"

    def _figures(self, judgement: Judgement) -> dict[str, Any]:
        """Figures of the network for every entry."""
        return {
            "validation_loss": judgement.loss,
            "validation_score": judgement.score,
            "parameters": self.network.number_of_parameters(),
            "widths": list(self.network.widths),
            **({} if (outline := self.network.outline()) is None else {"graph": outline}),
        }

    def _end_growing(self, layers: list[Any]) -> dict[str, Any]:
        """Record that there is nothing left to grow, and why."""
        refused = "the network has no layer that can grow"
        if layers:
            refused = "every layer is frozen" if all(map(is_frozen, layers)) else "the budget is used up"
        self.finished_growing = True
        entry = self._record("growth", refused=refused, added=0)
        self._stop("growing", refused, go_back=False)
        return entry

    def _refuse(self, reason: str, **entry: Any) -> dict[str, Any]:
        """Record a growth without effect; the last of ``settings.patience`` in a row ends growing."""
        self.network.delete_update()
        self.failures += 1
        recorded = self._record("growth", **entry, refused=reason, added=0)
        if self.failures == self.settings.patience:
            self.finished_growing = True
            self._stop("growing", f"{self.failures} growths in a row came to nothing")
        return recorded

    def _stop(self, what: str, reason: str, *, go_back: bool = True) -> None:
        """End ``'growing'`` or ``'training'`` and say why; ``go_back`` to the best network if this one is worse."""
        best, judgement, epoch = self.best, Judgement.of(numbers(self._judged())), self.epoch
        if go_back and best is not None and judgement.is_worse(best.judgement):
            best.snapshot.restore(self.network)
            judgement, epoch = best.judgement, best.epoch
        self._record("stop", what=what, reason=reason, kept=epoch, **self._figures(judgement))

    def _record(self, event: str, **figures: Any) -> dict[str, Any]:
        self.history.add(event, epoch=self.epoch, **figures)
        entry = self.history.steps[-1]
        for callback in self.callbacks:
            callback(self, entry)
        return entry

    def state(self) -> dict[str, Any]:
        """Plain data to resume from: counters, generator, history. Weights, slots and ``best`` are saved beside it."""
        return {
            **{name: getattr(self, name) for name in _COUNTERS},
            "finished_growing": self.finished_growing,
            "budget": self.budget,
            "rng": self.rng.bit_generator.state,
            "history": [dict(entry) for entry in self.history.steps],
        }

    def load_state(self, state: dict[str, Any], best: Best | None = None) -> None:
        """Restore what :meth:`state` returned, and the ``best`` of that time."""
        counters = {name: int(state[name]) for name in _COUNTERS}
        finished, history, budget = bool(state["finished_growing"]), History(state["history"]), state["budget"]
        self.rng.bit_generator.state = state["rng"]  # first: a state of another kind of generator raises
        vars(self).update(counters)
        self.finished_growing, self.history, self.planner.budget, self.best = finished, history, budget, best


def _check_trained(network: Any, optimizer: Any, task: Any) -> None:
    """Raise unless optimizer and task are of the right kind and the optimizer holds a parameter of the network."""
    if isinstance(optimizer, type) or not (hasattr(optimizer, "step") and hasattr(optimizer, "zero_grad")):
        raise TypeError(f"Growth: optimizer is a {type(optimizer).__name__}, expected one such as AdamW(network)")
    if not isinstance(task, str | Task):
        raise TypeError(f"Growth: task is a {type(task).__name__}, expected 'classification', 'regression' or a Task")
    held = {id(parameter) for parameter in getattr(optimizer, "parameters", ())}
    if isinstance(optimizer, Optimizer) and not held & {id(parameter) for parameter in network.parameters()}:
        raise GrowthError("Growth: the optimizer holds no parameter of the network; make it with AdamW(network)")


def _check_options(settings: Any, schedule: Any, rng: Any, callbacks: Any) -> None:
    """Raise TypeError for an option of another kind."""
    for name, value, fits, expected in (
        ("settings", settings, isinstance(settings, GrowthSettings), "GrowthSettings(…)"),
        ("schedule", schedule, callable(schedule), "a function of the step, as growarray.optim.cosine makes one"),
        ("rng", rng, isinstance(rng, np.random.Generator), "a numpy.random.Generator"),
    ):
        if value is not None and not fits:
            raise TypeError(f"Growth: {name} is {shown(value)}, expected {expected}, or None")
    if not (isinstance(callbacks, Iterable) and all(map(callable, callbacks))):
        raise TypeError(f"Growth: callbacks is {shown(callbacks)}, expected a sequence of functions")


def _on_standard_error(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
