"""Sequential: modules one after another."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Self

from growarray.backend import Array
from growarray.nn.module import ExtendedPullback, Module, Pullback, for_parameters


class Sequential(Module):
    """Modules one after another; their names are "0", "1", … as in a torch state dict.

    Raises TypeError if an entry is not a :class:`~growarray.nn.module.Module`.

    >>> from growarray.nn.activation import ReLU
    >>> from growarray.nn.linear import Linear
    >>> net = Sequential(Linear(2, 3), ReLU())
    >>> [name for name, _ in net.named_parameters()]
    ['0.weight', '0.bias']
    >>> net
    Sequential(
      (0): Linear(2, 3, bias=True)
      (1): ReLU()
    )
    """

    _a_line_each = True

    def __init__(self, *modules: Module) -> None:
        for index, module in enumerate(modules):
            if not isinstance(module, Module):
                raise TypeError(
                    f"Sequential: entry {index} is a {type(module).__name__}, expected a Module such as ReLU()"
                )
        self.layers = list(modules)

    def _fields(self) -> Iterator[tuple[str, Any]]:
        for name, value in super()._fields():
            yield name.removeprefix("layers."), value

    def _saved(self) -> dict[str, Any]:
        return {"layers": self.layers}

    @classmethod
    def _restored(cls, layers: list[Module]) -> Self:
        return cls(*layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Module]:
        return iter(self.layers)

    def __getitem__(self, index: int) -> Module:
        return self.layers[index]

    def forward(self, x: Array) -> Array:
        """Value of the last module; nothing is kept for a way back."""
        try:
            for index in range(len(self.layers)):
                x = self.layers[index].forward(x)
        except Exception as error:
            error.add_note(_place(self.layers, index))
            raise
        return x

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """Value of the last module, and a pullback through all of them.

        ``pullback(dy, wrt_x=False)`` returns None, and goes back no further than to the first module that is trained.
        """
        layers, backs = list(self.layers), []
        try:
            for layer in layers:
                x, back = layer.vjp(x)
                backs.append(back)
        except Exception as error:
            error.add_note(_place(layers, len(backs)))
            raise

        def pullback(dy: Array, *, wrt_x: bool = True) -> Array:
            first = 0 if wrt_x else next((i for i, layer in enumerate(layers) if layer._needs_pullback), len(layers))
            for index in reversed(range(first, len(layers))):
                if index == first and not wrt_x:
                    for_parameters(backs[index], dy)
                else:
                    dy = backs[index](dy)
            return dy if wrt_x else None

        return x, pullback

    @property
    def slope_at_zero(self) -> float:
        """Product of the slopes."""
        return math.prod((layer.slope_at_zero for layer in self.layers), start=1.0)

    @property
    def starts_at_zero(self) -> bool:
        """Whether all of them do."""
        return all(layer.starts_at_zero for layer in self.layers)

    @property
    def parameters_per_feature(self) -> int:
        """Sum over the modules."""
        return sum(layer.parameters_per_feature for layer in self.layers)

    def extended_forward(self, x: Array | None, x_ext: Array | None = None) -> tuple[Array | None, Array | None]:
        """Both values through every module's own ``extended_forward``."""
        for layer in self.layers:
            x, x_ext = layer.extended_forward(x, x_ext)
        return x, x_ext

    def extended_vjp(
        self, x: Array | None, x_ext: Array | None = None
    ) -> tuple[tuple[Array | None, Array | None], ExtendedPullback]:
        """Both values through every module's own ``extended_vjp``, and the way back through all of them."""
        backs = []
        for layer in self.layers:
            (x, x_ext), back = layer.extended_vjp(x, x_ext)
            backs.append(back)

        def pullback(dy: Array | None, dy_ext: Array | None = None) -> tuple[Array | None, Array | None]:
            for back in reversed(backs):
                dy, dy_ext = back(dy, dy_ext)
            return dy, dy_ext

        return (x, x_ext), pullback

    def check_extend(self, by: int) -> None:
        """Raise what ``extend(by)`` would raise, without changing anything."""
        for layer in self.layers:
            layer.check_extend(by)

    def extend(self, by: int) -> None:
        """Extend every module by ``by`` features, all or none."""
        self.check_extend(by)
        for layer in self.layers:
            layer.extend(by)

    def _check_keep(self, count: int) -> None:
        for layer in self.layers:
            layer._check_keep(count)

    def _keep(self, index: Array) -> None:
        for layer in self.layers:
            layer._keep(index)

    def rescale(self, scale: float) -> None:
        """Tell every module that its input will be ``scale`` times what it was."""
        for layer in self.layers:
            layer.rescale(scale)


def _place(layers: list[Module], index: int) -> str:
    return f"in layer {index} of a Sequential, {type(layers[index]).__name__}"
