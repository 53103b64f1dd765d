"""Planning a change at a merge, carrying it out and forgetting it: methods of every merge.

With ``B_prev`` the full activity ``(B_1 | … | B_k)`` of the previous layers, and ``N`` what the updates of all next
layers leave undone, side by side, one SVD serves all: alpha is cut by previous layer, omega by next layer.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

from growarray.backend import Array, namespace
from growarray.errors import GrowthError
from growarray.growing.change import GrowthUpdate, kept_columns, scaled_columns
from growarray.growing.merge import MergeGrowingModule
from growarray.growing.neighbour import weighted_layers
from growarray.growing.rule import TINY, LayerMeans, PlaceMeans, Rule, planned, rule_of
from growarray.growing.scale import gradmax_column_factors
from growarray.growing.update import optimal_delta, rounding_floor
from growarray.ops.sizes import whole_number

__all__ = [
    "apply_change",
    "compute_optimal_delta",
    "compute_optimal_updates",
    "delete_update",
    "first_order_improvement",
    "new_neurons",
    "new_neurons_fo_improvement",
    "normalise_update",
    "predicted_decrease",
    "select_neurons",
    "take",
]


def _rows_of_next(merge: MergeGrowingModule) -> list[tuple[Any, slice]]:
    """The next layers, and for each its rows where the outputs of all stand one above the other."""
    ends = [0, *itertools.accumulate(module.out_features for module in merge.next_modules)]
    return [(module, slice(*at)) for module, at in zip(merge.next_modules, itertools.pairwise(ends), strict=True)]


def compute_optimal_delta(
    merge: MergeGrowingModule, update: bool = True, return_deltas: bool = False, force_pseudo_inverse: bool = False
) -> list[tuple[Array, Array | None]] | None:
    """Joint optimal delta of all previous layers from one solve, cut into weights and biases.

    With ``update`` each layer holds its part as its planned delta; ``return_deltas`` returns them.

    Raises
    ------
    GrowthError
        There are no previous layers, or no samples.
    """
    s, m = merge.growth_statistic(), merge.statistics.previous_m
    floor = max((rounding_floor(module.weight.data) for module in merge.layers_before), default=0.0)
    delta, decrease = optimal_delta(s, s if m is None else m(), pseudo_inverse=force_pseudo_inverse, floor=floor)
    merge.update = replace(merge.update, decreases=(decrease,))
    deltas = []
    for module, rows in zip(merge.layers_before, merge.cut(delta), strict=True):
        width = rows.shape[1] - int(module.use_bias)
        deltas.append((rows[:, :width], rows[:, width] if module.use_bias else None))
        if update:
            module.update = module.update.with_delta(module.part_of(rows), module.update.decrease)
    return deltas if return_deltas else None


def compute_optimal_updates(
    merge: MergeGrowingModule, rule: Rule = TINY, *, force_pseudo_inverse: bool = False, **options: Any
) -> tuple[Array | None, Array | None]:
    """Plan deltas of the next layers and new neurons of the merge, by ``rule`` as for a layer.

    Returns alpha (k, total_in_features) over the full activity and omega (sum of the next layers' outputs, k).
    """
    merge.check_growable()
    rule, held = rule_of(rule, options), merge.statistics

    def means(module: Any, rows: slice) -> LayerMeans:
        own: LayerMeans = module.means()
        return replace(
            own, m_prev=lambda: held.m_prev()[:, rows], p=lambda: held.p()[:, : module.stream_width],
            e=lambda: held.e()[rows, rows], pseudo_inverse=force_pseudo_inverse,
        )  # fmt: skip

    layers = tuple(means(module, rows) for module, rows in _rows_of_next(merge))
    change = planned(rule, PlaceMeans(layers, held.e, merge.growth_statistic))
    take(merge, change)
    return change.output_extension, change.input_extension


def take(merge: MergeGrowingModule, change: GrowthUpdate[Array]) -> None:
    """Hold a change of matrices as the plan: its parts go to the layers around the merge."""
    omega, parts = change.input_extension, []
    for i, (module, rows) in enumerate(_rows_of_next(merge)):
        one = slice(i, i + 1)
        part = GrowthUpdate(
            change.deltas[one], None if omega is None else omega[rows, ...],
            solutions=change.solutions[one], decreases=change.decreases[one],
        )  # fmt: skip
        parts.append((module, module.shaped(part)))
    merge.set_output_extension(change.output_extension)
    for module, part in parts:
        module.update = part
    merge.update = replace(
        merge.update, singular_values=change.singular_values, linear=change.linear, slopes=change.slopes
    )


def new_neurons(merge: MergeGrowingModule) -> int:
    """Number of planned neurons."""
    return 0 if merge.update.singular_values is None else int(merge.update.singular_values.shape[0])


def new_neurons_fo_improvement(merge: MergeGrowingModule) -> float:
    """First-order improvement by the planned neurons."""
    return 0.0 if merge.update.singular_values is None else merge.update.improvement(merge.output_slope)


def _check_planned(merge: MergeGrowingModule, what: str = "update is") -> None:
    if merge.update.singular_values is None:
        raise GrowthError(f"{merge.name}: no {what} planned; call compute_optimal_updates() first")


def _decreases(merge: MergeGrowingModule) -> float:
    return float(sum(module.update.decrease or 0.0 for module in merge.next_modules))


def first_order_improvement(merge: MergeGrowingModule) -> float:
    """Decrease of the loss that the planned change of all next layers and the new neurons promises."""
    _check_planned(merge)
    return _decreases(merge) + new_neurons_fo_improvement(merge)


def predicted_decrease(merge: MergeGrowingModule) -> float:
    """Exact first-order decrease of the loss by the planned change; see ``GrowingModule.predicted_decrease``."""
    _check_planned(merge)
    return _decreases(merge) + replace(merge.update, decreases=()).predicted(merge.output_slope)


def select_neurons(merge: MergeGrowingModule, keep_neurons: int) -> None:
    """Keep the first ``keep_neurons`` planned neurons, in every previous and next layer."""
    _check_planned(merge, "neurons are")
    keep = min(whole_number(merge.name, "keep_neurons", keep_neurons, 0), new_neurons(merge))
    merge.keep_output_extension(keep)
    for module in merge.next_modules:
        module.update = module.update.with_neurons(kept_columns(module.update.input_extension, keep), keep)
    merge.update = merge.update.with_neurons(None, keep)


def normalise_update(
    merge: MergeGrowingModule, normalization_type: str = "gradmax_normalization", gradmax_scale: float = 1.0
) -> None:
    """Bring the planned outgoing weights to the mean norm of the existing ones, over all next layers together.

    The only type for a merge is ``gradmax_normalization``; the others speak of one layer's deviation.
    """
    if normalization_type != "gradmax_normalization":
        raise NotImplementedError(
            f"{merge.name}: {normalization_type} is not defined for a merge; supported: gradmax_normalization"
        )
    _check_planned(merge, "neurons are")
    planned = [module.update.input_extension for module in merge.next_modules]
    xp = namespace(planned[0].weight.data)
    existing = xp.concat([module.weight.data for module in merge.next_modules], axis=0)
    factors = gradmax_column_factors(existing, xp.concat([p.weight.data for p in planned], axis=0), gradmax_scale)
    if factors is None:
        return
    for module, part in zip(merge.next_modules, planned, strict=True):
        module.update = module.update.times(scaled_columns(part, factors), factors)
    merge.update = merge.update.times(None, factors)


def apply_change(merge: MergeGrowingModule, scaling_factor: Any = None) -> None:
    """Carry the planned change out: next layers' deltas and new columns, previous layers' new rows.

    Raises ``GrowthError`` if nothing is planned, or it has been applied; nothing has changed then.
    """
    merge.check_growable()
    planned = [module for module in merge.next_modules if module.has_plan]
    if not planned:
        raise GrowthError(f"{merge.name}: no change is planned; call compute_optimal_updates() first")
    for module in planned:
        module.check_change()
    if merge.update.singular_values is not None:
        merge.check_extensions(new_neurons(merge))
    if scaling_factor is not None:
        merge.scaling_factor = scaling_factor
    for module in planned:
        module.apply_change(apply_previous=False)
    if merge.update.singular_values is not None:
        merge.apply_output_extension()


def delete_update(merge: MergeGrowingModule, include_previous: bool = False) -> None:
    """Forget the planned deltas, and if the merge may grow its new neurons and what its next layers plan.

    With ``include_previous`` the deltas and extensions of the previous layers too.
    """
    merge.update, merge.common_scaling = replace(merge.update, decreases=()), 0.0
    if merge.allow_growing:  # else what the neighbours plan is their own
        merge.set_output_extension(None)
        merge.output_extension_scaling = 0.0
        for module in merge.next_modules:
            for layer in weighted_layers(module):
                layer.delete_update(include_previous=False)
    for module in merge.layers_before if include_previous else ():
        module.delete_update(include_previous=False, delete_output=True)
