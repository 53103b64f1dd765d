"""A factorized affine map as one contraction, the paths of it that have names, and how a size splits into modes.

n batch · i0, i1, … modes of the input · o0, o1, … of the output; ranks as the formats name them. For two modes each:

    n i0 i1, r, o0 r, o1 r, i0 r, i1 r -> n o0 o1
    n i0 i1, o0 b1, b1 o1 b2, b2 i0 b3, b3 i1 -> n o0 o1
    n i0 i1, o0 i0 b1, b1 o1 i1 -> n o0 o1
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from growarray.contraction import Plan, plan
from growarray.contraction.checks import precision_on
from growarray.contraction.path import PRESETS
from growarray.errors import PlanError, shown
from growarray.factorized.tensor import FactorizedTensor
from growarray.ops.sizes import whole_number

Shapes = tuple[tuple[int, ...], ...]
_Path = tuple[tuple[int, int], ...]
NAMED_WAYS = ("factorized", "reconstructed")


@lru_cache
def linear_equation(name: str, inner: int, outer: int, input_first: bool = False) -> str:
    """The equation of an affine map from ``inner`` modes to ``outer`` modes by a weight of the format of this name.

    input_first : whether the weight has the modes of the input before those of the output

    >>> linear_equation("CP", 2, 1), linear_equation("CP", 1, 1, input_first=True)
    ('n i0 i1, r, o0 r, i0 r, i1 r -> n o0', 'n i0, r, i0 r, o0 r -> n o0')
    """
    rows, columns = [f"o{k}" for k in range(outer)], [f"i{k}" for k in range(inner)]
    terms = FactorizedTensor.kind(name).format.terms([*columns, *rows] if input_first else [*rows, *columns])
    return f"n {' '.join(columns)}, {', '.join(map(' '.join, terms))} -> n {' '.join(rows)}"


def _terms(equation: str) -> tuple[list[list[str]], list[str]]:
    """Modes of the operands, and of the result."""
    left, _, right = equation.partition(" -> ")
    return [term.split() for term in left.split(",")], right.split()


@lru_cache(maxsize=512)
def linear_path(equation: str, way: str, shapes: Shapes) -> _Path:
    """``'factorized'`` or ``'reconstructed'`` as a path of :func:`growarray.contraction.plan`.

    factorized : the input goes through one factor after the other, those of its own modes first, in a chain the last
    reconstructed : the dense weight first, along its cheapest path
    shapes : of the factors, as the equation names their modes

    >>> linear_path("n i0, r, o0 r, i0 r -> n o0", "factorized", ((4,), (3, 4), (2, 4)))
    ((0, 3), (0, 2), (0, 1))
    """
    ((_, *columns), *terms), (_, *rows) = _terms(equation)
    if way == "reconstructed":
        if len(terms) == 1:
            return ((0, 1),)
        weight = f"{', '.join(map(' '.join, terms))} -> {' '.join([*rows, *columns])}"
        pairs = plan(weight, *shapes, minimize="flops").path
        return (*((a + 1, b + 1) for a, b in pairs), (0, 1))

    def turn(factor: int) -> int:
        return 0 if set(terms[factor]) & set(columns) else 2 if set(terms[factor]) & set(rows) else 1

    # The result of a step is appended last, so the input is first at the start and last ever after.
    left = list(range(len(terms)))
    path: list[tuple[int, int]] = []
    for factor in sorted(left, key=lambda factor: (turn(factor), -factor)):
        at = left.index(factor)
        path.append((at, len(left)) if path else (0, at + 1))
        left.pop(at)
    return tuple(path)


@lru_cache(maxsize=512)
def linear_plan(
    equation: str, shapes: Shapes, optimize: Any, training: bool, dtype: str, device: str, precision: str | None = None
) -> Plan:
    """The plan of an equation over ``n`` rows; ``shapes`` are those of all operands, the input first.

    ``'auto'`` searches once for all n up to the next power of two: a search takes a quarter of a second for eight
    operands, and the last batch of a data set has a size of its own.

    Raises PlanError: ``optimize`` cannot be used.
    """
    target: dict[str, Any] = {"dtype": dtype, "device": device, "precision": precision_on(precision, dtype, device)}
    if isinstance(optimize, str) and optimize in PRESETS:
        if optimize not in NAMED_WAYS:
            raise PlanError(f"{shown(optimize)} is for convolutions; expected 'auto', 'factorized' or 'reconstructed'")
        optimize = linear_path(equation, optimize, shapes[1:])
    elif isinstance(optimize, str) and optimize == "auto":
        wide = [
            tuple(1 << max(n - 1, 0).bit_length() if mode == "n" else n for mode, n in zip(term, shape, strict=True))
            for term, shape in zip(_terms(equation)[0], shapes, strict=True)
        ]
        optimize = plan(equation, *wide, training=training, **target).path
    return plan(equation, *shapes, optimize=optimize, training=training, **target)


def tensorize(in_features: int, out_features: int, modes: int = 3) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes of the modes of input and output: as many for both, at most ``modes``, as equal as can be.

    Every mode has at least 2 entries, so a width with few prime factors lowers the number for both; a prime width
    leaves one mode each, and a factorized weight is then an ordinary product of two matrices.

    Raises TypeError, ValueError: a number is not whole, or is below 1.

    Source: the rule of TensorLy-Torch's ``get_tensorized_shape``, which merges prime factors, smallest first, into
    sizes that differ more: (4, 12, 16) for 768, here (8, 8, 12).

    >>> tensorize(784, 512), tensorize(64, 10), tensorize(64, 7)
    (((7, 8, 14), (8, 8, 8)), ((8, 8), (2, 5)), ((64,), (7,)))
    """
    whole_number("tensorize", "n_tensorized_modes", modes, 1)
    for label, features in (("in_features", in_features), ("out_features", out_features)):
        whole_number("tensorize", label, features, 1)
    count = max(1, min(modes, _prime_factors(in_features), _prime_factors(out_features)))
    return split_features(in_features, count), split_features(out_features, count)


@lru_cache
def split_features(features: int, modes: int, least: int = 2) -> tuple[int, ...]:
    """The factors of least sum of a number that has at least ``modes`` prime factors, in ascending order.

    >>> split_features(768, 3), split_features(30, 2)
    ((8, 8, 12), (5, 6))
    """
    if modes == 1:
        return (features,)
    splits: list[tuple[int, ...]] = []
    for first in range(least, int(features ** (1 / modes) + 1e-9) + 1):
        if features % first == 0:
            rest = split_features(features // first, modes - 1, first)
            if rest:
                splits.append((first, *rest))
    return min(splits, key=lambda sizes: (sum(sizes), sizes), default=())


def _prime_factors(number: int) -> int:
    """How many prime factors a number has, with repetition."""
    count, divisor = 0, 2
    while divisor * divisor <= number:
        while number % divisor == 0:
            number, count = number // divisor, count + 1
        divisor += 1
    return count + (number > 1)
