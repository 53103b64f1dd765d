"""A stand-in for a tensor of torch: it has DLPack and not the array API, and raises errors of its own."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["ForeignError", "Tensor", "Uninitialized"]


class ForeignError(Exception):
    """What another library raises, which no caller of this one expects."""


class Tensor:
    """Values in host memory; ``dtype`` is what they are called, and DLPack knows those of NumPy alone."""

    def __init__(
        self, values: Any, dtype: str = "", *, device: str = "cpu", grad: bool = False, neg: bool = False
    ) -> None:
        self._values = np.asarray(values)
        self.dtype = f"torch.{dtype or self._values.dtype.name}"
        self.device, self.requires_grad, self._neg = device, grad, neg

    @property
    def shape(self) -> tuple[int, ...]:
        return self._values.shape

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise ForeignError("Got unsupported ScalarType")

    def __dlpack__(self, **options: Any) -> Any:
        if self.requires_grad or self.device != "cpu" or self.dtype != f"torch.{self._values.dtype.name}":
            raise ForeignError("Unsupported tensor\nand a long story")
        return self._values.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self._values.__dlpack_device__()

    def resolve_neg(self) -> Tensor:
        return Tensor(
            -self._values if self._neg else self._values, self.dtype.removeprefix("torch."), device=self.device
        )

    def float(self) -> Tensor:
        """The same values as float32."""
        return Tensor(self._values.astype(np.float32))


class Uninitialized(Tensor):
    """A parameter whose shape is not known yet."""

    @property
    def shape(self) -> tuple[int, ...]:
        raise ForeignError("Can't access the shape")
