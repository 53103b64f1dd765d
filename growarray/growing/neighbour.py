"""What growing modules ask of each other: a small protocol that a layer and a merge both fulfil.

No module asks what class its neighbour has; a neighbour that does not answer is refused by name.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

from growarray.backend import Array
from growarray.growing.moment import TensorStatistic
from growarray.growing.stream import StreamLike
from growarray.nn.module import Module

__all__ = ["Neighbour", "Recorder", "require_neighbour"]


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
    def output_extension(self) -> Array:
        """The planned incoming weights (k, width of ``input_stream``), biases included."""

    @property
    def input_stream(self) -> StreamLike:
        """Everything that its neurons read, in the order of ``extend_output``'s columns."""

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
    def input_statistic_for_next(self) -> TensorStatistic | None:
        """Second moment of what it hands on (ones column last), where it keeps one for its next modules to share."""

    def request(self, what: str, by: object) -> None:
        """Keep ``what`` (``'input'``, ``'pre_activity'``, ``'activity'``) of every batch until released."""

    def release(self, what: str, by: object) -> None:
        """``by`` no longer needs ``what``."""

    def set_output_extension(self, alpha: Array | None) -> None:
        """Hold the incoming weights (k, width of ``input_stream``) of new neurons; None drops them."""

    def keep_output_extension(self, keep: int, zeros: int = 0) -> None:
        """Keep the first ``keep`` new neurons; set the last ``zeros`` of them to zero."""

    def check_output_extension(self, size: int | None = None) -> None:
        """Raise what :meth:`apply_output_extension`, asked for by one next layer alone, would spoil; change nothing.

        ``size`` is the number of new neurons that the next layer is going to read, where it is to be the same.
        """

    def apply_output_extension(self) -> None:
        """Take the new neurons in, times ``output_extension_scaling``."""


_ANSWERS = (
    "input_stream",
    "growth_statistic",
    "output_slope",
    "set_output_extension",
    "check_output_extension",
    "apply_output_extension",
)


def require_neighbour(module: Any, role: str, owner: str) -> Neighbour:
    """``module`` if its class answers the protocol, else ``TypeError`` naming it and what is expected."""
    if not all(hasattr(type(module), name) for name in _ANSWERS):  # on the class: properties may have nothing yet
        raise TypeError(
            f"{owner}: the {role} module is a {type(module).__name__}; expected a growing layer or a merge "
            "(LinearGrowingModule, LinearMergeGrowingModule)"
        )
    return cast(Neighbour, module)


class Recorder(Module):
    """A module that keeps parts of the last batch for as long as somebody asks for them.

    Requests are kept by requester, so that one module's reset never takes away what another still needs
    (the original counts with mixed booleans and integers, and its counters go negative).
    """

    def __init__(self) -> None:
        self._wanted: dict[str, set[Any]] = {}

    def request(self, what: str, by: object) -> None:
        """Keep ``what`` of every batch until ``by`` releases it."""
        self._wanted.setdefault(what, set()).add(by)

    def release(self, what: str, by: object) -> None:
        """``by`` no longer needs ``what``; what nobody needs is not kept."""
        self._wanted.get(what, set()).discard(by)
        if not self.wants(what):
            self._forget(what)

    def _forget(self, what: str) -> None:
        """Drop what is kept under ``what``; each kind of module says what that is."""

    def wants(self, what: str) -> bool:
        """Whether anybody asked for ``what``."""
        return bool(self._wanted.get(what))

    @property
    def _records(self) -> bool:
        return any(self._wanted.values())

    @property
    def store_input(self) -> int:
        """1 while the input of each batch is kept, else 0; may be set."""
        return int(self.wants("input"))

    @store_input.setter
    def store_input(self, value: bool) -> None:
        (self.request if value else self.release)("input", "user")
