"""Extensions that are drawn instead of computed, and normalisation of planned changes, for growing layers."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from growarray.backend import asarray, namespace
from growarray.contraction.checks import is_whole
from growarray.errors import GrowthError, shown
from growarray.growing.checks import as_scalar
from growarray.growing.extension import (
    PAIRINGS,
    Draw,
    drawing,
    fan_in,
    gradmax_column_factors,
    initial_values,
    normalisation_scales,
    paired,
    rescaling_factors,
    spread,
)
from growarray.growing.module import GrowingModule
from growarray.nn import Linear
from growarray.ops.sizes import whole_number

__all__ = ["ExtensionMixin"]


class ExtensionMixin(GrowingModule):
    """Drawn extensions, rescaling, pairing and normalisation: the same for every kind of layer."""

    previous_module: Any

    def _layers(self, action: str) -> GrowingModule:
        previous = self.previous_module
        if previous is None or not hasattr(previous, "layer"):
            raise GrowthError(f"{self.name}: {action} needs a growing layer before it, found {shown(previous)}")
        return previous  # type: ignore[no-any-return]

    def _input_extension(self, action: str) -> Linear:
        if self.extended_input_layer is None:
            raise RuntimeError(f"{self.name}: {action} needs an input extension; call allocate_layer_extensions first")
        return self.extended_input_layer

    def _output_extension(self, action: str) -> Linear:
        extension = self._layers(action).extended_output_layer
        if extension is None:
            raise RuntimeError(f"{self.name}: {action} needs the previous module's output extension; allocate it first")
        return extension

    def allocate_layer_extensions(
        self,
        extension_size: int,
        output_extension_size: int | None = None,
        input_extension_size: int | None = None,
    ) -> None:
        """Plan extensions of zeros: of this layer's input and of the previous layer's output."""
        previous = self._layers("allocate_layer_extensions")
        outputs = extension_size if output_extension_size is None else output_extension_size
        inputs = extension_size if input_extension_size is None else input_extension_size
        self._check_drawing(None, outputs, inputs)
        self.create_layer_in_extension(inputs)
        previous.create_layer_out_extension(outputs)

    def create_layer_in_extension(self, extension_size: int) -> None:
        """Plan ``extension_size`` input columns of zeros."""
        self._check_drawing(None, extension_size)
        weight = self.layer.weight.data
        shape = (weight.shape[0], extension_size, *weight.shape[2:])
        zeros = namespace(weight).zeros(shape, dtype=weight.dtype, device=weight.device)
        self._hold_input_extension(Linear.of(zeros))

    def create_layer_out_extension(self, extension_size: int) -> None:
        """Plan ``extension_size`` output rows of zeros."""
        self._check_drawing(None, extension_size)
        weight = self.layer.weight.data
        xp = namespace(weight)
        rows = xp.zeros((extension_size, *weight.shape[1:]), dtype=weight.dtype, device=weight.device)
        bias = xp.zeros((extension_size,), dtype=weight.dtype, device=weight.device) if self.use_bias else None
        self.extended_output_layer = Linear.of(rows, bias)

    def initialize_extensions(
        self,
        output_extension_init: str | Draw = "copy_uniform",
        input_extension_init: str | Draw = "copy_uniform",
        neuron_pairing: str | None = None,
        noise_ratio: float = 0.001,
        *,
        rng: np.random.Generator | None = None,
    ) -> None:
        """Draw the values of extensions that exist; with pairing the first half, and the second from it."""
        previous, inner = self._layers("initialize_extensions"), self._input_extension("initialize_extensions")
        outer = self._output_extension("initialize_extensions")
        sizes, inits = (inner.weight.shape[1], outer.weight.shape[0]), (output_extension_init, input_extension_init)
        self._check_drawing(neuron_pairing, *sizes, inits=inits, noise_ratio=noise_ratio, rng=rng)
        rng = np.random.default_rng() if rng is None else rng
        share = 2 if neuron_pairing else 1
        inputs, reads = fan_in(self.weight.data) + fan_in(inner.weight.data), fan_in(previous.weight.data)
        shape = inner.weight.shape
        drawn = [
            (inner.weight, 1, (shape[0], shape[1] // share, *shape[2:]), self.weight.data, inputs, input_extension_init)
        ]
        shape = outer.weight.shape
        half = shape[0] // share
        drawn += [(outer.weight, 0, (half, *shape[1:]), previous.weight.data, reads, output_extension_init)]
        if outer.bias is not None and previous.bias is not None:
            drawn += [(outer.bias, 0, (half,), previous.bias.data, reads, output_extension_init)]
        found = [initial_values(how, part, reference, count, rng) for *_, part, reference, count, how in drawn]
        self._hold_input_extension(inner)
        for (parameter, axis, *_), values in zip(drawn, found, strict=True):
            xp = namespace(values)
            parameter.data = values if share == 1 else xp.concat([values, xp.zeros_like(values)], axis=axis)
        self.apply_neuron_pairing(neuron_pairing, noise_ratio, rng=rng)

    def create_layer_extensions(
        self,
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
        self._check_drawing(neuron_pairing, inner, outer, inits=inits, noise_ratio=noise_ratio, rng=rng)
        self.apply_rescaling(rescaling, neuron_pairing, inner)
        self.allocate_layer_extensions(extension_size, output_extension_size, input_extension_size)
        self.initialize_extensions(output_extension_init, input_extension_init, neuron_pairing, noise_ratio, rng=rng)

    def _check_drawing(
        self,
        pairing: str | None,
        *sizes: int,
        inits: tuple[str | Draw, ...] = (),
        noise_ratio: float = 0.0,
        rng: np.random.Generator | None = None,
    ) -> None:
        """Raise, before anything changes, what is wrong with the options of extensions that are drawn."""
        for how in inits:
            drawing(how)
        if as_scalar(noise_ratio, f"{self.name}: noise_ratio") < 0.0:
            raise ValueError(f"{self.name}: noise_ratio must not be negative, found {noise_ratio}")
        if rng is not None and not isinstance(rng, np.random.Generator):
            raise TypeError(
                f"{self.name}: rng is {shown(rng)}, expected a generator such as numpy.random.default_rng(0)"
            )
        if pairing is not None and pairing not in PAIRINGS:
            raise ValueError(f"{self.name}: unknown neuron pairing {shown(pairing)}; known: {', '.join(PAIRINGS)}")
        for size in sizes:
            if not is_whole(size):
                raise TypeError(f"{self.name}: extension sizes must be whole numbers, found {shown(size)}")
            if size < 0:
                raise ValueError(f"{self.name}: extension sizes must not be negative, found {size}")
            if pairing is not None and size % 2:
                raise ValueError(f"{self.name}: neuron pairing needs an even extension, found {size} neurons")

    def apply_rescaling(
        self, rescaling: str | None = None, neuron_pairing: str | None = None, extension_size: int | None = None
    ) -> None:
        """Rescale existing weights so that variances are as wanted after extension; batch norms follow.

        ``extension_size`` defaults to that of the planned input extension. See
        :func:`growarray.growing.extension.rescaling_factors`.
        """
        size = self.new_neurons if extension_size is None else extension_size
        self._check_drawing(neuron_pairing, size)
        if rescaling is None:
            return
        previous, weight = self._layers("apply_rescaling"), self.layer.weight.data
        kernel = fan_in(weight) // weight.shape[1] if weight.shape[1] else 1
        alpha, beta = rescaling_factors(rescaling, previous.weight.data, weight, size * kernel)
        if weight.shape[1] == 0:
            return
        for module, factor in ((previous, alpha), (self, beta)):
            if factor != 1.0:
                for parameter in module.layer.parameters():
                    parameter.data = parameter.data * factor
                module.post_layer_function.rescale(factor)

    def apply_neuron_pairing(
        self, neuron_pairing: str | None = None, noise_ratio: float = 0.001, *, rng: np.random.Generator | None = None
    ) -> None:
        """Second half from the first: (V, V) coming in, (Z, -Z) going out, so that the function is unchanged.

        Noise of ``noise_ratio`` times the deviation of the outgoing weights then breaks the symmetry; it is drawn
        once and added to one half, taken from the other, so that the pair's sum has ``sqrt(2) noise_ratio``.
        """
        if neuron_pairing is None:
            return
        outer, inner = self._output_extension("apply_neuron_pairing"), self._input_extension("apply_neuron_pairing")
        sizes = (outer.weight.shape[0], inner.weight.shape[1])
        self._check_drawing(neuron_pairing, *sizes, noise_ratio=noise_ratio, rng=rng)
        self._hold_input_extension(inner)
        outer.weight.data = paired(outer.weight.data, 0, 1.0)
        if outer.bias is not None:
            outer.bias.data = paired(outer.bias.data, 0, 1.0)
        weight = paired(inner.weight.data, 1, -1.0)
        if noise_ratio > 0:
            rng = np.random.default_rng() if rng is None else rng
            noise = rng.standard_normal(tuple(weight.shape)) * noise_ratio * spread(weight)
            weight = weight + asarray(noise, like=weight, dtype=weight.dtype)
        inner.weight.data = weight

    def scale_parameter_update(self, scale: float) -> None:
        """Scale the planned delta and the decrease that it promises, by a finite number."""
        scale = as_scalar(scale, f"{self.name}: scale")
        if self.optimal_delta_layer is not None:
            self.scale_layer(self.optimal_delta_layer, scale)
        if self.parameter_update_decrease is not None:
            self.parameter_update_decrease *= scale

    @staticmethod
    def scale_layer(layer: Linear, scale: float) -> Linear:
        """Scale weight and bias of a layer; returns it."""
        for parameter in layer.parameters():
            parameter.data = parameter.data * scale
        return layer

    def scale_layer_extension(
        self, scale: float | None = None, scale_output: float | None = None, scale_input: float | None = None
    ) -> None:
        """Scale both planned extensions; singular values follow, so that the promised improvement stays right.

        Raises ValueError where a scale is missing or not finite, or the two have different signs: the neurons would
        raise the loss, and their singular values would be the roots of negative numbers.
        """
        outer = scale if scale_output is None else scale_output
        inner = scale if scale_input is None else scale_input
        if outer is None or inner is None:
            raise ValueError(f"{self.name}: pass scale, or both scale_output and scale_input")
        outer, inner = (as_scalar(value, f"{self.name}: scale") for value in (outer, inner))
        if outer * inner < 0.0:
            raise ValueError(f"{self.name}: scale_output {outer} and scale_input {inner} must have the same sign")
        if self.extended_input_layer is None or getattr(self.previous_module, "extended_output_layer", None) is None:
            raise GrowthError(f"{self.name}: one of the two extensions is missing, so they cannot be scaled")
        self.scale_layer(self.extended_input_layer, inner)
        self.scale_layer(self.previous_module.extended_output_layer, outer)
        if self.eigenvalues_extension is not None:
            exponent = 1.0 if self._improvement_is_linear else 0.5
            self.eigenvalues_extension = self.eigenvalues_extension * (outer * inner) ** exponent

    def normalize_optimal_updates(
        self,
        std_target: float | None = None,
        normalization_type: str = "legacy_normalization",
        gradmax_scale: float = 1.0,
    ) -> None:
        """Bring the planned change to the scale of the weights; see ``growing.extension.normalisation_scales``.

        The singular values follow by the square root of a factor, or by the factor itself where they enter the
        improvement linearly (the original takes the root there too).
        """
        if normalization_type == "gradmax_normalization":
            self._normalise_columns(gradmax_scale)
            return
        if normalization_type in ("equalize_extensions", "match_extending_layer"):
            self._layers(normalization_type)
        outer: Linear | None = getattr(self.previous_module, "extended_output_layer", None)
        delta, omega, alpha = (
            None if layer is None else layer.weight.data
            for layer in (self.optimal_delta_layer, self.extended_input_layer, outer)
        )
        layer: Linear | None = getattr(self.previous_module, "layer", None)
        before = None if layer is None else layer.weight.data
        scales = normalisation_scales(normalization_type, self.weight.data, delta, omega, alpha, before, std_target)
        if self.optimal_delta_layer is not None:
            self.scale_parameter_update(scales.delta)
        if omega is not None and alpha is not None:
            self.scale_layer_extension(None, scales.output_extension, scales.input_extension)

    def _normalise_columns(self, gradmax_scale: float) -> None:
        if self.extended_input_layer is None:
            raise GrowthError(f"{self.name}: gradmax_normalization needs an input extension; compute the update first")
        weight = self.extended_input_layer.weight
        factors = gradmax_column_factors(self.weight.data, weight.data, gradmax_scale)
        if factors is None:
            warnings.warn(f"{self.name}: gradmax_normalization has no norm to aim at; nothing is scaled", stacklevel=3)
            return
        shape = (1, -1, *(1 for _ in weight.shape[2:]))
        weight.data = weight.data * asarray(factors.reshape(shape), like=weight.data, dtype=weight.data.dtype)
        if self.eigenvalues_extension is not None:
            followed = factors if self._improvement_is_linear else np.sqrt(factors)
            values = self.eigenvalues_extension
            self.eigenvalues_extension = values * asarray(followed, like=values, dtype=values.dtype)

    def missing_neurons(self) -> int:
        """Input features that are missing to ``target_in_features``."""
        if self.target_in_neurons is None:
            raise GrowthError(f"{self.name}: target_in_features is not set; pass it to the constructor")
        return self.target_in_neurons - self.layer.in_features

    def number_of_neurons_to_add(self, method: str = "fixed_proportional", number_of_growth_steps: int = 1) -> int:
        """Neurons for the next of ``number_of_growth_steps`` equal steps to the target, rounded down."""
        if method != "fixed_proportional":
            raise ValueError(f"{self.name}: unknown method {shown(method)}; known: 'fixed_proportional'")
        whole_number(self.name, "number_of_growth_steps", number_of_growth_steps, 1)
        return (self.missing_neurons() + self.layer.in_features - self._initial_in_neurons) // number_of_growth_steps

    def complete_growth(self, extension_kwargs: dict[str, Any] | None = None) -> None:
        """Add at once what is missing to ``target_in_features``, drawn by ``create_layer_extensions``' options.

        A planned change is forgotten.
        """
        missing = self.missing_neurons()
        if missing > 0:
            self.create_layer_extensions(missing, **(extension_kwargs or {}))
            self.apply_change(scaling_factor=1.0, apply_delta=False, extension_size=missing)
            self.delete_update()
