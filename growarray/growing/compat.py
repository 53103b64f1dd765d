"""GroMo's names (version 0.1.0), mixed into growing layers and merges, so that its documentation applies.

Most say where a value or a function is: statistics, the planned change, drawing and scaling have files of their own.
What is written out here exists for that interface alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from operator import attrgetter
from typing import Any

from growarray.backend import Array, namespace
from growarray.errors import GrowthError, ShapeError, shown
from growarray.growing import bottleneck, draw, layer_change, place, scale
from growarray.growing.change import like
from growarray.growing.moment import cross_moment
from growarray.growing.neighbour import weighted_layers
from growarray.growing.stream import Stream
from growarray.growing.update import neuron_goal
from growarray.ops.sizes import whole_number


def _at(path: str, doc: str, write: Callable[[Any, Any], None] | None = None) -> Any:
    """A property that reads the attribute at ``path``."""
    return property(attrgetter(path), write, doc=doc)


def _stored(what: str) -> Any:
    def read(module: Any) -> int:
        return int(module.recorder.is_requested(what))

    def write(module: Any, value: bool) -> None:
        (module.request if value else module.release)(what, "user")

    return property(read, write, doc=f"1 while the {what} of each batch is kept, else 0; may be set.")


def _planned(**parts: Callable[[Any], Any]) -> Callable[[Any, Any], None]:
    """A function that replaces parts of the planned change."""

    def write(module: Any, value: Any) -> None:
        module.update = replace(module.update, **{name: new_value(value) for name, new_value in parts.items()})

    return write


def _one(value: Any) -> tuple[Any, ...]:
    return () if value is None else (value,)


class BatchNames:
    """Names of the last batch and of widths, which layers and merges share."""

    input = property(lambda module: module.recorder.need("input"), doc="Input of the last batch.")
    pre_activity_grad = property(lambda module: module.recorder.get("gradient"), doc="Its gradient in the last batch.")
    store_input = _stored("input")
    input_volume = _at("in_features", "Same as ``in_features``.")
    eigenvalues_extension = _at(
        "update.singular_values", "Singular values of the planned neurons.", _planned(singular_values=lambda v: v)
    )
    parameter_update_decrease = _at(
        "update.decrease",
        "First-order decrease by the planned delta, or None if there is none.",
        _planned(decreases=_one),
    )

    def clear_pre_activity_grad(self: Any) -> None:
        """Forget the gradient of the last batch."""
        self.recorder.forget("gradient", "moment")


class LayerNames(place.PlaceFigures, BatchNames):
    """Names of a growing layer."""

    update: Any
    statistics: Any
    previous: Any

    # The last batch, and statistics.
    pre_activity = property(lambda layer: layer.recorder.need("pre_activity"), doc="Output before the function.")
    in_neurons = property(lambda layer: layer.weight.shape[1], doc="Neurons, or channels, of the input.")
    store_pre_activity = _stored("pre_activity")
    tensor_s = _at("statistics.s", "S; after a merge, that of the merge.")
    tensor_m = _at("statistics.m", "M.")
    tensor_m_prev = _at("statistics.m_prev", "M_prev.")
    cross_covariance = _at("statistics.p", "P.")
    covariance_loss_gradient = _at("statistics.e", "E.")
    tensor_s_growth = _at("statistics.s_prev", "S of the input of new neurons before the layer.")
    compute_s_update = _at("statistics.s_of_batch", "S of the last batch, summed, and its samples.")
    compute_m_update = _at("statistics.m_of_batch", "M of the last batch.")
    compute_m_prev_update = _at("statistics.m_prev_of_batch", "M_prev of the last batch.")
    compute_cross_covariance_update = _at("statistics.p_of_batch", "P of the last batch.")
    compute_covariance_loss_gradient_update = _at("statistics.e_of_batch", "E of the last batch.")
    activation_gradient = _at("previous.output_slope", "Derivative of ``function_before`` at zero from above.")

    # The planned change.
    compute_optimal_delta = layer_change.compute_optimal_delta
    compute_optimal_updates = layer_change.compute_optimal_updates
    sub_select_optimal_added_parameters = place.select_neurons
    extended_forward = layer_change.extended_forward
    check_change = layer_change.check_change
    carry_out = layer_change.carry_out
    apply_change = place.apply_change
    delete_update = layer_change.delete_update
    keep_outputs = layer_change.keep_outputs
    keep_inputs = layer_change.keep_inputs
    delta_raw = _at("update.solution", "The optimal delta before scaling, (o, d) float64.")

    # Drawn extensions, and scales.
    allocate_layer_extensions = draw.allocate_extensions
    create_layer_in_extension = draw.zero_columns
    create_layer_out_extension = draw.zero_rows
    initialize_extensions = draw.initialise_extensions
    create_layer_extensions = draw.draw_extensions
    apply_rescaling = draw.apply_rescaling
    apply_neuron_pairing = draw.pair_neurons
    scale_parameter_update = scale.scale_delta
    scale_layer_extension = scale.scale_extensions
    normalize_optimal_updates = scale.normalise_update

    @property
    def optimal_delta_layer(self: Any) -> Any:
        """The planned delta as a layer, to be subtracted; may be set."""
        return self.update.delta

    @optimal_delta_layer.setter
    def optimal_delta_layer(self: Any, layer: Any) -> None:
        self.update = self.update.with_delta(layer, self.update.decrease)

    @property
    def extended_input_layer(self: Any) -> Any:
        """The planned input extension as a layer; may be set."""
        return self.update.input_extension

    @extended_input_layer.setter
    def extended_input_layer(self: Any, layer: Any) -> None:
        self.update = self.update.with_input(layer)

    def plan_input_extension(self: Any, omega: Array, values: Array | None = None, *, linear: bool = False) -> None:
        """Store ``omega`` (o, k) as the input extension, with its singular values (``linear``: they were ignored)."""
        self.update = self.update.with_input(self.columns_of(omega), values, linear=linear)

    def layer_of_tensor(self: Any, weight: Array, bias: Array | None = None, force_bias: bool = True) -> Any:
        """A plain layer of these values; with ``force_bias``, a bias is required exactly if this layer has one."""
        if force_bias and (bias is not None) != self.use_bias:
            raise GrowthError(
                f"{self.name}: use_bias is {self.use_bias}, but a bias was {'not ' if bias is None else ''}given"
            )
        xp, dtype = namespace(weight, bias), self.weight.data.dtype
        weight, bias = (None if array is None else xp.astype(array, dtype, copy=True) for array in (weight, bias))
        return like(self.layer, weight, bias)

    @property
    def input_extended(self: Any) -> Array:
        """Input of the last batch with its column of ones if there is a bias."""
        return self.input_stream.materialise()

    def update_covariance_loss_gradient(self: Any, count_samples: bool = True) -> None:
        """Add the current gradient to E, even if it was added before (several passes over one batch)."""
        value, samples = self.statistics.e_of_batch()
        self.statistics.e.update(value, samples, count_samples=count_samples)

    def compute_n_update(self: Any) -> tuple[Array, int]:
        """Sum of ``x^T v``, where v is what the next module's planned delta leaves undone; every token is a sample.

        Raises TypeError if the next module is no growing layer.
        """
        for layer in weighted_layers(self.next_module):
            stream = Stream(layer.projected_v_goal(layer.input))
            return cross_moment(Stream(self.input), stream), int(stream.rows.shape[0])
        raise TypeError(
            f"{self.name}: the next module is {type(self.next_module).__name__}, expected a growing layer, whose "
            "planned delta says what is left to do; set next_module"
        )

    def _needs_delta(self: Any, delta: Any) -> Any:
        if delta is None:
            raise GrowthError(f"{self.name}: the optimal delta is not computed; call compute_optimal_delta() first")
        return delta

    @property
    def tensor_n(self: Any) -> Array:
        """``N = -M_prev + P dW^T``, (d_prev, o); needs the optimal delta."""
        solution = self._needs_delta(self.update.solution)
        return neuron_goal(self.statistics.m_prev(), self.statistics.p(), solution)

    def projected_v_goal(self: Any, input_vector: Array | None = None) -> Array:
        """``dA - dW B`` in the last batch: what the planned delta leaves of the wanted change."""
        delta = self._needs_delta(self.update.delta)
        return self.gradient_stream().array - delta(self.input if input_vector is None else input_vector)

    def set_scaling_factor(self: Any, factor: float) -> None:
        """Same as assigning ``scaling_factor``."""
        self.scaling_factor = factor

    @staticmethod
    def scale_layer(layer: Any, scale: float) -> Any:
        """Scale weight and bias of a layer; returns it."""
        for parameter in layer.parameters():
            parameter.data = parameter.data * scale
        return layer

    def add_parameters(
        self: Any,
        matrix_extension: Array | None,
        bias_extension: Array | None,
        added_in_features: int = 0,
        added_out_features: int = 0,
    ) -> None:
        """Append ``added_in_features`` columns or ``added_out_features`` rows, zeros if no values are given.

        The neighbours' widths are not touched, hence the ``UserWarning``. Both at once raise ``ValueError``.
        """
        if (added_in_features > 0) == (added_out_features > 0):
            raise ValueError(
                f"{self.name}: add inputs or outputs, one at a time; found {added_in_features}, {added_out_features}"
            )
        weight = self.weight.data
        xp, (o, i, *kernel) = namespace(weight), weight.shape
        shape = (o, added_in_features, *kernel) if added_in_features else (added_out_features, i, *kernel)
        if matrix_extension is not None and tuple(matrix_extension.shape) != shape:
            raise ShapeError(f"{self.name}: extension has shape {tuple(matrix_extension.shape)}, expected {shape}")
        if matrix_extension is None:
            matrix_extension = xp.zeros(shape, dtype=weight.dtype, device=weight.device)
        warnings.warn(f"{self.name}: its size changes, its neighbours' do not; update them too", stacklevel=2)
        if added_in_features:
            self.layer_in_extension(matrix_extension)
            return
        if bias_extension is None and self.use_bias:
            bias_extension = xp.zeros((added_out_features,), dtype=weight.dtype, device=weight.device)
        self.layer_out_extension(matrix_extension, bias_extension)

    @staticmethod
    def get_fan_in_from_layer(layer: Any = None, num_neurons: int | None = None) -> int:
        """Fan-in of ``layer``, or of ``num_neurons`` new inputs."""
        if layer is None and num_neurons is None:
            raise ValueError("get_fan_in_from_layer: pass layer= or num_neurons=")
        return scale.fan_in(layer.weight.data) if layer is not None else int(num_neurons or 0)

    def weights_statistics(self: Any) -> dict[str, dict[str, float]]:
        """Minimum, maximum, mean and standard deviation (n - 1) of weight and bias; NaN for an empty array."""
        return {name: scale.described(parameter.data) for name, parameter in self.layer.named_parameters()}

    def missing_neurons(self: Any) -> int:
        """Number of input features still missing to reach ``target_in_features``."""
        if self.target_in_neurons is None:
            raise GrowthError(f"{self.name}: target_in_features is not set; pass it to the constructor")
        return int(self.target_in_neurons) - int(self.in_neurons)

    def number_of_neurons_to_add(self: Any, method: str = "fixed_proportional", number_of_growth_steps: int = 1) -> int:
        """Neurons for the next of ``number_of_growth_steps`` equal steps to the target, rounded down."""
        if method != "fixed_proportional":
            raise ValueError(f"{self.name}: unknown method {shown(method)}; known: 'fixed_proportional'")
        whole_number(self.name, "number_of_growth_steps", number_of_growth_steps, 1)
        missing = self.missing_neurons() + self.in_neurons - self._initial_in_neurons
        return int(missing // number_of_growth_steps)

    def complete_growth(self: Any, extension_kwargs: dict[str, Any] | None = None) -> None:
        """Add all missing input features at once; the options are those of ``create_layer_extensions``.

        A planned change is forgotten.
        """
        missing = self.missing_neurons()
        if missing > 0:
            draw.draw_extensions(self, missing, **(extension_kwargs or {}))
            self.apply_change(scaling_factor=1.0, apply_delta=False, extension_size=missing)
            self.delete_update()


class MergeNames(BatchNames):
    """Names of a merge."""

    pre_activity = BatchNames.input
    activity = property(lambda merge: merge.recorder.need("activity"), doc="Output of the last batch.")
    store_activity = _stored("activity")
    tensor_s = _at("statistics.s", "Second moment of the activity with its ones.")
    previous_tensor_s = _at("statistics.previous_s", "Second moment of the full activity, or None if there is none.")
    previous_tensor_m = _at("statistics.previous_m", "Moment of the full activity with the gradient at the sum.")
    tensor_m_prev = _at("statistics.m_prev", "M_prev over all next layers.")
    cross_covariance = _at("statistics.p", "P.")
    covariance_loss_gradient = _at("statistics.e", "E over all next layers.")
    compute_s_update = _at("statistics.s_of_batch", "S of the last batch, summed, and its samples.")
    compute_previous_s_update = _at("statistics.previous_s_of_batch", "Previous S of the last batch.")
    compute_previous_m_update = _at("statistics.previous_m_of_batch", "Previous M of the last batch.")
    number_of_successors = property(lambda merge: len(merge.next_modules), doc="Number of next modules.")
    number_of_predecessors = property(lambda merge: len(merge.previous_modules), doc="Number of previous modules.")

    sub_select_optimal_added_parameters = place.select_neurons
    normalize_optimal_updates = scale.normalise_columns

    def add_previous_module(self: Any, module: Any) -> None:
        """Append one previous module."""
        self.set_previous_modules([*self.previous_modules, module])

    def add_next_module(self: Any, module: Any) -> None:
        """Append one next module."""
        self.set_next_modules([*self.next_modules, module])

    def grow(self: Any) -> None:
        """Check all neighbours again after they grew; call :meth:`update_size` first."""
        self.set_next_modules(self.next_modules)
        self.set_previous_modules(self.previous_modules)

    compute_optimal_delta = bottleneck.joint_delta
    projected_v_goal = bottleneck.projected_v_goal

    def update_scaling_factor(self: Any, scaling_factor: Any) -> None:
        """Same as assigning ``scaling_factor``."""
        self.scaling_factor = scaling_factor

    def sum_in_features(self: Any, with_bias: bool = False) -> int:
        """Sum of the previous layers' input widths, with a column of ones for each bias if ``with_bias``."""
        return sum(m.in_features + int(with_bias and m.use_bias) for m in self.layers_before)

    def sum_out_features(self: Any) -> int:
        """Sum of the next modules' output widths."""
        return sum(int(module.out_features) for module in self.next_modules)

    def construct_full_activity(self: Any) -> Array:
        """The full activity of the last batch as one array (n, total_in_features); statistics never need it."""
        return self.input_stream.materialise()

    def update_covariance_loss_gradient(self: Any, count_samples: bool = True) -> None:
        """Add the current gradients of the next layers to E once more; does nothing if growth is off."""
        if self.allow_growing:
            value, samples = self.statistics.e_of_batch()
            self.statistics.e.update(value, samples, count_samples=count_samples)
