"""Budgets that leave nothing to grow, said before anything is trained."""

from __future__ import annotations

from growarray.networks import Growth

__all__ = ["check_room"]


def check_room(loop: Growth) -> None:
    """Raise ``ValueError`` where the budget is spent before the first growth of a run that is to grow."""
    network, settings = loop.network, loop.settings
    places = network.growing_layers
    if settings.growths == 0 or any(loop.planner.affordable(place) for place in places):
        return
    cost, start = min(int(place.parameters_per_neuron) for place in places), network.number_of_parameters()
    flag, found, unit = "--max-parameters", loop.budget, "parameters"
    if found is None or found >= start + cost:
        flag, found, unit = "--max-flops", settings.max_flops, "FLOPs"
        cost, start = 2 * cost, network.flops_per_sample()
    raise ValueError(
        f"{flag}: the network starts with {start} {unit} and one more neuron costs {cost}, so nothing could grow "
        f"within {found}; allow at least {start + cost}, or leave the option out"
    )
