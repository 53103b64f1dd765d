"""A trained array with its gradient and the state that an optimizer keeps for it."""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np

from growarray.backend import Array, asarray, is_array, namespace
from growarray.errors import ShapeError

_adding = threading.RLock()  # one for all: adding is a matter of memory bandwidth; a signal handler may add, too
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_adding.acquire, after_in_parent=_adding.release, after_in_child=_adding.release)


class Parameter:
    """A trained array with its gradient and what an optimizer keeps for it.

    ``data`` is the array, ``grad`` its gradient or None, ``slots`` a dictionary of optimizer state:
    arrays of the shape of ``data``, or numbers. :meth:`extend` grows all of them together. If ``requires_grad``
    is False the parameter is frozen: it takes no gradient, and no optimizer moves it.

    >>> import numpy as np
    >>> p = Parameter(np.ones((2, 3)))
    >>> p.extend(1, np.zeros((2, 1)))
    >>> p.data.shape
    (2, 4)
    """

    __slots__ = ("data", "grad", "requires_grad", "slots")

    def __init__(self, data: Array) -> None:
        self.data: Array = data if is_array(data) else np.array(asarray(data))  # not the memory of another library
        self.grad: Array | None = None
        self.requires_grad = True
        self.slots: dict[str, Any] = {}

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of ``data``."""
        return tuple(self.data.shape)

    @property
    def size(self) -> int:
        """Number of entries of ``data``."""
        return int(np.prod(self.shape, dtype=np.int64))

    def accumulate(self, gradient: Array | None, *, fresh: bool = False) -> None:
        """Add ``gradient`` to ``grad``, in the dtype of ``data``; the caller's array is not kept, unless it is
        ``fresh``: made for this, so that nobody else has it.

        A frozen parameter takes none. None adds nothing: a pullback gives it for a parameter that was frozen when the
        value was computed. Several threads may add to one parameter at a time.
        """
        if gradient is None or not self.requires_grad:
            return
        xp = namespace(self.data, gradient)
        if tuple(gradient.shape) != self.shape:
            raise ShapeError(f"gradient has shape {tuple(gradient.shape)}, parameter {self.shape}")
        with _adding:
            if self.grad is None:
                self.grad = xp.astype(gradient, self.data.dtype, copy=not fresh)
            else:
                self.grad = self.grad + xp.astype(gradient, self.data.dtype, copy=False)

    def extend(self, axis: int, block: Array) -> None:
        """Append ``block`` along ``axis`` to the data; gradient and slots grow by zeros.

        A slot that is a number (the step count of Adam) becomes an array, so that the new entries
        count their own steps and get their own bias correction.

        Raises ShapeError: ``block`` differs from ``data`` on another axis than ``axis``; nothing has changed then.
        """
        xp = namespace(self.data, block)
        expected = [n for i, n in enumerate(self.shape) if i != axis % self.data.ndim]
        found = [n for i, n in enumerate(block.shape) if i != axis % self.data.ndim]
        if block.ndim != self.data.ndim or expected != found:
            raise ShapeError(
                f"extension along axis {axis} has shape {tuple(block.shape)}, parameter {self.shape}; "
                "they may differ on that axis only"
            )
        old, new = self.data, xp.astype(block, self.data.dtype, copy=False)

        def grown(values: Any) -> Array:
            full = values if is_array(values) and values.ndim else xp.full_like(old, float(values))
            return xp.concat([full, xp.zeros_like(new)], axis=axis)

        gradient = None if self.grad is None else grown(self.grad)
        slots = {name: grown(value) for name, value in self.slots.items()}
        self.data, self.grad, self.slots = xp.concat([old, new], axis=axis), gradient, slots

    def keep(self, axis: int, index: Array) -> None:
        """Keep the entries ``index`` along ``axis`` alone, of data, gradient and slots.

        >>> p = Parameter(np.arange(6.0).reshape(2, 3))
        >>> p.keep(1, np.array([0, 2]))
        >>> p.data.tolist()
        [[0.0, 2.0], [3.0, 5.0]]
        """
        xp = namespace(self.data, index)

        def kept(values: Any) -> Any:
            return xp.take(values, index, axis=axis) if is_array(values) and values.ndim else values

        self.data, self.grad = kept(self.data), kept(self.grad)
        self.slots = {name: kept(value) for name, value in self.slots.items()}

    def __repr__(self) -> str:
        return f"Parameter(shape={self.shape}, dtype={self.data.dtype})"


def as_parameter(value: Array | Parameter) -> Parameter:
    """The parameter itself, or a new one that holds this array.

    >>> import numpy as np
    >>> as_parameter(np.ones(2)).shape
    (2,)
    """
    return value if isinstance(value, Parameter) else Parameter(value)
