"""Dense convolution layers of any library, read without importing it, and their kernels decomposed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from growarray.backend import Array, asarray, namespace, to_numpy
from growarray.errors import ShapeError
from growarray.factorized.format import Fit
from growarray.factorized.settings import fixed_modes_of, layer_indices
from growarray.factorized.tensor import FactorizedTensor
from growarray.nn.module import Parameter
from growarray.ops.sizes import whole_number

if TYPE_CHECKING:
    from growarray.factorized.layer import FactorizedKernel

Arrays = tuple[Array, ...]
_LayerT = TypeVar("_LayerT", bound="FactorizedKernel")


@dataclass(frozen=True)
class DenseConv:
    """Copies of what a convolution layer holds; the kernel is (out, in / groups, *kernel)."""

    weight: Array
    bias: Array | None
    stride: Any
    padding: Any
    dilation: Any
    groups: int
    padding_mode: str

    @property
    def geometry(self) -> dict[str, Any]:
        """Options as our own convolutions take them."""
        names = ("stride", "padding", "dilation", "groups", "padding_mode")
        return {name: getattr(self, name) for name in names}


def array_of(value: Any) -> Array:
    """A copy of an array or parameter of any library, in its own if growarray uses it, else in NumPy.

    >>> array_of(Parameter(np.ones(2)))
    array([1., 1.])
    """
    if isinstance(value, Parameter):
        value = value.data
    elif hasattr(value, "detach"):  # torch lends no array that requires a gradient, nor one from another device
        value = value.detach()
        value = to_numpy(value.cpu() if hasattr(value, "cpu") else value)
    array = asarray(value)
    return namespace(array).asarray(array, copy=True)


_GEOMETRY = {"stride": 1, "padding": 0, "dilation": 1}  # torch's defaults


def check_finite(where: str, name: str, weight: Array, bias: Array | None) -> None:
    """Raise ValueError if weight or bias of a layer hold a NaN or an infinity."""
    for label, array in (("weight", weight), ("bias", bias)):
        if array is not None and not bool(namespace(array).all(namespace(array).isfinite(array))):
            raise ValueError(f"{where}: {label} of {name} holds a NaN or an infinity; clean the layer first")


def read_conv(layer: Any, where: str = "from_conv") -> DenseConv:
    """Read ``weight``, ``bias``, ``stride``, ``padding``, ``dilation``, ``groups`` and ``padding_mode`` of a layer.

    Everything but the weight may be missing and has torch's default then. ``where`` is what messages begin with.

    Raises TypeError: the layer has no weight, is a transposed convolution, or is factorized already; ShapeError: the
    weight has no spatial axis; ValueError: the weight or the bias holds a NaN or an infinity.

    >>> from growarray import nn
    >>> read_conv(nn.Conv2d(3, 8, 3, stride=(2, 1))).stride
    (2, 1)
    """
    name = type(layer).__name__
    if getattr(layer, "weight", None) is None:
        raise TypeError(f"{where}: {name} has no weight, expected a convolution layer")
    if isinstance(layer.weight, FactorizedTensor):
        raise TypeError(
            f"{where}: {name} is factorized already; FactorizedConv.from_factorization takes its weight, and for "
            "another format decompose its kernel()"
        )
    if getattr(layer, "transposed", False) or name.startswith("ConvTranspose"):
        raise TypeError(f"{where}: {name} is a transposed convolution, which is not supported; give a convolution")
    weight = array_of(layer.weight)
    if weight.ndim < 3:
        raise ShapeError(f"{where}: weight of {name} has shape {tuple(weight.shape)}, expected (out, in, *kernel)")
    bias = None if getattr(layer, "bias", None) is None else array_of(layer.bias)
    check_finite(where, name, weight, bias)
    stride, padding, dilation = (_plain(getattr(layer, key, usual)) for key, usual in _GEOMETRY.items())
    groups = whole_number(where, f"groups of {name}", getattr(layer, "groups", 1), 1)
    return DenseConv(weight, bias, stride, padding, dilation, groups, str(getattr(layer, "padding_mode", "zeros")))


def read_convs(layers: Sequence[Any]) -> list[DenseConv]:
    """Read layers that are to share one factorization; kernels, groups and padding modes must agree."""
    convs = [read_conv(layer, f"from_conv_list: layer {i}") for i, layer in enumerate(listed("from_conv_list", layers))]
    first = convs[0]
    for i, conv in enumerate(convs):
        for quantity, found, expected in (
            ("a kernel of shape", tuple(conv.weight.shape), tuple(first.weight.shape)),
            ("groups", conv.groups, first.groups),
            ("padding_mode", conv.padding_mode, first.padding_mode),
            ("a weight of dtype", numpy_dtype(conv.weight), numpy_dtype(first.weight)),
        ):
            if found != expected:
                raise ShapeError(
                    f"from_conv_list: layer {i} has {quantity} {found}, layer 0 {expected}; layers that share one "
                    "factorization must agree in it"
                )
    return convs


def listed(where: str, layers: Any) -> list[Any]:
    """The layers of a list; raises TypeError if it is not iterable, ValueError if it is empty."""
    if not isinstance(layers, Iterable):
        raise TypeError(f"{where}: expected a list of layers, found {type(layers).__name__}")
    items = list(layers)
    if not items:
        raise ValueError(f"{where}: the list is empty, expected at least one layer")
    return items


def layer_of(
    kind: type[_LayerT], convs: list[DenseConv], decompose: bool, decomposition: Mapping[str, Any],
    options: Mapping[str, Any],
) -> tuple[_LayerT, Fit | None]:  # fmt: skip
    """A factorized layer of these convolutions, in their library; ``options`` are those of its constructor.

    Returns also how the decomposition went, None if the kernel was drawn.
    """
    first, flags = convs[0], [conv.bias is not None for conv in convs]
    out, inner, *taps = first.weight.shape
    dtype = numpy_dtype(first.weight) if options["dtype"] is None else options["dtype"]
    asked = None
    if decompose:
        asked, blank = _blank(convs, options, dtype)
        options = {**options, "factorization": blank, "rank": "same", "fixed_rank_modes": None}
        dtype = None
    make: Any = kind
    layer: _LayerT = make(
        inner * first.groups, out, taps, bias=any(flags), has_bias=flags if len(flags) > 1 else flags[0],
        n_layers=len(convs), groups=first.groups, padding_mode=first.padding_mode, **{**options, "dtype": dtype},
    )  # fmt: skip
    for parameter in layer.parameters():
        parameter.data = asarray(parameter.data, like=first.weight)
    for index, conv in zip(layer_indices(layer.layers_shape), convs, strict=True):
        bias = conv.bias if decompose else None
        layer.set(index, conv.stride, conv.padding, conv.dilation, bias)
    if not decompose:
        return layer, None
    factors = layer.weight.all_factors()
    like = factors[0].data
    dense = asarray(_stacked(convs, layer.weight.format.output_last), like=like, dtype=like.dtype)
    arrays, fit = fitted(type(layer.weight), dense, layer.rank, decomposition)
    for factor, array in zip(factors, arrays, strict=True):
        factor.data = asarray(array, like=like, dtype=like.dtype)
    return layer, fit._replace(asked=asked)


def _blank(convs: Sequence[DenseConv], options: Mapping[str, Any], dtype: Any) -> tuple[Any, FactorizedTensor]:
    """The rank asked for, and factors of zeros of what the kernel can use: those of the first might not fit."""
    kind, fixed = FactorizedTensor.kind(options["factorization"]), options["fixed_rank_modes"]
    shape, axes = tuple(_stacked(convs, kind.format.output_last).shape), convs[0].weight.ndim - 2
    if kind.format.mode_ranks:
        fixed = fixed_modes_of(fixed, len(shape) - axes - 2, axes)
    asked = kind.format.validate_rank(shape, options["rank"], fixed)
    return asked, FactorizedTensor.new(shape, kind.format.usable_rank(shape, asked), kind.name, std=None, dtype=dtype)


def fitted(kind: type[FactorizedTensor], tensor: Array, rank: Any, options: Mapping[str, Any]) -> tuple[Arrays, Fit]:
    """The decomposition of a format; its error is that of the tensor even if what is minimised is a weighted one.

    >>> factors, fit = fitted(FactorizedTensor.kind("cp"), np.ones((4, 3, 2)), 1, {})
    >>> [f.shape for f in factors], fit.error < 1e-12, fit.reason
    ([(1,), (4, 1), (3, 1), (2, 1)], True, 'converged')
    """
    arrays, fit = kind.format.fit(tensor, rank, **options)
    return arrays, fit._replace(error=_distance(kind, arrays, tensor)) if options.get("weighted") else fit


def _distance(kind: type[FactorizedTensor], arrays: Arrays, tensor: Array) -> float:
    """Relative Frobenius error of the factors, measured."""
    xp = namespace(tensor)
    wide = xp.astype(tensor, xp.float64)
    gap = xp.astype(kind.of(arrays).to_tensor(), xp.float64) - wide
    size = float(xp.sum(wide * wide))
    return math.sqrt(float(xp.sum(gap * gap)) / size) if size else 0.0


def numpy_dtype(array: Array) -> np.dtype[Any]:
    """The dtype of an array of any library, as NumPy names it.

    >>> numpy_dtype(np.ones(2))
    dtype('float64')
    """
    return np.dtype(str(array.dtype).rpartition(".")[2])


def _plain(option: Any) -> Any:
    """An option of a layer, one number for each axis, as a tuple."""
    return option if isinstance(option, str) or not isinstance(option, Iterable) else tuple(option)


def _stacked(convs: Sequence[DenseConv], output_last: bool) -> Array:
    """The kernels in the order of modes that a format keeps; several get a leading mode."""
    xp = namespace(*(conv.weight for conv in convs))
    whole = xp.stack([conv.weight for conv in convs]) if len(convs) > 1 else convs[0].weight
    return xp.moveaxis(whole, 1 if len(convs) > 1 else 0, -1) if output_last else whole
