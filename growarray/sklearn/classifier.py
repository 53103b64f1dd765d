"""GrowingClassifier: a network that grows while it learns classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.utils import compute_class_weight
from sklearn.utils.multiclass import _check_partial_fit_first_call, check_classification_targets
from sklearn.utils.validation import column_or_1d

from growarray.errors import shown
from growarray.networks.data import Task
from growarray.ops.activation import softmax
from growarray.sklearn.base import GrowingEstimator
from growarray.sklearn.losses import CLASSIFICATION


@dataclass(kw_only=True, eq=False, repr=False)
class GrowingClassifier(ClassifierMixin, GrowingEstimator):  # type: ignore[misc]
    """A network that grows while it learns classes, as a scikit-learn classifier.

    Its options are those of :class:`GrowingEstimator`, and ``class_weight``: ``'balanced'``, or a
    weight by class.

    classes_, n_features_in_, n_iter_ : once it is fitted, as everywhere in scikit-learn
    network_ : the network on features as they came, whose outputs are logits;  history_ : what happened, by epoch

    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> model = GrowingClassifier(random_state=0).fit(X, y)
    >>> model.score(X, y) > 0.95, model.predict_proba(X[:2]).shape
    (True, (2, 3))
    """

    class_weight: Any = None
    _task: ClassVar[Task] = CLASSIFICATION

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Any:  # type: ignore[override]
        """One epoch on these rows, and a growth if one is due; the first call needs all ``classes``."""
        _check_partial_fit_first_call(self, classes)
        return super().partial_fit(X, y, sample_weight)

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest class of each row, (n,)."""
        likeliest = np.argmax(self._outputs(X), axis=1)
        return np.asarray(self.classes_[likeliest])

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probability of each class, (n, n_classes)."""
        return np.asarray(softmax(self._outputs(X), axis=1)[0])

    def _targets(self, y: Any, weight: Any, *, anew: bool) -> tuple[Any, Any]:
        y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        found = np.unique(y)
        if anew:
            self.classes_ = found
        if not np.isin(found, self.classes_).all():
            raise ValueError(
                f"y: found classes {shown(found.tolist())}, expected {shown(self.classes_.tolist())} as in the first "
                "fit, or in validation; fit a new model"
            )
        if self.class_weight is not None:
            by_class = compute_class_weight(self.class_weight, classes=found, y=y, sample_weight=weight)
            weight = weight * by_class[np.searchsorted(found, y)]
        return (y[:, None] == self.classes_).astype(np.float64), weight

    def _strata(self, target: Any, held: int) -> Any:
        labels = np.argmax(target[:, :-1], axis=1)
        counts = np.bincount(labels)
        enough = counts[counts > 0].min() > 1 and held >= (counts > 0).sum()
        return labels if enough else None
