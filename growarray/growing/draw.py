"""New neurons with random values, and their pairing.

Weights are (out, in, *kernel) of any order, so that linear layers and convolutions share all of it; the fan-in is
``in * prod(kernel)``. Functions that take a module are methods of every growing layer, under the original's names.

Source of pairing: Wu et al. 2020.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from growarray.backend import Array, asarray, namespace
from growarray.contraction.checks import is_whole
from growarray.errors import ShapeError, shown
from growarray.growing.change import like
from growarray.growing.checks import as_scalar
from growarray.growing.layer import GrowingModule, layer_before
from growarray.growing.scale import fan_in, rescaling_factors, std

PAIRINGS = ("vv_z_negz",)
Draw = Callable[[tuple[int, ...], "Array | None", int, np.random.Generator], np.ndarray]


def _uniform(shape: tuple[int, ...], deviation: float, rng: np.random.Generator) -> np.ndarray:
    bound = math.sqrt(3.0) * deviation
    return rng.uniform(-bound, bound, shape)


def _normal(shape: tuple[int, ...], deviation: float, rng: np.random.Generator) -> np.ndarray:
    return rng.normal(0.0, deviation, shape)


def _drawn(distribution: Callable[[tuple[int, ...], float, np.random.Generator], np.ndarray], *, copies: bool) -> Draw:
    def draw(shape: tuple[int, ...], reference: Array | None, inputs: int, rng: np.random.Generator) -> np.ndarray:
        kaiming = math.sqrt(2.0 / max(inputs, 1))
        return distribution(shape, (copies and std(reference)) or kaiming, rng)

    return draw


INITIALISATIONS: dict[str, Draw] = {
    "copy_uniform": _drawn(_uniform, copies=True),
    "copy_normal": _drawn(_normal, copies=True),
    "kaiming": _drawn(_uniform, copies=False),
    "kaiming_normal": _drawn(_normal, copies=False),
    "zeros": lambda shape, reference, inputs, rng: np.zeros(shape),
}
"""By name: draw values for an extension from its shape, the weights it extends, and the fan-in after extension.

``copy_*`` take over the standard deviation of what exists (Kaiming's if there is none to copy), ``kaiming*`` use
``sqrt(2 / fan_in)``. A callable of the same signature may be used in place of a name."""


def drawing(how: str | Draw) -> Draw:
    """The function of this name, or the function itself; ValueError if the name is unknown, TypeError otherwise."""
    names = ", ".join(INITIALISATIONS)
    if isinstance(how, str) and how not in INITIALISATIONS:
        raise ValueError(f"unknown initialisation {shown(how)}; known: {names}")
    if not isinstance(how, str) and not callable(how):
        raise TypeError(f"initialisation: expected a function or one of {names}, found {shown(how)}")
    return INITIALISATIONS[how] if isinstance(how, str) else how


def initial_values(
    how: str | Draw, shape: tuple[int, ...], reference: Array, inputs: int, rng: np.random.Generator
) -> Array:
    """Values of ``shape`` by ``how``, in the library, device and dtype of ``reference``; ValueError if unknown.

    Raises ShapeError if a function of one's own draws another shape.
    """
    values = asarray(drawing(how)(shape, reference, inputs, rng), like=reference, dtype=reference.dtype)
    if tuple(values.shape) != tuple(shape):
        raise ShapeError(f"initialisation {shown(how)}: expected values of shape {shape}, found {tuple(values.shape)}")
    return values


def paired(values: Array, axis: int, sign: float) -> Array:
    """First half along ``axis``, then the same times ``sign``: (V, V) for +1, (Z, -Z) for -1.

    >>> import numpy as np
    >>> paired(np.array([[1.0, 2.0, 9.0, 9.0]]), 1, -1.0).tolist()
    [[1.0, 2.0, -1.0, -2.0]]
    """
    size = values.shape[axis]
    if size % 2:
        raise ValueError(f"neuron pairing needs an even number of neurons, found {size}")
    half = values[: size // 2, ...] if axis == 0 else values[:, : size // 2, ...]
    return namespace(values).concat([half, sign * half], axis=axis)


def check_drawing(
    name: str,
    pairing: str | None,
    *sizes: int,
    inits: tuple[str | Draw, ...] = (),
    noise_ratio: float = 0.0,
    rng: np.random.Generator | None = None,
) -> None:
    """Check the options of drawn extensions before anything changes."""
    for how in inits:
        drawing(how)
    if as_scalar(noise_ratio, f"{name}: noise_ratio") < 0.0:
        raise ValueError(f"{name}: noise_ratio must not be negative, found {noise_ratio}")
    if rng is not None and not isinstance(rng, np.random.Generator):
        raise TypeError(f"{name}: rng is {shown(rng)}, expected a generator such as numpy.random.default_rng(0)")
    if pairing is not None and pairing not in PAIRINGS:
        raise ValueError(f"{name}: unknown neuron pairing {shown(pairing)}; known: {', '.join(PAIRINGS)}")
    for size in sizes:
        if not is_whole(size):
            raise TypeError(f"{name}: extension sizes must be whole numbers, found {shown(size)}")
        if size < 0:
            raise ValueError(f"{name}: extension sizes must not be negative, found {size}")
        if pairing is not None and size % 2:
            raise ValueError(f"{name}: neuron pairing needs an even number of neurons, found {size}")


def zero_columns(module: GrowingModule, extension_size: int) -> None:
    """Plan ``extension_size`` input columns of zeros."""
    check_drawing(module.name, None, extension_size)
    weight = module.weight.data
    shape = (weight.shape[0], extension_size, *weight.shape[2:])
    zeros = namespace(weight).zeros(shape, dtype=weight.dtype, device=weight.device)
    module.update = module.update.with_input(like(module.layer, zeros))


def zero_rows(module: GrowingModule, extension_size: int) -> None:
    """Plan ``extension_size`` output rows of zeros."""
    check_drawing(module.name, None, extension_size)
    weight = module.weight.data
    xp = namespace(weight)
    rows = xp.zeros((extension_size, *weight.shape[1:]), dtype=weight.dtype, device=weight.device)
    bias = xp.zeros((extension_size,), dtype=weight.dtype, device=weight.device) if module.use_bias else None
    module.extended_output_layer = like(module.layer, rows, bias)


def allocate_extensions(
    module: GrowingModule,
    extension_size: int,
    output_extension_size: int | None = None,
    input_extension_size: int | None = None,
) -> None:
    """Plan extensions of zeros: of this layer's input and of the previous layer's output."""
    previous = layer_before(module, "allocate_layer_extensions")
    outputs = extension_size if output_extension_size is None else output_extension_size
    inputs = extension_size if input_extension_size is None else input_extension_size
    check_drawing(module.name, None, outputs, inputs)
    zero_columns(module, inputs)
    zero_rows(previous, outputs)


def _extensions(module: GrowingModule, action: str) -> tuple[GrowingModule, Any, Any]:
    """The layer before, its output extension, and the input extension of ``module``."""
    previous, inner = layer_before(module, action), module.update.input_extension
    if previous.extended_output_layer is None:
        raise RuntimeError(f"{module.name}: {action} needs the previous module's output extension; allocate it first")
    if inner is None:
        raise RuntimeError(f"{module.name}: {action} needs an input extension; call allocate_layer_extensions first")
    return previous, previous.extended_output_layer, inner


def initialise_extensions(
    module: GrowingModule,
    output_extension_init: str | Draw = "copy_uniform",
    input_extension_init: str | Draw = "copy_uniform",
    neuron_pairing: str | None = None,
    noise_ratio: float = 0.001,
    *,
    rng: np.random.Generator | None = None,
) -> None:
    """Draw the values of extensions that exist; with pairing the first half, and the second from it."""
    previous, outer, inner = _extensions(module, "initialize_extensions")
    sizes, inits = (inner.weight.shape[1], outer.weight.shape[0]), (output_extension_init, input_extension_init)
    check_drawing(module.name, neuron_pairing, *sizes, inits=inits, noise_ratio=noise_ratio, rng=rng)
    rng = np.random.default_rng() if rng is None else rng
    share = 2 if neuron_pairing else 1

    def drawn(how: str | Draw, shape: tuple[int, ...], axis: int, reference: Array, inputs: int) -> Array:
        part = tuple(n // share if i == axis else n for i, n in enumerate(shape))
        values = initial_values(how, part, reference, inputs, rng)
        return (
            values
            if share == 1
            else namespace(values).concat([values, namespace(values).zeros_like(values)], axis=axis)
        )

    weight, before = module.weight.data, previous.weight.data
    columns = drawn(input_extension_init, inner.weight.shape, 1, weight, fan_in(weight) + fan_in(inner.weight.data))
    rows, bias = drawn(output_extension_init, outer.weight.shape, 0, before, fan_in(before)), None
    if outer.bias is not None and previous.bias is not None:
        bias = drawn(output_extension_init, outer.bias.shape, 0, previous.bias.data, fan_in(before))
    module.update = module.update.with_input(like(inner, columns))
    previous.extended_output_layer = like(outer, rows, bias)
    pair_neurons(module, neuron_pairing, noise_ratio, rng=rng)


def draw_extensions(
    module: GrowingModule,
    extension_size: int,
    output_extension_size: int | None = None,
    input_extension_size: int | None = None,
    output_extension_init: str | Draw = "copy_uniform",
    input_extension_init: str | Draw = "copy_uniform",
    neuron_pairing: str | None = None,
    rescaling: str | None = None,
    noise_ratio: float = 0.001,
    *,
    rng: np.random.Generator | None = None,
) -> None:
    """Rescale what exists, plan extensions, draw their values, pair them; in this order.

    Sizes are final ones, pairing included, and must be even with it.
    """
    inner = extension_size if input_extension_size is None else input_extension_size
    outer = extension_size if output_extension_size is None else output_extension_size
    inits = (output_extension_init, input_extension_init)
    check_drawing(module.name, neuron_pairing, inner, outer, inits=inits, noise_ratio=noise_ratio, rng=rng)
    apply_rescaling(module, rescaling, neuron_pairing, inner)
    allocate_extensions(module, extension_size, output_extension_size, input_extension_size)
    initialise_extensions(module, output_extension_init, input_extension_init, neuron_pairing, noise_ratio, rng=rng)


def apply_rescaling(
    module: GrowingModule,
    rescaling: str | None = None,
    neuron_pairing: str | None = None,
    extension_size: int | None = None,
) -> None:
    """Rescale existing weights so that variances have their target values after extension; batch norms follow.

    ``extension_size`` defaults to that of the planned input extension. See
    :func:`growarray.growing.scale.rescaling_factors`.
    """
    planned, weight = module.update.input_extension, module.weight.data
    size = (0 if planned is None else planned.weight.shape[1]) if extension_size is None else extension_size
    check_drawing(module.name, neuron_pairing, size)
    if rescaling is None:
        return
    previous = layer_before(module, "apply_rescaling")
    kernel = fan_in(weight) // weight.shape[1] if weight.shape[1] else 1
    factors = rescaling_factors(rescaling, previous.weight.data, weight, size * kernel)
    for layer, factor in zip((previous, module), factors, strict=True) if weight.shape[1] else ():
        if factor != 1.0:
            for parameter in layer.layer.parameters():
                parameter.data = parameter.data * factor
            layer.post_layer_function.rescale(factor)


def pair_neurons(
    module: GrowingModule,
    neuron_pairing: str | None = None,
    noise_ratio: float = 0.001,
    *,
    rng: np.random.Generator | None = None,
) -> None:
    """Second half from the first: (V, V) coming in, (Z, -Z) going out, so that the function is unchanged.

    Noise of ``noise_ratio`` times the deviation of the outgoing weights then breaks the symmetry; it is drawn
    once and added to one half, taken from the other, so that the pair's sum has ``sqrt(2) noise_ratio``.
    """
    if neuron_pairing is None:
        return
    previous, outer, inner = _extensions(module, "apply_neuron_pairing")
    sizes = (outer.weight.shape[0], inner.weight.shape[1])
    check_drawing(module.name, neuron_pairing, *sizes, noise_ratio=noise_ratio, rng=rng)
    bias = None if outer.bias is None else paired(outer.bias.data, 0, 1.0)
    previous.extended_output_layer = like(outer, paired(outer.weight.data, 0, 1.0), bias)
    weight = paired(inner.weight.data, 1, -1.0)
    if noise_ratio > 0:
        rng = np.random.default_rng() if rng is None else rng
        noise = rng.standard_normal(tuple(weight.shape)) * noise_ratio * std(weight)
        weight = weight + asarray(noise, like=weight, dtype=weight.dtype)
    module.update = module.update.with_input(like(inner, weight))
