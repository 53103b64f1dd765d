"""Convolution of any order whose kernel is factorized, alone or several with one factorization."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np

from growarray.backend import Array, asarray, assign, library, namespace, target_of
from growarray.contraction import Plan
from growarray.contraction.checks import known_precision
from growarray.contraction.path import PRESETS
from growarray.errors import PlanError, ShapeError, shown
from growarray.factorized.equation import conv_plan, kernel_modes, kernel_sizes, stored_sizes
from growarray.factorized.format import Arrays, Terms
from growarray.factorized.growth import RankGrowth, RankStatisticsLike, grow_rank
from growarray.factorized.parameters import checked_bias
from growarray.factorized.settings import (
    ConvSettings,
    fixed_modes_of,
    flag,
    flags_of,
    hashable,
    layer_index_of,
    layers_of,
    plain,
    planned_shape,
    shape_of,
    taps_of,
)
from growarray.factorized.sources import FactorizedSources
from growarray.factorized.sub import SubFactorizedConv
from growarray.factorized.tensor import FactorizedTensor
from growarray.nn.module import Parameter, Pullback
from growarray.ops.sizes import checked_groups, whole_number

LayerIndex = tuple[int, ...]

_shape = operator.attrgetter("shape")


class FactorizedConv(FactorizedSources):
    """Convolution of (n, in_channels, *spatial) by a factorized kernel (out_channels, in_channels / groups, *kernel).

    kernel_size : one number for each axis, or one for all ``order`` of them
    stride, padding, dilation, padding_mode : as in :class:`growarray.nn.Conv2d`; :meth:`set` changes them
    bias : whether there is one    has_bias : in a joint layer, which convolutions have one, as nested flags
    n_layers : convolutions that share one factorization: a number, or a tuple for several leading modes
    factorization : ``'cp'``, ``'tucker'``, ``'tt'``, ``'ring'``, ``'dense'``, or a :class:`FactorizedTensor`, then held
    rank : ``'same'`` (as many parameters as the dense kernel), a float (a fraction of them), an int, or a tuple;
        a rank above what a kernel of this shape can use is kept as it is
    implementation : ``'auto'`` (the path of least predicted time), ``'factorized'`` (one mode after the other),
        ``'mobilenet'`` (all positions jointly), ``'reconstructed'`` (the dense kernel first), or any ``optimize`` that
        :func:`growarray.contraction.plan` takes
    fixed_rank_modes : ``'spatial'`` or a list: modes of a Tucker kernel that keep their size as rank; a ValueError in
        the other formats, whose ranks are not those of modes
    groups : blocks of channels that do not mix, in every format: the kernel has torch's shape
    std : of the kernel's entries at the start. None is that of :class:`growarray.nn.Conv2d`, ``1 / sqrt(3 fan_in)``,
        fan_in being in_channels / groups times the taps, in every format: ten such layers in a row keep as much of the
        variance of their input as ten dense ones, within a factor of two unless the rank is very low.
        ``'original'`` is the 0.02 of TensorLy-Torch, by its formulas. The bias is zero.
    precision : on a GPU, as in :func:`growarray.contraction.plan`; a CPU multiplies float32 in full

    Raises ValueError: an option makes no sense; the message lists what does. ShapeError and PlanError are ValueErrors.

    >>> rng = np.random.default_rng(0)
    >>> conv = FactorizedConv(16, 32, 3, order=2, padding=1, rank=8, rng=rng)
    >>> y, pullback = conv.vjp(np.ones((2, 16, 9, 9), dtype=np.float32))
    >>> y.shape, pullback(y).shape, conv.weight.factors["factor_0"].grad.shape
    ((2, 32, 9, 9), (2, 16, 9, 9), (32, 8))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        order: int | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        bias: bool = False,
        has_bias: Any = False,
        n_layers: int | Sequence[int] = 1,
        factorization: str | FactorizedTensor = "cp",
        rank: Any = "same",
        implementation: Any = "auto",
        fixed_rank_modes: str | Sequence[int] | None = None,
        groups: int = 1,
        padding_mode: str = "zeros",
        device: str | None = None,
        dtype: Any = None,
        rng: np.random.Generator | None = None,
        std: float | str | None = None,
        precision: str | None = None,
    ) -> None:
        library(device)
        self.precision = known_precision(precision)
        taps = taps_of(kernel_size, order)
        self.layers_shape = layers_of(n_layers)
        self.groups = checked_groups("FactorizedConv", in_channels, out_channels, groups, 1)
        self.n_layers = tuple(plain(n_layers)) if isinstance(n_layers, tuple | list | np.ndarray) else n_layers
        flags = flags_of(bias, has_bias, self.layers_shape)
        base = ConvSettings.of(taps, stride, padding, dilation, padding_mode)
        self._settings = {layer_index: replace(base, has_bias=flag) for layer_index, flag in flags.items()}
        sizes = (int(out_channels), int(in_channels) // self.groups, *taps)
        if isinstance(factorization, FactorizedTensor):
            self.weight = factorization
            given = (fixed_rank_modes, std, device, dtype)
            if any(option is not None for option in given) or not isinstance(rank, str) or rank != "same":
                raise ValueError(
                    "FactorizedConv: rank, fixed_rank_modes, std, device and dtype are those of the tensor that is "
                    "given as factorization; leave them out"
                )
            if self.kernel_shape != sizes or factorization.shape[: len(self.layers_shape)] != self.layers_shape:
                raise ShapeError(
                    f"FactorizedConv: {shown(factorization)} does not hold kernels {sizes} for "
                    f"n_layers={self.n_layers}; from_factorization reads the sizes from it"
                )
        else:
            self.weight = self._new_weight(sizes, factorization, rank, fixed_rank_modes, dtype, device)
        like = self.weight.all_factors()[0].data
        zeros = np.zeros((*self.layers_shape, out_channels))
        some = bool(bias) or any(flags.values())
        self.bias = Parameter(asarray(zeros, like=like, dtype=like.dtype)) if some else None
        self.implementation = hashable(implementation)
        self._check_implementation()
        if self.weight is not factorization:
            self.reset_parameters(std, rng)

    def _saved(self) -> dict[str, Any]:
        settings = [(i, s.stride, s.padding, s.dilation, s.has_bias) for i, s in self._settings.items()]
        names = ("weight", "bias", "n_layers", "groups", "padding_mode", "implementation", "precision")
        return {**{name: getattr(self, name) for name in names}, "settings": settings}

    @classmethod
    def _restored(cls, weight: FactorizedTensor, bias: Parameter | None, settings: Any, **options: Any) -> Self:
        lead = len(layers_of(options["n_layers"]))
        out_channels, channels, *taps = kernel_sizes(weight.format, weight.shape[lead:])
        layer = cls(channels * options["groups"], out_channels, taps, factorization=weight, **options)
        for index, stride, padding, dilation, has_bias in settings:
            layer._settings[layer_index_of(index, layer.layers_shape)] = ConvSettings.of(
                taps, stride, padding, dilation, layer.padding_mode, flag("FactorizedConv", "has_bias", has_bias)
            )
        layer.bias = checked_bias(bias, (*layer.layers_shape, out_channels))
        return layer

    def _new_weight(
        self, sizes: tuple[int, ...], factorization: str, rank: Any, fixed: Any, dtype: Any, device: Any
    ) -> FactorizedTensor:
        kind, lead = FactorizedTensor.kind(factorization), len(self.layers_shape)
        if kind.format.mode_ranks:
            fixed = fixed_modes_of(fixed, lead, len(sizes) - 2)
        shape = (*self.layers_shape, *stored_sizes(kind.format, sizes))
        return FactorizedTensor.new(
            shape, rank, factorization, fixed_rank_modes=fixed, std=None, dtype=dtype, device=device
        )

    def _terms(self, order: int) -> Terms:
        """The modes of each factor of a kernel over so many axes."""
        return self.weight.format.terms(kernel_modes(self.weight.format, order))

    def _check_implementation(self) -> None:
        """Raise ValueError unless the engine takes it as a path: planned once, for the smallest input."""
        if isinstance(self.implementation, str) and self.implementation in ("auto", *PRESETS):
            return
        first = next(iter(self._settings))
        axes = self._settings[first].axes
        sizes = [(k - 1) * a.dilation + a.before + a.after + 2 for k, a in zip(self.kernel_size, axes, strict=True)]
        try:
            self.plan((1, self.in_channels, *(s + max(sizes) for s in sizes)), indices=first or 0)
        except (PlanError, TypeError) as error:
            raise ValueError(
                f"FactorizedConv: implementation {shown(self.implementation)} cannot be used: {error}; expected "
                f"'auto', {', '.join(map(repr, PRESETS))} or a path of growarray.contraction.plan"
            ) from error

    def _plan(self, shape: tuple[int, ...], factors: Arrays, layer_index: LayerIndex, training: bool) -> Plan:
        return conv_plan(
            self.weight.name, shape, tuple(map(tuple, map(_shape, factors))), self.groups, self._settings[layer_index],
            self.implementation, training, *target_of(factors[0]), self.precision,
        )  # fmt: skip

    def plan(self, shape: Sequence[int], training: bool = False, indices: Any = 0) -> Plan:
        """The contraction that runs for an input of this shape: its steps, cost and memory; ``print`` shows a table.

        training : the plan of :meth:`vjp`, which counts the backward pass too
        """
        layer_index = layer_index_of(indices, self.layers_shape)
        sizes = planned_shape("FactorizedConv.plan", shape)
        return self._plan(sizes, self._factors(layer_index, drop=False)[0], layer_index, training)

    def __call__(self, x: Array, indices: Any = 0) -> Array:
        """:meth:`forward`."""
        return self.forward(x, indices)

    def forward(self, x: Array, indices: Any = 0) -> Array:
        """Value of one convolution."""
        layer_index = layer_index_of(indices, self.layers_shape)
        factors, _ = self.weight.factors_vjp(layer_index)
        todo = self._plan(shape_of("FactorizedConv", x), factors, layer_index, training=False)
        return self._with_bias(todo(*_operands(todo, x, factors)), layer_index)

    def vjp(self, x: Array, indices: Any = 0) -> tuple[Array, Pullback]:
        """Value and pullback; the pullback adds to the gradients of the parameters that are not :attr:`frozen`."""
        layer_index = layer_index_of(indices, self.layers_shape)
        factors, factors_back = self._factors(layer_index)
        todo = self._plan(shape_of("FactorizedConv", x), factors, layer_index, training=True)
        own, lasso = self.weight.all_factors(), self.weight.lasso_weights  # whose gradients come from all factors
        wanted = [i for i, factor in enumerate(own, start=1) if factor.requires_grad or lasso]
        result, back = todo.vjp(
            *_operands(todo, x, factors), wrt=[0, *(range(1, 1 + len(factors)) if layer_index else wanted)]
        )
        inner = tuple(result.shape)
        y, x_shape = self._with_bias(result, layer_index), tuple(x.shape)
        y_shape = tuple(y.shape)

        def pullback(dy: Array) -> Array:
            if shape_of("FactorizedConv: the gradient", dy) != y_shape:
                raise ShapeError(f"FactorizedConv: the gradient has shape {tuple(dy.shape)}, the result had {y_shape}")
            xp = namespace(dy)
            dx, *d_operands = back(xp.reshape(dy, inner))
            shaped = [d if d is None else xp.reshape(d, a.shape) for d, a in zip(d_operands, factors, strict=True)]
            for factor, gradient in zip(own, factors_back(tuple(shaped)), strict=True):
                factor.accumulate(gradient)
            self._accumulate_bias(dy, layer_index)
            return xp.reshape(dx, x_shape)

        return y, pullback

    def _with_bias(self, result: Array, layer_index: LayerIndex) -> Array:
        """The fresh result of a contraction as (n, out_channels, *spatial), with the bias added in place."""
        y = result
        if self.groups > 1:
            y = namespace(y).reshape(result, (result.shape[0], self.out_channels, *result.shape[3:]))
        if self.bias is not None and self._settings[layer_index].has_bias:
            y += namespace(y).reshape(self.bias.data[(*layer_index, ...)], (-1, *(1,) * (y.ndim - 2)))
        return y

    def _accumulate_bias(self, dy: Array, layer_index: LayerIndex) -> None:
        if self.bias is None or not (self.bias.requires_grad and self._settings[layer_index].has_bias):
            return
        xp = namespace(dy)
        row = xp.sum(dy, axis=(0, *range(2, dy.ndim)))
        self.bias.accumulate(assign(xp.zeros_like(self.bias.data), (*layer_index, ...), row))

    def get_conv(self, indices: Any) -> SubFactorizedConv:
        """One convolution as a layer of its own, which shares the parameters and their gradients."""
        if not self.layers_shape:
            raise ValueError(
                "FactorizedConv: holds one convolution, which is the layer itself; get_conv is for joint ones"
            )
        return SubFactorizedConv(self, layer_index_of(indices, self.layers_shape))

    def __getitem__(self, indices: Any) -> SubFactorizedConv:
        return self.get_conv(indices)

    def transduct(
        self,
        kernel_size: int,
        mode: int = 0,
        padding: Any = 0,
        stride: int = 1,
        dilation: int = 1,
        fine_tune_transduction_only: bool = True,
    ) -> Self:
        """Add a spatial axis before axis ``mode``, in place, so that a network for images takes videos; returns self.

        The kernel stands in the middle of the new axis, so that with a padding of ``kernel_size // 2`` each frame is
        convolved as before; a tensor train is repeated along it, as in the original, which sums neighbouring frames.
        fine_tune_transduction_only : freeze all but the new factor (see :attr:`frozen`); a dense kernel is all new

        >>> conv = FactorizedConv(3, 8, (3, 3), padding=1, rank=4).transduct(3, padding=1)
        >>> conv.kernel_size, conv.padding, [n for n, _ in conv.named_parameters() if n not in conv.frozen]
        ((3, 3, 3), (1, 1, 1), ['weight.factors.factor_2'])
        """
        size = whole_number("FactorizedConv.transduct", "kernel_size", kernel_size, 1)
        if not 0 <= whole_number("FactorizedConv.transduct", "mode", mode, 0) <= self.order:
            raise ValueError(f"FactorizedConv.transduct: mode {mode} is out of range, expected 0 to {self.order}")
        if isinstance(self.implementation, tuple) and len(self._terms(self.order + 1)) > len(self._terms(self.order)):
            raise ValueError(
                f"FactorizedConv.transduct: implementation {shown(self.implementation)} is a path for "
                f"{len(self.weight.all_factors()) + 1} operands, transduct adds one; "
                "make the layer with a named implementation"
            )
        pair = (tuple(padding),) if isinstance(padding, tuple | list) else padding
        axis = ConvSettings.of((size,), stride, pair, dilation, self.padding_mode).axes[0]
        last = self.weight.format.output_last
        new = self.weight.transduct(
            size, len(self.layers_shape) + (1 if last else 2) + mode, None if last else size // 2
        )
        self._settings = {layer_index: old.with_axis(mode, axis) for layer_index, old in self._settings.items()}
        if fine_tune_transduction_only:
            self.requires_grad_(False)
            for factor in new:
                factor.requires_grad = True
        return self

    def grow_rank(
        self, statistics: RankStatisticsLike, by: int | Sequence[int] = 1, *, scaling: float = 1.0,
        rng: np.random.Generator | None = None,
    ) -> RankGrowth:  # fmt: skip
        """Add components that follow the gradient: the optimal change of the layer, in the low-rank form of its format.

        statistics : :class:`growarray.growing.RankStatistics` of this layer, collected since its rank last changed
        by : components of a CP kernel; of the other formats a number for every rank, or one for each entry of
            :attr:`rank` (the bonds of a ring grow together); what a kernel of this shape cannot use is left out, with a
            warning
        scaling : of the change; :meth:`RankGrowth.rescale` changes it afterwards    rng : for random starts of CP

        Entries that are there stay as they are, with their gradients and optimizer state; the bias moves to where it is
        best beside the new components. The bias and the new components together promise ``first_order_decrease``.

        Raises NotImplementedError: the kernel is dense, or the layer is a joint one; GrowthError, TypeError,
        ValueError: statistics that are empty, old, or another layer's; a gradient of zero; a wrong ``by`` or
        ``scaling``; frozen parameters. Nothing has changed then.
        """
        return grow_rank(self, statistics, by, scaling=scaling, rng=rng)

    def extra_repr(self) -> str:
        """Sizes, rank and options; a line for each convolution of a joint layer."""
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"]
        parts += [f"factorization={self.weight.name}, rank={self.rank}"]
        parts += [f"n_layers={self.n_layers}"] if self.layers_shape else []
        parts += [f"groups={self.groups}"] if self.groups != 1 else []
        parts += [f"implementation={self.implementation!r}"] if self.implementation != "auto" else []
        if not self.layers_shape:
            return ", ".join([*parts, *filter(None, [str(self.settings())])])
        lines = [f"\n * Conv{layer_index}: {settings}" for layer_index, settings in self._settings.items()]
        return ", ".join(parts) + "".join(lines)


def _operands(todo: Plan, x: Array, factors: Arrays) -> Sequence[Array]:
    """Input and factors of the kernel in the shapes that the plan names; the batch is the input's."""
    arrays, shapes = (x, *factors), ((x.shape[0], *todo.shapes[0][1:]), *todo.shapes[1:])
    if tuple(map(tuple, map(_shape, arrays))) == shapes:
        return arrays
    xp = namespace(*arrays)
    return [xp.reshape(a, s) for a, s in zip(arrays, shapes, strict=True)]
