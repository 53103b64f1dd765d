"""Which routine runs a product: the one list that plans take their prices from, and programs their routines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from growarray.contraction.machine import Machine
from growarray.contraction.problem import Product
from growarray.contraction.routines.band import Band
from growarray.contraction.routines.compiled import Compiled
from growarray.contraction.routines.cudnn import Cudnn
from growarray.contraction.routines.cupy import Dense, Depthwise, Outer, Strided
from growarray.contraction.routines.im2col import Im2col, Rows
from growarray.contraction.routines.kn2row import Kn2row
from growarray.contraction.routines.portable import Portable
from growarray.contraction.routines.product import Matmul, Multiply
from growarray.contraction.routines.protocol import D_FEATURE, D_KERNEL, FORWARD, Routine, Task
from growarray.contraction.routines.scatter import Scatter
from growarray.contraction.routines.windows import transposed_parts
from growarray.contraction.routines.winograd import Winograd
from growarray.errors import PlanError


class Transposed:
    """The gradient by the feature map as forward products of the output's gradient, one for each phase of the strides.

    Each of them has a routine of its own.
    """

    name: ClassVar[str] = "transposed"
    ways: ClassVar[tuple[str, ...]] = (D_FEATURE,)

    def __init__(self, product: Product) -> None:
        swapped = product.transposed(product.axes)
        self.plain: Any = None if product.is_conv else choose(swapped, FORWARD)(swapped)
        self.parts: list[tuple[Any, Any, Any]] = [
            (place, taps, None if part is None else choose(part, FORWARD)(part))
            for place, taps, part in (transposed_parts(product) if product.is_conv else ())
        ]

    @classmethod
    def fits(cls, product: Product, library: str) -> bool:
        """Any product."""
        return library == "numpy"

    @classmethod
    def seconds(cls, product: Product, machine: Machine, way: str) -> float:
        """What its parts take."""
        return sum(routine.seconds(part, machine, FORWARD) for part, routine in _parts(product))

    @classmethod
    def preparing(cls, product: Product, machine: Machine) -> float:
        """What its parts take."""
        if not product.is_conv:
            return 0.0
        return sum(routine.preparing(part, machine) for part, routine in _parts(product))

    def prepare(self, kernel: np.ndarray) -> Any:
        """The kernel with its sides swapped, and the taps of every part, last first."""
        swapped, lead = kernel.swapaxes(1, 2), (slice(None),) * 3
        if self.plain is not None:
            return self.plain.prepare(swapped)
        return [None if run is None else run.prepare(swapped[(*lead, *taps)]) for _, taps, run in self.parts]

    def d_feature(self, kernel: np.ndarray, d_out: np.ndarray, out: np.ndarray, ready: Any = None) -> Sequence[Task]:
        """The pieces of all parts."""
        ready = self.prepare(kernel) if ready is None else ready
        tasks: list[Task] = []
        if self.plain is not None:
            tasks += self.plain.forward(kernel, d_out, out, ready)
            return tasks
        for (place, _, run), one in zip(self.parts, ready, strict=True):
            part = out[(slice(None), slice(None), *place)]
            if run is None:
                part[...] = 0
            elif part.size:
                tasks += run.forward(kernel, d_out, part, one)
        return tasks


def _parts(product: Product) -> list[tuple[Product, type[Routine]]]:
    if not product.is_conv:
        swapped = product.transposed(product.axes)
        return [(swapped, choose(swapped, FORWARD))]
    return [(part, choose(part, FORWARD)) for *_, part in transposed_parts(product) if part is not None]


ROUTINES: tuple[type[Routine], ...] = (
    Multiply, Matmul, Compiled, Band, Winograd, Kn2row, Rows, Im2col, Scatter, Transposed, Depthwise, Outer, Strided,
    Cudnn, Dense, Portable,
)  # fmt: skip
"""Those with conditions before those that run everything: the first that fits is taken."""

_BY_WAY = {way: [one for one in ROUTINES if way in one.ways] for way in (FORWARD, D_FEATURE, D_KERNEL)}


def choose(product: Product, way: str, library: str = "numpy") -> Any:
    """The routine that runs a product in one way (``FORWARD``, ``D_FEATURE``, ``D_KERNEL``) on arrays of a library.

    >>> choose(Product(1, 8, 4, ()), FORWARD).name
    'matmul'
    """
    for routine in _BY_WAY[way]:
        if routine.fits(product, library):
            return routine
    raise PlanError(f"no routine runs {product} {way} on arrays of {library}")
