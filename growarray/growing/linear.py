"""LinearGrowingModule: a linear layer that collects statistics and grows."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any, cast

import numpy as np

from growarray.backend import Array, namespace
from growarray.errors import GrowthError, ShapeError
from growarray.growing.checks import as_scalar
from growarray.growing.collect import CollectingLinear
from growarray.growing.extension import fan_in, spread
from growarray.growing.rule import TINY, GrowthRule, rule_of
from growarray.growing.update import added_neurons, neuron_goal, optimal_delta, rounding_floor, shrink
from growarray.nn import Linear, Module
from growarray.ops.sizes import whole_number

__all__ = ["LinearGrowingModule"]


class LinearGrowingModule(CollectingLinear):
    """``post_layer_function(x W^T + b)`` over the last axis of (n, d) or (n, t, d), able to grow.

    in_features, out_features, use_bias : of the layer; in_features may be 0, the output is then the bias
    post_layer_function : activation (with normalisation, as a Sequential), default the identity
    previous_module, next_module : neighbours, linked but not owned
    target_in_features : width that :meth:`complete_growth` fills up to
    dtype, rng : of the weights, default float32 and a fresh generator

    One collection: ``init_computation()``, then for each batch forward, pullback, ``update_computation()``, at last
    ``compute_optimal_updates()``, ``apply_change(scaling_factor=g)``, ``delete_update()``, ``reset_computation()``.
    While statistics are collected the weight gradient of the pullback *is* the batch's M, computed once.

    Differs from the original: updates are float64 whatever the data's dtype; optimizer state survives growth;
    growth through a merge works; a layer without input features gives its bias; GrowthError and ShapeError (both
    ValueErrors) stand where the original asserts.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> first = LinearGrowingModule(3, 2, rng=rng, dtype=np.float64)
    >>> second = LinearGrowingModule(2, 1, previous_module=first, rng=rng, dtype=np.float64)
    >>> second.init_computation()
    >>> x = rng.standard_normal((20, 3))
    >>> h, back1 = first.vjp(x)
    >>> y, back2 = second.vjp(h)
    >>> _ = back1(back2(y - x[:, :1] ** 2))
    >>> second.update_computation()
    >>> _ = second.compute_optimal_updates(max_new=1)
    >>> second.apply_change(scaling_factor=0.1)
    >>> first.out_features, second.in_features, second.first_order_improvement > 0
    (3, 3, True)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        use_bias: bool = True,
        post_layer_function: Module | None = None,
        extended_post_layer_function: Module | None = None,
        previous_module: Any = None,
        next_module: Any = None,
        allow_growing: bool = False,
        device: str | None = None,
        name: str | None = None,
        target_in_features: int | None = None,
        *,
        dtype: Any = None,
        rng: np.random.Generator | None = None,
    ) -> None:
        layer = Linear(in_features, out_features, use_bias, rng=rng, dtype=dtype, device=device)
        super().__init__(
            layer,
            post_layer_function,
            extended_post_layer_function,
            previous_module,
            next_module,
            allow_growing,
            name,
            target_in_features,
        )
        self._start()

    def compute_optimal_delta(
        self,
        update: bool = True,
        force_pseudo_inverse: bool = False,
        use_fisher: bool = False,
        fisher_shrinkage: float = 0.0,
    ) -> tuple[Array, Array | None, float]:
        """Optimal delta of weight and bias, and the first-order decrease; with ``update`` it becomes the plan.

        Raises
        ------
        GrowthError
            No statistics have been collected.
        """
        e = shrink(self.covariance_loss_gradient(), fisher_shrinkage) if use_fisher else None
        floor = rounding_floor(self.weight.data)
        delta, decrease = optimal_delta(
            self._own_s(), self.tensor_m(), e=e, pseudo_inverse=force_pseudo_inverse, floor=floor
        )
        self.delta_raw = delta
        weight, bias = delta[:, : self.in_features], delta[:, -1] if self.use_bias else None
        if update:
            self.optimal_delta_layer = self.layer_of_tensor(weight, bias)
            self.parameter_update_decrease = decrease
        return weight, bias, decrease

    def compute_optimal_updates(
        self,
        rule: GrowthRule = TINY,
        *,
        update_previous: bool = True,
        force_pseudo_inverse: bool = False,
        **options: Any,
    ) -> tuple[Array | None, Array | None]:
        """Plan the optimal delta and new neurons by ``rule``, single options of which may be given by name.

        Returns alpha's weights (k, d_prev) and biases (k,), or (None, None) without a previous module. After a merge
        the merge plans for itself and all its next modules: see ``LinearMergeGrowingModule.compute_optimal_updates``.
        ``update_previous=False`` leaves the previous module without its output extension. Where something raises, what
        was planned before stays planned.
        """
        rule = rule_of(rule, options)
        previous = None if self.previous_module is None else self.previous
        if previous is not None and self._shared_statistic() is not None:
            if not update_previous:
                raise GrowthError(
                    f"{self.name}: after a merge the merge plans for both sides; leave update_previous on"
                )
            self.previous_module.compute_optimal_updates(rule, force_pseudo_inverse=force_pseudo_inverse)
            return None, None
        if previous is None:
            with self.keeping_plan():
                self.plan_delta(replace(rule, use_projection=False), force_pseudo_inverse)
            return None, None
        with self.keeping_plan():
            taken = self.plan_delta(rule, force_pseudo_inverse)
            m_prev = self.tensor_m_prev()
            alpha, omega, values = added_neurons(
                previous.growth_statistic() if rule.use_covariance else None,
                neuron_goal(m_prev, None if taken is None else self.cross_covariance(), taken),
                e=self.covariance_loss_gradient() if rule.use_fisher else None,
                rule=rule,
            )
            self.plan_input_extension(omega, values, linear=rule.ignore_singular_values)
            self._planned_m_prev = m_prev if update_previous else None
            previous.set_output_extension(alpha if update_previous else None)
        width = alpha.shape[1] - int(self.previous_module.use_bias)
        return alpha[:, :width], alpha[:, -1] if self.previous_module.use_bias else None

    def plan_delta(self, rule: GrowthRule, force_pseudo_inverse: bool = False) -> Array | None:
        """Plan the optimal delta as ``rule`` says; returns the delta that new neurons leave to it, or None."""
        self.optimal_delta_layer, self.parameter_update_decrease, self.delta_raw = None, 0.0, None
        plain = None
        if rule.use_projection and rule.use_fisher and not rule.project_with_fisher:
            self.compute_optimal_delta(False, force_pseudo_inverse)
            plain = self.delta_raw
        if rule.compute_delta or (rule.use_projection and plain is None):
            self.compute_optimal_delta(rule.compute_delta, force_pseudo_inverse, rule.use_fisher, rule.fisher_shrinkage)
        if not rule.use_projection:
            return None
        return self.delta_raw if plain is None else plain

    def plan_input_extension(self, omega: Array, values: Array | None = None, *, linear: bool = False) -> None:
        """Hold ``omega`` (o, k) as the input extension, with its singular values (``linear``: they were ignored)."""
        if omega.ndim != 2 or omega.shape[0] != self.out_features:
            raise ShapeError(
                f"{self.name}: omega has shape {tuple(omega.shape)}, expected ({self.out_features}, new neurons)"
            )
        layer = Linear.of(namespace(omega).astype(omega, self.weight.data.dtype, copy=False))
        self._hold_input_extension(layer, values, linear=linear)

    def sub_select_optimal_added_parameters(
        self,
        keep_neurons: int | None = None,
        threshold: float | None = None,
        sub_select_previous: bool = True,
        zeros_if_not_enough: bool = False,
        zeros_fan_in: bool = True,
        zeros_fan_out: bool = False,
    ) -> None:
        """Keep the first ``keep_neurons`` planned neurons, or those with singular values of at least ``threshold``.

        With ``zeros_if_not_enough`` all candidates stay, and the incoming (``zeros_fan_in``) or outgoing
        (``zeros_fan_out``) weights of those beyond the selection are set to zero, and so are their singular values.

        Raises GrowthError without planned neurons, or where ``sub_select_previous`` finds no previous module with an
        output extension; ValueError or TypeError for both or none of the two, a number of
        neurons that is not whole or is negative, a threshold that is not finite; nothing has changed then.
        """
        values, extension = self.eigenvalues_extension, self.extended_input_layer
        if values is None or extension is None:
            raise GrowthError(f"{self.name}: no neurons are planned; call compute_optimal_updates() first")
        if (keep_neurons is None) == (threshold is None):
            raise ValueError(f"{self.name}: give either keep_neurons or threshold, found {keep_neurons}, {threshold}")
        total = self.new_neurons
        if keep_neurons is None:
            least = as_scalar(threshold, f"{self.name}: threshold")
            keep_neurons = sum(float(value) >= least for value in values)
        keep = min(whole_number(self.name, "keep_neurons", keep_neurons, 0), total)
        if sub_select_previous and self.previous.output_extension.shape[0] != total:
            raise ShapeError(
                f"{self.name}: the previous module plans {self.previous.output_extension.shape[0]} neurons, this one "
                f"{total}; plan or create both together"
            )
        zeros = total - keep if zeros_if_not_enough else 0
        weight = extension.weight.data[:, : keep + zeros]
        if zeros and zeros_fan_out:
            weight = namespace(weight).concat(
                [weight[:, :keep], namespace(weight).zeros_like(weight[:, keep:])], axis=1
            )
        extension.weight.data = weight
        xp = namespace(values)
        self.eigenvalues_extension = xp.concat([values[:keep], xp.zeros_like(values[keep : keep + zeros])])
        if sub_select_previous:
            self.previous.keep_output_extension(keep + zeros, zeros if zeros_fan_in else 0)

    def layer_of_tensor(self, weight: Array, bias: Array | None = None, force_bias: bool = True) -> Linear:
        """A plain layer of these values, in its dtype; ``force_bias`` demands a bias exactly where it has one."""
        if force_bias and (bias is not None) != self.use_bias:
            raise GrowthError(
                f"{self.name}: use_bias is {self.use_bias}, but a bias was {'not ' if bias is None else ''}given"
            )
        xp, dtype = namespace(weight, bias), self.weight.data.dtype
        return Linear.of(
            xp.astype(weight, dtype, copy=True), None if bias is None else xp.astype(bias, dtype, copy=True)
        )

    def set_output_extension(self, alpha: Array | None) -> None:
        """Hold alpha (k, in_features [+ 1 for the bias]) as the output extension; None drops it."""
        if alpha is None:
            self.extended_output_layer = None
            return
        width = self.in_features + int(self.use_bias)
        if alpha.ndim != 2 or alpha.shape[1] != width:
            raise ShapeError(f"{self.name}: alpha has shape {tuple(alpha.shape)}, expected (new neurons, {width})")
        bias = alpha[:, -1] if self.use_bias else None
        self.extended_output_layer = self.layer_of_tensor(alpha[:, : self.in_features], bias)

    @property
    def output_extension(self) -> Array:
        """The planned output extension as one array (k, in_features [+ 1 for the bias])."""
        if self.extended_output_layer is None:
            raise GrowthError(f"{self.name}: there is no output extension; compute or create it first")
        weight, bias = self.extended_output_layer.weight.data, self.extended_output_layer.bias
        return weight if bias is None else namespace(weight).concat([weight, bias.data[:, None]], axis=1)

    def keep_output_extension(self, keep: int, zeros: int = 0) -> None:
        """Keep the first ``keep`` rows of the output extension, the last ``zeros`` of them as zeros."""
        if self.extended_output_layer is None:
            raise GrowthError(f"{self.name}: there is no output extension to select from")
        for parameter in self.extended_output_layer.parameters():
            rows, xp = parameter.data[:keep, ...], namespace(parameter.data)
            if zeros:
                rows = xp.concat([rows[: keep - zeros, ...], xp.zeros_like(rows[keep - zeros :, ...])], axis=0)
            parameter.data = rows

    def check_output_extension(self, size: int | None = None) -> None:
        """Raise ``GrowthError`` without an output extension, ``ShapeError`` where it no longer fits or has not ``size``
        neurons, or what the function after the layer has against it.
        """
        extension = self.extended_output_layer
        if extension is None:
            raise GrowthError(f"{self.name}: there is no output extension to apply; compute or create it first")
        if extension.in_features != self.in_features:
            raise ShapeError(
                f"{self.name}: the output extension was planned for {extension.in_features} inputs, the layer has "
                f"{self.in_features} now; call delete_update() on the next module, collect statistics and plan anew"
            )
        if size is not None and extension.out_features != size:
            raise ShapeError(
                f"{self.name}: the output extension has {extension.out_features} neurons, the next module's input "
                f"extension {size}; plan or create both together"
            )
        if extension.out_features:
            self.post_layer_function.check_extend(extension.out_features)

    def apply_output_extension(self) -> None:
        """Append the output extension, times ``output_extension_scaling``; normalisation widens with it."""
        self.check_output_extension()
        extension, scale = cast(Linear, self.extended_output_layer), self.output_extension_scaling
        bias = None if extension.bias is None else scale * extension.bias.data
        self.layer_out_extension(scale * extension.weight.data, bias)
        if extension.out_features:
            self.post_layer_function.extend(extension.out_features)

    def layer_in_extension(self, weight: Array) -> None:
        """Append columns ``weight`` (out_features, k) to the layer; its statistics start anew."""
        self.layer.weight.extend(1, weight)
        self._declare_statistics()

    def layer_out_extension(self, weight: Array, bias: Array | None = None) -> None:
        """Append rows ``weight`` (k, in_features) and ``bias`` (k,), which a layer with bias needs."""
        if self.layer.bias is not None and bias is None:
            raise GrowthError(f"{self.name}: the layer has a bias, so its output extension needs one; pass bias=")
        if bias is not None and bias.shape[0] != weight.shape[0]:
            raise ShapeError(f"{self.name}: {weight.shape[0]} rows of weights, {bias.shape[0]} biases")
        self.layer.weight.extend(0, weight)
        if self.layer.bias is not None and bias is not None:
            self.layer.bias.extend(0, bias)
        self._declare_statistics()

    def add_parameters(
        self,
        matrix_extension: Array | None,
        bias_extension: Array | None,
        added_in_features: int = 0,
        added_out_features: int = 0,
    ) -> None:
        """Append ``added_in_features`` columns or ``added_out_features`` rows, zeros where no values are given.

        The neighbours' widths are not touched, hence the ``UserWarning``. Both at once raise ``ValueError``.
        """
        if (added_in_features > 0) == (added_out_features > 0):
            raise ValueError(
                f"{self.name}: add inputs or outputs, one at a time; found {added_in_features}, {added_out_features}"
            )
        weight = self.layer.weight.data
        xp = namespace(weight)
        shape = (self.out_features, added_in_features) if added_in_features else (added_out_features, self.in_features)
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
    def get_fan_in_from_layer(layer: Linear | None = None, num_neurons: int | None = None) -> int:
        """Fan-in of ``layer``, or of ``num_neurons`` new inputs."""
        if layer is None and num_neurons is None:
            raise ValueError("get_fan_in_from_layer: give a layer or a number of neurons")
        return fan_in(layer.weight.data) if layer is not None else int(num_neurons or 0)

    def weights_statistics(self) -> dict[str, dict[str, float]]:
        """Least, largest, mean and deviation (n - 1) of weight and bias; NaN where there is nothing."""
        return {name: _describe(parameter.data) for name, parameter in self.layer.named_parameters()}


def _describe(array: Array) -> dict[str, float]:
    if 0 in array.shape:
        return dict.fromkeys(("min", "max", "mean", "std"), float("nan"))
    xp = namespace(array)
    return {
        "min": float(xp.min(array)),
        "max": float(xp.max(array)),
        "mean": float(xp.mean(array)),
        "std": spread(array),
    }
