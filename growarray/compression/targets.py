"""The layers of a network that compression may replace, and why the others stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from functools import cached_property
from typing import Any

from growarray.backend import Array, namespace
from growarray.decompose.whiten import roots
from growarray.errors import shown
from growarray.factorized.conv import FactorizedConv
from growarray.factorized.linear import FactorizedLinear
from growarray.factorized.tensor import FactorizedTensor
from growarray.growing import GrowingModule
from growarray.nn import conv
from growarray.nn.linear import Linear
from growarray.nn.module import Module, Parameter
from growarray.nn.owner import Owner, below

_TRANSPOSED = (conv.ConvTranspose1d, conv.ConvTranspose2d, conv.ConvTranspose3d, conv.ConvTransposeNd)
_DENSE = (Linear, conv.Conv1d, conv.Conv2d, conv.Conv3d, conv.ConvNd)

Shape = tuple[int, ...]


class Target:
    """A layer that may be replaced: its name, its input shapes (one for each use), and the moment of its input.

    moment : second moment (c, c) of the channels of the input (of one group), None if it is not known
    rows : of which it is the sum
    influence : squared relative change of the network's output for that of this layer's output
    """

    def __init__(self, name: str, layer: Any) -> None:
        self.name, self.layer = name, layer
        self.shapes: list[Shape] = []
        self.moment: Array | None = None
        self.rows = 0
        self.influence = 1.0
        self.is_linear = type(layer) is Linear

    @cached_property
    def root(self) -> Array | None:
        """Root of the moment, which weights the input channels of the kernel; read when the moment is complete."""
        return None if self.moment is None else roots(self.moment)[0]

    @property
    def kernel(self) -> Array:
        """The weight, (out, in / groups, *kernel)."""
        return self.layer.weight.data

    @property
    def bias_size(self) -> int:
        """Parameters of the bias, which stays as it is."""
        return 0 if self.layer.bias is None else int(self.layer.bias.size)


def find_targets(network: Module) -> list[Target]:
    """Convolutions and linear layers that share no weight, each once, under its first name.

    Raises ValueError if a weight or a bias holds a NaN or an infinity.
    """
    owners, found = _owners(network), dict[int, Target]()
    for name, module, inside in _walk(network):
        if id(module) in found or _reason(module, inside, owners) is not None:
            continue
        layer: Any = module
        for label, held in (("weight", layer.weight), ("bias", layer.bias)):
            xp = None if held is None else namespace(held.data)
            if xp is not None and not bool(xp.all(xp.isfinite(held.data))):
                raise ValueError(
                    f"compress: {label} of layer {shown(name)} holds a NaN or an infinity; mend these weights first"
                )
        found[id(module)] = Target(name, layer)
    return list(found.values())


def left_alone(network: Module, replaceable: Collection[Module], keep: Collection[str]) -> dict[str, str]:
    """By name, the other layers with matrices or kernels: class, size, and the reason to keep them dense.

    >>> from growarray import nn
    >>> left_alone(nn.Sequential(nn.Linear(3, 2), nn.ConvTranspose1d(4, 2, 3)), [], ["0"])["1"]
    'ConvTranspose1d, 26 parameters: transposed convolutions cannot be factorized'
    """
    known, owners = {id(layer) for layer in replaceable}, _owners(network)
    found: dict[str, str] = {}
    for name, module, inside in _walk(network):
        if id(module) not in known and _has_matrices(module):
            known.add(id(module))
            named = name in keep and inside is None
            reason = "named in keep" if named else _reason(module, inside, owners)
            found[name] = f"{type(module).__name__}, {module.number_of_parameters():,} parameters: {reason}"
    return found


def _walk(module: Owner, prefix: str = "", inside: str | None = None) -> Iterator[tuple[str, Owner, str | None]]:
    """Name (that of the network is its class), module, and class of the growing module that it is in."""
    yield prefix.removesuffix(".") or type(module).__name__, module, inside
    if isinstance(module, GrowingModule):
        inside = type(module).__name__
    for name, child in module.children():
        yield from _walk(child, below(prefix, name), inside)


def _owners(network: Module) -> Counter[int]:
    """How many modules hold each parameter."""
    modules = {id(module): module for module in network.modules()}.values()
    return Counter(id(p) for module in modules for _, p in module._fields() if isinstance(p, Parameter))


def _has_matrices(module: Owner) -> bool:
    if isinstance(module, FactorizedTensor):
        return False  # named by the layer that holds it
    own = [value for _, value in module._fields()]
    return any(isinstance(v, FactorizedTensor) or (isinstance(v, Parameter) and len(v.shape) > 1) for v in own)


def _reason(module: Any, inside: str | None, owners: Counter[int]) -> str | None:
    """Why a module cannot be replaced, or None if it can."""
    if inside is not None:
        return f"{inside}, a growing module, computes with its weight and extends it"
    if isinstance(module, FactorizedConv | FactorizedLinear):
        return "it is factorized already"
    if isinstance(module, _TRANSPOSED):
        return "transposed convolutions cannot be factorized"
    if not isinstance(module, _DENSE):
        return "it is neither a convolution nor a linear layer"
    if type(module) not in _DENSE:
        return "its class is a subclass, which might compute something else"
    if module.weight.size == 0:
        return "its weight has no entries"
    if not namespace(module.weight.data).isdtype(module.weight.data.dtype, "real floating"):
        return f"its weight is {module.weight.data.dtype}, not real floating"
    return "its weight is shared with another layer" if owners[id(module.weight)] > 1 else None
