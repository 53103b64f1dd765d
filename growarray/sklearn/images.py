"""FactorizedConvClassifier: factorized convolutions before a head that grows, for images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from growarray.errors import ShapeError, shown
from growarray.factorized import FactorizedConv
from growarray.networks.network import GrowingNetwork
from growarray.networks.part import as_growing
from growarray.networks.scale import Scale
from growarray.nn import Flatten, MaxPool2d, Module, ReLU, Reshape, Sequential
from growarray.ops.sizes import whole_number
from growarray.sklearn.classifier import GrowingClassifier
from growarray.sklearn.losses import weighted_moments


@dataclass(kw_only=True, eq=False, repr=False)
class FactorizedConvClassifier(GrowingClassifier):
    """A scikit-learn classifier of images: factorized 3 x 3 convolutions, then a head that grows.

    Images come as rows (n, channels * h * w), as pipelines hand them on, or as they are, (n, channels, h, w).

    image_shape : (channels, h, w) or (h, w) of a row; None reads a row as a line of numbers, (1, 1, n_features)
    channels : of each convolution; after each, sides of 4 or more are halved by a maximum
    factorization, rank : of their kernels, as :class:`growarray.FactorizedConv` takes them
    start_width : neurons of the head's hidden layer before it grows; convolutions learn little through a few

    Its other options are those of :class:`GrowingClassifier`, and build the head. Pixels are scaled by channel.

    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> model = FactorizedConvClassifier(image_shape=(8, 8), channels=(8,), max_iter=4, random_state=0)
    >>> model.fit(X[:500], y[:500]).score(X[500:], y[500:]) > 0.8
    True
    """

    _networks: ClassVar[tuple[str, ...]] = ("mlp", "residual")

    image_shape: Sequence[int] | None = None
    channels: Sequence[int] = (16, 32)
    factorization: str = "cp"
    rank: Any = 0.5
    start_width: int = 16

    def _rows(self, X: Any, y: Any, sample_weight: Any, *, goes_on: bool, anew: bool) -> tuple[Any, Any, Any, int]:
        shape = tuple(X.shape[1:]) if getattr(X, "ndim", 2) == 4 else None
        if shape and self.image_shape is not None and shape != self._image(math.prod(shape)):
            raise ShapeError(f"X: has images {shape}, image_shape is {shown(self.image_shape)}")
        self._seen = shape
        return super()._rows(X, y, sample_weight, goes_on=goes_on, anew=anew)

    def _features(self, X: Any) -> Any:
        """Images as rows."""
        return np.reshape(np.asarray(X), (len(X), -1)) if getattr(X, "ndim", 2) == 4 else X

    def _image(self, features: int) -> tuple[int, int, int]:
        """Channels, height and width of an image of so many numbers."""
        given = self._seen or (1, 1, features) if self.image_shape is None else tuple(self.image_shape)
        sizes = tuple(whole_number("FactorizedConvClassifier", "image_shape", size, 1) for size in given)
        if len(sizes) not in (2, 3):
            raise ValueError(f"image_shape: expected (channels, h, w) or (h, w), found {shown(self.image_shape)}")
        if math.prod(sizes) != features:
            raise ShapeError(f"image_shape: {sizes} are {math.prod(sizes)} numbers, X has {features} features")
        return (sizes[-3] if len(sizes) == 3 else 1, sizes[-2], sizes[-1])

    def _network(self, features: int, outputs: int, dtype: str) -> GrowingNetwork:
        inner, *sizes = self._image(features)
        layers: list[Module] = [Reshape((0, inner, *sizes))]
        for width in self.channels:
            kernel = [1 if size == 1 else 3 for size in sizes]
            pool = [2 if size >= 4 else 1 for size in sizes]
            layers += [
                FactorizedConv(
                    inner, width, kernel, padding=[k // 2 for k in kernel], bias=True, factorization=self.factorization,
                    rank=self.rank, dtype=dtype, rng=self._rng,
                ),
                ReLU(),
                MaxPool2d(pool),
            ]  # fmt: skip
            inner, sizes = width, [size // step for size, step in zip(sizes, pool, strict=True)]
        head = super()._network(inner * math.prod(sizes), outputs, dtype)
        return as_growing(Sequential(*layers, Flatten(), head))

    def _feature_scale(self, x: Any, weight: Any) -> Scale:
        channels, *sizes = self._image(x.shape[1])
        count = math.prod(sizes)
        values = np.moveaxis(x.reshape(len(x), channels, count), 1, 2).reshape(-1, channels)
        offset, factor = weighted_moments(values, np.repeat(weight, count))
        return Scale(np.repeat(offset, count), np.repeat(factor, count))
