"""Estimators for scikit-learn: a network that grows under a budget, behind ``fit`` and ``predict``."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state, compute_sample_weight
from sklearn.utils.multiclass import _check_partial_fit_first_call, check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, column_or_1d, validate_data

from growarray.errors import shown
from growarray.growing import FISHER, GRADMAX, TINY, GrowthRule
from growarray.networks import Growth, GrowthSettings
from growarray.networks.build import build_network, hidden_activation, number_of_places
from growarray.networks.data import Task
from growarray.networks.scale import Scale
from growarray.networks.planner import default_budget
from growarray.nn import Sequential
from growarray.ops.activation import softmax
from growarray.ops.loss import cross_entropy
from growarray.optim import AdamW, constant, cosine

__all__ = ["GrowingClassifier", "GrowingRegressor"]

_RULES = {"tiny": TINY, "gradmax": GRADMAX, "fisher": FISHER}
_WHOLE = 200  # samples that batch_size='auto' takes at once, as many as scikit-learn's own networks
_ENDLESS = 10**9  # epochs of a loop that is stopped from outside

_OPTIONS = """
    Parameters
    ----------
    network : ``'mlp'``, hidden layers, or ``'residual'``, residual blocks;  hidden_layers : how many of them
    start_width : neurons of each hidden layer before it grows;  activation : ``'relu'``, ``'selu'``, ``'gelu'``, …
    rule : ``'tiny'``, ``'gradmax'``, ``'fisher'`` or a ``GrowthRule``;  neurons : most that a growth adds
    grow_every : epochs between growths;  max_parameters : budget of the grown network, None for no limit, ``'auto'``
        for one parameter for each number to learn, samples times outputs
    max_iter : most epochs;  tol : ``fit`` ends once the loss it is judged by is no larger;  batch_size : samples a step, ``'auto'`` for min(200, n)
    learning_rate, weight_decay : of AdamW; the rate falls to 0 along a cosine
    early_stopping : set ``validation_fraction`` of the samples aside, judge growth by them, keep the best network, stop
        after ``n_iter_no_change`` epochs without a better one. False judges by the training data
    warm_start : ``fit`` goes on with the network that there is
    random_state : seed of weights, order of samples and split;  verbose : show a bar on standard error

    Features, and targets of a regression, are scaled to mean 0 and deviation 1 inside. Results depend on a sample's
    weight as on its repetition, as long as a batch holds all samples.
"""


@dataclass(kw_only=True, eq=False, repr=False)
class _GrowingEstimator(BaseEstimator):  # type: ignore[misc]
    """Options, rows, scales and the loop. A subclass knows what its targets are."""

    _task: ClassVar[Task]

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

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Train and grow on ``X`` (n, n_features) and ``y``; with ``warm_start`` go on from the last fit.

        sample_weight : (n,), not negative. A row of weight 0 is left out, one of weight 2 counts as two rows.
        """
        goes_on = self.warm_start and self.__sklearn_is_fitted__()
        x, values, weight, samples = self._rows(X, y, sample_weight, goes_on=goes_on)
        if not goes_on:
            self._start(x, values, weight)
        x, target = self._scaled(x, values, weight)
        data, validation = (x, target), None
        if self.early_stopping:
            data, validation = self._split(x, target)
        loop = self._loop(data, validation, samples, self.max_iter)
        steps = self.max_iter * math.ceil(len(data[0]) / loop.settings.batch_size)
        loop.schedule = cosine(self.learning_rate, steps)
        self._run(loop)
        self.history_, self.n_iter_ = loop.history, loop.epoch
        return self

    def _partial_fit(self, X: Any, y: Any, sample_weight: Any) -> Any:
        """One epoch on these rows, and a growth if one is due."""
        goes_on = self.__sklearn_is_fitted__()
        x, values, weight, samples = self._rows(X, y, sample_weight, goes_on=goes_on)
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
        self.history_, self.n_iter_ = loop.history, loop.epoch
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "network_")

    def _outputs(self, X: Any) -> np.ndarray:
        """What the network gives for ``X`` as it came: scaling is inside."""
        check_is_fitted(self)
        x = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        return np.asarray(self.network_.eval()(x))

    # Rows and their weights; the network and its scales.

    def _values(self, y: Any, *, goes_on: bool) -> np.ndarray:
        """Targets as numbers (n, outputs)."""
        raise NotImplementedError

    def _row_weights(self, y: Any) -> Any:
        return 1.0

    def _rows(self, X: Any, y: Any, sample_weight: Any, *, goes_on: bool) -> tuple[Any, Any, Any, int]:
        """Features, values and weights of the rows that have a weight, and how many samples they stand for."""
        x, y = validate_data(self, X, y, dtype=(np.float64, np.float32), multi_output=True, reset=not goes_on)
        weight = _check_sample_weight(sample_weight, x, dtype=np.float64, ensure_non_negative=True)
        counted = weight > 0
        if not counted.any():
            raise ValueError("sample_weight: every weight is 0, which leaves no samples; give one of them a weight")
        repeated = sample_weight is not None and bool(np.all(weight == np.floor(weight)))
        samples = int(weight.sum()) if repeated else int(counted.sum())
        values = self._values(y[counted], goes_on=goes_on)
        return x[counted], values, (weight * self._row_weights(y))[counted], samples

    def _start(self, x: Any, values: Any, weight: Any) -> None:
        """The scales, a network of the first widths between them, its optimizer and its generator."""
        self._rng = np.random.default_rng(check_random_state(self.random_state).randint(2**31 - 1))
        grown = build_network(
            self.network,
            x.shape[1],
            values.shape[1],
            [self.start_width] * number_of_places(self.network, self.hidden_layers),
            function=hidden_activation(self.activation),
            dtype=x.dtype.name,
            device="cpu",
            rng=self._rng,
        )
        self._scales = Scale(*_moments(x, weight)), self._target_scale(values, weight)
        self._optimizer = AdamW(grown, lr=self.learning_rate, weight_decay=self.weight_decay)
        self._grown = grown
        self.network_ = Sequential(self._scales[0], grown, self._scales[1].inverse())

    def _target_scale(self, values: Any, weight: Any) -> Scale:
        return Scale(np.zeros(values.shape[1]), np.ones(values.shape[1]))

    def _scaled(self, x: Any, values: Any, weight: Any) -> tuple[Any, Any]:
        """Features, and targets with a last column of weights whose mean is 1, as the loop takes them."""
        features, targets = self._scales
        values = targets(values.astype(np.float64))
        weights = weight[:, None] * (len(weight) / weight.sum())
        return features(x), np.concatenate([values, weights], axis=1).astype(x.dtype)

    # The loop.

    def _loop(self, data: Any, validation: Any, samples: int, epochs: int) -> Growth:
        rule = _RULES.get(self.rule, self.rule) if isinstance(self.rule, str) else self.rule
        if isinstance(rule, str):
            raise ValueError(f"rule: expected one of {', '.join(_RULES)} or a GrowthRule, found {shown(self.rule)}")
        x, budget = data[0], self.max_parameters
        if budget == "auto":
            budget = default_budget(self._grown, np.broadcast_to(x[:1], (samples, x.shape[1])), self.neurons)
        settings = GrowthSettings(
            epochs=epochs,
            batch_size=min(_WHOLE, len(x)) if self.batch_size == "auto" else self.batch_size,  # type: ignore[arg-type]
            rule=rule,
            neurons=self.neurons,
            every=self.grow_every,
            first=self.grow_every,
            max_parameters=budget,
            keep_best=self.early_stopping,
        )
        return Growth(
            self._grown,
            self._optimizer,
            data,
            validation=validation,
            task=self._task,
            settings=settings,
            rng=self._rng,
        )

    def _run(self, loop: Growth) -> None:
        """Run to the last epoch, to a loss of ``tol``, or through ``n_iter_no_change`` epochs without a better network."""
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


def _moments(values: Any, weight: Any) -> tuple[Any, Any]:
    """Weighted mean of each column, and 1 over its deviation: 0 if the column is constant."""
    values, share = values.astype(np.float64), weight[:, None] / weight.sum()
    constant_ = values.min(axis=0) == values.max(axis=0)
    mean = np.where(constant_, values[0], np.sum(share * values, axis=0))
    deviation = np.sqrt(np.sum(share * (values - mean) ** 2, axis=0))
    return mean, np.where(constant_, 0.0, 1.0 / np.where(constant_, 1.0, deviation))


def _show(loop: Growth) -> None:
    """A bar that is drawn over itself."""
    entry, share = loop.history.of("train")[-1], loop.epoch / loop.settings.epochs
    bar = f"{'#' * round(24 * share):24}"
    figures = f"loss {entry['validation_loss']:.4f}  {entry['parameters']} parameters"
    sys.stderr.write(f"\r[{bar}] epoch {loop.epoch}/{loop.settings.epochs}  {figures}  ")
    sys.stderr.flush()


# Losses and scores of predictions y (n, k) against targets (n, k + 1), whose last column is the weight.


def _weights(target: Any) -> Any:
    return target[:, -1]


def _cross_entropy(y: Any, target: Any) -> Any:
    return cross_entropy(y, target[:, :-1] * target[:, -1:])


def _accuracy(y: Any, target: Any) -> float:
    right = np.argmax(y, axis=1) == np.argmax(target[:, :-1], axis=1)
    return float(np.average(right, weights=target[:, -1]))


def _square(y: Any, target: Any) -> Any:
    difference, weight = y - target[:, :-1], target[:, -1:]
    loss = np.sum(weight * difference**2) / difference.size
    return loss, lambda dloss=1.0: (2.0 * dloss / difference.size) * weight * difference


def _r2(y: Any, target: Any) -> float:
    values, weight = target[:, :-1].astype(np.float64), target[:, -1:]
    mean = np.average(values, axis=0, weights=weight[:, 0])
    total = float(np.sum(weight * (values - mean) ** 2))
    return 1.0 - float(np.sum(weight * (y - values) ** 2)) / total if total > 0 else 0.0


@dataclass(kw_only=True, eq=False, repr=False)
class GrowingClassifier(ClassifierMixin, _GrowingEstimator):  # type: ignore[misc]
    __doc__ = f"""A network that grows while it learns classes, as a scikit-learn classifier.
{_OPTIONS}
    class_weight : ``'balanced'``, or a weight by class

    Attributes
    ----------
    classes_, n_features_in_, n_iter_
    network_ : the network on features as they came, whose outputs are logits;  history_ : what happened, by epoch

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> model = GrowingClassifier(random_state=0).fit(X, y)
    >>> model.score(X, y) > 0.95, model.predict_proba(X[:2]).shape
    (True, (2, 3))
    """

    class_weight: Any = None
    _task: ClassVar[Task] = Task("classification", _cross_entropy, _accuracy, "accuracy", _weights)

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> GrowingClassifier:
        """One epoch on these rows, and a growth if one is due; the first call needs all ``classes``."""
        if _check_partial_fit_first_call(self, classes):
            self.classes_ = np.unique(classes)
        return self._partial_fit(X, y, sample_weight)

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest class of each row, (n,)."""
        logits = self._outputs(X)
        return self.classes_[np.argmax(logits, axis=1)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probability of each class, (n, n_classes)."""
        return np.asarray(softmax(self._outputs(X), axis=1)[0])

    def _values(self, y: Any, *, goes_on: bool) -> np.ndarray:
        y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        found = np.unique(y)
        if not goes_on:
            self.classes_ = found
        if not set(found) <= set(self.classes_):
            raise ValueError(f"y: has classes {shown(found)}, fitted on {shown(self.classes_)}; fit a new model")
        return (y[:, None] == self.classes_).astype(np.float64)

    def _row_weights(self, y: Any) -> Any:
        return compute_sample_weight(self.class_weight, column_or_1d(y))

    def _strata(self, target: Any, held: int) -> Any:
        labels = np.argmax(target[:, :-1], axis=1)
        counts = np.bincount(labels)
        enough = counts[counts > 0].min() > 1 and held >= (counts > 0).sum()
        return labels if enough else None


@dataclass(kw_only=True, eq=False, repr=False)
class GrowingRegressor(RegressorMixin, _GrowingEstimator):  # type: ignore[misc]
    __doc__ = f"""A network that grows while it learns one number or several, as a scikit-learn regressor.
{_OPTIONS}
    Attributes
    ----------
    n_features_in_, n_iter_
    network_ : the network on features as they came, whose outputs are the targets';  history_ : what happened, by epoch

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = GrowingRegressor(random_state=0, early_stopping=True).fit(X, y)
    >>> model.score(X, y) > 0.4
    True
    """

    _task: ClassVar[Task] = Task("regression", _square, _r2, "r2", _weights)

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> GrowingRegressor:
        """One epoch on these rows, and a growth if one is due."""
        return self._partial_fit(X, y, sample_weight)

    def predict(self, X: Any) -> np.ndarray:
        """Predictions (n,), or (n, targets) if it was fitted on several."""
        y = self._outputs(X)
        return y[:, 0] if self._single else y

    def _values(self, y: Any, *, goes_on: bool) -> np.ndarray:
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        if goes_on and (y.ndim == 1) != self._single:
            raise ValueError(f"y: has shape {y.shape}, another number of targets than before; fit a new model")
        self._single = y.ndim == 1
        return y.reshape(len(y), -1).astype(np.float64)

    def _target_scale(self, values: Any, weight: Any) -> Scale:
        offset, factor = _moments(values, weight)
        return Scale(offset, np.where(factor == 0.0, 1.0, factor))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
