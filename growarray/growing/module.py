"""GrowingModule: a layer with its activation, its neighbours, and the change that is planned for it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from growarray.backend import Array, namespace
from growarray.errors import GrowthError, ShapeError
from growarray.growing.checks import as_scalar, check_function
from growarray.growing.neighbour import Neighbour, Recorder, require_neighbour
from growarray.growing.update import activation_slope, neuron_slope
from growarray.nn import Identity, Linear, Module, Parameter

__all__ = ["GrowingModule"]

_PLAN = (
    "delta_raw",
    "optimal_delta_layer",
    "extended_input_layer",
    "eigenvalues_extension",
    "parameter_update_decrease",
    "_improvement_is_linear",
    "_planned_m_prev",
    "_applied",
)


class GrowingModule(Recorder):
    """What every growing layer has, whatever it computes: neighbours, planned change, scalings.

    The planned change is ``optimal_delta_layer`` (subtracted from the weights), ``extended_input_layer`` (omega, new
    columns of this layer) and ``extended_output_layer`` (alpha of the layer that follows, new rows of this one).
    ``extended_forward`` computes with it, ``apply_change`` carries it out, ``delete_update`` forgets it.
    """

    _links: ClassVar[tuple[str, ...]] = (
        "previous_module",
        "next_module",
        "optimal_delta_layer",
        "extended_input_layer",
        "extended_output_layer",
        "_function_of_extension",
        "_applied",
    )

    def __init__(
        self,
        layer: Linear,
        post_layer_function: Module | None = None,
        extended_post_layer_function: Module | None = None,
        previous_module: Any = None,
        next_module: Any = None,
        allow_growing: bool = False,
        name: str | None = None,
        target_in_features: int | None = None,
    ) -> None:
        super().__init__()
        self.name = name or f"{type(self).__name__}_{id(self):x}"
        if allow_growing and previous_module is None:
            raise GrowthError(f"{self.name}: allow_growing needs a previous module; pass previous_module=")
        self.layer = layer
        check_function(post_layer_function, "post_layer_function", self.name)
        check_function(extended_post_layer_function, "extended_post_layer_function", self.name)
        self.post_layer_function = post_layer_function or Identity()
        self._function_of_extension = extended_post_layer_function
        self.previous_module = previous_module
        self.next_module = next_module
        self.allow_growing = allow_growing
        self.target_in_neurons = target_in_features
        self._initial_in_neurons = layer.in_features
        self.optimal_delta_scaling = 0.0
        self.input_extension_scaling = 0.0
        self.output_extension_scaling = 0.0
        self._scaling_factor = 0.0
        self.delta_raw: Array | None = None
        self.optimal_delta_layer: Linear | None = None
        self.extended_input_layer: Linear | None = None
        self.extended_output_layer: Linear | None = None
        self.eigenvalues_extension: Array | None = None
        self.parameter_update_decrease: float | None = None
        self._improvement_is_linear = False
        self._planned_m_prev: Array | None = None
        self._applied: tuple[Linear, ...] = ()  # the planned parts that have been carried out

    @property
    def previous(self) -> Neighbour:
        """The previous module, which must answer the growth protocol."""
        if self.previous_module is None:
            raise GrowthError(f"{self.name}: there is no previous module, so no neurons can be added before it")
        return require_neighbour(self.previous_module, "previous", self.name)

    @property
    def extended_post_layer_function(self) -> Module:
        """Function of the new neurons' outputs: the one given, else ``post_layer_function``."""
        own = self._function_of_extension
        return self.post_layer_function if own is None else own

    @property
    def weight(self) -> Parameter:
        """Weight of the layer."""
        return self.layer.weight

    @property
    def bias(self) -> Parameter | None:
        """Bias of the layer, or None."""
        return self.layer.bias

    @property
    def use_bias(self) -> bool:
        """Whether the layer has a bias."""
        return self.layer.bias is not None

    @property
    def output_slope(self) -> float:
        """Derivative at zero from above of ``post_layer_function``."""
        return activation_slope(self.post_layer_function)

    @property
    def output_function(self) -> Module:
        """What is applied to the output: ``post_layer_function``."""
        return self.post_layer_function

    @property
    def function_before(self) -> Module:
        """The function between the previous module and this one, behind which new neurons stand."""
        return self.previous.output_function

    @property
    def widens(self) -> str:
        """Name of the module whose output new neurons widen: the previous one."""
        return self.previous.name

    @property
    def activation_gradient(self) -> float:
        """Derivative of ``function_before`` at zero from above."""
        return self.previous.output_slope

    @property
    def scaling_factor(self) -> float:
        """The single factor g: the delta is scaled by g², both extensions by g (the previous module's too)."""
        return self._scaling_factor

    @scaling_factor.setter
    def scaling_factor(self, value: Any) -> None:
        factor = as_scalar(value, f"{self.name}.scaling_factor")
        if self.previous_module is not None:
            self.previous.output_extension_scaling = factor
        self._scaling_factor = factor
        self.optimal_delta_scaling, self.input_extension_scaling = factor**2, factor

    def set_scaling_factor(self, factor: float) -> None:
        """Same as assigning ``scaling_factor``."""
        self.scaling_factor = factor

    @property
    def has_plan(self) -> bool:
        """Whether a change is planned, be it one that leaves everything as it is."""
        parts = (self.optimal_delta_layer, self.extended_input_layer, self.parameter_update_decrease)
        return any(part is not None for part in parts)

    @property
    def new_neurons(self) -> int:
        """Number of neurons in the planned input extension."""
        return 0 if self.extended_input_layer is None else self.extended_input_layer.in_features

    @property
    def new_neurons_fo_improvement(self) -> float:
        """First-order improvement by the new neurons: ``sigma'(0+) sum(s^2)``, or ``sum(s)`` if s is ignored."""
        if self.eigenvalues_extension is None:
            return 0.0
        xp, values = namespace(self.eigenvalues_extension), self.eigenvalues_extension
        return self.activation_gradient * float(xp.sum(values if self._improvement_is_linear else values**2))

    @property
    def first_order_improvement(self) -> float:
        """Decrease of the loss that the planned change promises to first order, at scaling 1.

        Statistics of gradients of the *sum* of the sample losses make it the decrease of their mean.
        """
        if self.parameter_update_decrease is None:
            raise GrowthError(f"{self.name}: no update is planned; call compute_optimal_updates() first")
        return self.parameter_update_decrease + self.new_neurons_fo_improvement

    @property
    def predicted_decrease(self) -> float:
        """Exact first-order decrease of the loss by the planned change, per squared scaling factor.

        ``tr(M dW) - sigma'(0+) <M_prev, (omega alpha)^T>``: the derivative itself, for activations that are smooth and
        zero at zero. ``first_order_improvement`` is the original's figure, which leaves out what delta and new neurons
        have in common; the two agree without projection, and nearly so where the activation is nearly linear.
        """
        if self.parameter_update_decrease is None:
            raise GrowthError(f"{self.name}: no update is planned; call compute_optimal_updates() first")
        if self._planned_m_prev is None or self.extended_input_layer is None:
            return self.parameter_update_decrease
        return self.parameter_update_decrease - self.activation_gradient * neuron_slope(
            self._planned_m_prev, self.previous.output_extension, self.extended_input_layer.weight.data
        )

    def extended_forward(
        self,
        x: Array,
        x_ext: Array | None = None,
        use_optimal_delta: bool = True,
        use_extended_input: bool = True,
        use_extended_output: bool = True,
    ) -> tuple[Array, Array | None]:
        """Output with the planned change, scaled, and the output of the new neurons (None where there are none).

        Raises
        ------
        ValueError
            There is an input extension and ``x_ext`` is missing.
        """
        y = self.layer(x)
        if self.optimal_delta_layer is not None and use_optimal_delta:
            y = y - self.optimal_delta_scaling * self.optimal_delta_layer(x)
        if self.extended_input_layer is not None and use_extended_input:
            if x_ext is None:
                raise GrowthError(
                    f"{self.name}: there is an input extension of {self.new_neurons} features, but x_ext is None; "
                    "pass the second result of the previous module's extended_forward"
                )
            y = y + self.input_extension_scaling * self.extended_input_layer(x_ext)
        elif x_ext is not None and use_extended_input:
            warnings.warn(f"{self.name}: x_ext is given, but there is no input extension; it is ignored", stacklevel=2)
        if self.extended_output_layer is None or not use_extended_output:
            return self.post_layer_function.extended_forward(y, None)[0], None
        y_ext = self.output_extension_scaling * self.extended_output_layer(x)
        if self.extended_post_layer_function is self.post_layer_function:
            return self.post_layer_function.extended_forward(y, y_ext)
        return self.post_layer_function(y), self.extended_post_layer_function(y_ext)

    def apply_change(
        self,
        scaling_factor: Any = None,
        apply_previous: bool = True,
        apply_delta: bool = True,
        apply_extension: bool = True,
        extension_size: int | None = None,
        optimal_delta_scaling: Any = None,
        input_extension_scaling: Any = None,
        output_extension_scaling: Any = None,
    ) -> None:
        """Carry the planned change out: ``W <- W - delta_scale dW``, new columns ``in_scale omega``, and with
        ``apply_previous`` the new rows ``out_scale alpha`` of the previous module. Optimizer state grows with it.

        A part that the plan does not have is left out. Scalings given here replace the stored ones; everything is
        checked before anything changes.

        Raises
        ------
        GrowthError
            Nothing is planned (the original does nothing then), a part has been applied already, ``extension_size`` is
            not the size of the planned extension, or the extension has a bias.
        ShapeError
            This layer or the one before has changed its width since the change was planned.
        """
        if extension_size is not None and extension_size != self.new_neurons:
            raise GrowthError(
                f"{self.name}: extension_size={extension_size}, but the planned input extension has "
                f"{self.new_neurons} neurons; compute or create the extension first"
            )
        self.check_change(apply_delta, apply_extension)
        extension = self.extended_input_layer if apply_extension else None
        if extension is not None and extension.bias is not None:
            largest = namespace(extension.bias.data).max(namespace(extension.bias.data).abs(extension.bias.data))
            if float(largest) != 0.0:
                raise GrowthError(f"{self.name}: the input extension has a bias of up to {float(largest):.3g}; drop it")
        previous = self.previous if extension is not None and apply_previous and self.previous_module else None
        if previous is not None:
            same_width = previous.out_features == self.layer.in_features
            previous.check_output_extension(self.new_neurons if same_width else None)
        given = {
            "optimal_delta_scaling": optimal_delta_scaling,
            "input_extension_scaling": input_extension_scaling,
            "output_extension_scaling": output_extension_scaling,
        }
        scales = {name: as_scalar(value, f"{self.name}.{name}") for name, value in given.items() if value is not None}
        if scaling_factor is not None:
            self.scaling_factor = scaling_factor
        for name, value in scales.items():
            holder = previous if name == "output_extension_scaling" else self
            if holder is not None:
                setattr(holder, name, value)

        if extension is not None and self.input_extension_scaling == 0.0:
            warnings.warn(f"{self.name}: the input extension is applied with scaling 0", stacklevel=2)
        if apply_delta and self.optimal_delta_layer is not None:
            delta, scale = self.optimal_delta_layer, self.optimal_delta_scaling
            bias = None if delta.bias is None else -scale * delta.bias.data
            self.parameter_step(-scale * delta.weight.data, bias)
            self._applied += (delta,)
        if extension is not None:
            self.layer_in_extension(self.input_extension_scaling * extension.weight.data)
            if previous is not None:
                previous.apply_output_extension()
            self._applied += (extension,)

    def check_change(self, delta: bool = True, extension: bool = True) -> None:
        """Raise ``GrowthError`` where nothing is planned, or it was applied; ``ShapeError`` where it does not fit."""
        if not self.has_plan:
            raise GrowthError(f"{self.name}: no change is planned; call compute_optimal_updates() or create one first")
        shape = self.layer.weight.shape
        change = self.optimal_delta_layer if delta else None
        columns = self.extended_input_layer if extension else None
        if any(part is done for part in (change, columns) for done in self._applied):
            raise GrowthError(f"{self.name}: the planned change has been applied; call delete_update() and plan anew")
        planned = []
        if change is not None and change.weight.shape != shape:
            planned.append(("delta", change.weight.shape))
        if columns is not None and (columns.weight.shape[0], *columns.weight.shape[2:]) != (shape[0], *shape[2:]):
            planned.append(("input extension", columns.weight.shape))
        for what, found in planned:
            raise ShapeError(
                f"{self.name}: the {what} was planned with shape {found}, the weight has shape {shape} now; "
                "call delete_update(), collect statistics and plan anew"
            )

    def delete_update(
        self,
        include_previous: bool = True,
        delete_delta: bool = True,
        delete_input: bool = True,
        delete_output: bool = False,
    ) -> None:
        """Forget the planned change: delta, input extension (the previous module's output extension with it).

        ``delete_output`` drops this layer's own output extension, which belongs to the layer that follows. Scalings of
        what is forgotten become 0 again, as in the original.
        """
        if delete_delta:
            self.optimal_delta_layer, self.parameter_update_decrease, self.delta_raw = None, None, None
            self.optimal_delta_scaling = 0.0
        if delete_input:
            if self.extended_input_layer is not None and include_previous and self.previous_module is not None:
                self.previous.set_output_extension(None)
            if include_previous and getattr(self.previous_module, "output_extension_scaling", False):
                self.previous.output_extension_scaling = 0.0
            self._hold_input_extension(None)
            self.input_extension_scaling = 0.0
        if delete_delta and delete_input:
            self._scaling_factor = 0.0
        if delete_output:
            self.extended_output_layer, self.output_extension_scaling = None, 0.0
        held = (self.optimal_delta_layer, self.extended_input_layer)
        self._applied = tuple(part for part in self._applied if any(part is one for one in held))

    def _hold_input_extension(
        self, extension: Linear | None, values: Array | None = None, *, linear: bool = False
    ) -> None:
        """Hold new columns with what is known of them, and nothing that was known of the columns before."""
        self.extended_input_layer, self.eigenvalues_extension = extension, values
        self._improvement_is_linear, self._planned_m_prev = linear, None

    @contextmanager
    def keeping_plan(self) -> Iterator[None]:
        """Within it a new plan may be made; where that raises, the plan from before is back."""
        kept = {name: getattr(self, name) for name in _PLAN}
        try:
            yield
        except BaseException:
            vars(self).update(kept)
            raise

    def parameter_step(self, delta_weights: Array, delta_biases: Array | None = None) -> None:
        """Add to the weights, and to the bias where one is given; ShapeError where a change has another shape."""
        weight, bias = self.layer.weight, self.layer.bias
        for change, parameter in ((delta_weights, weight), (delta_biases, bias)):
            if change is not None and parameter is not None and tuple(change.shape) != parameter.shape:
                raise ShapeError(f"{self.name}: a step has shape {tuple(change.shape)}, expected {parameter.shape}")
        weight.data = weight.data + namespace(weight.data).astype(delta_weights, weight.data.dtype, copy=False)
        if delta_biases is not None and bias is not None:
            bias.data = bias.data + namespace(bias.data).astype(delta_biases, bias.data.dtype, copy=False)

    def layer_in_extension(self, weight: Array) -> None:
        """Append input columns; each kind of layer says how."""
        raise NotImplementedError(f"{type(self).__name__} must define layer_in_extension(weight)")

    def create_layer_out_extension(self, extension_size: int) -> None:
        """Plan output rows of zeros; each kind of layer says how."""
        raise NotImplementedError(f"{type(self).__name__} must define create_layer_out_extension(extension_size)")
