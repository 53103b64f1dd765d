"""GrowingModule: the base class of growing layers."""

from __future__ import annotations

import math
from dataclasses import replace
from operator import attrgetter
from typing import Any, ClassVar

from growarray.backend import Array, namespace
from growarray.errors import GrowthError, ShapeError, shown
from growarray.growing.change import GrowthUpdate, kept_rows, like
from growarray.growing.checks import as_scalar, check_function
from growarray.growing.means import layer_means, means_of_layer
from growarray.growing.moment import TensorStatistic, cross_moment
from growarray.growing.neighbour import Neighbour, OfFeatures, is_neighbour, require_neighbour, weighted_layers
from growarray.growing.statistics import BatchRecorder, LayerStatistics
from growarray.growing.stream import Stream
from growarray.growing.update import activation_slope
from growarray.nn import Identity, Module, Parameter
from growarray.ops.windows import Windows


class GrowingModule(OfFeatures, Module):
    """A layer with its function, its neighbours, and what is planned for it; each kind of layer is a subclass.

    It holds a ``recorder`` of the last batch, its ``statistics``, and the planned change ``update``, a
    :class:`GrowthUpdate` that is replaced and never altered: what was known of a plan goes with it. The incoming
    weights of new neurons are held by the module before, as ``extended_output_layer``, since they become its rows.
    ``extended_forward`` computes with the plan, ``apply_change`` carries it out, ``delete_update`` deletes it.
    """

    _links: ClassVar[tuple[str, ...]] = (
        "previous_module",
        "next_module",
        "extended_output_layer",
        "_function_of_extension",
    )
    _statistics_of: ClassVar[type[LayerStatistics]] = LayerStatistics
    _records = property(attrgetter("recorder.is_active"))
    plans_for_readers = False
    trace_precision: float | None = None  # makes M estimate its error, from the next init_computation on

    def __init__(
        self,
        layer: Any,
        post_layer_function: Module | None = None,
        extended_post_layer_function: Module | None = None,
        previous_module: Any = None,
        next_module: Any = None,
        allow_growing: bool = False,
        name: str | None = None,
        target_in_features: int | None = None,
    ) -> None:
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
        self._initial_in_neurons = self.weight.shape[1]
        self.optimal_delta_scaling = 0.0
        self.input_extension_scaling = 0.0
        self.output_extension_scaling = 0.0
        self.common_scaling = 0.0
        self.update: GrowthUpdate[Any] = GrowthUpdate()
        self.extended_output_layer: Any = None
        self.recorder = BatchRecorder(self.name, gradient=("pre_activity",), moment=("pre_activity", "input"))
        self.statistics = self._statistics_of(self)

    _linked: ClassVar[tuple[str, ...]] = ("previous_module", "next_module", "allow_growing", "_initial_in_neurons")

    def _saved(self) -> dict[str, Any]:
        kept = {name: getattr(self, name) for name in ("layer", "post_layer_function", "name")}
        kept["extended_post_layer_function"] = self._function_of_extension
        return kept | {"target_in_features": self.target_in_neurons}

    @property
    def previous(self) -> Neighbour:
        """The previous module, which must answer the growth protocol."""
        if self.previous_module is None:
            raise GrowthError(f"{self.name}: there is no previous module, so no neurons can be added before it")
        return require_neighbour(self.previous_module, self.name)

    @property
    def shared_statistic(self) -> TensorStatistic | None:
        """Second moment of the input that the module before keeps for all layers that read it, or None."""
        previous = self.previous_module
        return previous.input_statistic_for(self) if is_neighbour(previous) else None

    def input_statistic_for(self, _: Any) -> None:
        """None: a layer keeps no statistic for the layers after it."""

    @property
    def weighted_layers(self) -> tuple[GrowingModule, ...]:
        """The layer itself."""
        return (self,)

    layers_before = weighted_layers

    @property
    def changed_layers(self) -> tuple[Module, ...]:
        """What growth at this place changes: this layer, and the module before it."""
        return (self, self.previous_module)

    @property
    def extended_post_layer_function(self) -> Module:
        """Function of the new neurons' outputs: the one given, else ``post_layer_function``."""
        function = self._function_of_extension
        return self.post_layer_function if function is None else function

    @property
    def weight(self) -> Parameter:
        """Weight of the layer."""
        return self.layer.weight  # type: ignore[no-any-return]

    @property
    def bias(self) -> Parameter | None:
        """Bias of the layer, or None."""
        return self.layer.bias  # type: ignore[no-any-return]

    @property
    def in_features(self) -> int:
        """What one output reads, without the bias: the width of the input, times the taps of a kernel."""
        return math.prod(self.weight.shape[1:])

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return self.weight.shape[0]

    @property
    def stream_width(self) -> int:
        """Columns of ``input_stream``: what one output reads, and ones for a bias."""
        return self.in_features + int(self.use_bias)

    @property
    def goal_width(self) -> int:
        """Columns of M_prev: the number of outgoing weights of one new neuron before this layer."""
        return self.out_features

    @property
    def parameters_per_output(self) -> int:
        """Scalars that one more output of this layer costs: its weights, its bias, its share of a normalisation."""
        return self.stream_width + self.post_layer_function.parameters_per_feature

    @property
    def use_bias(self) -> bool:
        """Whether the layer has a bias."""
        return self.layer.bias is not None

    @property
    def output_function(self) -> Module:
        """What is applied to the output: ``post_layer_function``."""
        return self.post_layer_function

    @property
    def output_slope(self) -> float:
        """Derivative at zero from above of ``post_layer_function``."""
        return activation_slope(self.post_layer_function)

    def request(self, what: str, by: object) -> None:
        """Keep ``what`` of every batch until ``by`` releases it; S of inputs that a merge gives needs its activity."""
        self.recorder.request(what, by)
        if what == "input" and self.shared_statistic is not None:
            self.previous.request("activity", self)

    def release(self, what: str, by: object) -> None:
        """End a request of ``by``; a part that is no longer requested is dropped."""
        self.recorder.release(what, by)
        if what == "input" and not self.recorder.is_requested("input") and self.shared_statistic is not None:
            self.previous.release("activity", self)

    @property
    def input_stream(self) -> Stream | Windows:
        """Input of the last batch as a stream."""
        return self.recorder.stream("input", self.recorder.need("input"), bias=self.use_bias)

    def gradient_stream(self, desired_activation: Array | None = None) -> Stream | Windows:
        """Gradient at the pre-activity in the last batch, or the desired change if given, as a stream."""
        if desired_activation is not None:
            return self.recorder.stream("desired", desired_activation, weighted=True)
        return self.recorder.stream("gradient", self.recorder.need("gradient"), weighted=True)

    def moment_with(self, gradient: Array) -> Array:
        """Sum of ``B^T gradient`` over the last batch: the pullback's own product if the gradient is the same."""
        weight_moment = self.recorder.get("moment")
        if weight_moment is not None and gradient is self.recorder.get("gradient"):
            return weight_moment
        return cross_moment(self.input_stream, self.gradient_stream(gradient))

    @property
    def growth_statistic(self) -> TensorStatistic:
        """Second moment of ``input_stream``, for neurons that are added to this layer's output."""
        return self.statistics.s if self.use_bias else self.statistics.own_s

    def declare_statistics(self) -> None:
        """Reset all statistics for the current widths."""
        self.update = replace(self.update, solutions=())  # solved from the statistics that end here
        self.statistics.declare()

    def init_computation(self) -> None:
        """Start a collection: empty statistics here and at the previous module, keep inputs and gradients."""
        self.reset_computation()
        self.declare_statistics()
        self.request("input", self)
        self.request("pre_activity", self)
        if self.statistics.sees_front:
            self.previous.request("input", self)

    def update_computation(self, update_covariance_loss_gradient: bool = True) -> None:
        """Add the last batch to every statistic; a second call for the same batch changes nothing.

        A batch with NaN or infinite values raises ``GrowthError`` and is left out of all of them.
        """
        self.statistics.update(update_covariance_loss_gradient)

    def reset_computation(self) -> None:
        """End a collection: reset all statistics, S of the module before included, and release what was kept."""
        for statistic in self.statistics.all:
            statistic.reset()
        self.release("input", self)
        self.release("pre_activity", self)
        if self.shared_statistic is not None:
            self.shared_statistic.reset()
        if self.statistics.sees_front:
            self.previous.release("input", self)
            self.statistics.s_prev.reset()

    def part_of(self, rows: Array) -> Any:
        """Rows over the features of ``input_stream`` (r, d) as a layer of this kind and dtype."""
        if rows.ndim != 2 or rows.shape[1] != self.stream_width:
            found = tuple(rows.shape)
            raise ShapeError(f"{self.name}: rows have shape {found}, expected (rows, {self.stream_width})")
        shape = (rows.shape[0], *self.weight.shape[1:])
        xp, rows = namespace(rows), namespace(rows).astype(rows, self.weight.data.dtype, copy=True)
        count = math.prod(shape[1:])
        return like(self.layer, xp.reshape(rows[:, :count], shape), rows[:, count] if self.use_bias else None)

    def rows_of(self, part: Any) -> Array:
        """The inverse of :meth:`part_of`."""
        weight, xp = part.weight.data, namespace(part.weight.data)
        rows = xp.reshape(weight, (weight.shape[0], math.prod(weight.shape[1:])))
        return rows if part.bias is None else xp.concat([rows, part.bias.data[:, None]], axis=1)

    def columns_of(self, omega: Array) -> Any:
        """Outgoing weights of new inputs as a layer of this kind and dtype, (out, new inputs, *kernel)."""
        shape, new = self.weight.shape, tuple(omega.shape)
        if (new[:1], new[2:]) != (shape[:1], shape[2:]):
            expected = ", ".join(map(str, (shape[0], "new neurons", *shape[2:])))
            raise ShapeError(f"{self.name}: omega has shape {new}, expected ({expected})")
        return like(self.layer, namespace(omega).astype(omega, self.weight.data.dtype, copy=False))

    layer_means, means = layer_means, means_of_layer

    @property
    def front(self) -> Neighbour | None:
        """The module that new neurons before this layer widen: the previous one."""
        return None if self.previous_module is None else self.previous

    @property
    def readers(self) -> tuple[GrowingModule, ...]:
        """The layers that read new neurons: this one."""
        return (self,)

    @property
    def widens_front(self) -> bool:
        """Whether the plan has new neurons before this layer."""
        return self.update.input_extension is not None

    def check_growable(self) -> None:
        """Never raises: a layer without a previous module still has a delta to plan."""

    def check_front(self) -> None:
        """Raise if the module before cannot add the planned neurons, or plans another number of them."""
        same_width = self.previous.out_features == self.weight.shape[1]
        self.previous.check_output_extension(self.new_neurons if same_width else None)

    @property
    def has_plan(self) -> bool:
        """Whether a change is planned, even one that changes nothing."""
        return not self.update.is_empty

    @property
    def new_neurons(self) -> int:
        """Number of neurons in the planned input extension."""
        planned = self.update.input_extension
        return 0 if planned is None else int(planned.weight.shape[1])

    @property
    def scaling_factor(self) -> float:
        """The single factor g: the delta is scaled by g², both extensions by g (the previous module's too)."""
        return self.common_scaling

    @scaling_factor.setter
    def scaling_factor(self, value: Any) -> None:
        factor = as_scalar(value, f"{self.name}.scaling_factor")
        if self.previous_module is not None:
            self.previous.output_extension_scaling = factor
        self.common_scaling = factor
        self.optimal_delta_scaling, self.input_extension_scaling = factor**2, factor

    @property
    def output_extension(self) -> Array:
        """The planned output extension as rows over the features of ``input_stream``."""
        if self.extended_output_layer is None:
            raise GrowthError(f"{self.name}: there is no output extension; compute or create it first")
        return self.rows_of(self.extended_output_layer)

    def set_output_extension(self, alpha: Array | None) -> None:
        """Store alpha (k, features of ``input_stream``) as the output extension; None drops it."""
        if alpha is None:
            self.extended_output_layer = None
            return
        if alpha.ndim != 2 or alpha.shape[1] != self.stream_width:
            raise ShapeError(
                f"{self.name}: alpha has shape {tuple(alpha.shape)}, expected (new neurons, {self.stream_width})"
            )
        self.extended_output_layer = self.part_of(alpha)

    def keep_output_extension(self, keep: int, zeros: int = 0) -> None:
        """Keep the first ``keep`` rows of the output extension, the last ``zeros`` of them as zeros."""
        if self.extended_output_layer is None:
            raise GrowthError(f"{self.name}: there is no output extension to select from")
        self.extended_output_layer = kept_rows(self.extended_output_layer, keep - zeros, zeros)

    def check_output_extension(self, size: int | None = None) -> None:
        """Raise unless an output extension fits, has ``size`` neurons, and the function can widen."""
        extension = self.extended_output_layer
        if extension is None:
            raise GrowthError(f"{self.name}: there is no output extension to apply; compute or create it first")
        new, inputs = extension.weight.shape[:2]
        if inputs != self.weight.shape[1]:
            raise ShapeError(
                f"{self.name}: the output extension was planned for {inputs} inputs, the layer has "
                f"{self.weight.shape[1]} now; call delete_update() on the next module, collect statistics and plan anew"
            )
        if size is not None and new != size:
            raise ShapeError(
                f"{self.name}: the output extension has {new} neurons, the next module's input "
                f"extension {size}; plan or create both together"
            )
        if new:
            self.post_layer_function.check_extend(new)

    def apply_output_extension(self) -> None:
        """Append the output extension, times ``output_extension_scaling``; normalisation widens with it."""
        self.check_output_extension()
        extension, scale = self.extended_output_layer, self.output_extension_scaling
        self.layer_out_extension(
            scale * extension.weight.data, None if extension.bias is None else scale * extension.bias.data
        )
        if extension.weight.shape[0]:
            self.post_layer_function.extend(extension.weight.shape[0])

    def parameter_step(self, delta_weights: Array, delta_biases: Array | None = None) -> None:
        """Add to the weights, and to the bias if one is given; ShapeError if a change has another shape."""
        pairs = ((delta_weights, self.weight), (delta_biases, self.bias))
        steps = [(step, parameter) for step, parameter in pairs if step is not None and parameter is not None]
        for step, parameter in steps:
            if tuple(step.shape) != parameter.shape:
                raise ShapeError(f"{self.name}: a step has shape {tuple(step.shape)}, expected {parameter.shape}")
        for step, parameter in steps:
            data = parameter.data
            parameter.data = data + namespace(data).astype(step, data.dtype, copy=False)

    def layer_in_extension(self, weight: Array) -> None:
        """Append columns ``weight`` (out, k, *kernel) to the layer; its statistics are reset."""
        self.weight.extend(1, weight)
        self.declare_statistics()

    def layer_out_extension(self, weight: Array, bias: Array | None = None) -> None:
        """Append rows ``weight`` (k, in, *kernel) and ``bias`` (k,), which a layer with bias needs."""
        if self.bias is not None and bias is None:
            raise GrowthError(f"{self.name}: the layer has a bias, so its output extension needs one; pass bias=")
        if bias is not None and bias.shape[0] != weight.shape[0]:
            raise ShapeError(
                f"{self.name}: weight has {weight.shape[0]} rows, bias {bias.shape[0]} entries; give each row one"
            )
        self.weight.extend(0, weight)
        if self.bias is not None and bias is not None:
            self.bias.extend(0, bias)
        self.declare_statistics()


def layer_before(module: GrowingModule, action: str) -> GrowingModule:
    """The growing layer before ``module``, which ``action`` needs; else ``GrowthError``."""
    for layer in weighted_layers(module.previous_module):
        return layer  # type: ignore[no-any-return]
    raise GrowthError(f"{module.name}: {action} needs a growing layer before it, found {shown(module.previous_module)}")
