"""A factorized convolution as one contraction.

n batch · g groups · c, o in and out channels of one group · z, y, x positions (x0, x1, … above three axes);
ranks as the formats name them. For CP, Tucker and the tensor train in two dimensions:

    n c y x, r, o r, c r, y r, x r -> n o y x | y, x
    n c y x, r_o r_c r_y r_x, o r_o, c r_c, y r_y, x r_x -> n o y x | y, x
    n c y x, c b1, b1 y b2, b2 x b3, b3 o -> n o y x | y, x

With groups the channels split, ``n g c y x … g o r … -> n g o y x``: the kernel is stored as torch stores it,
(out_channels, in_channels / groups, *kernel), and the factor with the output channels is read as ``g o``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from growarray.backend import Array, namespace
from growarray.contraction import Plan, plan
from growarray.contraction.checks import precision_on
from growarray.errors import ShapeError
from growarray.factorized.format import TensorFormat
from growarray.factorized.settings import ConvSettings
from growarray.factorized.tensor import FactorizedTensor

Shapes = tuple[tuple[int, ...], ...]


@lru_cache
def _positions(order: int) -> tuple[str, ...]:
    return ("z", "y", "x")[3 - order :] if order <= 3 else tuple(f"x{i}" for i in range(order))


def kernel_modes(kind: TensorFormat, order: int) -> tuple[str, ...]:
    """Modes of the kernel of a convolution, in the order in which a format keeps them."""
    lead, last = (("c",), ("o",)) if kind.output_last else (("o", "c"), ())
    return (*lead, *_positions(order), *last)


@lru_cache
def conv_equation(name: str, order: int, grouped: bool) -> str:
    """The equation of a convolution over ``order`` positions whose kernel has the format of this name.

    >>> conv_equation("CP", 1, grouped=True)
    'n g c x, r, g o r, c r, x r -> n g o x | x'
    """
    kind = FactorizedTensor.kind(name).format
    at, g = " ".join(_positions(order)), "g " if grouped else ""
    terms = [[g + mode if mode == "o" else mode for mode in term] for term in kind.terms(kernel_modes(kind, order))]
    factors = ", ".join(" ".join(term) for term in terms)
    return f"n {g}c {at}, {factors} -> n {g}o {at} | {', '.join(_positions(order))}"


@lru_cache(maxsize=512)
def conv_plan(
    name: str, x_shape: tuple[int, ...], factor_shapes: Shapes, groups: int, settings: ConvSettings, optimize: Any,
    training: bool, dtype: str, device: str, precision: str | None = None,
) -> Plan:  # fmt: skip
    """The plan of a convolution of an input of this shape by a kernel with factors of these shapes."""
    order, kind = len(settings.axes), FactorizedTensor.kind(name).format
    shapes = conv_shapes(name, factor_shapes, order, groups)
    whole = zip(conv_shapes(name, factor_shapes, order, 1), kind.terms(kernel_modes(kind, order)), strict=True)
    in_channels = groups * next(sizes[term.index("c")] for sizes, term in whole if "c" in term)
    if len(x_shape) != order + 2 or x_shape[1] != in_channels:
        raise ShapeError(
            f"FactorizedConv: input has shape {x_shape}, expected (n, {in_channels}, and {order} spatial axes); "
            "transduct adds an axis to the kernel"
        )
    lead = x_shape[:2] if groups == 1 else (x_shape[0], groups, x_shape[1] // groups)
    return plan(
        conv_equation(name, order, groups > 1), (*lead, *x_shape[2:]), *shapes,
        optimize=optimize, training=training, dtype=dtype, device=device,
        precision=precision_on(precision, dtype, device), **settings.options,
    )  # fmt: skip


def conv_shapes(name: str, factor_shapes: Shapes, order: int, groups: int) -> Shapes:
    """Shapes of the factors of a kernel as :func:`conv_equation` names their modes."""
    kind = FactorizedTensor.kind(name).format
    terms = kind.terms(kernel_modes(kind, order))
    shapes = []
    for i, (shape, term) in enumerate(zip(factor_shapes, terms, strict=True)):
        sizes = list(kind.operand_shape(shape, i, len(terms)))
        if groups > 1 and "o" in term:
            at = term.index("o")
            sizes[at : at + 1] = [groups, sizes[at] // groups]
        shapes.append(tuple(sizes))
    return tuple(shapes)


def stored_sizes(kind: TensorFormat, sizes: Sequence[int]) -> tuple[int, ...]:
    """The sizes of :func:`kernel_modes` from those of a kernel (out, in, *kernel)."""
    return (*sizes[1:], sizes[0]) if kind.output_last else tuple(sizes)


def kernel_sizes(kind: TensorFormat, shape: Sequence[int]) -> tuple[int, ...]:
    """(out, in, *kernel) from the sizes of :func:`kernel_modes`."""
    return (shape[-1], *shape[:-1]) if kind.output_last else tuple(shape)


def dense_kernel(weight: FactorizedTensor) -> Array:
    """The kernel (out, in, *kernel) that a tensor with the modes of :func:`kernel_modes` stands for."""
    dense = weight.to_tensor()
    return namespace(dense).moveaxis(dense, -1, 0) if weight.format.output_last else dense
