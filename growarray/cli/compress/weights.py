"""The tensors of a file of weights as layers without an order, so that they can be compressed like a network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from growarray.backend import Array
from growarray.checkpoint import Checkpoint
from growarray.nn import Conv1d, Conv2d, Conv3d, Linear
from growarray.nn.conv import ConvNd
from growarray.nn.module import Module
from growarray.nn.owner import Owner

_KINDS: dict[int, Any] = {2: Linear, 3: Conv1d, 4: Conv2d, 5: Conv3d}


class Weights(Module):
    """Kernels (three axes and more) and matrices of a state dict, each in a layer; the rest is kept as it is.

    What can be factorized are real floating tensors of two axes and more with over one entry along two of them, in
    storage of their own. A layer has the name of its tensor without ``.weight``.

    >>> import numpy as np
    >>> weights = Weights({"fc.weight": np.ones((4, 3), dtype=np.float32), "fc.bias": np.zeros(4)})
    >>> [name for name, _ in weights.children()], list(weights.state())
    (['fc'], ['fc.weight', 'fc.bias'])
    """

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        tied = {name for group in tensors.tied for name in group} if isinstance(tensors, Checkpoint) else set()
        self.names = tuple(tensors)
        self.layers: dict[str, Any] = {}
        self.rest: dict[str, np.ndarray] = {}
        for name in self.names:
            array = np.asarray(tensors[name])
            wide = sum(n > 1 for n in array.shape) >= 2
            if name not in tied and array.dtype.kind == "f" and wide:
                self.layers[name] = _KINDS.get(array.ndim, ConvNd).of(array)
            else:
                self.rest[name] = array

    def _fields(self) -> Iterator[tuple[str, Any]]:
        yield from ((name.removesuffix(".weight"), layer) for name, layer in self.layers.items())

    def number_of_parameters(self) -> int:
        """All entries, those of the tensors that stay as they are too."""
        return super().number_of_parameters() + sum(array.size for array in self.rest.values())

    def state(self) -> dict[str, Array]:
        """The tensors by name, in their order; factors under the name of the tensor that they make."""
        state: dict[str, Array] = {}
        for name in self.names:
            if name in self.rest:
                state[name] = self.rest[name]
                continue
            weight = self.layers[name].weight
            inner = weight.state_dict() if isinstance(weight, Owner) else {"": weight.data}
            state |= {f"{name}.{key}" if key else name: value for key, value in inner.items()}
        return state
