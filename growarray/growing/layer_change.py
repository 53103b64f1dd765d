"""Planning a change, computing with it, carrying it out and forgetting it: methods of every growing layer.

Weights are (out, in, *kernel): new neurons are columns of the layer after them and rows of the layer before.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

from growarray.backend import Array, namespace
from growarray.errors import GrowthError, ShapeError
from growarray.growing.change import DELTA, INPUT, kept_columns
from growarray.growing.checks import as_scalar
from growarray.growing.layer import GrowingModule
from growarray.growing.neighbour import is_neighbour
from growarray.growing.rule import TINY, PlaceMeans, Rule, planned, rule_of
from growarray.ops.sizes import whole_number

__all__ = [
    "apply_change",
    "check_change",
    "compute_optimal_delta",
    "compute_optimal_updates",
    "delete_update",
    "extended_forward",
    "first_order_improvement",
    "new_neurons_fo_improvement",
    "predicted_decrease",
    "select_neurons",
]


def compute_optimal_delta(
    module: GrowingModule,
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
    means = replace(module.means(), pseudo_inverse=force_pseudo_inverse)
    delta, decrease = means.optimal_delta(fisher=use_fisher, shrinkage=fisher_shrinkage)
    module.update = replace(module.update, solutions=(delta,))
    if update:
        module.update = module.update.with_delta(module.part_of(delta), decrease)
    width = delta.shape[1] - int(module.use_bias)
    return delta[:, :width], delta[:, -1] if module.use_bias else None, decrease


def compute_optimal_updates(
    module: GrowingModule,
    rule: Rule = TINY,
    *,
    update_previous: bool = True,
    force_pseudo_inverse: bool = False,
    **options: Any,
) -> tuple[Array | None, Array | None]:
    """Plan the optimal delta and new neurons by ``rule``, single options of which may be given by name.

    Returns alpha's weights (k, p) and biases (k,), or (None, None) without a previous module. After a merge
    the merge plans for itmodule and all its next modules: see ``LinearMergeGrowingModule.compute_optimal_updates``.
    ``update_previous=False`` leaves the previous module without its output extension. If something raises, what
    was planned before stays planned.
    """
    rule = rule_of(rule, options)
    previous = None if module.previous_module is None else module.previous
    if previous is not None and module.shared_statistic is not None:
        if not update_previous:
            raise GrowthError(f"{module.name}: after a merge the merge plans for both sides; leave update_previous on")
        previous.compute_optimal_updates(rule, force_pseudo_inverse=force_pseudo_inverse)
        return None, None
    means = replace(module.means(), pseudo_inverse=force_pseudo_inverse)
    s_prev = None if previous is None else previous.growth_statistic
    change = planned(rule, PlaceMeans((means,), means.e, s_prev))
    alpha = change.output_extension
    module.take(change, update_previous=update_previous)
    if previous is None or alpha is None:
        return None, None
    width = alpha.shape[1] - int(previous.weighted_layers[0].use_bias)
    return alpha[:, :width], alpha[:, width] if width < alpha.shape[1] else None


def check_change(module: GrowingModule, delta: bool = True, extension: bool = True) -> None:
    """Raise ``GrowthError`` if nothing is planned, or it was applied; ``ShapeError`` if it does not fit."""
    if not module.has_plan:
        raise GrowthError(f"{module.name}: no change is planned; call compute_optimal_updates() or create one first")
    change, shape, parts = module.update, module.weight.shape, []
    if delta and change.delta is not None:
        parts.append((DELTA, change.delta.weight.shape, shape))
    if extension and change.input_extension is not None:
        found = change.input_extension.weight.shape
        parts.append((INPUT, found, (shape[0], *found[1:2], *shape[2:])))
    if any(what in change.applied for what, *_ in parts):
        raise GrowthError(f"{module.name}: the planned change has been applied; call delete_update() and plan anew")
    for what, found, expected in parts:
        if found != expected:
            raise ShapeError(
                f"{module.name}: the {what} was planned with shape {found}, the weight has shape {shape} now; "
                "call delete_update(), collect statistics and plan anew"
            )


def apply_change(
    module: GrowingModule,
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
    if extension_size is not None and extension_size != module.new_neurons:
        raise GrowthError(
            f"{module.name}: extension_size={extension_size}, but the planned input extension has "
            f"{module.new_neurons} neurons; compute or create the extension first"
        )
    check_change(module, apply_delta, apply_extension)
    delta = module.update.delta if apply_delta else None
    extension = module.update.input_extension if apply_extension else None
    if extension is not None and extension.bias is not None:
        xp, bias = namespace(extension.bias.data), extension.bias.data
        largest = float(xp.max(xp.abs(bias)))
        if largest != 0.0:
            raise GrowthError(f"{module.name}: the input extension has a bias of up to {largest:.3g}; drop it")
    previous = module.previous if extension is not None and apply_previous and module.previous_module else None
    if previous is not None:
        same_width = previous.out_features == module.in_features
        previous.check_output_extension(module.new_neurons if same_width else None)
    given = {
        "optimal_delta_scaling": optimal_delta_scaling,
        "input_extension_scaling": input_extension_scaling,
        "output_extension_scaling": output_extension_scaling,
    }
    scales = {name: as_scalar(value, f"{module.name}.{name}") for name, value in given.items() if value is not None}
    if scaling_factor is not None:
        module.scaling_factor = scaling_factor
    for name, value in scales.items():
        holder = previous if name == "output_extension_scaling" else module
        if holder is not None:
            setattr(holder, name, value)

    if extension is not None and module.input_extension_scaling == 0.0:
        warnings.warn(f"{module.name}: the input extension is applied with scaling 0", stacklevel=2)
    if delta is not None:
        scale = module.optimal_delta_scaling
        bias = None if delta.bias is None else -scale * delta.bias.data
        module.parameter_step(-scale * delta.weight.data, bias)
        module.update = replace(module.update, applied=module.update.applied | {DELTA})
    if extension is not None:
        module.append_columns(module.input_extension_scaling * extension.weight.data)
        if previous is not None:
            previous.apply_output_extension()
        module.update = replace(module.update, applied=module.update.applied | {INPUT})


def delete_update(
    module: GrowingModule,
    include_previous: bool = True,
    delete_delta: bool = True,
    delete_input: bool = True,
    delete_output: bool = False,
) -> None:
    """Forget the planned change: delta, input extension (the previous module's output extension with it).

    ``delete_output`` drops this layer's own output extension, which belongs to the layer that follows. Scalings of
    what is forgotten become 0 again, as in the original.
    """
    update = module.update
    if delete_delta:
        module.update, module.optimal_delta_scaling = replace(update.with_delta(None, None), solutions=()), 0.0
    if delete_input:
        previous = module.previous_module
        if include_previous and is_neighbour(previous):
            if update.input_extension is not None:
                previous.set_output_extension(None)
            previous.output_extension_scaling = 0.0
        module.update, module.input_extension_scaling = module.update.with_input(None), 0.0
    if delete_delta and delete_input:
        module.common_scaling = 0.0
    if delete_output:
        module.extended_output_layer, module.output_extension_scaling = None, 0.0


def select_neurons(
    module: GrowingModule,
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

    Raises GrowthError without planned neurons, or if ``sub_select_previous`` finds no previous module with an
    output extension; ValueError or TypeError for both or none of the two, a number of
    neurons that is not whole or is negative, a threshold that is not finite; nothing has changed then.
    """
    update, extension = module.update, module.update.input_extension
    if update.singular_values is None or extension is None:
        raise GrowthError(f"{module.name}: no neurons are planned; call compute_optimal_updates() first")
    if (keep_neurons is None) == (threshold is None):
        raise ValueError(f"{module.name}: give either keep_neurons or threshold, found {keep_neurons}, {threshold}")
    total = module.new_neurons
    if keep_neurons is None:
        least = as_scalar(threshold, f"{module.name}: threshold")
        keep_neurons = sum(float(value) >= least for value in update.singular_values)
    keep = min(whole_number(module.name, "keep_neurons", keep_neurons, 0), total)
    if sub_select_previous and (planned := module.previous.output_extension.shape[0]) != total:
        raise ShapeError(
            f"{module.name}: the previous module plans {planned} neurons, this one {total}; "
            "plan or create both together"
        )
    zeros = total - keep if zeros_if_not_enough else 0
    columns = kept_columns(extension, keep, zeros) if zeros_fan_out else kept_columns(extension, keep + zeros)
    module.update = update.with_neurons(columns, keep, zeros)
    if sub_select_previous:
        module.previous.keep_output_extension(keep + zeros, zeros if zeros_fan_in else 0)


def new_neurons_fo_improvement(module: GrowingModule) -> float:
    """First-order improvement by the new neurons: ``sigma'(0+) sum(s^2)``, or ``sum(s)`` if s is ignored."""
    return 0.0 if module.update.singular_values is None else module.update.improvement(module.previous.output_slope)


def _decrease(module: GrowingModule) -> float:
    decrease = module.update.decrease
    if decrease is None:
        raise GrowthError(f"{module.name}: no update is planned; call compute_optimal_updates() first")
    return decrease


def first_order_improvement(module: GrowingModule) -> float:
    """Decrease of the loss that the planned change promises to first order, at scaling 1.

    Statistics of gradients of the *sum* of the sample losses make it the decrease of their mean.
    """
    return _decrease(module) + new_neurons_fo_improvement(module)


def predicted_decrease(module: GrowingModule) -> float:
    """Exact first-order decrease of the loss by the planned change, per squared scaling factor.

    ``tr(M dW) - sigma'(0+) <M_prev, (omega alpha)^T>``: the derivative itself, for activations that are smooth and
    zero at zero. ``first_order_improvement`` is the original's figure, which leaves out what delta and new neurons
    have in common; the two agree without projection, and nearly so if the activation is nearly linear.
    """
    decrease = _decrease(module)
    return decrease if module.update.slopes is None else module.update.predicted(module.previous.output_slope)


def extended_forward(
    module: GrowingModule,
    x: Array,
    x_ext: Array | None = None,
    use_optimal_delta: bool = True,
    use_extended_input: bool = True,
    use_extended_output: bool = True,
) -> tuple[Array, Array | None]:
    """Output with the planned change, scaled, and the output of the new neurons (None if there are none).

    Raises
    ------
    ValueError
        There is an input extension and ``x_ext`` is missing.
    """
    y, delta, columns, rows = (
        module.layer(x),
        module.update.delta,
        module.update.input_extension,
        module.extended_output_layer,
    )
    if delta is not None and use_optimal_delta:
        y = y - module.optimal_delta_scaling * delta(x)
    if columns is not None and use_extended_input:
        if x_ext is None:
            raise GrowthError(
                f"{module.name}: there is an input extension of {module.new_neurons} features, but x_ext is None; "
                "pass the second result of the previous module's extended_forward"
            )
        y = y + module.input_extension_scaling * columns(x_ext)
    elif x_ext is not None and use_extended_input:
        warnings.warn(f"{module.name}: x_ext is given, but there is no input extension; it is ignored", stacklevel=2)
    if rows is None or not use_extended_output:
        return module.post_layer_function.extended_forward(y, None)[0], None
    y_ext = module.output_extension_scaling * rows(x)
    if module.extended_post_layer_function is module.post_layer_function:
        return module.post_layer_function.extended_forward(y, y_ext)
    return module.post_layer_function(y), module.extended_post_layer_function(y_ext)
