"""Arguments of :func:`growarray.compress`, checked before any work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from growarray.backend import Array, asarray, namespace
from growarray.compression.candidates import MATRIX
from growarray.compression.targets import Target, find_targets, left_alone
from growarray.contraction.checks import is_whole
from growarray.decompose.arguments import check_sizes, is_real
from growarray.errors import ShapeError, shown
from growarray.factorized.parameters import real_array
from growarray.factorized.tensor import FactorizedTensor, kinds
from growarray.nn.module import Module

_MEASURES = ("parameters", "flops", "time")
_SHOWN = 5  # layers that an error tells of


def check_arguments(
    network: Any, budget: Any, by: str, formats: Sequence[str], measure: bool, input_shape: Any, calibration: Any
) -> list[str]:
    """Check the arguments that need no work; returns the names of the formats."""
    if not isinstance(network, Module):
        raise TypeError(f"compress: expected a Module, found {type(network).__name__}")
    if by not in _MEASURES:
        raise ValueError(f"compress: by={shown(by)}, expected one of {', '.join(_MEASURES)}")
    if input_shape is None and calibration is None and (measure or by != "parameters"):
        what = "measure=True" if by == "parameters" else f"by={shown(by)}"
        raise ValueError(f"compress: {what} needs an input; pass input_shape=(n, …) or calibration=")
    share = is_real(budget) and not is_whole(budget)
    if not (is_whole(budget) and budget > 0) and not (share and 0.0 < budget <= 1.0):
        raise ValueError(
            f"compress: budget={shown(budget)}, expected a float in (0, 1], a fraction of the dense cost, or a "
            "positive int, the cost itself"
        )
    for option, value in (("input_shape", input_shape), ("calibration", calibration)):
        if isinstance(value, Mapping) and not hasattr(network, "run"):
            raise TypeError(
                f"compress: {option} is a mapping, and {type(network).__name__} has no named inputs; pass the value "
                "for its only input"
            )
    those = [formats] if isinstance(formats, str) or not isinstance(formats, Iterable) else formats
    names = [FactorizedTensor.kind(name).name for name in those]
    known = [kind.name for kind in kinds() if kind.format.decomposition is not None]
    if not names or not set(names) <= set(known):
        raise ValueError(f"compress: formats={shown(list(formats))}, expected some of {', '.join(known)}")
    return list(dict.fromkeys(names))


def check_options(decomposition: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """Options of the decompositions by name of the format; that of linear layers is always allowed."""
    if not isinstance(decomposition, Mapping):
        raise TypeError(
            f"compress: decomposition={shown(decomposition)}, expected a mapping from formats to their options"
        )
    options = {FactorizedTensor.kind(name).name: value for name, value in decomposition.items()}
    for name, value in options.items():
        if name not in (*names, MATRIX.name):
            raise ValueError(f"compress: decomposition has options for {name}, formats are {', '.join(names)}")
        if not isinstance(value, Mapping):
            raise TypeError(f"compress: decomposition for {name} is {shown(value)}, expected a mapping of its options")
        FactorizedTensor.kind(name).format.fit_options(value)
    return options


def chosen_targets(network: Module, keep: Any) -> tuple[list[Target], tuple[str, ...]]:
    """The layers that may be replaced, and the names of those to keep dense."""
    names, found = _names(keep), find_targets(network)
    known = [target.name for target in found]
    unknown = sorted({*names} - {*known})
    if unknown:
        raise ValueError(f"compress: keep names no layer {', '.join(unknown)}, expected some of {', '.join(known)}")
    kept = [target for target in found if target.name not in names]
    if not kept:
        left = [f"{name}: {why}" for name, why in left_alone(network, [], names).items()]
        raise ValueError(
            "compress: the network has no convolution or linear layer that may be replaced"
            + "".join(f"; {line}" for line in [*left[:_SHOWN], *(["…"] if len(left) > _SHOWN else [])])
        )
    return kept, names


def _names(keep: Any) -> tuple[str, ...]:
    """The names of layers to keep dense."""
    names = (keep,) if isinstance(keep, str) else tuple(keep) if isinstance(keep, Iterable) else (None,)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"compress: keep={shown(keep)}, expected the name of a layer, or a list of names")
    return names


def check_inputs(like: Array, input_shape: Any, calibration: Any) -> tuple[Any, Any]:
    """An input of the shape for which costs are counted, and the calibration data, in the network's library."""
    data, sample = None, None
    if calibration is not None:
        data = _each(calibration, lambda name, x: _finite(name, real_array(f"compress: calibration{name}", x, like)))
        sample = _each(data, lambda _, x: x[:1, ...])
    if input_shape is not None:
        draw = np.random.default_rng(0).standard_normal
        shapes = _each(input_shape, lambda name, shape: check_sizes(shape, f"compress: input_shape{name}"))
        sample = _each(shapes, lambda _, shape: asarray(draw(shape), like=like, dtype=like.dtype))
    return sample, data


def _each(value: Any, function: Any) -> Any:
    """Apply a function to the one input, or to each of several by name."""
    if isinstance(value, Mapping):
        return {name: function(f" {shown(name)}", item) for name, item in value.items()}
    return function("", value)


def _finite(name: str, x: Array) -> Array:
    xp = namespace(x)
    if x.ndim < 2 or x.shape[0] < 1:
        raise ShapeError(
            f"compress: calibration{name} has shape {tuple(x.shape)}, expected (n, …) with at least one sample"
        )
    if not bool(xp.all(xp.isfinite(x))):
        raise ValueError(f"compress: calibration{name} holds a NaN or an infinity; remove those samples")
    return x
