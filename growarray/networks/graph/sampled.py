"""Neurons between pairs of samples: candidates for what no linear map of the inputs supplies.

If a node reads a source already, all that a new neuron gives to first order in small incoming weights can be had
from the existing edge. Candidates with incoming weights of finite size are therefore drawn from the data, and the best
are taken by what they take off the loss together with the optimal deltas: an exact gain, in closed form.

Source of the draw: Bolager et al. 2023, *Sampling weights of deep neural networks*.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_DEPENDENT = 1e-9  # of its own square is all that is left of a feature that others make


def neurons_between(
    features: np.ndarray, gradients: np.ndarray, count: int, rng: np.random.Generator, *, bias: bool = True
) -> np.ndarray:
    """Weights (count, d, and one more column with ``bias``) of neurons that rise from -1 to 1 between two samples.

    features : (n, d)    gradients : (n, o); pairs that are near but have different gradients are preferred

    >>> weights = neurons_between(np.array([[0.0], [2.0]]), np.array([[0.0], [1.0]]), 1, np.random.default_rng(0))
    >>> np.sort((weights @ np.array([[0.0, 2.0], [1.0, 1.0]])).ravel()).tolist()
    [-1.0, 1.0]
    """
    n = len(features)
    pairs = rng.integers(0, n, (2, 8 * count))
    steps = (features[pairs[1]] - features[pairs[0]]).astype(np.float64)
    lengths = np.sqrt(np.sum(steps**2, axis=1))
    wants = np.sqrt(np.sum((gradients[pairs[1]] - gradients[pairs[0]]).astype(np.float64) ** 2, axis=1))
    differs = lengths > 0
    value = np.where(differs, wants / np.where(differs, lengths, 1.0), 0.0)
    noise = rng.uniform(size=len(value))  # the largest u^(1/w) are a draw by the weights w, without repetition
    with np.errstate(divide="ignore"):
        chosen = np.argsort(-np.where(value > 0, np.log(noise) / np.where(value > 0, value, 1.0), -np.inf))[:count]
    slopes = np.where(differs, 2.0 / np.where(differs, lengths, 1.0) ** 2, 0.0)
    weights: np.ndarray = slopes[chosen][:, None] * steps[chosen]
    if not bias:
        return weights
    middle = (features[pairs[0][chosen]] + features[pairs[1][chosen]]) / 2
    joined: np.ndarray = np.concatenate([weights, -np.sum(weights * middle, axis=1, keepdims=True)], axis=1)
    return joined


def best_features(
    undone: Sequence[tuple[np.ndarray, np.ndarray]], most: int, taps: Sequence[int] | None = None
) -> list[int]:
    """Neurons that together lower the loss most, chosen greedily, best first; combinations of others are left out.

    undone : for each target the second moment (r, r) of the features, with what the target reads taken off, and
        their moment (r, o) with what is left undone there
    taps : features that a neuron is for each target, side by side; default 1

    >>> best_features([(np.diag([1.0, 4.0, 0.0]), np.array([[3.0], [2.0], [0.0]]))], 3)
    [0, 1]
    """
    counts = taps or [1] * len(undone)
    sides = [_Side(*side, count) for side, count in zip(undone, counts, strict=True)]
    chosen: list[int] = []
    while len(chosen) < most:
        gains = np.sum([side.gains() for side in sides], axis=0)
        gains[chosen] = 0.0
        best = int(np.argmax(gains))
        if not gains[best] > 0:
            break
        chosen.append(best)
        for side in sides:
            side.take(best)
    return chosen


class _Side:
    """What neurons, each of ``taps`` features, would give one target, with those that were chosen taken off."""

    def __init__(self, gram: np.ndarray, moment: np.ndarray, taps: int) -> None:
        count = len(gram) // taps
        self.gram, self.taps = gram.reshape(count, taps, count, taps).copy(), taps
        self.moment = moment.reshape(count, taps, -1).copy()
        self.least = _DEPENDENT * np.max(np.diagonal(gram).reshape(count, taps), axis=1, initial=0.0)

    def _inverses(self) -> np.ndarray:
        """Pseudo-inverses of the neurons' own second moments, (count, taps, taps)."""
        blocks = np.einsum("itiu->itu", self.gram)
        if self.taps == 1:
            usable = blocks > self.least[:, None, None]
            return np.where(usable, 1.0 / np.where(usable, blocks, 1.0), 0.0)
        values, vectors = np.linalg.eigh(blocks)
        usable = values > self.least[:, None]
        scaled = vectors * np.where(usable, 1.0 / np.where(usable, values, 1.0), 0.0)[:, None, :]
        inverses: np.ndarray = scaled @ vectors.transpose(0, 2, 1)
        return inverses

    def gains(self) -> np.ndarray:
        """What each neuron takes off the loss."""
        self.inverses = self._inverses()
        if self.taps == 1:  # a product of two numbers for each neuron
            return np.sum(self.moment**2, axis=(1, 2)) * self.inverses[:, 0, 0]  # type: ignore[no-any-return]
        return np.sum(self.moment * (self.inverses @ self.moment), axis=(1, 2))  # type: ignore[no-any-return]

    def take(self, best: int) -> None:
        """Take off what the neuron ``best`` makes."""
        share = self.gram[:, :, best, :] @ self.inverses[best]
        self.moment -= share @ self.moment[best]
        self.gram -= np.tensordot(share, self.gram[best], 1)
