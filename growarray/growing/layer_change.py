"""The planned change of one layer: its delta, computing with it, carrying it out, forgetting it.

Weights are (out, in, *kernel): new neurons are columns of the layer after them and rows of the layer before.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

from growarray.backend import Array, asarray, namespace
from growarray.errors import GrowthError, ShapeError
from growarray.growing import place
from growarray.growing.change import DELTA, INPUT, GrowthUpdate, scaled
from growarray.growing.layer import GrowingModule
from growarray.growing.means import on_host
from growarray.growing.neighbour import is_neighbour
from growarray.growing.rule import TINY, Rule


def compute_optimal_delta(
    module: GrowingModule,
    update: bool = True,
    force_pseudo_inverse: bool = False,
    use_fisher: bool = False,
    fisher_shrinkage: float = 0.0,
) -> tuple[Array, Array | None, float]:
    """Optimal delta of weight and bias, and the first-order decrease; with ``update`` it becomes the plan.

    Raises GrowthError: no statistics have been collected.
    """
    with on_host(module, module.previous_module if is_neighbour(module.previous_module) else None):
        means = module.layer_means(force_pseudo_inverse)
        delta, decrease = means.optimal_delta(fisher=use_fisher, shrinkage=fisher_shrinkage)
    delta = asarray(delta, like=module.weight.data)
    module.update = replace(module.update, solutions=(delta,))
    if update:
        module.update = module.update.with_delta(module.part_of(delta), decrease)
    weight = namespace(delta).reshape(delta[:, : module.in_features], module.weight.shape)
    return weight, delta[:, -1] if module.use_bias else None, decrease


def compute_optimal_updates(
    module: GrowingModule, rule: Rule = TINY, *, update_previous: bool = True, **options: Any
) -> tuple[Array | None, Array | None]:
    """Plan the optimal delta and new neurons by ``rule``; see :func:`growarray.growing.place.compute_optimal_updates`.

    Returns alpha's weights (k, in, *kernel) and biases (k,), or (None, None) without a previous module. After a merge
    the merge plans for itself and all its next modules.
    """
    if module.front is not None and module.front.plans_for_readers:
        if not update_previous:
            raise GrowthError(f"{module.name}: after a merge, the merge plans both sides; use update_previous=True")
        module.previous.compute_optimal_updates(rule, **options)
        return None, None
    alpha, _ = place.compute_optimal_updates(module, rule, update_previous=update_previous, **options)
    if alpha is None or module.front is None:
        return None, None
    width = alpha.shape[1] - int(module.front.layers_before[0].use_bias)
    weight, bias = alpha[:, :width], alpha[:, width] if width < alpha.shape[1] else None
    for layer in module.front.weighted_layers:
        weight = namespace(alpha).reshape(weight, (alpha.shape[0], *layer.weight.shape[1:]))
    return weight, bias


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
    planned = change.input_extension if extension else None
    if planned is not None and planned.bias is not None:
        largest = float(namespace(planned.bias.data).max(namespace(planned.bias.data).abs(planned.bias.data)))
        if largest != 0.0:
            raise GrowthError(
                f"{module.name}: the input extension has a bias of up to {largest:.3g}, expected none; remove it"
            )
    for what, found, expected in parts:
        if found != expected:
            raise ShapeError(
                f"{module.name}: the {what} was planned with shape {found}, the weight has shape {shape} now; "
                "call delete_update(), collect statistics and plan anew"
            )


def carry_out(module: GrowingModule, delta: bool = True, extension: bool = True) -> None:
    """Subtract the planned delta and append the planned columns, scaled; call :func:`check_change` first."""
    change, columns = module.update.delta, module.update.input_extension if extension else None
    if columns is not None and module.input_extension_scaling == 0.0:
        warnings.warn(f"{module.name}: the input extension is applied with scaling 0", stacklevel=3)
    if change is not None and delta:
        step = scaled(change, -module.optimal_delta_scaling)
        module.parameter_step(step.weight.data, None if step.bias is None else step.bias.data)
        module.update = replace(module.update, applied=module.update.applied | {DELTA})
    if columns is not None:
        module.layer_in_extension(module.input_extension_scaling * columns.weight.data)
        module.update = replace(module.update, applied=module.update.applied | {INPUT})


def keep_outputs(module: GrowingModule, index: Array) -> None:
    """Lose all neurons but ``index`` of the output; normalisation and optimizer state follow."""
    for parameter in module.layer.parameters():
        parameter.keep(0, index)
    module.post_layer_function._keep(index)
    module.declare_statistics()


def keep_inputs(module: GrowingModule, index: Array) -> None:
    """Lose all neurons but ``index`` of the input."""
    module.weight.keep(1, index)
    module.declare_statistics()


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
        module.optimal_delta_scaling = 0.0
        if not delete_input:
            module.update = replace(update.with_delta(None, None), solutions=())
    if delete_input:
        previous = module.previous_module
        if include_previous and is_neighbour(previous):
            if update.input_extension is not None:
                previous.set_output_extension(None)
            previous.output_extension_scaling = 0.0
        module.input_extension_scaling = 0.0
        if not delete_delta:
            module.update = update.with_input(None)
    if delete_delta and delete_input:
        module.update, module.common_scaling = GrowthUpdate(), 0.0
    if delete_output:
        module.extended_output_layer, module.output_extension_scaling = None, 0.0


def extended_forward(
    module: GrowingModule,
    x: Array,
    x_ext: Array | None = None,
    use_optimal_delta: bool = True,
    use_extended_input: bool = True,
    use_extended_output: bool = True,
) -> tuple[Array, Array | None]:
    """Output with the planned change, scaled, and the output of the new neurons (None if there are none).

    Raises GrowthError: there is an input extension and ``x_ext`` is missing.
    """
    y, delta = module.layer(x), module.update.delta
    columns, rows = module.update.input_extension, module.extended_output_layer
    if delta is not None and use_optimal_delta and module.optimal_delta_scaling:
        y = y - module.optimal_delta_scaling * delta(x)
    if columns is not None and use_extended_input:
        if x_ext is None:
            raise GrowthError(
                f"{module.name}: there is an input extension of {module.new_neurons} features, but x_ext is None; "
                "pass the second result of the previous module's extended_forward"
            )
        if module.input_extension_scaling:
            y = y + module.input_extension_scaling * columns(x_ext)
    elif x_ext is not None and use_extended_input:
        warnings.warn(f"{module.name}: x_ext is given, but there is no input extension; it is ignored", stacklevel=2)
    if rows is None or not use_extended_output:
        return module.post_layer_function.extended_forward(y, None)[0], None
    y_ext = module.output_extension_scaling * rows(x)
    if module.extended_post_layer_function is module.post_layer_function:
        return module.post_layer_function.extended_forward(y, y_ext)
    return module.post_layer_function(y), module.extended_post_layer_function(y_ext)
