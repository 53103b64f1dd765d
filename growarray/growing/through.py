"""Growth through a merge: new neurons that read every branch before it and feed every layer after it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np

from growarray.backend import Array, asarray, namespace
from growarray.errors import GrowthError, ShapeError
from growarray.growing.checks import as_scalar
from growarray.growing.extension import gradmax_column_factors
from growarray.growing.junction import MergeGrowingModule
from growarray.growing.moment import TensorStatistic, cross_moment
from growarray.growing.rule import TINY, GrowthRule, rule_of
from growarray.growing.stream import JoinedStream, Stream
from growarray.growing.update import added_neurons, neuron_goal, neuron_slope
from growarray.nn import Module
from growarray.ops.sizes import whole_number

__all__ = ["GrowthThroughMerge"]


class GrowthThroughMerge(MergeGrowingModule):
    """The growing half of a merge; the original raises ``NotImplementedError`` at each of these methods.

    With ``B_prev`` the full activity of the merge and ``N`` the concatenation of what each next layer's update leaves
    undone, one SVD serves all branches: alpha is cut by previous layer, omega by next layer. The improvement to
    first order is the sum of the next layers' decreases and ``sigma'(0+) sum(s^2)``.
    """

    eigenvalues_extension: Array | None = None
    _planned_m_prev: Array | None = None
    new_neurons = 0
    _improvement_is_linear = False
    _scaling_factor = 0.0

    @property
    def input_stream(self) -> JoinedStream:
        """Inputs of all previous layers side by side, with their ones columns; never put together."""
        if not self.layers_before:
            raise GrowthError(f"{self.name}: there are no previous layers; call set_previous_modules() first")
        return JoinedStream(tuple(module.input_stream for module in self.layers_before))

    @property
    def growth_statistic(self) -> TensorStatistic:
        """Second moment of the full activity."""
        if self.previous_tensor_s is None:
            raise GrowthError(f"{self.name}: there are no previous layers, so there is no full activity")
        return self.previous_tensor_s

    def _declare_growth_statistics(self) -> None:
        self.tensor_m_prev = TensorStatistic(None, self._m_prev_of_batch, self._device, f"M_prev({self.name})")
        self.cross_covariance = TensorStatistic(None, self._p_of_batch, self._device, f"P({self.name})")
        self.covariance_loss_gradient = TensorStatistic(None, self._e_of_batch, self._device, f"E({self.name})")

    def _statistics(self) -> list[TensorStatistic]:
        growth = [self.tensor_m_prev, self.cross_covariance, self.covariance_loss_gradient]
        return [*super()._statistics(), *growth]

    def _gradients(self) -> JoinedStream:
        return JoinedStream(tuple(module.gradient_stream() for module in self.next_modules))

    def _m_prev_of_batch(self) -> tuple[Array, int]:
        stream = self.input_stream
        return cross_moment(stream, self._gradients()), stream.samples

    def _p_of_batch(self) -> tuple[Array, int]:
        stream = self.input_stream
        return cross_moment(stream, Stream(self.activity, bias=True)), stream.samples

    def _e_of_batch(self) -> tuple[Array, int]:
        stream = self._gradients()
        return cross_moment(stream), stream.samples

    def _check_growable(self) -> None:
        if not self.allow_growing:
            raise GrowthError(f"{self.name}: growth through the merge is off; construct it with allow_growing=True")
        if not self.layers_before or not self.next_modules:
            raise GrowthError(f"{self.name}: growth needs previous layers and next layers; set both first")
        for module in (*self.previous_modules, *self.next_modules):
            if not hasattr(module, "optimal_delta_scaling"):
                raise NotImplementedError(
                    f"{self.name}: growth through a chain of merges ({getattr(module, 'name', module)!s}) is not "
                    "supported; supported: linear growing layers before and after one merge"
                )
            function = getattr(module, "post_layer_function", None)
            if module in self.previous_modules and not getattr(function, "is_identity", False):
                raise NotImplementedError(
                    f"{self.name}: previous layer {module.name} applies {type(function).__name__} before the sum; "
                    "growth through a merge needs the function after the sum, as post_merge_function"
                )

    def _init_growth(self) -> None:
        if not self.allow_growing:
            return
        self._check_growable()
        for module in self.next_modules:
            module._declare_statistics()
            module.request("input", self)
            module.request("pre_activity", self)

    def _update_growth(self, fisher: bool) -> None:
        if not self.allow_growing:
            return
        self.tensor_m_prev.update()
        self.cross_covariance.update()
        if fisher:
            self.covariance_loss_gradient.update()
        for module in self.next_modules:
            module.tensor_m.update()

    def update_covariance_loss_gradient(self, count_samples: bool = True) -> None:
        """Add the present gradients of the next layers to E once more, as a layer does; nothing where growth is off."""
        if self.allow_growing:
            value, samples = self._e_of_batch()
            self.covariance_loss_gradient.update(value, samples, count_samples=count_samples)

    def _reset_growth(self) -> None:
        if self.allow_growing:
            for module in self.next_modules:
                if hasattr(module, "release"):
                    module.release("input", self)
                    module.release("pre_activity", self)

    def compute_optimal_updates(
        self, rule: GrowthRule = TINY, *, force_pseudo_inverse: bool = False, **options: Any
    ) -> tuple[Array, Array]:
        """Plan deltas of the next layers and new neurons of the merge, by ``rule`` as for a layer.

        Returns alpha (k, total_in_features) over the full activity and omega (sum of the next layers' outputs, k).
        """
        self._check_growable()
        rule = rule_of(rule, options)
        goal_of, goals, start = self.tensor_m_prev(), [], 0
        xp = namespace(goal_of)
        with ExitStack() as plans:
            for module in self.next_modules:
                plans.enter_context(module.keeping_plan())
                if rule.use_fisher:
                    self._share_fisher_block(module, start)
                taken = module.plan_delta(rule, force_pseudo_inverse)
                p = None if taken is None else self.cross_covariance()[:, : taken.shape[1]]
                goals.append(neuron_goal(goal_of[:, start : start + module.out_features], p, taken))
                start += module.out_features
            alpha, omega, values = added_neurons(
                self.growth_statistic() if rule.use_covariance else None,
                xp.concat(goals, axis=1),
                e=self.covariance_loss_gradient() if rule.use_fisher else None,
                rule=rule,
            )
        self._plan(alpha, omega, values, linear=rule.ignore_singular_values)
        self._planned_m_prev = goal_of
        return alpha, omega

    def _share_fisher_block(self, module: Any, start: int) -> None:
        """Give one next layer its E: the layer's diagonal block of the merge's."""
        block, e = slice(start, start + module.out_features), self.covariance_loss_gradient
        module.covariance_loss_gradient.reset()
        module.covariance_loss_gradient.update(e()[block, block] * e.samples, e.samples)

    def _plan(self, alpha: Array, omega: Array, values: Array, *, linear: bool) -> None:
        self.set_output_extension(alpha)
        start = 0
        for module in self.next_modules:
            module.plan_input_extension(omega[start : start + module.out_features, :])
            start += module.out_features
        self._hold_neurons(values, linear=linear)

    def _hold_neurons(self, values: Array | None, *, linear: bool = False) -> None:
        self.eigenvalues_extension, self.new_neurons = values, 0 if values is None else int(values.shape[0])
        self._improvement_is_linear, self._planned_m_prev = linear, None

    @property
    def parameters_per_output(self) -> int:
        """Scalars that one more output costs: in all previous layers, and its share of a normalisation."""
        reads = sum(int(module.parameters_per_output) for module in self.layers_before)
        return reads + self.post_merge_function.parameters_per_feature

    @property
    def parameters_per_neuron(self) -> int:
        """Scalars that one more neuron of the merge costs, over all previous and next layers."""
        return self.parameters_per_output + sum(int(module.out_features) for module in self.next_modules)

    @property
    def new_neurons_fo_improvement(self) -> float:
        """First-order improvement by the planned neurons."""
        if self.eigenvalues_extension is None:
            return 0.0
        xp, values = namespace(self.eigenvalues_extension), self.eigenvalues_extension
        return self.output_slope * float(xp.sum(values if self._improvement_is_linear else values**2))

    @property
    def first_order_improvement(self) -> float:
        """Decrease of the loss that the planned change of all next layers and the new neurons promises."""
        if self.eigenvalues_extension is None:
            raise GrowthError(f"{self.name}: no update is planned; call compute_optimal_updates() first")
        deltas = sum(module.parameter_update_decrease or 0.0 for module in self.next_modules)
        return float(deltas) + self.new_neurons_fo_improvement

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
        if self.eigenvalues_extension is None:
            raise GrowthError(f"{self.name}: no neurons are planned; call compute_optimal_updates() first")
        keep = min(whole_number(self.name, "keep_neurons", keep_neurons, 0), self.new_neurons)
        self.keep_output_extension(keep)
        for module in self.next_modules:
            module.extended_input_layer.weight.data = module.extended_input_layer.weight.data[:, :keep]
        self.eigenvalues_extension, self.new_neurons = self.eigenvalues_extension[:keep], keep

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
        if self.eigenvalues_extension is None:
            raise GrowthError(f"{self.name}: no neurons are planned; call compute_optimal_updates() first")
        planned = [module.extended_input_layer.weight for module in self.next_modules]
        xp = namespace(planned[0].data)
        existing = xp.concat([module.weight.data for module in self.next_modules], axis=0)
        omega = xp.concat([weight.data for weight in planned], axis=0)
        factors = gradmax_column_factors(existing, omega, gradmax_scale)
        if factors is None:
            return
        for weight in planned:
            weight.data = weight.data * asarray(factors[None, :], like=weight.data, dtype=weight.data.dtype)
        followed = factors if self._improvement_is_linear else np.sqrt(factors)
        values = self.eigenvalues_extension
        self.eigenvalues_extension = values * asarray(followed, like=values, dtype=values.dtype)

    def set_output_extension(self, alpha: Array | None) -> None:
        """Cut alpha (k, total_in_features) into the previous layers' output extensions; None drops them.

        What was known of the neurons before, their singular values say, goes with them.
        """
        self._hold_neurons(None)
        start = 0
        for module in self.layers_before:
            width = module.in_features + int(module.use_bias)
            module.set_output_extension(None if alpha is None else alpha[:, start : start + width])
            start += width

    def keep_output_extension(self, keep: int, zeros: int = 0) -> None:
        """Keep the first ``keep`` new neurons of every previous layer, the last ``zeros`` of them as zeros."""
        for module in self.layers_before:
            module.keep_output_extension(keep, zeros)

    def check_output_extension(self, size: int | None = None) -> None:
        """Raise ``GrowthError`` where several layers read the merge: they must widen together."""
        if len(self.next_modules) > 1:
            raise GrowthError(
                f"{self.name}: {len(self.next_modules)} layers read this merge and must widen together; "
                "call the merge's apply_change()"
            )
        self._check_extensions(size)

    def _check_extensions(self, size: int | None = None) -> None:
        for module in self.layers_before:
            module.check_output_extension()
        sizes = {module.extended_output_layer.out_features for module in self.layers_before}
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
        self.in_features = int(self.layers_before[0].out_features)
        if self.in_features > before:
            self.post_merge_function.extend(self.in_features - before)
        self._declare_statistics()

    def apply_change(self, scaling_factor: Any = None) -> None:
        """Carry the planned change out: next layers' deltas and new columns, previous layers' new rows.

        Raises ``GrowthError`` where nothing is planned, or it has been applied; nothing has changed then.
        """
        self._check_growable()
        planned = [module for module in self.next_modules if module.has_plan]
        if not planned:
            raise GrowthError(f"{self.name}: no change is planned; call compute_optimal_updates() first")
        for module in planned:
            module.check_change()
        if self.eigenvalues_extension is not None:
            self._check_extensions(self.new_neurons)
        if scaling_factor is not None:
            self.scaling_factor = scaling_factor
        for module in planned:
            module.apply_change(apply_previous=False)
        if self.eigenvalues_extension is not None:
            self.apply_output_extension()

    @property
    def widens(self) -> str:
        """Name of the module that new neurons widen: the merge itself."""
        return self.name

    @property
    def function_before(self) -> Module:
        """The function behind which new neurons stand: ``post_merge_function``."""
        return self.post_merge_function

    @property
    def output_extension(self) -> Array:
        """The planned incoming weights over the full activity, (k, total_in_features)."""
        parts = [module.output_extension for module in self.layers_before]
        return namespace(*parts).concat(parts, axis=1)

    @property
    def predicted_decrease(self) -> float:
        """Exact first-order decrease of the loss by the planned change; see ``GrowingModule.predicted_decrease``."""
        if self.eigenvalues_extension is None or self._planned_m_prev is None:
            raise GrowthError(f"{self.name}: no update is planned; call compute_optimal_updates() first")
        deltas = sum(module.parameter_update_decrease or 0.0 for module in self.next_modules)
        parts = [module.extended_input_layer.weight.data for module in self.next_modules]
        omega = namespace(*parts).concat(parts, axis=0)
        return float(deltas) - self.output_slope * neuron_slope(self._planned_m_prev, self.output_extension, omega)

    def _delete_growth(self) -> None:
        self._scaling_factor = 0.0
        if not self.allow_growing:  # what the neighbours plan is their own
            return
        self.set_output_extension(None)
        self.output_extension_scaling = 0.0
        for module in self.next_modules:
            if hasattr(module, "delete_update"):
                module.delete_update(include_previous=False)

    def extended_forward(self, x: Array, x_ext: Array | None = None) -> tuple[Array, Array | None]:
        """Function of the branches' sum, and of the sum of their new outputs."""
        return self.post_merge_function.extended_forward(x, x_ext)
