"""The protocol of plans for tables and bound plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self

from growarray.contraction.cost import StepCost
from growarray.contraction.execution import Execution
from growarray.contraction.machine import Machine
from growarray.contraction.tree import Tree


class Planned(Protocol):
    """A plan: see :class:`growarray.contraction.Plan`."""

    equation: str
    shapes: tuple[tuple[int, ...], ...]
    output_shape: tuple[int, ...]
    dtype: Any
    device: str
    precision: str | None
    machine: Machine
    training: bool
    block: int
    slices: Mapping[str, int]
    path: Any
    steps: tuple[StepCost, ...]
    execution: Execution

    @property
    def tree(self) -> Tree:
        """The order of the products."""

    @property
    def products(self) -> Sequence[str]:
        """Each of them as text."""

    @property
    def flops(self) -> int:
        """Of all steps."""

    @property
    def bytes(self) -> int:
        """Of all steps."""

    @property
    def seconds(self) -> float:
        """Of all steps."""

    @property
    def peak_bytes(self) -> int:
        """What partial results and the output hold at once."""

    def with_path(self, optimize: Any) -> Self:
        """The same problem along another path."""
