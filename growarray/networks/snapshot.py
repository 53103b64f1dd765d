"""Snapshot: a network and its optimizer's state as they were at one moment, to go back to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from growarray.backend import Array, is_array, namespace
from growarray.nn import Module

__all__ = ["Snapshot"]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Copies of all that training and growth change in a network; :meth:`restore` brings them back, widths too.

    arrays : weights and running statistics under the names of the state dict
    slots : for each parameter what its optimizer keeps, arrays or numbers
    sizes : for each module what else tells its widths, whole numbers or lists of them, by attribute

    >>> from growarray.nn import Linear
    >>> layer = Linear(2, 1)
    >>> before = Snapshot.of(layer)
    >>> layer.weight.extend(1, layer.weight.data)
    >>> before.restore(layer)
    >>> layer.in_features
    2
    """

    arrays: Mapping[str, Array]
    slots: Mapping[str, Mapping[str, Any]]
    sizes: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, network: Module) -> Snapshot:
        """What ``network`` is now."""
        return cls(
            network.state_dict(),
            {name: {key: _copy(value) for key, value in p.slots.items()} for name, p in network.named_parameters()},
            {path: sizes for path, module in network.named_modules() if (sizes := _sizes(module))},
        )

    def restore(self, network: Module) -> None:
        """Make ``network``, the one it was taken of or another with the same modules, what it was then.

        Gradients are forgotten; statistics and planned changes, which fit other widths, start anew.
        """
        for path, module in network.named_modules():
            for name, value in self.sizes.get(path, {}).items():
                setattr(module, name, tuple(value) if isinstance(value, list | tuple) else value)
        for name, holder, attribute in network._named_arrays():
            setattr(holder, attribute, _copy(self.arrays[name]))
        for name, parameter in network.named_parameters():
            parameter.grad = None
            parameter.slots = {key: _copy(value) for key, value in self.slots[name].items()}
        for module in network.modules():
            for method in ("delete_update", "declare_statistics"):
                if hasattr(module, method):
                    getattr(module, method)()


def _copy(value: Any) -> Any:
    return namespace(value).asarray(value, copy=True) if is_array(value) else value


def _sizes(module: Module) -> dict[str, Any]:
    """Attributes that are whole numbers, or tuples of them: widths, where a layer keeps them beside its arrays."""
    return {name: value for name, value in vars(module).items() if _is_size(value)}


def _is_size(value: Any) -> bool:
    if isinstance(value, tuple):
        return bool(value) and all(_is_size(part) for part in value)
    return isinstance(value, int) and not isinstance(value, bool)
