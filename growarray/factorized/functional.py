"""Factorized layers as functions of an input and a tensor: ``y, pullback = f(x, weight, …)``.

``weight`` is a :class:`FactorizedTensor` of any format. ``dx = pullback(dy)`` adds to the gradients of its factors, and
of a bias that is a :class:`Parameter`. Names are those of ``tltorch.functional``; one function takes the place of the
several there that do the same for one format each.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from growarray.backend import Array, asarray, target_of
from growarray.contraction.checks import is_whole
from growarray.errors import ShapeError, shown
from growarray.factorized.contracted import planned
from growarray.factorized.conv import FactorizedConv
from growarray.factorized.linear import FactorizedLinear
from growarray.factorized.settings import plain, shape_of
from growarray.factorized.tensor import FactorizedTensor
from growarray.factorized.trl import TRL
from growarray.nn.module import Parameter, Pullback


def convolve(
    x: Array, weight: FactorizedTensor, bias: Array | Parameter | None = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1, implementation: Any = "auto",
) -> tuple[Array, Pullback]:  # fmt: skip
    """A convolution with a factorized kernel, options as :class:`FactorizedConv` takes them; bias (out_channels,).

    >>> import numpy as np
    >>> kernel = FactorizedTensor.new((6, 3, 3, 3), rank=4, rng=np.random.default_rng(0))
    >>> convolve(np.ones((2, 3, 8, 8), dtype=np.float32), kernel, padding=1)[0].shape
    (2, 6, 8, 8)
    """
    layer = FactorizedConv.from_factorization(
        _checked("convolve", weight), implementation, stride=stride, padding=padding, dilation=dilation,
        bias=bias, groups=groups,
    )  # fmt: skip
    return _run("convolve", layer, bias, x)


def factorized_linear(
    x: Array, weight: FactorizedTensor, bias: Array | Parameter | None = None, in_features: int | None = None,
    implementation: Any = "auto",
) -> tuple[Array, Pullback]:  # fmt: skip
    """``x W^T + b`` over the last axis; the modes of ``weight`` are those of the output, then those of the input.

    in_features : by default the size of the last axis of x; where the modes are split follows from it

    >>> import numpy as np
    >>> weight = FactorizedTensor.new((2, 5, 4, 8), rank=3, rng=np.random.default_rng(0))
    >>> factorized_linear(np.ones((7, 32), dtype=np.float32), weight)[0].shape
    (7, 10)
    """
    shape, sizes = shape_of("factorized_linear", x), _checked("factorized_linear", weight).shape
    width = in_features if in_features is not None else shape[-1] if shape else 1
    products = list(accumulate(sizes[::-1], lambda a, b: a * b))[:-1]
    if width not in products:
        raise ShapeError(
            f"factorized_linear: no last modes of {shown(weight)} have the product {width}, the features of the input"
        )
    outer = len(sizes) - 1 - products.index(width)
    layer = FactorizedLinear(
        sizes[outer:], sizes[:outer], bias is not None, factorization=weight, implementation=implementation
    )
    return _run("factorized_linear", layer, bias, x)


def trl(
    x: Array, weight: FactorizedTensor, bias: Array | Parameter | None = None, implementation: Any = "auto"
) -> tuple[Array, Pullback]:
    """The inner product of x (n, *input_shape) and a weight (*input_shape, *output_shape), plus a bias: :class:`TRL`.

    >>> import numpy as np
    >>> weight = FactorizedTensor.new((4, 3, 5), rank=2, factorization="tt", rng=np.random.default_rng(0))
    >>> trl(np.ones((7, 4, 3), dtype=np.float32), weight)[0].shape
    (7, 5)
    """
    count, sizes = len(shape_of("trl", x)) - 1, _checked("trl", weight).shape
    if not 0 < count < len(sizes):
        raise ShapeError(f"trl: the input has {count + 1} axes, expected 2 to {len(sizes)} for a weight {sizes}")
    layer = TRL(sizes[:count], sizes[count:], bias is not None, factorization=weight, implementation=implementation)
    return _run("trl", layer, bias, x)


def tensor_dot(x: Array, weight: FactorizedTensor, modes: Any, batched_modes: Any = ()) -> tuple[Array, Pullback]:
    """A tensor contracted with a factorized one, over pairs of modes; ``tensor_dot_cp``, ``tensor_dot_tucker`` there.

    modes : (modes of x, modes of the weight), which are summed; a number of them: the last of x, the first of weight
    batched_modes : pairs too, which stay
    Returns what is left of x, then what is left of the weight, batched modes in their place in it.

    >>> import numpy as np
    >>> weight = FactorizedTensor.new((4, 3, 5), rank=2, rng=np.random.default_rng(0))
    >>> tensor_dot(np.ones((7, 3, 4), dtype=np.float32), weight, ((2, 1), (0, 1)))[0].shape
    (7, 5)
    """
    shape, sizes = shape_of("tensor_dot", x), _checked("tensor_dot", weight).shape
    summed = _pairs("modes", modes, shape, sizes)
    batched = _pairs("batched_modes", batched_modes, shape, sizes)
    paired = dict([*summed, *batched])
    if len(paired) < len(summed) + len(batched) or len(set(paired.values())) < len(paired):
        raise ValueError(f"tensor_dot: modes={shown(modes)} and batched_modes={shown(batched_modes)} name a mode twice")
    of_x = [f"w{paired[i]}" if i in paired else f"x{i}" for i in range(len(shape))]
    of_weight = [f"w{i}" for i in range(len(sizes))]
    gone = {b for _, b in summed}
    out = [*(m for m in of_x if m[0] == "x"), *(m for i, m in enumerate(of_weight) if i not in gone)]
    factors = ", ".join(map(" ".join, weight.format.terms(of_weight)))
    operands, add = weight._operands_vjp()
    equation = f"{' '.join(of_x)}, {factors} -> {' '.join(out)}"
    todo = planned(equation, tuple(tuple(a.shape) for a in (x, *operands)), *target_of(operands[0]))
    y, back = todo.vjp(x, *operands)

    def pullback(dy: Array) -> Array:
        dx, *gradients = back(dy)
        add(gradients)
        return dx

    return y, pullback


def _checked(where: str, weight: Any) -> FactorizedTensor:
    if not isinstance(weight, FactorizedTensor):
        raise TypeError(f"{where}: weight is a {type(weight).__name__}, expected a FactorizedTensor")
    return weight


def _run(where: str, layer: Any, bias: Any, x: Array) -> tuple[Array, Pullback]:
    """Value and pullback of a layer that holds the weight, with this bias."""
    if bias is not None:
        values = bias if isinstance(bias, Parameter) else Parameter(asarray(bias, like=layer.bias.data))
        if values.shape != layer.bias.shape:
            raise ShapeError(f"{where}: bias has shape {values.shape}, expected {layer.bias.shape}")
        layer.bias = values
    found: tuple[Array, Pullback] = layer.vjp(x)
    return found


def _pairs(option: str, modes: Any, shape: Sequence[int], sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs of a mode of x and one of the weight, of equal size, counted from the first."""
    modes = plain(modes)
    if is_whole(modes):
        modes = (range(-int(modes), 0), range(int(modes)))
    sides = [[side] if is_whole(side) else list(side) for side in modes] or [[], []]
    if len(sides) != 2 or len(sides[0]) != len(sides[1]):
        raise ValueError(f"tensor_dot: {option}={shown(modes)}, expected (modes of x, as many modes of the weight)")
    pairs = []
    for a, b in zip(*sides, strict=True):
        if not (-len(shape) <= a < len(shape) and -len(sizes) <= b < len(sizes)) or shape[a] != sizes[b]:
            raise ShapeError(f"tensor_dot: {option} pairs mode {a} of {tuple(shape)} with mode {b} of {tuple(sizes)}")
        pairs.append((a % len(shape), b % len(sizes)))
    return pairs
