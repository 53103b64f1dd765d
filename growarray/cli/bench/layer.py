"""The layer that ``growarray bench`` measures: a factorized convolution of any order as one equation with shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from growarray.cli.bench.equation import DTYPES, LARGEST, Contraction, numbers
from growarray.cli.options import Option
from growarray.contraction.geometry import PADDING_MODES
from growarray.errors import PlanError, shown
from growarray.factorized.equation import conv_equation, conv_shapes, dense_kernel, stored_sizes
from growarray.factorized.tensor import FactorizedTensor, kinds

FORMATS = tuple(kind.name.lower() for kind in kinds() if kind.format.takes_integers)
HALF = "half"
"""Padding of half the kernel: with stride 1 the output has the size of the input, for an odd kernel."""

_PANEL = "Layer"
LAYER = {
    "format": Option("cp", "of the kernel", _PANEL, choices=FORMATS),
    "in": Option(64, "channels of the input", _PANEL, flag="--in"),
    "out": Option(64, "channels of the output", _PANEL),
    "kernel": Option("3x3", "size of the kernel, any number of axes", _PANEL, takes="SIZES"),
    "size": Option("56x56", "size of the input", _PANEL, takes="SIZES"),
    "batch": Option(8, "inputs at a time", _PANEL),
    "stride": Option(1, "one number, or one for each axis", _PANEL, takes="SIZES"),
    "padding": Option(HALF, "numbers, half (of the kernel), same or valid", _PANEL, takes="SIZES"),
    "padding_mode": Option("zeros", "what is padded with", _PANEL, choices=PADDING_MODES),
    "dilation": Option(1, "one number, or one for each axis", _PANEL, takes="SIZES"),
    "rank": Option(0.1, "28, one a mode such as 16x16x3x3, or 0.1 of the dense parameters", _PANEL, takes="RANK"),
    "dtype": Option("float32", "of the arrays", _PANEL, choices=DTYPES),
}
"""The options of a layer, by the names that a layer file has for them too."""


@dataclass(frozen=True)
class Layer(Contraction):
    """A convolution whose kernel is factorized, and the input it meets; one number for each spatial axis.

    rank : ranks of the format, as :func:`ranks_for` gives them    padding : (before, after) for each axis

    >>> layer_from({"rank": 28}).equation
    'n c y x, r, o r, c r, y r, x r -> n o y x | y, x'
    """

    format: str
    in_channels: int
    out_channels: int
    kernel: tuple[int, ...]
    size: tuple[int, ...]
    batch: int
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    rank: tuple[int, ...]
    dtype: str
    padding_mode: str = "zeros"

    @property
    def order(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel)

    @property
    def equation(self) -> str:
        """The layer as one einsum with convolution modes."""
        return conv_equation(self.kind.name, self.order, False)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the input and of the factors."""
        first = (self.batch, self.in_channels, *self.size)
        return (first, *conv_shapes(self.kind.name, self.factor_shapes, self.order, 1))

    @property
    def kind(self) -> type[FactorizedTensor]:
        """The class of the format."""
        return FactorizedTensor.kind(self.format)

    @property
    def factor_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the factors as a layer holds them."""
        shape = stored_sizes(self.kind.format, (self.out_channels, self.in_channels, *self.kernel))
        return self.kind.format.factor_shapes(shape, self.kind.format.rank_of(self.rank))

    @property
    def geometry(self) -> dict[str, Any]:
        """What :func:`growarray.contraction.plan` wants to know of the convolution modes."""
        names = ("stride", "padding", "dilation", "padding_mode")
        return {name: getattr(self, name) for name in names}

    @property
    def parameters(self) -> int:
        """Numbers in the factors."""
        return sum(math.prod(shape) for shape in self.shapes[1:])

    @property
    def dense_parameters(self) -> int:
        """Numbers in the kernel that they stand for."""
        return math.prod((self.out_channels, self.in_channels, *self.kernel))

    def arrays(self, seed: int) -> list[np.ndarray]:
        """Input and factors, scaled so that the output has entries of about one."""
        rng = np.random.default_rng(seed)
        summed = self.in_channels * math.prod(self.kernel) * math.prod(self.rank)
        scale = float(summed) ** (-0.5 / (len(self.shapes) - 1))
        arrays = [rng.standard_normal(shape, np.dtype(self.dtype)) for shape in self.shapes]
        return [a if i == 0 else a * np.dtype(self.dtype).type(scale) for i, a in enumerate(arrays)]

    def dense_kernel(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """The kernel (out, in, *kernel) that the factors among ``arrays`` stand for."""
        factors = [a.reshape(s) for a, s in zip(arrays[1:], self.factor_shapes, strict=True)]
        return np.asarray(dense_kernel(self.kind.of(factors)))

    def __str__(self) -> str:
        lines = f"{self.in_channels} -> {self.out_channels} channels, kernel {_times(self.kernel)}, {self.format}"
        if self.rank:
            share = self.parameters / self.dense_parameters
            lines += f", rank {_times(self.rank)} ({share:.3g} of the dense parameters)"
        geometry = [f"stride {_times(self.stride)}"] if set(self.stride) != {1} else []
        geometry += [f"dilation {_times(self.dilation)}"] if set(self.dilation) != {1} else []
        geometry += [f"padding mode {self.padding_mode}"] if self.padding_mode != "zeros" else []
        return ", ".join([lines, f"input {_times(self.size)}", f"batch {self.batch}", *geometry, self.dtype])

    def to_dict(self) -> dict[str, Any]:
        """As plain data, in the words of a layer file."""
        return {
            "format": self.format,
            "in": self.in_channels,
            "out": self.out_channels,
            "kernel": list(self.kernel),
            "size": list(self.size),
            "batch": self.batch,
            "stride": list(self.stride),
            "padding": [list(pair) for pair in self.padding],
            "padding_mode": self.padding_mode,
            "dilation": list(self.dilation),
            "rank": list(self.rank),
            "dtype": self.dtype,
        }


def _times(numbers: Sequence[int]) -> str:
    return "x".join(map(str, numbers))


def ranks_for(name: str, out_channels: int, in_channels: int, kernel: Sequence[int], rank: Any) -> tuple[int, ...]:
    """The size of each rank of a format: CP has one, Tucker one a mode (out, in, kernel), a train one a bond.

    rank : a whole number (of every rank, at most what it can use), one number for each, or with a decimal point a
        fraction of the dense parameter count

    >>> ranks_for("cp", 64, 64, (3, 3), 0.1), ranks_for("tt", 64, 64, (3, 3), 0.1)
    ((28,), (26, 2, 26))
    """
    kind = FactorizedTensor.kind(name)
    shape = stored_sizes(kind.format, (out_channels, in_channels, *kernel))
    count = len(kind.format.rank_axes(len(shape)))
    if not count:
        return ()
    if isinstance(rank, float):
        if not 0 < rank < math.inf:
            raise ValueError(f"--rank: expected a fraction above 0 of the dense parameter count, found {rank:g}")
        return kind.format.sizes_of(shape, kind.format.validate_rank(shape, rank))
    ranks = tuple(rank) if isinstance(rank, list | tuple) else (rank,)
    if any(r < 1 for r in ranks):
        raise ValueError(f"--rank: expected whole numbers of at least 1, found {_times(ranks)}")
    if len(ranks) == count:
        return ranks
    if len(ranks) > 1:
        raise ValueError(f"--rank: {name} of this layer has {count} rank(s), found {len(ranks)}: {_times(ranks)}")
    return tuple(min(ranks[0], most) for most in kind.format.sizes_of(shape, kind.format.largest_rank(shape)))


def layer_from(given: Mapping[str, Any]) -> Layer:
    """A layer from options as the command line or a file has them; what is not given has its default.

    ``ValueError`` names the option that cannot be used.

    >>> print(layer_from({"format": "tucker", "in": 8, "out": 4, "size": 12, "rank": "2x3x2x2"}))
    8 -> 4 channels, kernel 3x3, tucker, rank 2x3x2x2 (0.236 of the dense parameters), input 12x12, batch 8, float32
    """
    values = {key: given.get(key, row.default) for key, row in LAYER.items()}
    for key in ("format", "padding_mode", "dtype"):
        LAYER[key].check(key, values[key])
    kernel, size = numbers("kernel", values["kernel"]), numbers("size", values["size"])
    order = max(len(kernel), len(size))
    kernel, size = _spread("kernel", kernel, order), _spread("size", size, order)
    stride, dilation = (_spread(key, numbers(key, values[key]), order) for key in ("stride", "dilation"))
    (c,), (o,), (batch,) = (_spread(key, numbers(key, values[key]), 1) for key in ("in", "out", "batch"))
    padding = _padding(values["padding"], kernel, stride, dilation)
    rank = ranks_for(values["format"], o, c, kernel, _rank(values["rank"]))
    sizes = (c, o, kernel, size, batch, stride, padding, dilation)
    layer = Layer(values["format"], *sizes, rank, values["dtype"], values["padding_mode"])
    if max(math.prod(shape) for shape in (*layer.shapes, (o, c, *kernel))) > LARGEST:
        raise ValueError(f"an array of this layer has more than {LARGEST} elements; make batch, sizes or ranks smaller")
    try:
        layer.plan("reconstructed")
    except PlanError as error:
        raise ValueError(f"this layer cannot be built: {error}") from error
    return layer


def _spread(name: str, numbers: tuple[int, ...], order: int) -> tuple[int, ...]:
    """One number for each axis."""
    if len(numbers) not in (1, order):
        wanted = f"1 or {order} numbers" if order > 1 else "one number"
        raise ValueError(f"--{name}: expected {wanted}, found {len(numbers)}: {_times(numbers)}")
    return numbers * (order // len(numbers))


def _padding(
    value: Any, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    """(before, after) for each axis from a number, one for each axis, pairs, ``half``, ``same`` or ``valid``."""
    spans = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    if value == HALF or (value == "same" and set(stride) == {1}):
        return tuple((span // 2, span - span // 2 if value == "same" else span // 2) for span in spans)
    if value == "same":
        raise ValueError(f"--padding: 'same' needs stride 1, found {_times(stride)}; take '{HALF}' or a number")
    if value == "valid":
        value = 0
    if isinstance(value, list) and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in value):
        pairs = tuple(numbers("padding", pair, 0) for pair in value)
        if len(pairs) == len(kernel):
            return tuple((before, after) for before, after in pairs)
    return tuple((p, p) for p in _spread("padding", numbers("padding", value, 0), len(kernel)))


def _rank(value: Any) -> Any:
    """A fraction if there is a decimal point, else whole numbers."""
    try:
        if isinstance(value, float) or (isinstance(value, str) and "." in value):
            return float(value)
        return numbers("rank", value)
    except ValueError:
        raise ValueError(
            f"--rank: expected whole numbers of at least 1 such as 28 or 16x16x3x3, or with a decimal point a fraction "
            f"such as 0.1, found {shown(value)}"
        ) from None
