"""Growing dropout: it drops of the features there are, and never of those that growth is about to add."""

from __future__ import annotations

from operator import attrgetter

import numpy as np

from growarray.nn.dropout import Dropout
from growarray.nn.extension import PassesExtension


class GrowingDropout(PassesExtension, Dropout):
    """:class:`~growarray.nn.Dropout` that hands new features on as they are, so that growth is not penalised.

    dropout_rate : probability of an entry to be dropped    rng : default a fresh unseeded generator

    It belongs into the function behind a growing layer, ``Sequential(ReLU(), GrowingDropout(0.2))``; once the new
    features are there it drops of them too. The original's base class cannot be called, its children can.

    >>> layer = GrowingDropout(0.5, rng=np.random.default_rng(0))
    >>> y, new = layer.extended_forward(np.ones((1, 4)), np.ones((1, 2)))
    >>> y.tolist(), new.tolist()
    ([[2.0, 0.0, 0.0, 0.0]], [[1.0, 1.0]])
    """

    dropout_rate = property(attrgetter("p"), doc="Probability of an entry, or a channel, to be dropped.")

    def __init__(
        self, dropout_rate: float = 0.0, name: str = "growing_dropout", *, rng: np.random.Generator | None = None
    ) -> None:
        super().__init__(dropout_rate, rng)
        self.name = name


class GrowingDropout1d(GrowingDropout):
    """:class:`GrowingDropout` of whole channels of (n, c, l).

    >>> GrowingDropout1d(0.5, rng=np.random.default_rng(0))(np.ones((1, 2, 3))).tolist()
    [[[2.0, 2.0, 2.0], [0.0, 0.0, 0.0]]]
    """

    _per_entry = 2


class GrowingDropout2d(GrowingDropout):
    """:class:`GrowingDropout` of whole channels of (n, c, height, width).

    >>> GrowingDropout2d(0.5, rng=np.random.default_rng(0))(np.ones((1, 2, 1, 2))).tolist()
    [[[[2.0, 2.0]], [[0.0, 0.0]]]]
    """

    _per_entry = 2
