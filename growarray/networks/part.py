"""A network of any kind with a growing part in it, as the training-and-growing loop takes it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from growarray.backend import Array
from growarray.growing import GrowingModule, MergeGrowingModule
from growarray.networks.network import GrowingNetwork
from growarray.nn import Module
from growarray.nn.module import Parameter, Pullback, for_parameters


class PartlyGrowing(GrowingNetwork):
    """Any module as a growing network: its growing layers are those of the growing parts inside.

    module : a Sequential, a Graph, or a class of your own. It stays what it is and grows in place; parameters have its
        names. A growing layer counts if a growing layer comes before it, a merge if ``allow_growing`` is set.

    >>> import numpy as np
    >>> from growarray.networks import GrowingMLP
    >>> from growarray.nn import Conv2d, ReLU, Sequential
    >>> stem = (Conv2d(1, 4, 3), ReLU())
    >>> network = PartlyGrowing(Sequential(*stem, GrowingMLP((4, 6, 6), 10, hidden_size=2)))
    >>> network(np.zeros((5, 1, 8, 8), np.float32)).shape, network.widths
    ((5, 10), [2])
    """

    def __init__(self, module: Module) -> None:
        self.module = module

    @property
    def growing_layers(self) -> list[Any]:
        """The growing layers of every growing part, in the order in which the module owns them."""
        return [layer for part in _parts(self.module) for layer in _layers(part)]

    def collectors(self) -> Iterator[Any]:
        """What collects statistics in every growing part."""
        for part in _parts(self.module):
            yield from part.collectors() if isinstance(part, GrowingNetwork) else _layers(part)

    @property
    def chain(self) -> list[Any]:
        """The module, which is run as a whole."""
        return [self.module]

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """Name and parameter, with the module's own names."""
        yield from self.module.named_parameters(prefix)

    def _named_arrays(self, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
        yield from self.module._named_arrays(prefix)

    def forward(self, x: Array) -> Array:
        """Value of the module."""
        return self.module.forward(x)

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """Value of the module and its way back; ``pullback(dy, wrt_x=False)`` returns None."""
        y, back = self.module.vjp(x)

        def pullback(dy: Array, *, wrt_x: bool = True) -> Array:
            return back(dy) if wrt_x else for_parameters(back, dy)

        return y, pullback

    def extended_forward(self, x: Array, x_ext: Array | None = None) -> Array:
        """Value with every planned change, at the scalings that are set: carried out in a copy of the growing parts."""
        growing = {id(inner) for part in _parts(self.module) for inner in part.modules()}
        shared = [m for m in self.module.modules() if not any(id(inner) in growing for inner in m.modules())]
        twin = copy.deepcopy(self, {id(module): module for module in shared})
        for layer in twin.growing_layers:
            if layer.scaling_factor:
                layer.apply_change()
        return twin.module.forward(x)


def as_growing(module: Any) -> GrowingNetwork:
    """The module itself if it is a growing network, else one around it.

    Raises TypeError for what is no module, or one in which nothing can grow.

    >>> from growarray.networks import GrowingMLP
    >>> network = GrowingMLP(4, 2, hidden_size=1)
    >>> as_growing(network) is network
    True
    """
    if isinstance(module, GrowingNetwork):
        return module
    if not isinstance(module, Module) or not any(_layers(part) for part in _parts(module)):
        raise TypeError(
            f"Growth: network is a {type(module).__name__}, expected a GrowingNetwork such as GrowingMLP, or a module "
            "with one inside; train other modules with their vjp and an optimizer"
        )
    return PartlyGrowing(module)


def _parts(module: Module) -> Iterator[Any]:
    """Growing networks, and growing layers and merges outside of them, each once."""
    taken: set[int] = set()
    for part in module.modules():
        if isinstance(part, GrowingNetwork | GrowingModule | MergeGrowingModule) and id(part) not in taken:
            taken.update(id(inner) for inner in part.modules())
            yield part


def _layers(part: Any) -> list[Any]:
    """The growing layers of a part: none of a layer before which nothing can be added."""
    if isinstance(part, GrowingNetwork):
        return part.growing_layers
    if isinstance(part, MergeGrowingModule):
        return [part] if part.allow_growing else []
    return [part] if isinstance(part.previous_module, GrowingModule) else []
