"""Slow, direct references for contractions with convolution modes, and the expressions of factorized layers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from growarray.contraction.equation import parse

__all__ = ["Layer", "axes_of", "cp", "direct", "random_arrays", "reconstructed", "tensor_train", "tucker"]

NUMPY_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
SPATIAL = "uvwzyx"


class Layer(NamedTuple):
    """A factorized convolution: its equation, the shapes of its operands, and that of the kernel it stands for."""

    equation: str
    shapes: tuple[tuple[int, ...], ...]
    kernel: str
    dense: str


def axes_of(order: int) -> list[str]:
    """Names of the spatial modes of a convolution of this order."""
    return list(SPATIAL[-order:])


def random_arrays(shapes: Sequence[Sequence[int]], seed: int = 0, dtype: Any = np.float64) -> list[np.ndarray]:
    """Read-only operands."""
    rng = np.random.default_rng(seed)
    arrays = [np.asarray(rng.standard_normal(tuple(shape)), dtype) for shape in shapes]
    for array in arrays:
        array.setflags(write=False)
    return arrays


def _padded(x: np.ndarray, places: Mapping[int, tuple[tuple[int, int], str]]) -> np.ndarray:
    for axis, (pair, mode) in places.items():
        widths = [(0, 0)] * x.ndim
        widths[axis] = pair
        x = np.pad(x, widths, NUMPY_MODES[mode])
    return x


def direct(equation: str, arrays: Sequence[np.ndarray], options: Mapping[str, Sequence[Any]]) -> np.ndarray:
    """The result by loops over all output and kernel positions of the convolution modes, and an einsum inside.

    options : stride, padding (pairs), dilation and padding_mode, one value for each convolution mode
    """
    parsed = parse(equation)
    convolved = parsed.convolved
    holders = {name: [i for i, term in enumerate(parsed.terms) if name in term] for name in convolved}
    arrays = [np.asarray(a) for a in arrays]
    for name, pair, mode in zip(convolved, options["padding"], options["padding_mode"], strict=True):
        i = holders[name][0]
        arrays[i] = _padded(arrays[i], {parsed.terms[i].index(name): (pair, mode)})
    taps = [arrays[holders[m][1]].shape[parsed.terms[holders[m][1]].index(m)] for m in convolved]
    sizes = [arrays[holders[m][0]].shape[parsed.terms[holders[m][0]].index(m)] for m in convolved]
    steps = list(zip(options["stride"], options["dilation"], strict=True))
    outs = [(n - d * (k - 1) - 1) // s + 1 for n, k, (s, d) in zip(sizes, taps, steps, strict=True)]
    names = sorted({m for term in parsed.terms for m in term})
    code = {m: k for k, m in enumerate(names)}
    rest = [code[m] for m in parsed.output if m not in convolved]
    total: dict[tuple[int, ...], np.ndarray] = {}
    for q in itertools.product(*map(range, outs)):
        for t in itertools.product(*map(range, taps)):
            place = {m: (q_ * s + t_ * d, t_) for m, q_, t_, (s, d) in zip(convolved, q, t, steps, strict=True)}
            operands: list[Any] = []
            for i, (term, array) in enumerate(zip(parsed.terms, arrays, strict=True)):
                index = tuple(place[m][i != holders[m][0]] if m in place else slice(None) for m in term)
                operands += [array[index], [code[m] for m in term if m not in place]]
            part = np.einsum(*operands, rest)
            total[q] = total[q] + part if q in total else part
    size = {m: n for term, a in zip(parsed.terms, arrays, strict=True) for m, n in zip(term, a.shape, strict=True)}
    sample = [size[m] for m in parsed.output if m not in convolved]
    result = np.zeros((*outs, *sample))
    for q, value in total.items():
        result[q] = value
    order = [*convolved, *(m for m in parsed.output if m not in convolved)]
    return result.transpose([order.index(m) for m in parsed.output])


def _layer(
    batch: int,
    channels: tuple[int, int],
    sizes: Sequence[int],
    taps: Sequence[int],
    factors: Mapping[str, tuple[int, ...]],
) -> Layer:
    """A layer from its factors: ``factors`` maps a term without blanks inside names to a shape."""
    spatial = " ".join(axes_of(len(sizes)))
    terms, shapes = list(factors), list(factors.values())
    equation = f"n c {spatial}, {', '.join(terms)} -> n o {spatial} | {', '.join(spatial.split())}"
    kernel = f"{', '.join(terms)} -> o c {spatial}"
    dense = f"n c {spatial}, o c {spatial} -> n o {spatial} | {', '.join(spatial.split())}"
    return Layer(equation, ((batch, channels[0], *sizes), *shapes), kernel, dense)


def cp(
    batch: int, channels: tuple[int, int], sizes: Sequence[int], taps: Sequence[int], rank: int, weights: bool = True
) -> Layer:
    """CP: weights (r), factors (out, r), (in, r), (k_i, r)."""
    factors: dict[str, tuple[int, ...]] = {"r": (rank,)} if weights else {}
    factors |= {"o r": (channels[1], rank), "c r": (channels[0], rank)}
    factors |= {f"{name} r": (k, rank) for name, k in zip(axes_of(len(taps)), taps, strict=True)}
    return _layer(batch, channels, sizes, taps, factors)


def tucker(
    batch: int, channels: tuple[int, int], sizes: Sequence[int], taps: Sequence[int], ranks: Sequence[int]
) -> Layer:
    """Tucker: a core of all ranks (out, in, k_1 ...), and one factor a mode."""
    names = axes_of(len(taps))
    factors: dict[str, tuple[int, ...]] = {f"ro rc {' '.join('r' + m for m in names)}": tuple(ranks)}
    factors |= {"o ro": (channels[1], ranks[0]), "c rc": (channels[0], ranks[1])}
    factors |= {f"{m} r{m}": (k, r) for m, k, r in zip(names, taps, ranks[2:], strict=True)}
    return _layer(batch, channels, sizes, taps, factors)


def tensor_train(
    batch: int, channels: tuple[int, int], sizes: Sequence[int], taps: Sequence[int], ranks: Sequence[int]
) -> Layer:
    """TT: cores (1, in, r_1), (r_1, k_1, r_2) ... (r, out, 1), with the output channel last."""
    names = ["c", *axes_of(len(taps)), "o"]
    sizes_of = [channels[0], *taps, channels[1]]
    ends = [1, *ranks, 1]
    factors = {
        f"t{i} {m} t{i + 1}": (ends[i], k, ends[i + 1]) for i, (m, k) in enumerate(zip(names, sizes_of, strict=True))
    }
    return _layer(batch, channels, sizes, taps, factors)


def reconstructed(layer: Layer, factors: Sequence[np.ndarray]) -> np.ndarray:
    """The dense kernel (out, in, k_1 ...) that the factors stand for."""
    parsed = parse(layer.kernel)
    names = sorted({m for term in parsed.terms for m in term})
    operands: list[Any] = []
    for term, array in zip(parsed.terms, factors, strict=True):
        operands += [array, [names.index(m) for m in term]]
    return np.asarray(np.einsum(*operands, [names.index(m) for m in parsed.output]))
