"""Merges: the places where branches add up, which grow as one."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, ClassVar

from growarray.backend import Array, library, namespace
from growarray.contraction.checks import is_ordered
from growarray.errors import GrowthError, ShapeError
from growarray.growing.change import GrowthUpdate, kept_columns, scaled_columns
from growarray.growing.checks import as_scalar, check_function
from growarray.growing.compat import MergeNames
from growarray.growing.moment import TensorStatistic
from growarray.growing.neighbour import require_neighbour, weighted_layers
from growarray.growing.rule import TINY, LayerMeans, PlaceMeans, Rule, planned, rule_of
from growarray.growing.scale import gradmax_column_factors
from growarray.growing.statistics import BatchRecorder, MergeStatistics
from growarray.growing.stream import JoinedStream
from growarray.growing.update import activation_slope, optimal_delta, rounding_floor
from growarray.nn import Identity, Module
from growarray.nn.module import Pullback
from growarray.ops.sizes import whole_number

__all__ = ["LinearMergeGrowingModule", "MergeGrowingModule"]


class MergeGrowingModule(MergeNames, Module):
    """What every merge has: neighbours, the sum that the caller made, statistics of what flows in and out.

    The caller adds the branches; the merge takes the sum, applies ``post_merge_function`` and hands the result to its
    next modules. It has no parameters of its own but those of the function. ``device`` is where its statistics are
    kept, default where the data are.

    New neurons read every branch and feed every layer after the merge. With ``B_prev`` the full activity ``(B_1 | … | B_k)``
    of the previous layers and ``N`` the concatenation of what each next layer's update leaves undone, one SVD serves
    all: alpha is cut by previous layer, omega by next layer. The merge's ``update`` holds what is known of the neurons;
    their weights are held by the layers around it.
    """

    _links: ClassVar[tuple[str, ...]] = ("previous_modules", "next_modules")
    use_bias = True

    def __init__(
        self,
        post_merge_function: Module | None = None,
        previous_modules: Iterable[Any] | None = None,
        next_modules: Iterable[Any] | None = None,
        allow_growing: bool = False,
        in_features: int | None = None,
        device: str | None = None,
        name: str | None = None,
    ) -> None:
        if in_features is None:
            raise TypeError(f"{type(self).__name__}: in_features is required, the width of the branches' sum")
        self.name = name or f"{type(self).__name__}_{id(self):x}"
        check_function(post_merge_function, "post_merge_function", self.name)
        self.post_merge_function = post_merge_function or Identity()
        self.in_features = whole_number(type(self).__name__, "in_features", in_features, 0)
        self.allow_growing = allow_growing
        library(device)
        self.previous_modules: list[Any] = []
        self.next_modules: list[Any] = []
        self._scaling_factor = 0.0
        self.update: GrowthUpdate[Any] = GrowthUpdate()
        self.recorder = BatchRecorder()
        self.statistics = MergeStatistics(self, device)
        self.set_previous_modules([] if previous_modules is None else previous_modules)
        self.set_next_modules([] if next_modules is None else next_modules)

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """``post_merge_function`` of the branches' sum, and the way back; what is asked for is kept."""
        y, back = self.post_merge_function.vjp(x)
        recorder, keeps = self.recorder, self.recorder.is_active
        if keeps:
            recorder.start(x, input=x, activity=y)
            self.statistics.expect()

        def pullback(dy: Array) -> Array:
            dx = back(dy)
            if keeps and recorder.is_latest(x):
                recorder.add("gradient", dx)
            return dx

        return y, pullback

    def extended_forward(self, x: Array, x_ext: Array | None = None) -> tuple[Array, Array | None]:
        """Function of the branches' sum, and of the sum of their new outputs."""
        return self.post_merge_function.extended_forward(x, x_ext)

    # The last batch, and statistics.

    def request(self, what: str, by: object) -> None:
        """Keep ``what`` of every batch until ``by`` releases it."""
        self.recorder.request(what, by)

    def release(self, what: str, by: object) -> None:
        """``by`` no longer needs ``what``; what nobody needs is not kept."""
        self.recorder.release(what, by, *(("gradient",) if what == "input" else ()))

    @property
    def _records(self) -> bool:
        return self.recorder.is_active

    def kept(self, what: str) -> Array:
        """A part of the last batch; GrowthError if it is not kept."""
        part = self.recorder.get(what)
        if part is None:
            hint = "run a forward pass and its pullback" if self.recorder.is_active else "call init_computation()"
            name = "pre_activity gradient" if what == "gradient" else what
            raise GrowthError(f"{self.name}: no {name} is kept; {hint} first")
        return part

    @property
    def input(self) -> Array:
        """Sum of the branches in the last batch."""
        return self.kept("input")

    pre_activity = input

    @property
    def activity(self) -> Array:
        """Output of the last batch."""
        return self.kept("activity")

    @property
    def pre_activity_grad(self) -> Array | None:
        """Gradient at the sum in the last batch, None if there is none."""
        return self.recorder.get("gradient")

    def declare_statistics(self) -> None:
        """Start statistics anew, for the present widths."""
        self.statistics.declare()

    def init_computation(self) -> None:
        """Start a collection: empty statistics; keep input and activity here, inputs and gradients around."""
        self.reset_computation()
        self.declare_statistics()
        if self.allow_growing:
            self._check_growable()
            for module in self.next_modules:
                module.declare_statistics()
        for what in ("input", "activity"):
            self.request(what, self)
        for module in self._collecting:
            module.request("input", self)
            module.request("pre_activity", self)

    def update_computation(self, update_covariance_loss_gradient: bool = True) -> None:
        """Add the last batch to every statistic; a second call for the same batch changes nothing."""
        self.statistics.update(update_covariance_loss_gradient)

    def reset_computation(self) -> None:
        """End a collection: forget statistics, and keep nothing any longer for this merge's sake."""
        for statistic in self.statistics.all:
            statistic.reset()
        for what in ("input", "activity"):
            self.release(what, self)
        for module in self._collecting:
            module.release("input", self)
            module.release("pre_activity", self)

    @property
    def _collecting(self) -> list[Any]:
        """The layers that keep parts of a batch for this merge: those that it joins, and if it grows those after it."""
        after = self.next_modules if self.allow_growing else []
        return [*self.layers_before, *(layer for module in after for layer in weighted_layers(module))]

    @property
    def layers_before(self) -> list[Any]:
        """The previous modules that have weights: merges among them are left out, as in the original."""
        return [layer for module in self.previous_modules for layer in module.weighted_layers]

    @property
    def weighted_layers(self) -> tuple[Any, ...]:
        """None: a merge has no weights of its own."""
        return ()

    @property
    def changed_layers(self) -> list[Any]:
        """What growth at this place changes: the layers around it."""
        return [*self.layers_before, *self.next_modules]

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return self.in_features

    @property
    def total_in_features(self) -> int:
        """Width of the full activity: the inputs of all previous layers with their ones columns."""
        return self.sum_in_features(with_bias=True)

    def sum_in_features(self, with_bias: bool = False) -> int:
        """Sum of the previous layers' input widths, with a column of ones for each bias where asked for."""
        return sum(m.in_features + int(with_bias and m.use_bias) for m in self.layers_before)

    def sum_out_features(self) -> int:
        """Sum of the next modules' output widths."""
        return sum(int(m.out_features) for m in self.next_modules)

    @property
    def output_function(self) -> Module:
        """What is applied to the sum: ``post_merge_function``."""
        return self.post_merge_function

    @property
    def output_slope(self) -> float:
        """Derivative at zero from above of ``post_merge_function``."""
        return activation_slope(self.post_merge_function)

    def set_previous_modules(self, previous_modules: Iterable[Any]) -> None:
        """Replace the previous modules; statistics of what flows in start anew.

        Raises
        ------
        TypeError
            A module is neither a growing layer nor a merge.
        ValueError
            Its output has another width than this merge. Nothing has changed then.
        """
        modules = self._listed(previous_modules, "previous_modules")
        for module in modules:
            require_neighbour(module, "previous", self.name)
            if module.out_features != self.in_features:
                raise ShapeError(
                    f"{self.name}: previous module {module.name} has {module.out_features} outputs, the merge expects "
                    f"{self.in_features}; give them the same width"
                )
        self._warn_if_used(self.statistics.previous_s, self.statistics.previous_m)
        self.previous_modules = modules
        self.declare_statistics()

    def set_next_modules(self, next_modules: Iterable[Any]) -> None:
        """Replace the next modules; any module with ``in_features`` will do, a plain layer too.

        Raises
        ------
        TypeError
            A module has no ``in_features``.
        ValueError
            Its input has another width than this merge. Nothing has changed then.
        """
        modules = self._listed(next_modules, "next_modules")
        for module in modules:
            width = getattr(module, "in_features", None)
            if width is None:
                raise TypeError(
                    f"{self.name}: next module {type(module).__name__} has no in_features; expected a layer"
                )
            if int(width) != self.out_features:
                raise ShapeError(
                    f"{self.name}: next module {getattr(module, 'name', type(module).__name__)} has {width} inputs, "
                    f"the merge has {self.out_features} outputs; give them the same width"
                )
        self._warn_if_used(self.statistics.s)
        self.next_modules = modules

    def _listed(self, modules: Iterable[Any], role: str) -> list[Any]:
        if isinstance(modules, Module) or not is_ordered(modules):
            raise TypeError(
                f"{self.name}: {role} is a {type(modules).__name__}, expected a list of modules; write [module] for one"
            )
        return list(modules)

    def _warn_if_used(self, *statistics: TensorStatistic | None) -> None:
        for statistic in statistics:
            if statistic is not None and statistic.samples:
                warnings.warn(
                    f"{self.name}: {statistic.name} holds {statistic.samples} samples of the old neighbours; "
                    "call reset_computation() first",
                    stacklevel=3,
                )

    def add_previous_module(self, module: Any) -> None:
        """Append one previous module."""
        self.set_previous_modules([*self.previous_modules, module])

    def add_next_module(self, module: Any) -> None:
        """Append one next module."""
        self.set_next_modules([*self.next_modules, module])

    def grow(self) -> None:
        """Check all neighbours again, after they grew; call :meth:`update_size` before."""
        self.set_next_modules(self.next_modules)
        self.set_previous_modules(self.previous_modules)

    def update_size(self) -> None:
        """Take the width of the previous modules over, and declare statistics for it."""
        if self.previous_modules:
            self.in_features = int(self.previous_modules[0].out_features)
        self.declare_statistics()

    def update_scaling_factor(self, scaling_factor: Any) -> None:
        """Scale the previous modules' output extensions and the next modules' changes by one factor.

        Raises
        ------
        TypeError
            A neighbour is not a growing layer, or the factor is not a number; nothing has changed then.
        """
        factor = as_scalar(scaling_factor, f"{self.name}.update_scaling_factor")
        for module in (*self.previous_modules, *self.next_modules):
            if not weighted_layers(module):
                raise TypeError(
                    f"{self.name}: {type(module).__name__} is not a growing layer, so it has no scaling; "
                    "scale a chain of merges one by one"
                )
        for module in self.previous_modules:
            module.output_extension_scaling = factor
        for module in self.next_modules:
            module.scaling_factor = factor

    # The planned change.

    @property
    def input_stream(self) -> JoinedStream:
        """Inputs of all previous layers side by side, with their ones; never put together."""
        if not self.layers_before:
            raise GrowthError(f"{self.name}: there are no previous layers; call set_previous_modules() first")
        return JoinedStream(tuple(module.input_stream for module in self.layers_before))

    @property
    def growth_statistic(self) -> TensorStatistic:
        """Second moment of the full activity."""
        if self.statistics.previous_s is None:
            raise GrowthError(f"{self.name}: there are no previous layers, so there is no full activity")
        return self.statistics.previous_s

    @property
    def input_statistic_for_next(self) -> TensorStatistic:
        """Second moment of the activity, ones last, which all next layers share."""
        return self.statistics.s

    def _check_growable(self) -> None:
        if not self.allow_growing:
            raise GrowthError(f"{self.name}: growth through the merge is off; construct it with allow_growing=True")
        if not self.layers_before or not self.next_modules:
            raise GrowthError(f"{self.name}: growth needs previous layers and next layers; set both first")
        for module in (*self.previous_modules, *self.next_modules):
            if not weighted_layers(module):
                raise NotImplementedError(
                    f"{self.name}: growth through a chain of merges ({getattr(module, 'name', module)!s}) is not "
                    "supported; supported: linear growing layers before and after one merge"
                )
        for module in self.previous_modules:
            if not module.output_function.is_identity:
                raise NotImplementedError(
                    f"{self.name}: previous layer {module.name} applies {type(module.output_function).__name__} before "
                    "the sum; growth through a merge needs the function after the sum, as post_merge_function"
                )

    def compute_optimal_delta(
        self, update: bool = True, return_deltas: bool = False, force_pseudo_inverse: bool = False
    ) -> list[tuple[Array, Array | None]] | None:
        """Joint optimal delta of all previous layers from one solve, cut into weights and biases.

        With ``update`` each layer holds its part as its planned delta; ``return_deltas`` returns them.

        Raises
        ------
        GrowthError
            There are no previous layers, or no samples.
        """
        s, m = self.growth_statistic(), self.statistics.previous_m
        floor = max((rounding_floor(module.weight.data) for module in self.layers_before), default=0.0)
        delta, decrease = optimal_delta(s, s if m is None else m(), pseudo_inverse=force_pseudo_inverse, floor=floor)
        self.update = replace(self.update, decreases=(decrease,))
        deltas = []
        for module, rows in zip(self.layers_before, self._cut(delta), strict=True):
            width = rows.shape[1] - int(module.use_bias)
            deltas.append((rows[:, :width], rows[:, width] if module.use_bias else None))
            if update:
                module.update = module.update.with_delta(module.part_of(rows), module.update.decrease)
        return deltas if return_deltas else None

    def _cut(self, rows: Array) -> list[Array]:
        """Rows over the full activity, cut by previous layer."""
        ends = [0, *itertools.accumulate(module.stream_width for module in self.layers_before)]
        if rows.ndim != 2 or rows.shape[1] != ends[-1]:
            raise ShapeError(f"{self.name}: alpha has shape {tuple(rows.shape)}, expected (new neurons, {ends[-1]})")
        return [rows[:, start:stop] for start, stop in itertools.pairwise(ends)]

    def compute_optimal_updates(
        self, rule: Rule = TINY, *, force_pseudo_inverse: bool = False, **options: Any
    ) -> tuple[Array | None, Array | None]:
        """Plan deltas of the next layers and new neurons of the merge, by ``rule`` as for a layer.

        Returns alpha (k, total_in_features) over the full activity and omega (sum of the next layers' outputs, k).
        """
        self._check_growable()
        rule, held = rule_of(rule, options), self.statistics

        def means(module: Any, rows: slice) -> LayerMeans:
            own = module.means()
            return replace(
                own, m_prev=lambda: held.m_prev()[:, rows], p=lambda: held.p()[:, : module.stream_width],
                e=lambda: held.e()[rows, rows], pseudo_inverse=force_pseudo_inverse,
            )  # fmt: skip

        layers = tuple(means(module, rows) for module, rows in self._rows_of_next())
        change = planned(rule, PlaceMeans(layers, held.e, self.growth_statistic))
        self.take(change)
        return change.output_extension, change.input_extension

    def _rows_of_next(self) -> list[tuple[Any, slice]]:
        """The next layers, and for each its rows where the outputs of all stand one above the other."""
        ends = [0, *itertools.accumulate(module.out_features for module in self.next_modules)]
        return [(module, slice(*at)) for module, at in zip(self.next_modules, itertools.pairwise(ends), strict=True)]

    def take(self, change: GrowthUpdate[Array]) -> None:
        """Hold a change of matrices as the plan: its parts go to the layers around the merge."""
        omega, parts = change.input_extension, []
        for i, (module, rows) in enumerate(self._rows_of_next()):
            one = slice(i, i + 1)
            part = GrowthUpdate(
                change.deltas[one], None if omega is None else omega[rows, ...],
                solutions=change.solutions[one], decreases=change.decreases[one],
            )  # fmt: skip
            parts.append((module, module.shaped(part)))
        self.set_output_extension(change.output_extension)
        for module, part in parts:
            module.update = part
        self.update = replace(
            self.update, singular_values=change.singular_values, linear=change.linear, slopes=change.slopes
        )

    @property
    def parameters_per_output(self) -> int:
        """Scalars that one more output costs: in all previous layers, and its share of a normalisation."""
        reads = sum(module.parameters_per_output for module in self.layers_before)
        return int(reads) + self.post_merge_function.parameters_per_feature

    @property
    def parameters_per_neuron(self) -> int:
        """Scalars that one more neuron of the merge costs, over all previous and next layers."""
        return self.parameters_per_output + sum(module.out_features for module in self.next_modules)

    @property
    def new_neurons(self) -> int:
        """Number of planned neurons."""
        return 0 if self.update.singular_values is None else int(self.update.singular_values.shape[0])

    @property
    def new_neurons_fo_improvement(self) -> float:
        """First-order improvement by the planned neurons."""
        return 0.0 if self.update.singular_values is None else self.update.improvement(self.output_slope)

    def _check_planned(self, what: str = "update is") -> None:
        if self.update.singular_values is None:
            raise GrowthError(f"{self.name}: no {what} planned; call compute_optimal_updates() first")

    @property
    def _decreases(self) -> float:
        return float(sum(module.update.decrease or 0.0 for module in self.next_modules))

    @property
    def first_order_improvement(self) -> float:
        """Decrease of the loss that the planned change of all next layers and the new neurons promises."""
        self._check_planned()
        return self._decreases + self.new_neurons_fo_improvement

    @property
    def predicted_decrease(self) -> float:
        """Exact first-order decrease of the loss by the planned change; see ``GrowingModule.predicted_decrease``."""
        self._check_planned()
        return self._decreases + replace(self.update, decreases=()).predicted(self.output_slope)

    @property
    def scaling_factor(self) -> float:
        """The single factor g of the planned change: deltas by g², extensions by g."""
        return self._scaling_factor

    @scaling_factor.setter
    def scaling_factor(self, value: Any) -> None:
        self.update_scaling_factor(value)
        self._scaling_factor = as_scalar(value, f"{self.name}.scaling_factor")

    @property
    def output_extension_scaling(self) -> float:
        """Scaling of the previous layers' output extensions, which they share."""
        return float(self.layers_before[0].output_extension_scaling) if self.layers_before else 0.0

    @output_extension_scaling.setter
    def output_extension_scaling(self, value: float) -> None:
        for module in self.layers_before:
            module.output_extension_scaling = value

    def sub_select_optimal_added_parameters(self, keep_neurons: int) -> None:
        """Keep the first ``keep_neurons`` planned neurons, in every previous and next layer."""
        self._check_planned("neurons are")
        keep = min(whole_number(self.name, "keep_neurons", keep_neurons, 0), self.new_neurons)
        self.keep_output_extension(keep)
        for module in self.next_modules:
            module.update = module.update.with_neurons(kept_columns(module.update.input_extension, keep), keep)
        self.update = self.update.with_neurons(None, keep)

    def normalize_optimal_updates(
        self, normalization_type: str = "gradmax_normalization", gradmax_scale: float = 1.0
    ) -> None:
        """Bring the planned outgoing weights to the mean norm of the existing ones, over all next layers together.

        The only type for a merge is ``gradmax_normalization``; the others speak of one layer's deviation.
        """
        if normalization_type != "gradmax_normalization":
            raise NotImplementedError(
                f"{self.name}: {normalization_type} is not defined for a merge; supported: gradmax_normalization"
            )
        self._check_planned("neurons are")
        planned = [module.update.input_extension for module in self.next_modules]
        xp = namespace(planned[0].weight.data)
        existing = xp.concat([module.weight.data for module in self.next_modules], axis=0)
        factors = gradmax_column_factors(existing, xp.concat([p.weight.data for p in planned], axis=0), gradmax_scale)
        if factors is None:
            return
        for module, part in zip(self.next_modules, planned, strict=True):
            module.update = module.update.times(scaled_columns(part, factors), factors)
        self.update = self.update.times(None, factors)

    @property
    def output_extension(self) -> Array:
        """The planned incoming weights over the full activity, (k, total_in_features)."""
        parts = [module.output_extension for module in self.layers_before]
        return namespace(*parts).concat(parts, axis=1)

    def set_output_extension(self, alpha: Array | None) -> None:
        """Cut alpha (k, total_in_features) into the previous layers' output extensions; None drops them.

        What was known of the neurons before, their singular values say, goes with them.
        """
        rows = [None for _ in self.layers_before] if alpha is None else self._cut(alpha)
        self.update = self.update.with_input(None)
        for module, part in zip(self.layers_before, rows, strict=True):
            module.set_output_extension(part)

    def keep_output_extension(self, keep: int, zeros: int = 0) -> None:
        """Keep the first ``keep`` new neurons of every previous layer, the last ``zeros`` of them as zeros."""
        for module in self.layers_before:
            module.keep_output_extension(keep, zeros)

    def check_output_extension(self, size: int | None = None) -> None:
        """Raise ``GrowthError`` if several layers read the merge: they must widen together."""
        if len(self.next_modules) > 1:
            raise GrowthError(
                f"{self.name}: {len(self.next_modules)} layers read this merge and must widen together; "
                "call the merge's apply_change()"
            )
        self._check_extensions(size)

    def _check_extensions(self, size: int | None = None) -> None:
        for module in self.layers_before:
            module.check_output_extension()
        sizes = {module.extended_output_layer.weight.shape[0] for module in self.layers_before}
        if len(sizes) != 1:
            raise GrowthError(
                f"{self.name}: the previous layers' extensions have {sorted(sizes)} neurons; plan them anew"
            )
        found = sizes.pop()
        if size is not None and found != size:
            raise ShapeError(
                f"{self.name}: the previous layers' extensions have {found} neurons, those of the next layers {size}; "
                "plan them anew"
            )
        if found:
            self.post_merge_function.check_extend(found)

    def apply_output_extension(self) -> None:
        """Widen every previous layer by its output extension, then the merge and its function."""
        self._check_extensions()
        before = self.in_features
        for module in self.layers_before:
            module.apply_output_extension()
        self.update_size()
        if self.in_features > before:
            self.post_merge_function.extend(self.in_features - before)

    def apply_change(self, scaling_factor: Any = None) -> None:
        """Carry the planned change out: next layers' deltas and new columns, previous layers' new rows.

        Raises ``GrowthError`` if nothing is planned, or it has been applied; nothing has changed then.
        """
        self._check_growable()
        planned = [module for module in self.next_modules if module.has_plan]
        if not planned:
            raise GrowthError(f"{self.name}: no change is planned; call compute_optimal_updates() first")
        for module in planned:
            module.check_change()
        if self.update.singular_values is not None:
            self._check_extensions(self.new_neurons)
        if scaling_factor is not None:
            self.scaling_factor = scaling_factor
        for module in planned:
            module.apply_change(apply_previous=False)
        if self.update.singular_values is not None:
            self.apply_output_extension()

    def delete_update(self, include_previous: bool = False) -> None:
        """Forget the planned deltas, and if the merge may grow its new neurons and what its next layers plan.

        With ``include_previous`` the deltas and extensions of the previous layers too.
        """
        self.update, self._scaling_factor = replace(self.update, decreases=()), 0.0
        if self.allow_growing:  # else what the neighbours plan is their own
            self.set_output_extension(None)
            self.output_extension_scaling = 0.0
            for module in self.next_modules:
                for layer in weighted_layers(module):
                    layer.delete_update(include_previous=False)
        for module in self.layers_before if include_previous else ():
            module.delete_update(include_previous=False, delete_output=True)

    @property
    def widens(self) -> str:
        """Name of the module that new neurons widen: the merge itself."""
        return self.name

    @property
    def function_before(self) -> Module:
        """The function behind which new neurons stand: ``post_merge_function``."""
        return self.post_merge_function


class LinearMergeGrowingModule(MergeGrowingModule):
    """A merge of linear layers: ``post_merge_function(sum of the previous modules' outputs)``.

    Signature and names are the original's. Statistics run over the *full activity* ``(B_1 | … | B_k)`` of the previous
    layers; one solve gives the joint optimal delta of all of them. A merge among the previous modules contributes
    nothing to the full activity (it has no weights of its own to update), as in the original.

    ``allow_growing=True`` lets the merge itself widen, which the original refuses: new neurons read every previous
    layer's input, and every next layer reads them; see :meth:`compute_optimal_updates`.

    Differs from the original: arrays have the data's dtype; the singular previous S of two biased branches is always
    solved by the pseudo-inverse; a next layer without bias works; requests replace counters that went negative.

    >>> from growarray.growing import LinearGrowingModule
    >>> a, b = LinearGrowingModule(3, 2), LinearGrowingModule(4, 2, use_bias=False)
    >>> merge = LinearMergeGrowingModule(previous_modules=[a, b], in_features=2)
    >>> merge.total_in_features, merge.number_of_predecessors
    (8, 2)
    """
