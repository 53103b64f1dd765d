"""Values of a graph while it is read: constant, dependent on the inputs, or unsupported."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from growarray.files.errors import Malformed
from growarray.files.tensor import StoredTensor

Array = NDArray[Any]
Dim = int | str
Shape = tuple[Dim, ...] | None


class Constant:
    """A value that the file fixes; it is read when ``array`` is first asked for.

    key : name of the value, one for each parameter    label : name in the file, for readable names of layers
    trained : whether it is an initializer, which fine-tuning may change    derived : whether it is computed from others
    kind : its type in the file
    An array of objects is a shape: whole numbers, and names of axes whose size the input tells.
    """

    def __init__(
        self,
        key: str,
        values: Array | StoredTensor,
        *,
        trained: bool = False,
        derived: bool = False,
        label: str | None = None,
    ) -> None:
        self.key, self.trained, self.derived = key, trained, derived
        self.label = key if label is None else label
        self._values = values
        name = values.dtype.name
        self.kind = "int64" if name == "object" else str(name)

    @property
    def array(self) -> Array:
        """The values."""
        if isinstance(self._values, StoredTensor):
            self._values = self._values.read()
        return self._values

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of each axis."""
        return tuple(self._values.shape)

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Dynamic:
    """A value that depends on the inputs: its name in the network, its axes as far as they are known, and its type.

    ``kind`` is the type in the file; the network computes floats in its own.
    """

    name: str
    shape: Shape
    kind: str = "float32"


@dataclass(frozen=True)
class Unsupported:
    """A value that cannot be used, and why."""

    reason: str


GraphValue = Constant | Dynamic | Unsupported


def known_axes(value: Constant | Dynamic) -> tuple[Dim, ...]:
    """The axes of a value. Raises Malformed if their number is not known."""
    if value.shape is None:
        raise Malformed("the number of axes of its input is not known; export the model with shapes")
    return value.shape


def letter(kind: str) -> str:
    """The kind of a type by NumPy's letter: ``'f'``, ``'i'``, ``'u'`` or ``'b'``.

    >>> letter("bfloat16"), letter("uint8"), letter("bool")
    ('f', 'u', 'b')
    """
    return "f" if "float" in kind else kind[:1]
