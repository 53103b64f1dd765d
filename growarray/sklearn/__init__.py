"""Estimators for scikit-learn: networks that grow under a budget, behind ``fit`` and ``predict``."""

from growarray.sklearn.base import GrowingEstimator
from growarray.sklearn.classifier import GrowingClassifier
from growarray.sklearn.images import FactorizedConvClassifier
from growarray.sklearn.regressor import GrowingRegressor

__all__ = ["FactorizedConvClassifier", "GrowingClassifier", "GrowingEstimator", "GrowingRegressor"]
