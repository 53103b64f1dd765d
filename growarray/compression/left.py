"""The layers of a network that compression leaves as they are, each with the reason."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from growarray.backend import namespace
from growarray.factorized.conv import FactorizedConv
from growarray.factorized.linear import FactorizedLinear
from growarray.factorized.tensor import FactorizedTensor
from growarray.growing import GrowingModule
from growarray.nn.conv import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvNd,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    ConvTransposeNd,
)
from growarray.nn.linear import Linear
from growarray.nn.module import Module, Parameter, below

__all__ = ["left_alone"]

_TRANSPOSED = (ConvTranspose1d, ConvTranspose2d, ConvTranspose3d, ConvTransposeNd)
_DENSE = (Linear, Conv1d, Conv2d, Conv3d, ConvNd)


def left_alone(network: Module, replaceable: Collection[Module], keep: Collection[str]) -> dict[str, str]:
    """By name what is held in matrices or kernels and is not among ``replaceable``: class, size, and why it stays.

    >>> from growarray import nn
    >>> left_alone(nn.Sequential(nn.Linear(3, 2), nn.ConvTranspose1d(4, 2, 3)), [], ["0"])["1"]
    'ConvTranspose1d, 26 parameters: no factorized layer stands for a transposed convolution'
    """
    known = {id(layer) for layer in replaceable}
    found: dict[str, str] = {}
    for name, module, inside in _walk(network, "", None):
        if id(module) in known or not _has_matrices(module):
            continue
        known.add(id(module))
        reason = "named in keep" if name in keep and inside is None else _reason(module, inside)
        found[name] = f"{type(module).__name__}, {module.number_of_parameters():,} parameters: {reason}"
    return found


def _walk(module: Module, prefix: str, inside: str | None) -> Iterator[tuple[str, Module, str | None]]:
    """Name, module, and class of the growing module that it is in."""
    yield prefix.removesuffix(".") or type(module).__name__, module, inside
    if isinstance(module, GrowingModule):
        inside = type(module).__name__
    for name, child in module.children():
        yield from _walk(child, below(prefix, name), inside)


def _has_matrices(module: Module) -> bool:
    if isinstance(module, FactorizedTensor):
        return False  # named by the layer that holds it
    own = [value for _, value in module._fields()]
    return any(isinstance(v, FactorizedTensor) or (isinstance(v, Parameter) and len(v.shape) > 1) for v in own)


def _reason(module: Module, inside: str | None) -> str:
    if inside is not None:
        return f"{inside}, a growing module, computes with its weight and extends it"
    if isinstance(module, FactorizedConv | FactorizedLinear):
        return "it is factorized already"
    if isinstance(module, _TRANSPOSED):
        return "no factorized layer stands for a transposed convolution"
    if not isinstance(module, _DENSE):
        return "it is neither a convolution nor a linear layer"
    if type(module) not in _DENSE:
        return "it is of a class of its own, which might compute something else"
    if module.weight.size == 0:
        return "its weight has no entries"
    if not namespace(module.weight.data).isdtype(module.weight.data.dtype, "real floating"):
        return f"its weight is {module.weight.data.dtype}, not real floating"
    return "its weight is shared with another layer"
