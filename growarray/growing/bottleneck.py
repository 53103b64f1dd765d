"""The expressivity bottleneck of a merge: the part of the wanted change that its branches cannot supply together."""

from __future__ import annotations

from dataclasses import replace

from growarray.backend import Array, namespace
from growarray.growing.merge import MergeGrowingModule
from growarray.growing.update import optimal_delta, rounding_floor


def joint_delta(
    merge: MergeGrowingModule, update: bool = True, return_deltas: bool = False, force_pseudo_inverse: bool = False
) -> list[tuple[Array, Array | None]] | None:
    """Joint optimal delta of all previous layers from one solve, cut into weights and biases.

    With ``update`` each layer holds its part as its planned delta; ``return_deltas`` returns them.

    Raises GrowthError: there are no previous layers, or no samples.
    """
    s, m = merge.growth_statistic(), merge.statistics.previous_m
    floor = max((rounding_floor(module.weight.data) for module in merge.layers_before), default=0.0)
    delta, decrease = optimal_delta(s, s if m is None else m(), pseudo_inverse=force_pseudo_inverse, floor=floor)
    merge.update = replace(merge.update, decreases=(decrease,))
    deltas = []
    for module, rows in zip(merge.layers_before, merge.cut(delta), strict=True):
        width = rows.shape[1] - int(module.use_bias)
        weight = namespace(rows).reshape(rows[:, :width], (rows.shape[0], *module.weight.shape[1:]))
        deltas.append((weight, rows[:, width] if module.use_bias else None))
        if update:
            module.update = module.update.with_delta(module.part_of(rows), module.update.decrease)
    return deltas if return_deltas else None


def projected_v_goal(merge: MergeGrowingModule) -> Array:
    """``dz - sum of dW_i B_i`` in the last batch: what the deltas of the previous layers leave of the wanted change.

    Deltas of the layers behind a previous merge are taken off too, as in the original.
    """
    goal = merge.recorder.need("gradient")
    for layer in (layer for module in merge.previous_modules for layer in module.layers_before):
        if layer.update.delta is None:
            raise TypeError(f"{merge.name}: {layer.name} has no optimal delta; call compute_optimal_delta()")
        goal = goal - layer.update.delta(layer.input)
    return goal
