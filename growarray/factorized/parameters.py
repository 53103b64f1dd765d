"""Parameters that keep their gradient and optimizer state in another shape, and what new ones are checked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from growarray.backend import Array, asarray, kind_of, namespace
from growarray.errors import ShapeError
from growarray.nn.module import Parameter

_MOST = 1000  # parameters of a new tensor, times those of the dense one, above which the rank is a slip
_FEW = 1_000_000  # parameters that are always few enough


def reshape_parameter(value: Parameter, shape: tuple[int, ...]) -> None:
    """Another shape for the data, the gradient and the optimizer state of a parameter."""
    xp, old = namespace(value.data), value.shape
    value.data = xp.reshape(value.data, shape)
    value.grad = None if value.grad is None else xp.reshape(value.grad, shape)
    same = {name: slot for name, slot in value.slots.items() if getattr(slot, "shape", None) == old}
    value.slots |= {name: xp.reshape(slot, shape) for name, slot in same.items()}


def checked_bias(bias: Parameter | None, shape: tuple[int, ...]) -> Parameter | None:
    """The bias; raises ShapeError if it has another shape.

    >>> checked_bias(None, (2,)) is None
    True
    """
    if bias is not None and bias.shape != shape:
        raise ShapeError(f"the bias has shape {bias.shape}, expected {shape}")
    return bias


def real_array(where: str, value: Any, like: Array) -> Array:
    """``value`` in the library and dtype of ``like``; raises TypeError if it holds no real numbers.

    >>> real_array("doc", [1, 2], np.ones(1))
    array([1., 2.])
    """
    try:
        array = asarray(value, like=like)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{where} is {type(value).__name__}, expected an array of real numbers ({error})") from error
    if kind_of(array) not in "biuf":
        raise TypeError(f"{where} holds {array.dtype}, expected real numbers")
    return namespace(array).astype(array, like.dtype, copy=False)


def check_size(sizes: tuple[int, ...], rank: Any, shapes: Sequence[Sequence[int]], usable: Any) -> None:
    """Raise ValueError if a rank makes factors of these shapes that are far larger than the tensor ever was."""
    if sum(map(math.prod, shapes)) > max(_MOST * math.prod(sizes), _FEW):
        raise ValueError(
            f"FactorizedTensor.new: rank {rank} makes over {_MOST} times the {math.prod(sizes)} parameters of a dense "
            f"tensor of shape {sizes}, which can use rank {usable} at most; lower it"
        )
