"""The base class of the estimators: options, rows and their weights, scales, and the loop."""

from __future__ import annotations

import functools
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, TypeVar, cast

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from growarray.errors import shown
from growarray.growing import FISHER, GRADMAX, TINY, GrowthRule
from growarray.networks import Growth, GrowthSettings, History
from growarray.networks.build import build_network, hidden_activation, number_of_places
from growarray.networks.data import Task, is_pair, loaded
from growarray.networks.network import GrowingNetwork
from growarray.networks.part import PartlyGrowing
from growarray.networks.planner import default_budget
from growarray.networks.scale import Scale
from growarray.nn import Sequential
from growarray.ops.sizes import whole_number
from growarray.optim import AdamW, constant, cosine
from growarray.sklearn.losses import weighted_moments

_RULES = {"tiny": TINY, "gradmax": GRADMAX, "fisher": FISHER}
_WHOLE = 200  # samples that batch_size='auto' takes at once, as many as scikit-learn's own networks
_ENDLESS = 10**9  # epochs of a loop that is stopped from outside
_FitT = TypeVar("_FitT", bound=Callable[..., Any])


def _or_unchanged(fit: _FitT) -> _FitT:
    """A method that leaves the estimator as it was if it raises: what it had learnt of earlier data goes together."""

    @functools.wraps(fit)
    def guarded(self: Any, *data: Any, **more: Any) -> Any:
        before = dict(vars(self))
        try:
            return fit(self, *data, **more)
        except Exception:
            vars(self).clear()
            vars(self).update(before)
            raise

    return cast(_FitT, guarded)


@dataclass(kw_only=True, eq=False, repr=False)
class GrowingEstimator(BaseEstimator):  # type: ignore[misc]
    """Base class of both estimators and their options; a subclass defines the targets.

    network : ``'mlp'``, hidden layers, ``'residual'``, residual blocks, or ``'dag'``, a graph that starts with one edge
    hidden_layers : how many layers or blocks
    start_width : neurons of each hidden layer before it grows;  activation : ``'relu'``, ``'selu'``, ``'gelu'``, …
    rule : ``'tiny'``, ``'gradmax'``, ``'fisher'`` or a ``GrowthRule``;  neurons : most that a growth adds
    grow_every : epochs between growths
    max_parameters : budget of the grown network, None for no limit, ``'auto'`` for one parameter for each number to
        learn, samples times outputs
    max_iter : most epochs;  tol : loss at which ``fit`` ends, of scaled targets in a regression
    batch_size : samples a step, ``'auto'`` for min(200, n)
    learning_rate, weight_decay : of AdamW; in ``fit`` the rate falls to 0 along a cosine
    early_stopping : set ``validation_fraction`` of the samples aside, judge growth by them, keep the best network, stop
        after ``n_iter_no_change`` epochs without a better one. False judges by the training data
    warm_start : ``fit`` goes on with the network that there is
    random_state : seed of weights, order of samples and split;  verbose : show a bar on standard error

    Features, and targets of a regression, are scaled to mean 0 and deviation 1 inside, as they are in the first fit.
    Results depend on a sample's weight as on its repetition, as long as a batch holds all samples; a graph draws
    some of its candidates from pairs of samples, whatever their weight.
    """

    _task: ClassVar[Task]
    _networks: ClassVar[tuple[str, ...]] = ("mlp", "residual", "dag")  # growing convolutions take no weights of samples

    network: str = "mlp"
    hidden_layers: int = 1
    start_width: int = 2
    activation: str = "relu"
    rule: str | GrowthRule = "tiny"
    neurons: int = 8
    grow_every: int = 2
    max_parameters: int | str | None = "auto"
    max_iter: int = 100
    tol: float = 1e-4
    batch_size: int | str = "auto"
    learning_rate: float = 1e-2
    weight_decay: float = 0.1
    early_stopping: bool = False
    validation_fraction: float = 0.1
    n_iter_no_change: int = 20
    warm_start: bool = False
    random_state: Any = None
    verbose: bool = False

    @_or_unchanged
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Train and grow on ``X`` (n, n_features) and ``y``; with ``warm_start`` continue from the last fit.

        sample_weight : (n,), not negative. A row of weight 0 is left out, one of weight 2 counts as two rows.
        """
        data, samples = self._ready(X, y, sample_weight)
        data, validation = self._split(*data) if self.early_stopping else (data, None)
        loop = self._loop(data, validation, samples, self.max_iter)
        return self._run(loop, math.ceil(len(data[0]) / loop.settings.batch_size))

    @_or_unchanged
    def fit_batches(self, batches: Any, validation: tuple[Any, Any]) -> Any:
        """Train and grow on batches, of which one at a time is in memory; judge by ``validation``, a pair (X, y).

        batches : to iterate over in every epoch, each (X, y) or a function that loads it: a list,
            ``growarray.distributed.from_dask(x, y)``, or :class:`growarray.networks.Batches` of files that NumPy maps
        Scales, and the classes that there are, are those of ``validation``; balanced classes are so in each batch.
        """
        if isinstance(batches, Iterator):
            raise TypeError(
                "fit_batches: batches are used up after one epoch; give a list, or functions that load them"
            )
        held_out, _ = self._ready(*validation, None)
        data = _Scaled(self, batches)
        return self._run(self._loop(data, held_out, None, self.max_iter), data.count)

    @_or_unchanged
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """One epoch on these rows, and a growth if one is due."""
        goes_on = self.__sklearn_is_fitted__()
        x, values, weight, samples = self._rows(X, y, sample_weight, goes_on=goes_on, anew=False)
        if not goes_on:
            self._start(x, values, weight)
        loop = self._loop(self._scaled(x, values, weight), None, samples, _ENDLESS)
        if goes_on:
            loop.epoch = self.n_iter_
            loop.history.steps.extend(self.history_.steps)
        loop.schedule = constant(self.learning_rate)
        loop.train_epoch()
        if loop.is_growth_due():
            loop.grow()
        return self._keep(loop)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "network_")

    def _ready(self, X: Any, y: Any, sample_weight: Any) -> tuple[tuple[Any, Any], int]:
        """Scaled features and targets, and the number of samples; the network starts anew unless it goes on."""
        goes_on = self.warm_start and self.__sklearn_is_fitted__()
        x, values, weight, samples = self._rows(X, y, sample_weight, goes_on=goes_on, anew=not goes_on)
        if not goes_on:
            self._start(x, values, weight)
        return self._scaled(x, values, weight), samples

    def _outputs(self, X: Any) -> np.ndarray:
        """Outputs of the network for unscaled ``X``; it scales inside."""
        check_is_fitted(self)
        x = validate_data(self, self._features(X), dtype=(np.float64, np.float32), reset=False)
        x = x.astype(next(iter(self._grown.parameters())).data.dtype, copy=False)
        return np.asarray(self.network_.eval()(x))

    def _features(self, X: Any) -> Any:
        """Features as scikit-learn checks them."""
        return X

    def _targets(self, y: Any, weight: Any, *, anew: bool) -> tuple[Any, Any]:
        """Targets as numbers (n, outputs), and the weights of the samples with those of their classes.

        anew : learn of ``y`` what kinds of targets there are
        """
        raise NotImplementedError

    def _rows(self, X: Any, y: Any, sample_weight: Any, *, goes_on: bool, anew: bool) -> tuple[Any, Any, Any, int]:
        """Features, targets and weights of the rows with a weight above 0, and their number of samples."""
        self._check_options()
        x, y = validate_data(
            self, self._features(X), y, dtype=(np.float64, np.float32), multi_output=True, reset=not goes_on
        )
        weight = _check_sample_weight(sample_weight, x, dtype=np.float64, ensure_non_negative=True)
        counted = weight > 0
        if not counted.any():
            raise ValueError("sample_weight: every weight is 0, which leaves no samples; give one of them a weight")
        repeated = sample_weight is not None and bool(np.all(weight == np.floor(weight)))
        samples = int(weight.sum()) if repeated else int(counted.sum())
        values, weight = self._targets(y[counted], weight[counted], anew=anew)
        return x[counted], values, weight, samples

    def _check_options(self) -> None:
        if self.network not in self._networks:
            raise ValueError(f"network: expected one of {', '.join(self._networks)}, found {shown(self.network)}")
        if not (isinstance(self.rule, GrowthRule) or self.rule in _RULES):
            raise ValueError(f"rule: expected one of {', '.join(_RULES)} or a GrowthRule, found {shown(self.rule)}")
        counts = ["hidden_layers", "start_width", "neurons", "grow_every", "max_iter", "n_iter_no_change"]
        counts += ["batch_size"] if self.batch_size != "auto" else []
        counts += ["max_parameters"] if self.max_parameters not in ("auto", None) else []
        for name in counts:
            whole_number(type(self).__name__, name, getattr(self, name), 1)
        for name in ("tol", "learning_rate", "weight_decay", "validation_fraction"):
            value, least = getattr(self, name), -math.inf if name == "tol" else 0.0
            if not (isinstance(value, Real) and float(value) >= least):
                bound = "" if name == "tol" else ", at least 0"
                raise ValueError(f"{name}: expected a number{bound}, found {shown(value)}")
        for name in ("early_stopping", "warm_start"):
            if not isinstance(getattr(self, name), bool | np.bool_):
                raise ValueError(f"{name}: expected True or False, found {shown(getattr(self, name))}")
        if not 0.0 < self.validation_fraction < 1.0:
            raise ValueError(
                f"validation_fraction: expected a share between 0 and 1, found {shown(self.validation_fraction)}"
            )

    def _start(self, x: Any, values: Any, weight: Any) -> None:
        """The scales, a network of the first widths between them, its optimizer and its generator."""
        self._rng = np.random.default_rng(check_random_state(self.random_state).randint(2**31 - 1))
        grown = self._network(x.shape[1], values.shape[1], x.dtype.name)
        self._scales = self._feature_scale(x, weight), self._target_scale(values, weight)
        self._optimizer = AdamW(grown, lr=self.learning_rate, weight_decay=self.weight_decay)
        self._grown = grown
        inner = grown.module if isinstance(grown, PartlyGrowing) else grown
        self.network_ = Sequential(self._scales[0], inner, self._scales[1].inverse())

    def _network(self, features: int, outputs: int, dtype: str) -> GrowingNetwork:
        """What grows, between scaled features and outputs."""
        return build_network(
            self.network,
            features,
            outputs,
            [self.start_width] * number_of_places(self.network, self.hidden_layers),
            function=hidden_activation(self.activation),
            dtype=dtype,
            device="cpu",
            rng=self._rng,
        )

    def _feature_scale(self, x: Any, weight: Any) -> Scale:
        return Scale(*weighted_moments(x, weight))

    def _target_scale(self, values: Any, weight: Any) -> Scale:
        return Scale(np.zeros(values.shape[1]), np.ones(values.shape[1]))

    def _scaled(self, x: Any, values: Any, weight: Any) -> tuple[Any, Any]:
        """Features, and targets with a last column of weights whose mean is 1, as the loop takes them."""
        features, targets = self._scales
        values = targets(values.astype(np.float64))
        weights = weight[:, None] * (len(weight) / weight.sum())
        return features(x), np.concatenate([values, weights], axis=1).astype(x.dtype)

    def _loop(self, data: Any, validation: Any, samples: int | None, epochs: int) -> Growth:
        """The loop; ``samples`` are those that bound the network, None for all that the data have."""
        x, budget = (validation if isinstance(data, _Scaled) else data)[0], self.max_parameters
        if budget == "auto" and samples is not None:
            budget = default_budget(self._grown, np.broadcast_to(x[:1], (samples, x.shape[1])), self.neurons)
        settings = GrowthSettings(
            epochs=epochs,
            batch_size=min(_WHOLE, len(x)) if self.batch_size == "auto" else self.batch_size,  # type: ignore[arg-type]
            rule=_RULES[self.rule] if isinstance(self.rule, str) else self.rule,
            neurons=self.neurons,
            every=self.grow_every,
            first=self.grow_every,
            max_parameters=budget,
            keep_best=bool(self.early_stopping),
        )
        return Growth(
            self._grown, self._optimizer, data, validation=validation, task=self._task, settings=settings, rng=self._rng
        )

    def _run(self, loop: Growth, batches: int) -> Any:
        """Run until the last epoch, a loss of ``tol``, or ``n_iter_no_change`` epochs without a better network."""
        loop.schedule = cosine(self.learning_rate, self.max_iter * batches)
        while loop.epoch < self.max_iter:
            loop.run(until=loop.epoch + 1)
            if self.verbose:
                _show(loop)
            best = loop.best
            if best is not None and loop.epoch - best.epoch >= self.n_iter_no_change:
                best.snapshot.restore(self._grown)
                break
            if next(e["validation_loss"] for e in reversed(loop.history.steps) if "validation_loss" in e) <= self.tol:
                break
        if self.verbose:
            sys.stderr.write("\n")
        return self._keep(loop)

    def _keep(self, loop: Growth) -> Any:
        """Store the history and the fitted attributes; returns the estimator."""
        self.history_: History = loop.history
        self.n_iter_: int = loop.epoch
        return self

    def _split(self, x: Any, target: Any) -> tuple[Any, Any]:
        """Two pairs of features and targets; the second is held out, by class if there are classes."""
        held = max(1, round(self.validation_fraction * len(x)))
        if held >= len(x):
            raise ValueError(
                f"early_stopping: n_samples = {len(x)} leaves none to train on with "
                f"validation_fraction={self.validation_fraction}; pass early_stopping=False"
            )
        parts = train_test_split(
            x, target, test_size=held, random_state=int(self._rng.integers(2**31)), stratify=self._strata(target, held)
        )
        return (parts[0], parts[2]), (parts[1], parts[3])

    def _strata(self, target: Any, held: int) -> Any:
        return None


class _Scaled:
    """Batches as the loop takes them, each when it is reached; ``count`` is their number once all were."""

    def __init__(self, model: GrowingEstimator, batches: Any) -> None:
        self.model, self.batches, self.count = model, batches, 0

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        dtype, count = next(iter(self.model._grown.parameters())).data.dtype, 0
        for part in map(loaded, self.batches):
            if not is_pair(part):
                raise TypeError(f"fit_batches: batch {count} is {shown(part)}, expected a pair of arrays (X, y)")
            count += 1
            with warnings.catch_warnings():  # validation may be a frame, and a chunk has lost the names of its columns
                warnings.filterwarnings("ignore", "X does not have valid feature names")
                x, values, weight, _ = self.model._rows(part[0], part[1], None, goes_on=True, anew=False)
            features, target = self.model._scaled(x, values, weight)
            yield features.astype(dtype, copy=False), target.astype(dtype, copy=False)
        self.count = count


def _show(loop: Growth) -> None:
    """Print a progress bar over the last one."""
    entry, share = loop.history.of("train")[-1], loop.epoch / loop.settings.epochs
    bar = f"{'#' * round(24 * share):24}"
    figures = f"loss {entry['validation_loss']:.4f}  {entry['parameters']} parameters"
    sys.stderr.write(f"\r[{bar}] epoch {loop.epoch}/{loop.settings.epochs}  {figures}  ")
    sys.stderr.flush()
