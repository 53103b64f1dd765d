"""The protocol of routines: whether one fits a product, its predicted time, and the product in each direction.

A class answers for sizes alone; an instance runs one product of fixed sizes. The plan prices, and a program runs, what
:func:`growarray.contraction.routines.choice.choose` gives for the same product and the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

from growarray.backend import Array
from growarray.contraction.machine import Machine
from growarray.contraction.problem import Product

FORWARD, D_FEATURE, D_KERNEL = "forward", "d_feature", "d_kernel"

Task = Callable[[], object]
"""A piece of work that may run beside others."""


class Routine(Protocol):
    """One way to run products.

    name : as tables show it    ways : which of ``FORWARD``, ``D_FEATURE`` and ``D_KERNEL`` it has
    """

    name: ClassVar[str]
    ways: ClassVar[tuple[str, ...]]

    def __init__(self, product: Product) -> None: ...

    @classmethod
    def fits(cls, product: Product, library: str) -> bool:
        """Whether it runs this product on arrays of this library; of those that do, the first in the list is taken."""

    @classmethod
    def seconds(cls, product: Product, machine: Machine, way: str) -> float:
        """Predicted for one core, or the whole GPU, without what surrounds every step of a plan."""

    @classmethod
    def preparing(cls, product: Product, machine: Machine) -> float:
        """Seconds that making a kernel ready takes, once for all blocks of a batch; zero if they do not count."""


class SingleCall(NamedTuple):
    """``function(kernel, feature, out)`` on arrays of these shapes."""

    function: Callable[..., Any]
    kernel: tuple[int, ...]
    feature: tuple[int, ...]
    out: tuple[int, ...]


class PieceRoutine(Routine, Protocol):
    """A routine for NumPy: it fills ``out``, a view of anything.

    Each way does a small product at once, or gives the pieces of a large one, which may run at the same time. Features
    are (b, s, *sizes), kernels (b, n, s, *taps), results (b, n, *outs).

    call : the forward product as a single call of NumPy, if it is one
    """

    call: SingleCall | None

    def prepare(self, kernel: Any) -> Any:
        """What ``forward`` and ``d_feature`` make of a kernel, unless it is given as ``ready``, once for all blocks."""

    def forward(self, kernel: Any, feature: Any, out: Any, ready: Any = None) -> Sequence[Task]:
        """The product."""

    def d_feature(self, kernel: Any, d_out: Any, out: Any, ready: Any = None) -> Sequence[Task]:
        """Its gradient by the feature map."""

    def d_kernel(self, d_out: Any, feature: Any, out: Any) -> Sequence[Task]:
        """Its gradient by the kernel."""


class ArrayRoutine(Routine, Protocol):
    """A routine for any other library: it returns new arrays, of the whole batch.

    But those for CuPy, :mod:`growarray.contraction.routines.cupy`, take places of arrays, and return launches.
    """

    def forward(self, xp: Any, kernel: Array, feature: Array) -> Array:
        """The product."""

    def d_feature(self, xp: Any, kernel: Array, d_out: Array) -> Array:
        """Its gradient by the feature map."""

    def d_kernel(self, xp: Any, d_out: Array, feature: Array) -> Array:
        """Its gradient by the kernel."""
