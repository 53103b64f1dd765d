"""What a run of the loop needs of its arguments, said before anything is trained."""

from __future__ import annotations

from typing import Any

from growarray.backend import Array, is_array, namespace
from growarray.errors import GrowthError, ShapeError
from growarray.networks.data import Task
from growarray.optim import Optimizer

__all__ = ["check_data", "check_trained"]


def check_data(data: Any, validation: Any) -> None:
    """Raise where a pair is none, its parts differ in number, a value is not finite, or there are no samples."""
    for name, part in (("data", data), ("validation", validation)):
        if part is None:
            continue
        if len(part) != 2 or not all(is_array(array) for array in part):
            raise TypeError(f"Growth: {name} must be a pair of arrays (x, target), found {type(part).__name__}")
        if part[0].shape[0] != part[1].shape[0]:
            raise ShapeError(f"Growth: {name} has {part[0].shape[0]} samples and {part[1].shape[0]} targets")
        for what, array in zip(("features", "targets"), part, strict=True):
            _check_finite(f"Growth: the {what} of {name}", array)
    if data[0].shape[0] == 0:
        raise GrowthError("Growth: there are no training samples")
    if validation is not None and validation[0].shape[0] == 0:
        raise GrowthError("Growth: there are no validation samples; leave validation out to use the training data")


def _check_finite(where: str, array: Array) -> None:
    """Raise where a sample holds NaN or infinite values: one is enough to spoil every weight."""
    xp = namespace(array)
    if not xp.isdtype(array.dtype, "real floating") or bool(xp.all(xp.isfinite(array))):
        return
    broken = xp.any(xp.reshape(~xp.isfinite(array), (array.shape[0], -1)), axis=1)
    first = int(xp.argmax(xp.astype(broken, xp.int64)))
    raise GrowthError(f"{where}: sample {first} holds NaN or infinite values; mend it or leave it out")


def check_trained(network: Any, optimizer: Any, task: Any) -> None:
    """Raise where one is of another kind than the loop needs, or the optimizer would move nothing of the network."""
    if not (hasattr(optimizer, "step") and hasattr(optimizer, "zero_grad")):
        raise TypeError(f"Growth: optimizer is a {type(optimizer).__name__}, expected one such as AdamW(network)")
    if not isinstance(task, str | Task):
        raise TypeError(f"Growth: task is a {type(task).__name__}, expected 'classification', 'regression' or a Task")
    held = {id(parameter) for parameter in getattr(optimizer, "parameters", ())}
    if isinstance(optimizer, Optimizer) and not held & {id(parameter) for parameter in network.parameters()}:
        raise GrowthError("Growth: the optimizer holds no parameter of the network; make it with AdamW(network)")
