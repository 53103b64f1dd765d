"""What growing modules ask of each other: a small protocol that a layer and a merge both fulfil.

No module asks what class its neighbour has. A further kind of layer, a convolution say, is one file with a subclass of
:class:`growarray.growing.layer.GrowingModule` (and of GroMo's names in :mod:`growarray.growing.compat`). It writes its
value and pullback, and the streams of its input and of the gradient at its output (of a convolution: unfolded, or with
moments that need no unfolding). Statistics, planning, scaling, selecting, drawing and applying are the same for every
kind: they know streams, and weights (out, in, *kernel), whose rows are what one output reads of a stream. A merge into
a layer of another kind needs nothing more, since it cuts matrices by the widths of its neighbours' streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol, TypeGuard

from growarray.backend import Array
from growarray.growing.moment import TensorStatistic
from growarray.growing.stream import StreamLike
from growarray.nn import Module

__all__ = ["Neighbour", "is_neighbour", "require_neighbour", "weighted_layers"]


class Neighbour(Protocol):
    """The place before a growing layer: where new neurons get their incoming weights."""

    name: str
    output_extension_scaling: float

    @property
    def out_features(self) -> int:
        """Width of what it hands on."""

    @property
    def parameters_per_output(self) -> int:
        """Scalars that one more output costs: what it reads, its bias, and its share of a normalisation."""

    @property
    def weighted_layers(self) -> Sequence[Any]:
        """The layer itself; of a merge none, since a merge has no weights of its own."""

    @property
    def layers_before(self) -> Sequence[Any]:
        """The layers whose weights make its output: itself, or those that a merge joins."""

    @property
    def input_stream(self) -> StreamLike:
        """Everything that its neurons read, in the order of the output extension's columns."""

    @property
    def growth_statistic(self) -> TensorStatistic:
        """Second moment of ``input_stream``."""

    @property
    def input_statistic_for_next(self) -> TensorStatistic | None:
        """Second moment of what it hands on, ones last, if it keeps one for its next modules to share."""

    @property
    def output_function(self) -> Module:
        """The function that follows it."""

    @property
    def output_slope(self) -> float:
        """Derivative at zero from above of the function that follows it."""

    @property
    def output_extension(self) -> Array:
        """The planned incoming weights of new neurons (k, width of ``input_stream``), biases included."""

    def request(self, what: str, by: object) -> None:
        """Keep ``what`` (``'input'``, ``'pre_activity'``, ``'activity'``) of every batch until ``by`` releases it."""

    def release(self, what: str, by: object) -> None:
        """``by`` no longer needs ``what``."""

    def set_output_extension(self, alpha: Array | None) -> None:
        """Hold the incoming weights (k, width of ``input_stream``) of new neurons; None drops them."""

    def keep_output_extension(self, keep: int, zeros: int = 0) -> None:
        """Keep the first ``keep`` new neurons; set the last ``zeros`` of them to zero."""

    def check_output_extension(self, size: int | None = None) -> None:
        """Raise what :meth:`apply_output_extension`, asked for by one next layer alone, would spoil; change nothing.

        ``size`` is the number of new neurons that the next layer is going to read, if it has to be the same.
        """

    def apply_output_extension(self) -> None:
        """Take the new neurons in, times ``output_extension_scaling``."""

    def compute_optimal_updates(self, rule: Any = ..., **options: Any) -> tuple[Array | None, Array | None]:
        """Plan for this place by a rule."""


_ASKED = [name for name in vars(Neighbour) if not name.startswith("_")]


@lru_cache(maxsize=256)
def _answers(kind: type) -> bool:
    return all(hasattr(kind, name) for name in _ASKED)


def is_neighbour(module: Any) -> TypeGuard[Neighbour]:
    """Whether a module answers all that is asked of a neighbour: its class does, a property may have nothing yet."""
    return _answers(type(module))  # type: ignore[arg-type]


def require_neighbour(module: Any, role: str, owner: str) -> Neighbour:
    """``module`` if it answers the protocol, else ``TypeError`` with what it is and what is expected."""
    if not is_neighbour(module):
        raise TypeError(
            f"{owner}: the {role} module is a {type(module).__name__}; expected a growing layer or a merge "
            "(LinearGrowingModule, LinearMergeGrowingModule)"
        )
    return module


def weighted_layers(module: Any) -> Sequence[Any]:
    """The growing layer itself, if ``module`` is one: none for a merge, for another kind of module, for None."""
    return module.weighted_layers if is_neighbour(module) else ()
