"""A place to grow: planning for it by a rule, cutting the plan down, carrying it out.

A place has a ``front``, the module that new neurons widen, and ``readers``, the layers after it. A layer is one with
the module before as front and itself as reader; a merge is its own front, and all layers after it read it. So growth
through a merge needs nothing of its own: with ``B_prev`` what the front reads, and ``N`` what the updates of all
readers leave undone, side by side, one SVD serves all. Functions here are methods of layers and merges.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any, Protocol

from growarray.backend import Array
from growarray.errors import GrowthError, ShapeError
from growarray.growing.change import GrowthUpdate, kept_columns
from growarray.growing.checks import as_scalar
from growarray.growing.means import on_host
from growarray.growing.neighbour import Neighbour
from growarray.growing.rule import TINY, PlaceMeans, Rule, planned, rule_of
from growarray.nn import Module
from growarray.ops.sizes import whole_number


class Place(Protocol):
    """What a layer and a merge are as places to grow."""

    name: str
    update: GrowthUpdate[Any]
    scaling_factor: Any

    @property
    def front(self) -> Neighbour | None:
        """The module that new neurons widen, or None."""

    @property
    def readers(self) -> tuple[Any, ...]:
        """The growing layers that read it."""

    @property
    def new_neurons(self) -> int:
        """Number of planned neurons."""

    def means(self, pseudo_inverse: bool = False) -> PlaceMeans:
        """Means of the statistics, for a rule to plan from."""

    @property
    def widens_front(self) -> bool:
        """Whether the plan has new neurons for the front."""

    def check_growable(self) -> None:
        """Raise if growth is not possible."""

    def check_front(self) -> None:
        """Raise if the front cannot add the planned neurons."""


def compute_optimal_updates(
    place: Place, rule: Rule = TINY, *, update_previous: bool = True, force_pseudo_inverse: bool = False, **options: Any
) -> tuple[Array | None, Array | None]:
    """Plan deltas of the readers, and new neurons, by ``rule``; single options of it may be given by name.

    Returns alpha (k, p) over what the front reads, and omega (o, k) over the outputs of all readers, of a convolution
    that counts every tap over outputs times taps; None without them.
    ``update_previous=False`` leaves the front without its output extension. If something raises, what was planned
    before stays planned.
    """
    place.check_growable()
    like = place.readers[0].weight.data
    with on_host(place, place.front, *place.readers):
        change = planned(rule_of(rule, options), place.means(force_pseudo_inverse)).on(like)
    take(place, change, update_previous=update_previous)
    return change.output_extension, change.input_extension


def take(place: Place, change: GrowthUpdate[Array], *, update_previous: bool = True) -> None:
    """Store a change as the plan: each reader holds its part of it, the front the incoming weights of new neurons."""
    omega, plans = change.input_extension, []
    ends = [0, *itertools.accumulate(reader.goal_width for reader in place.readers)]
    for i, (reader, rows) in enumerate(zip(place.readers, itertools.pairwise(ends), strict=True)):
        plan = GrowthUpdate(
            tuple(reader.part_of(delta) for delta in change.deltas[i : i + 1]),
            None if omega is None else reader.columns_of(omega[slice(*rows), ...]),
            solutions=change.solutions[i : i + 1],
            decreases=change.decreases[i : i + 1],
        )
        plans.append((reader, plan))
    if place.front is not None:
        place.front.set_output_extension(change.output_extension if update_previous else None)
    for reader, plan in plans:
        reader.update = plan
    slopes = change.slopes if update_previous else None
    place.update = replace(place.update, singular_values=change.singular_values, linear=change.linear, slopes=slopes)


def parameters_per_neuron(place: Place) -> int:
    """Scalars that one more neuron costs: its weights and bias at the front, and what the readers read of it."""
    shapes = [reader.weight.shape for reader in place.readers]
    reads = sum(shape[0] * math.prod(shape[2:]) for shape in shapes)
    return _front(place).parameters_per_output + int(reads)


def parameters_added(place: Place) -> int:
    """Scalars that the planned neurons add."""
    return place.new_neurons * parameters_per_neuron(place)


def flops_added(place: Place) -> int:
    """Multiplications and additions by the weights of the planned neurons, at one position of one sample."""
    front = _front(place)
    biases = sum(int(layer.use_bias) for layer in front.layers_before) + front.output_function.parameters_per_feature
    return 2 * place.new_neurons * (parameters_per_neuron(place) - biases)


def widens(place: Place) -> str:
    """Name of the module that new neurons widen."""
    return _front(place).name


def function_before(place: Place) -> Module:
    """The activation of new neurons."""
    return _front(place).output_function


def new_neurons_fo_improvement(place: Place) -> float:
    """First-order improvement by the new neurons: ``sigma'(0+) sum(s^2)``, or ``sum(s)`` if s is ignored."""
    has_neurons = place.update.singular_values is not None
    return place.update.improvement(_front(place).output_slope) if has_neurons else 0.0


def _decrease(place: Place) -> float:
    decreases = [reader.update.decrease for reader in place.readers if reader.update.decrease is not None]
    if not decreases and (place in place.readers or place.update.singular_values is None):
        raise GrowthError(f"{place.name}: no update is planned; call compute_optimal_updates() first")
    return float(sum(decreases))


def first_order_improvement(place: Place) -> float:
    """Decrease of the loss that the planned change promises to first order, at scaling 1.

    Statistics of gradients of the *sum* of the sample losses make it the decrease of their mean.
    """
    return _decrease(place) + new_neurons_fo_improvement(place)


def predicted_decrease(place: Place) -> float:
    """Exact first-order decrease of the loss by the planned change, per squared scaling factor.

    ``tr(M dW) - sigma'(0+) <M_prev, (omega alpha)^T>``: the derivative itself, for activations that are smooth and
    zero at zero. ``first_order_improvement`` is the original's figure, which leaves out what delta and new neurons
    have in common; the two agree without projection, and nearly so if the activation is nearly linear.
    """
    has_neurons = place.update.slopes is not None
    return _decrease(place) + (place.update.exact_improvement(_front(place).output_slope) if has_neurons else 0.0)


def select_neurons(
    place: Place,
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

    Raises GrowthError without planned neurons, or if ``sub_select_previous`` finds no output extension at the front;
    ValueError or TypeError for both or none of the two, a number of neurons that is not whole or is negative, a
    threshold that is not finite; nothing has changed then.
    """
    values, extensions = place.update.singular_values, [reader.update.input_extension for reader in place.readers]
    if values is None or None in extensions:
        raise GrowthError(f"{place.name}: no neurons are planned; call compute_optimal_updates() first")
    if (keep_neurons is None) == (threshold is None):
        raise ValueError(f"{place.name}: pass either keep_neurons or threshold, found {keep_neurons}, {threshold}")
    total, front = place.new_neurons, _front(place) if sub_select_previous else None
    if keep_neurons is None:
        least = as_scalar(threshold, f"{place.name}: threshold")
        keep_neurons = sum(float(value) >= least for value in values)
    keep = min(whole_number(place.name, "keep_neurons", keep_neurons, 0), total)
    for layer in () if front is None else front.layers_before:
        if (planned := layer.output_extension.shape[0]) != total:
            raise ShapeError(
                f"{place.name}: {layer.name} plans {planned} neurons, this module {total}; plan or create both together"
            )
    zeros = total - keep if zeros_if_not_enough else 0
    for reader, extension in zip(place.readers, extensions, strict=True):
        columns = kept_columns(extension, keep, zeros) if zeros_fan_out else kept_columns(extension, keep + zeros)
        reader.update = reader.update.with_neurons(columns, keep, zeros)
    if place not in place.readers:
        place.update = place.update.with_neurons(None, keep, zeros)
    if front is not None:
        front.keep_output_extension(keep + zeros, zeros if zeros_fan_in else 0)


def _front(place: Place) -> Neighbour:
    if place.front is None:
        raise GrowthError(f"{place.name}: there is no previous module, so no neurons can be added before it")
    return place.front


class PlaceFigures:
    """Cost and predicted decrease of a plan, as properties of a place."""

    parameters_per_neuron = property(parameters_per_neuron)
    parameters_added = property(parameters_added)
    flops_added = property(flops_added)
    widens = property(widens)
    function_before = property(function_before)
    new_neurons_fo_improvement = property(new_neurons_fo_improvement)
    first_order_improvement = property(first_order_improvement)
    predicted_decrease = property(predicted_decrease)


def apply_change(
    place: Place,
    scaling_factor: Any = None,
    apply_previous: bool = True,
    apply_delta: bool = True,
    apply_extension: bool = True,
    extension_size: int | None = None,
    optimal_delta_scaling: Any = None,
    input_extension_scaling: Any = None,
    output_extension_scaling: Any = None,
) -> None:
    """Carry the planned change out: ``W <- W - delta_scale dW``, new columns ``in_scale omega`` of the readers, and
    with ``apply_previous`` the new rows ``out_scale alpha`` of the front. Optimizer state grows with them.

    A part that the plan does not have is left out. Scalings given here replace the stored ones; everything is
    checked before anything changes.

    Raises GrowthError: nothing is planned (the original does nothing then), a part has been applied already,
    ``extension_size`` is not the size of the planned extension, or the extension has a bias; ShapeError: a layer has
    changed its width since the change was planned.
    """
    if extension_size is not None and extension_size != place.new_neurons:
        raise GrowthError(
            f"{place.name}: extension_size={extension_size}, but the planned input extension has "
            f"{place.new_neurons} neurons; compute or create the extension first"
        )
    place.check_growable()
    readers = [reader for reader in place.readers if reader.has_plan]
    if not readers:
        raise GrowthError(f"{place.name}: no change is planned; call compute_optimal_updates() or create one first")
    for reader in readers:
        reader.check_change(apply_delta, apply_extension)
    front = place.front if apply_extension and apply_previous and place.widens_front else None
    if front is not None:
        place.check_front()
    scalings = {
        "optimal_delta_scaling": optimal_delta_scaling,
        "input_extension_scaling": input_extension_scaling,
        "output_extension_scaling": output_extension_scaling,
    }
    scales = {name: as_scalar(value, f"{place.name}.{name}") for name, value in scalings.items() if value is not None}
    if scaling_factor is not None:
        place.scaling_factor = scaling_factor
    for name, value in scales.items():
        for holder in ([front] if front else []) if name == "output_extension_scaling" else place.readers:
            setattr(holder, name, value)
    for reader in readers:
        reader.carry_out(apply_delta, apply_extension)
    if front is not None:
        front.apply_output_extension()
