"""What growing modules ask of each other: a small protocol that a layer and a merge both fulfil.

No module tests the class of its neighbour. A further kind of layer, a convolution say, is one file with a subclass of
:class:`growarray.growing.layer.GrowingModule` (and of GroMo's names in :mod:`growarray.growing.compat`). It writes its
value and pullback, and the streams of its input and of the gradient at its output. Statistics, planning, scaling,
selecting, drawing and applying are the same for every kind: they need streams, and weights (out, in, *kernel), whose
rows are what one output reads of a stream. A merge into a layer of another kind needs nothing more, since it cuts
matrices by the widths of its neighbours' streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any, NamedTuple, Protocol, TypeGuard, runtime_checkable

from growarray.backend import Array
from growarray.growing.moment import TensorStatistic
from growarray.growing.stream import StreamLike
from growarray.nn import Module


class Reading(NamedTuple):
    """Kernel and geometry of the windows that a convolution reads."""

    kernel: tuple[int, ...]
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1


class Neighbour(Protocol):
    """The place before a growing layer: where new neurons get their incoming weights."""

    name: str
    output_extension_scaling: float

    @property
    def out_features(self) -> int:
        """Width of its output."""

    @property
    def in_neurons(self) -> int:
        """Neurons, or channels, that it reads."""

    @property
    def spatial(self) -> bool:
        """Whether its output has channels and positions (n, c, *sizes), not features alone."""

    @property
    def known_output_size(self) -> tuple[int, ...] | None:
        """Spatial sizes of its output, or None if it has none or they are not known yet."""

    @property
    def output_volume(self) -> int:
        """Numbers in its output for one sample: the inputs of a linear layer after it."""

    @property
    def reads(self) -> Reading | None:
        """The windows that it reads, or None if it reads features."""

    @property
    def plans_for_readers(self) -> bool:
        """Whether it plans growth for what reads it, as a merge does; a layer is planned for by its reader."""

    @property
    def parameters_per_output(self) -> int:
        """Scalars that one more output costs: what it reads, its bias, and its share of a normalisation."""

    @property
    def weighted_layers(self) -> Sequence[Any]:
        """The layer itself; none for a merge, which has no weights of its own."""

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
    def output_function(self) -> Module:
        """The function that follows it."""

    @property
    def output_slope(self) -> float:
        """Derivative at zero from above of the function that follows it."""

    @property
    def output_extension(self) -> Array:
        """The planned incoming weights of new neurons (k, width of ``input_stream``), biases included."""

    def input_statistic_for(self, reader: Any) -> TensorStatistic | None:
        """Second moment of what ``reader`` reads of it, ones last, if it keeps one for its next modules to share."""

    def request(self, what: str, by: object) -> None:
        """Keep ``what`` (``'input'``, ``'pre_activity'``, ``'activity'``) of every batch until ``by`` releases it."""

    def release(self, what: str, by: object) -> None:
        """End a request of ``by``."""

    def set_output_extension(self, alpha: Array | None) -> None:
        """Store the incoming weights (k, width of ``input_stream``) of new neurons; None drops them."""

    def keep_output_extension(self, keep: int, zeros: int = 0) -> None:
        """Keep the first ``keep`` new neurons; set the last ``zeros`` of them to zero."""

    def check_output_extension(self, size: int | None = None) -> None:
        """Raise if :meth:`apply_output_extension` for one next layer alone would fail; changes nothing.

        ``size`` is the number of new neurons that the next layer is going to read, if it has to be the same.
        """

    def apply_output_extension(self) -> None:
        """Add the new neurons, times ``output_extension_scaling``."""

    def keep_outputs(self, index: Array) -> None:
        """Lose all neurons but ``index``."""

    def compute_optimal_updates(self, rule: Any = ..., **options: Any) -> tuple[Array | None, Array | None]:
        """Plan for this place by a rule."""


class OfFeatures:
    """Answers of layers and merges whose inputs and outputs are features; convolutions override them."""

    spatial: Any = property(lambda _: False, doc="Whether its output is images.")
    reads: Any = property(lambda _: None, doc="The windows that it reads: none.")
    known_output_size: Any = property(lambda _: None, doc="Spatial sizes of its output: none.")
    output_volume: Any = property(attrgetter("out_features"), doc="Numbers in its output for one sample.")
    growth_taps: Any = property(lambda _: ((),), doc="Taps through which a new neuron is seen: its one weight.")
    every_tap: Any = property(lambda _: False, doc="Whether these are all taps of a kernel.")


@runtime_checkable
class _Plain(Protocol):
    in_features: Any


_ASKED = {name for name in vars(Neighbour) if not name.startswith("_")}


@lru_cache(maxsize=256)
def _answers(kind: type) -> bool:
    return _ASKED.issubset(dir(kind))


def is_neighbour(module: Any) -> TypeGuard[Neighbour]:
    """Whether the class of a module fulfils :class:`Neighbour`."""
    return _answers(type(module))  # type: ignore[arg-type]


def require_neighbour(module: Any, owner: str) -> Neighbour:
    """``module``, which is before ``owner``, if it fulfils the protocol; ``TypeError`` if not."""
    if not is_neighbour(module):
        raise TypeError(
            f"{owner}: the previous module is a {type(module).__name__}; expected a growing layer or a merge "
            "(LinearGrowingModule, Conv2dMergeGrowingModule, …)"
        )
    return module


def width_read(module: Any, owner: str) -> int:
    """Neurons or channels that a module reads; ``TypeError`` if it has no ``in_features``."""
    if is_neighbour(module):
        return int(module.in_neurons)
    if isinstance(module, _Plain):
        return int(module.in_features)
    raise TypeError(f"{owner}: next module {type(module).__name__} has no in_features; expected a layer")


def named(module: Any) -> str:
    """The name of a growing layer or merge, the class of anything else."""
    return module.name if is_neighbour(module) else type(module).__name__


def weighted_layers(module: Any) -> Sequence[Any]:
    """The growing layer itself, if ``module`` is one: none for a merge, for another kind of module, for None."""
    return module.weighted_layers if is_neighbour(module) else ()
