"""GrowingRegressor: a network that grows while it learns one number or several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils.validation import column_or_1d

from growarray.networks.data import Task
from growarray.networks.scale import Scale
from growarray.sklearn.base import GrowingEstimator
from growarray.sklearn.losses import REGRESSION, weighted_moments


@dataclass(kw_only=True, eq=False, repr=False)
class GrowingRegressor(RegressorMixin, GrowingEstimator):  # type: ignore[misc]
    """A network that grows while it learns one number or several, as a scikit-learn regressor.

    Its options are those of :class:`GrowingEstimator`.

    n_features_in_, n_iter_ : once it is fitted, as everywhere in scikit-learn
    network_ : the network on features as they came, whose outputs are the targets';  history_ : what happened, by epoch

    >>> from sklearn.datasets import load_diabetes
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = GrowingRegressor(random_state=0, early_stopping=True).fit(X, y)
    >>> model.score(X, y) > 0.4
    True
    """

    _task: ClassVar[Task] = REGRESSION

    def predict(self, X: Any) -> np.ndarray:
        """Predictions (n,), or (n, targets) if it was fitted on several."""
        y = self._outputs(X)
        return y if self._several else y[:, 0]

    def _targets(self, y: Any, weight: Any, *, anew: bool) -> tuple[Any, Any]:
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        targets = None if y.ndim == 1 else y.shape[1]
        if anew or not self.__sklearn_is_fitted__():
            self._several = targets
        if targets != self._several:
            expected = f"(n, {self._several})" if self._several else "(n,)"
            raise ValueError(f"y: has shape {y.shape}, expected {expected} as in the first fit; fit a new model")
        return y.reshape(len(y), -1).astype(np.float64), weight

    def _target_scale(self, values: Any, weight: Any) -> Scale:
        offset, factor = weighted_moments(values, weight)
        return Scale(offset, np.where(factor == 0.0, 1.0, factor))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
