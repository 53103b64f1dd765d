"""Layers whose number of channels, sizes or padding follow from the shape of their input."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

from growarray.backend import Array, namespace
from growarray.errors import ShapeError
from growarray.nn.module import Module, Parameter, Pullback
from growarray.nn.padding import Pad
from growarray.nn.several import Several
from growarray.ops.norm import group_norm

Pairs = tuple[tuple[int, int], ...]


class GroupedNorm(Module):
    """Group normalisation of any number of channels, with a weight and a bias for each group and not each channel.

    weight, bias : (g,)    Raises ShapeError if the g groups do not divide the channels, axis 1.

    >>> import numpy as np
    >>> weight, bias = Parameter(np.array([1.0, 2.0])), Parameter(np.array([0.0, 5.0]))
    >>> GroupedNorm(weight, bias, eps=0.0)(np.array([[1.0, 3.0, 8.0, 2.0]])).tolist()
    [[-1.0, 1.0, 7.0, 3.0]]
    """

    _shown = "{self.weight.shape[0]}, eps={self.eps}"

    def __init__(self, weight: Parameter, bias: Parameter, eps: float = 1e-5) -> None:
        self.weight, self.bias, self.eps = weight, bias, eps

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """Value and pullback; the pullback adds to ``weight.grad`` and ``bias.grad``."""
        xp, (groups,), shape = namespace(x, self.weight.data), self.weight.shape, tuple(x.shape)
        if x.ndim < 2 or shape[1] % groups:
            raise ShapeError(f"GroupedNorm: input has shape {shape}, expected channels that {groups} groups divide")
        rows = xp.reshape(x, (shape[0], groups, math.prod(shape[1:]) // groups))
        y, back = group_norm(rows, groups, self.weight.data, self.bias.data, self.eps)

        def pullback(dy: Array) -> Array:
            dx, dw, db = back(xp.reshape(dy, rows.shape))
            self.weight.accumulate(dw)
            self.bias.accumulate(db)
            return xp.reshape(dx, shape)

        return xp.reshape(y, shape), pullback


class DynamicShape(Several):
    """A layer of shapes, :class:`~growarray.nn.shape.Reshape` or Expand, some sizes of which are those of other inputs.

    sizes : numbers, and pairs of an input, counted after the first, and its axis

    >>> import numpy as np
    >>> from growarray.nn.shape import Expand
    >>> DynamicShape(Expand, (2, (0, 1)))(np.zeros(1), np.ones((5, 3))).shape
    (2, 3)
    """

    def __init__(self, kind: Any, sizes: Sequence[Any]) -> None:
        self.kind, self.sizes = kind, list(sizes)

    def vjp(self, *inputs: Array) -> tuple[Array, Pullback]:
        """What the layer gives; the inputs that sizes are taken from have no gradient."""
        x, *others = inputs
        y, back = self.kind([n if isinstance(n, int) else others[n[0]].shape[n[1]] for n in self.sizes]).vjp(x)
        return y, lambda dy: (back(dy), *(None for _ in others))

    def extra_repr(self) -> str:
        """The layer and its sizes."""
        return f"{self.kind.__name__}, {tuple(self.sizes)}"


def same_pads(sizes: Sequence[int], reach: Sequence[int], stride: Sequence[int], *, lower: bool) -> Pairs:
    """Padding of each axis for as many windows as its size over the stride, rounded up.

    ``reach`` counts the positions from the first to the last tap of a window. If the padding is odd, the larger part
    comes first with ``lower``, else last.

    >>> same_pads((5, 4), (3, 4), (2, 1), lower=False)
    ((1, 1), (1, 2))
    """
    pairs = []
    for size, span, step in zip(sizes, reach, stride, strict=True):
        total = max(step * (-(-size // step) - 1) + span - size, 0)
        small, large = total // 2, total - total // 2
        pairs.append((large, small) if lower else (small, large))
    return tuple(pairs)


class SamePad(Module):
    """Zeros around an input (n, c, *), as many as :func:`same_pads` says for its size.

    >>> import numpy as np
    >>> SamePad((3,), (2,))(np.ones((1, 1, 4))).tolist()
    [[[1.0, 1.0, 1.0, 1.0, 0.0]]]
    """

    _shown = "{self.reach}, {self.stride}, lower={self.lower}"

    def __init__(self, reach: Sequence[int], stride: Sequence[int], *, lower: bool = False) -> None:
        self.reach, self.stride, self.lower = tuple(reach), tuple(stride), lower

    def fitted(self, shape: Sequence[int]) -> Module:
        """The layer for an input of this shape."""
        if len(shape) != 2 + len(self.reach):
            raise ShapeError(
                f"{type(self).__name__}: input has shape {tuple(shape)}, expected {len(self.reach) + 2} axes"
            )
        return self._padded(same_pads(shape[2:], self.reach, self.stride, lower=self.lower))

    def _padded(self, pads: Pairs) -> Module:
        return Pad(pads)

    def forward(self, x: Array) -> Array:
        """The padded input, or what is made of it."""
        return self.fitted(x.shape).forward(x)

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """:meth:`forward` and the way back."""
        return self.fitted(x.shape).vjp(x)


class CutTo(SamePad):
    """An input (n, c, *) cut on both sides to ``sizes``; an odd rest is cut in front with ``lower``, else behind.

    Raises ShapeError if the input is smaller.

    >>> import numpy as np
    >>> CutTo((2,), lower=True)(np.array([[[1.0, 2.0, 3.0, 4.0, 5.0]]])).tolist()
    [[[3.0, 4.0]]]
    """

    def __init__(self, sizes: Sequence[int], *, lower: bool = False) -> None:
        super().__init__(sizes, sizes, lower=lower)

    def _saved(self) -> dict[str, Any]:
        return {"sizes": self.reach, "lower": self.lower}

    def fitted(self, shape: Sequence[int]) -> Module:
        """What cuts an input of this shape."""
        surplus = [have - n for have, n in zip(shape[2:], self.reach, strict=False)]
        if len(shape) != 2 + len(self.reach) or min(surplus) < 0:
            raise ShapeError(f"CutTo: input has shape {tuple(shape)}, expected (n, c, *), each at least {self.reach}")
        return Pad([(-(total - total // 2), -(total // 2)) if self.lower else (-(total // 2), -(total - total // 2))
                    for total in surplus])  # fmt: skip

    def extra_repr(self) -> str:
        """The sizes."""
        return f"{self.reach}, lower={self.lower}"


class SamePool(SamePad):
    """A pooling layer whose padding follows :func:`same_pads`.

    >>> import numpy as np
    >>> from growarray.nn.pool import AvgPool1d
    >>> SamePool(AvgPool1d(3, 2, count_include_pad=False), (3,), (2,))(np.array([[[1.0, 2.0, 3.0, 4.0]]])).tolist()
    [[[2.0, 3.5]]]
    """

    def __init__(self, layer: Any, reach: Sequence[int], stride: Sequence[int], *, lower: bool = False) -> None:
        super().__init__(reach, stride, lower=lower)
        self.layer = layer

    def _padded(self, pads: Pairs) -> Module:
        layer = copy.copy(self.layer)
        layer.padding = pads
        fitted: Module = layer
        return fitted
