"""Where a factorized convolution comes from: a factorized tensor, or trained dense layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from growarray.errors import ShapeError, shown
from growarray.factorized.convert import DenseConv, layer_of, read_conv, read_convs
from growarray.factorized.equation import kernel_sizes
from growarray.factorized.format import checked_kwargs, warn_lowered
from growarray.factorized.layer import FactorizedKernel
from growarray.factorized.measure import conversion_report, probes_of
from growarray.factorized.report import ConversionReport
from growarray.factorized.settings import flag, layers_of
from growarray.factorized.tensor import FactorizedTensor


class FactorizedSources(FactorizedKernel):
    """Constructors of :class:`growarray.factorized.FactorizedConv` beside its own.

    The report of :meth:`from_conv` and :meth:`from_conv_list` is the layer's :attr:`report`.
    """

    _report: ConversionReport | None = None

    @property
    def report(self) -> ConversionReport | None:
        """What the conversion did; None for layers made otherwise, and once the rank or the kernel's shape has changed.

        It is of that moment: training, and :meth:`set`, do not renew it.
        """
        report = self._report
        same = report is not None and (report.rank, report.kernel_shape) == (self.rank, self.kernel_shape)
        return report if same else None

    @report.setter
    def report(self, report: ConversionReport | None) -> None:
        self._report = report

    @classmethod
    def from_factorization(
        cls,
        factorization: FactorizedTensor,
        implementation: Any = "auto",
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        bias: Any = None,
        n_layers: int | Sequence[int] = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
    ) -> Self:
        """A convolution whose kernel is this tensor, not a copy of it; the bias (*n_layers, out_channels) is copied."""
        if not isinstance(factorization, FactorizedTensor):
            raise TypeError(
                f"from_factorization: expected a FactorizedTensor, found {type(factorization).__name__}; "
                "FactorizedTensor.from_tensor makes one of an array"
            )
        sizes = kernel_sizes(factorization.format, factorization.shape[len(layers_of(n_layers)) :])
        if len(sizes) < 3:
            raise ShapeError(
                f"from_factorization: {shown(factorization)} with n_layers={n_layers} leaves modes {sizes}, expected "
                "output, input and at least one spatial mode"
            )
        make: Any = cls
        layer: Self = make(
            sizes[1] * groups, sizes[0], sizes[2:], None, stride, padding, dilation, bias is not None, False, n_layers,
            factorization, implementation=implementation, groups=groups, padding_mode=padding_mode,
        )  # fmt: skip
        layer._take_bias(bias)
        return layer

    @classmethod
    def from_conv(
        cls,
        conv_layer: Any,
        rank: Any = "same",
        implementation: Any = "auto",
        factorization: str = "CP",
        decompose_weights: bool = True,
        decomposition_kwargs: Mapping[str, Any] | None = None,
        fixed_rank_modes: str | Sequence[int] | None = None,
        *,
        rng: np.random.Generator | None = None,
        dtype: Any = None,
        calibration: Any = None,
        input_shape: Any = None,
        measure: bool = False,
    ) -> Self:
        """The factorized form of a convolution layer: ours, torch's, or anything with the same attributes.

        decompose_weights : False draws a random kernel, with a bias of zero, in place of decomposing the layer's
        decomposition_kwargs : options of the decomposition, see :mod:`growarray.decompose`
        Weight and bias are copied. A rank above what the kernel can use is lowered to it, with a warning if it is
        given as such, not as a share.

        The layer's ``report`` says what the conversion did, see :class:`ConversionReport`:
        calibration : inputs (n, in_channels, *spatial) on which the error of the output is measured
        input_shape : (n, in_channels, *spatial) that FLOPs, time and memory are for; that of the calibration data
        measure : also time both layers

        Raises TypeError, ShapeError, ValueError: the layer is not a dense convolution, or its weights are not finite;
        the calibration does not fit it; the factorization is unknown (the message lists those that exist).

        >>> from growarray import nn
        >>> from growarray.factorized import FactorizedConv
        >>> dense = nn.Conv2d(8, 16, 3, stride=(2, 1), padding=1, rng=np.random.default_rng(0))
        >>> conv = FactorizedConv.from_conv(dense, rank=0.5, factorization="tucker")
        >>> conv.stride, conv.rank, conv.number_of_parameters(), dense.number_of_parameters()
        ((2, 1), (12, 6, 2, 2), 556, 1168)
        >>> conv = FactorizedConv.from_conv(dense, rank=0.5, factorization="tt", input_shape=(8, 8, 32, 32))
        >>> print(conv.report.flops)
        Change(before=9437184, after=2365440)
        """
        return cls._converted(
            [read_conv(conv_layer)], decompose_weights, decomposition_kwargs, calibration, input_shape, measure,
            rank=rank, implementation=implementation, factorization=factorization, fixed_rank_modes=fixed_rank_modes,
            rng=rng, dtype=dtype,
        )  # fmt: skip

    @classmethod
    def from_conv_list(
        cls,
        conv_list: Sequence[Any],
        rank: Any = "same",
        implementation: Any = "auto",
        factorization: str = "CP",
        decompose_weights: bool = True,
        decomposition_kwargs: Mapping[str, Any] | None = None,
        fixed_rank_modes: str | Sequence[int] | None = None,
        *,
        rng: np.random.Generator | None = None,
        dtype: Any = None,
        calibration: Any = None,
        input_shape: Any = None,
        measure: bool = False,
    ) -> Self:
        """Layers with kernels of one shape as a joint layer with one factorization; options as in :meth:`from_conv`.

        calibration, input_shape : one for all layers, or a list with one for each; the report has sums over the layers
        """
        return cls._converted(
            read_convs(conv_list), decompose_weights, decomposition_kwargs, calibration, input_shape, measure,
            rank=rank, implementation=implementation, factorization=factorization, fixed_rank_modes=fixed_rank_modes,
            rng=rng, dtype=dtype,
        )  # fmt: skip

    @classmethod
    def _converted(
        cls, convs: list[DenseConv], decompose: bool, decomposition: Mapping[str, Any] | None, calibration: Any,
        input_shape: Any, measure: bool, **options: Any,
    ) -> Self:  # fmt: skip
        """The factorized layer with its report; ``options`` are those of the constructor."""
        decompose, measure = flag("from_conv", "decompose_weights", decompose), flag("from_conv", "measure", measure)
        decomposition = checked_kwargs("from_conv", decomposition)
        if decomposition and not decompose:
            raise ValueError(
                f"from_conv: decomposition_kwargs={shown(decomposition)} with decompose_weights=False, which "
                "draws the weights; pass only one"
            )
        probes = probes_of(convs, calibration, input_shape, measure)
        layer, fit = layer_of(cls, convs, decompose, decomposition, options)
        if fit is not None:
            warn_lowered("from_conv", options["rank"], fit.asked, layer.rank, stacklevel=3)
        layer.report = conversion_report(convs, layer, fit, probes, measure)
        return layer
