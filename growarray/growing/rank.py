"""Statistics for rank growth: moments of a factorized convolution's unfolded input with its gradient."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from growarray.backend import Array, asarray, namespace, target_of
from growarray.contraction import Plan, plan
from growarray.errors import GrowthError, ShapeError
from growarray.factorized import FactorizedConv
from growarray.factorized.settings import ConvSettings
from growarray.growing.moment import TensorStatistic, cross_moment
from growarray.growing.stream import Stream
from growarray.growing.update import optimal_delta
from growarray.nn.module import Module, Pullback

_ROOM = 1 << 22  # entries of unfolded input held at a time: 32 MiB


class RankStatistics(Module):
    """S and M of a factorized convolution: give it every batch, then ``layer.grow_rank(statistics)``.

    layer : a :class:`growarray.factorized.FactorizedConv` that holds one convolution
    pseudo_inverse : solve with the pseudo-inverse of S; without, a singular S (say of channels that are always zero)
        is found, and solved so with a ``UserWarning``

    :meth:`update` takes the layer's input and the gradient at its output. Or put the statistics in the layer's place:
    they are a module that computes what the layer does, and whose pullback updates them too. The gradient is that of
    the loss summed over the samples, so that predicted decreases are of the mean loss: call the pullback of a mean
    loss with the number of samples. Moments are float64 means over the samples, summed over the positions; with groups
    there is one of each for each group. The unfolded input is made for a few images at a time.

    Raises TypeError: the layer is not a FactorizedConv; NotImplementedError: it is a joint one.

    >>> rng = np.random.default_rng(0)
    >>> conv = FactorizedConv(2, 4, (3, 3), padding=1, rank=1, bias=True, dtype=np.float64, rng=rng)
    >>> x, target = rng.standard_normal((50, 2, 6, 6)), rng.standard_normal((50, 4, 6, 6))
    >>> statistics = RankStatistics(conv)
    >>> y, pullback = statistics.vjp(x)
    >>> dx = pullback(y - target)  # the gradient of half the squared error
    >>> growth = conv.grow_rank(statistics, by=2)
    >>> conv.rank, growth.before, 0.0 < growth.share < 1.0
    (3, 1, True)
    """

    def __init__(self, layer: FactorizedConv, *, pseudo_inverse: bool = False) -> None:
        if not isinstance(layer, FactorizedConv):
            raise TypeError(f"RankStatistics: found a {type(layer).__name__}, expected a FactorizedConv")
        if layer.layers_shape:
            raise NotImplementedError(
                f"RankStatistics: joint layers (n_layers={layer.n_layers}) are not supported; use n_layers=1"
            )
        self.layer, self.pseudo_inverse = layer, pseudo_inverse
        self._moments = TensorStatistic(name="RankStatistics")
        self.rank: Any = layer.rank
        self._settings = layer.settings()

    @property
    def samples(self) -> int:
        """Images seen."""
        return self._moments.samples

    @property
    def bias(self) -> bool:
        """Whether the unfolded input has a last column of ones."""
        return bool(self.layer.settings().has_bias)

    def reset(self) -> None:
        """Forget every sample; later ones are collected at the layer's current rank."""
        self._moments.reset()
        self.rank, self._settings = self.layer.rank, self.layer.settings()

    def forward(self, x: Array) -> Array:
        """Value of the layer."""
        return self.layer.forward(x)

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """Value and pullback of the layer; each call of the pullback counts as a batch."""
        y, back = self.layer.vjp(x)

        def pullback(dy: Array) -> Array:
            self.update(x, dy)  # first, since it refuses what is not finite
            return back(dy)

        return y, pullback

    def update(self, x: Array, dy: Array) -> RankStatistics:
        """Add a batch: the layer's input (n, c, *spatial) and the gradient at its output; returns the statistics.

        Raises ShapeError: the shapes are not those of this layer's input and output; GrowthError: NaN or infinite
        values, or rank, stride, padding, dilation or bias flag of the layer changed since the first batch; nothing is
        added.
        """
        layer, settings = self.layer, self.layer.settings()
        if self.samples == 0:
            self.rank, self._settings = layer.rank, settings
        elif layer.rank != self.rank:
            raise GrowthError(
                f"RankStatistics: collected at rank {self.rank}, the layer has rank {layer.rank} now; reset() first"
            )
        self._check_settings()
        g, shape = layer.groups, tuple(x.shape)
        expected = (*shape[:1], layer.out_channels, *layer.plan(shape).output_shape[-layer.order :])
        if tuple(dy.shape) != expected:
            raise ShapeError(
                f"RankStatistics: the gradient has shape {tuple(dy.shape)}, expected {expected}, the shape of the "
                f"layer's output for an input of shape {shape}"
            )
        taps, positions = layer.kernel_size, math.prod(expected[2:])
        width = math.prod(layer.kernel_shape[1:])
        step = max(1, _ROOM // max(width * g * positions, 1))
        total = None
        for start in range(0, shape[0], step):
            block = slice(start, min(start + step, shape[0]))
            windows = _unfolded(x[block, ...], taps, g, settings)
            part = _products(windows, dy[block, ...], g, self.bias)
            total = part if total is None else total + part
        if total is not None:
            self._moments.update(total, shape[0])
        return self

    def moments(self) -> tuple[Array, Array]:
        """S (groups, e, e) and M (groups, e, out_channels / groups), e = c * taps and one more for a bias.

        Raises GrowthError if there are no samples, or the layer was :meth:`FactorizedConv.set` otherwise since.
        """
        self._check_settings()
        both = self._moments()
        return both[:, :, : both.shape[1]], both[:, :, both.shape[1] :]

    def _check_settings(self) -> None:
        now = self.layer.settings()
        if now != self._settings:
            then, now_text = (str(settings) or "no options" for settings in (self._settings, now))
            raise GrowthError(f"RankStatistics: collected with {then}, the layer has {now_text} now; reset() first")

    def optimal_delta(self) -> tuple[Array, float]:
        """Change of kernel and bias that best follows the gradient, (out_channels, e), and its first-order decrease.

        To be subtracted; see :func:`growarray.growing.optimal_delta`, which runs for each group.
        """
        s, m = self.moments()
        pseudo = self.pseudo_inverse
        solutions = [optimal_delta(s[k, ...], m[k, ...], pseudo_inverse=pseudo) for k in range(self.layer.groups)]
        deltas = [delta for delta, _ in solutions]
        return namespace(*deltas).concat(deltas, axis=0), sum(decrease for _, decrease in solutions)

    def __add__(self, other: RankStatistics) -> RankStatistics:
        """Statistics of the left one's layer with the samples of both, say of two workers with a copy of it each."""
        if not isinstance(other, RankStatistics):
            return NotImplemented
        mine, theirs = self._key(), other._key()
        for what, value in mine.items():
            if value != theirs[what]:
                raise ShapeError(
                    f"RankStatistics: statistics of layers with {what} {value} and {theirs[what]} cannot be added"
                )
        total = RankStatistics(self.layer, pseudo_inverse=self.pseudo_inverse)
        total.rank, total._settings = self.rank, self._settings
        total._moments = self._moments + other._moments
        return total

    def _key(self) -> dict[str, Any]:
        layer = self.layer
        sizes = {"kernel": layer.kernel_shape, "groups": layer.groups, "rank": self.rank}
        return {"format": layer.weight.name, **sizes, "options": layer.settings()}

    def extra_repr(self) -> str:
        """Number of samples."""
        return f"samples={self.samples}"


def _products(windows: Array, dy: Array, groups: int, bias: bool) -> Array:
    """``(S | M)`` of a batch, (groups, e, e + o), float64; windows (groups, n, positions, d)."""
    xp = namespace(windows, dy)
    n, out = dy.shape[:2]
    # Channels of a layer of low rank are collinear: single precision would fill the null space of S with noise.
    windows, dy = (xp.astype(a, xp.float64, copy=False) for a in (windows, dy))
    d_rows = xp.permute_dims(xp.reshape(dy, (n, groups, out // groups, -1)), (1, 0, 3, 2))
    parts = []
    for k in range(groups):
        stream = Stream(windows[k, ...], bias=bias)
        parts.append(xp.concat([cross_moment(stream), cross_moment(stream, Stream(d_rows[k, ...]))], axis=1))
    return xp.stack(parts)


def _unfolded(x: Array, taps: tuple[int, ...], groups: int, settings: ConvSettings) -> Array:
    """Windows (groups, n, positions, c * taps): a convolution by kernels that are one at a tap; every option counts."""
    xp, count = namespace(x), math.prod(taps)
    kernel = asarray(np.eye(count).reshape(count, *taps), like=x, dtype=x.dtype)
    shape = (x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    todo = _unfolding(shape, taps, settings, *target_of(x))
    windows = xp.reshape(todo(xp.reshape(x, shape), kernel), (*shape[:3], count, -1))
    flat = xp.permute_dims(windows, (1, 0, 4, 2, 3))
    return xp.reshape(flat, (groups, shape[0], -1, shape[2] * count))


@lru_cache(maxsize=128)
def _unfolding(shape: tuple[int, ...], taps: tuple[int, ...], settings: ConvSettings, dtype: str, device: str) -> Plan:
    names = [f"x{i}" for i in range(len(taps))]
    at = " ".join(names)
    equation = f"n g c {at}, t {at} -> n g c t {at} | {', '.join(names)}"
    return plan(equation, shape, (math.prod(taps), *taps), dtype=dtype, device=device, **settings.options)
