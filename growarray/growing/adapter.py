"""Adapters: a frozen layer with a low-rank change of its weight beside it, whose rank grows from zero.

``y = W x + B A x``. A and B are two growing layers without biases, one behind the other, so that a rank is a neuron
between them: the new ones are the leading singular vectors of ``S^(-1/2) N``, which is the best change of W of this
rank, in the metric of the layer's input, for the gradient. Source: Hu et al. 2022 (LoRA), for the form.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from growarray.backend import Array, asarray, device_of, namespace
from growarray.errors import GrowthError, ShapeError, shown
from growarray.growing.change import like
from growarray.growing.conv import Conv2dGrowingModule, RestrictedConv2dGrowingModule
from growarray.growing.layer import GrowingModule
from growarray.growing.linear import LinearGrowingModule
from growarray.nn import Conv1d, Conv2d, Conv3d, ConvNd, Linear, Module, Parameter
from growarray.nn.linear import uniform
from growarray.nn.module import Pullback
from growarray.nn.owner import Owner
from growarray.ops.sizes import whole_number

_CONVOLUTIONS = (Conv1d, Conv2d, Conv3d, ConvNd)
_SAVED = re.compile(r"(?:base_model\.model\.)?(?P<name>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")


class Adapter(Module):
    """A frozen linear layer or convolution and the growing pair ``lora_B(lora_A(x))`` that is added to it.

    layer : a Linear, Conv1d, Conv2d, Conv3d or ConvNd; it is frozen, not copied
    rank : of the change at first; 0 is the layer itself, more starts with B = 0, as LoRA does
    lora_A : reads what the layer reads, with its kernel, stride, padding and dilation    lora_B : linear, or pointwise

    The place to grow is ``lora_B``, with all that a growing layer has. Parameters are those of the pair, called
    ``lora_A.weight`` and ``lora_B.weight``; the state dict has those of the layer too, under the layer's own names.

    Raises TypeError: the layer is of another class; NotImplementedError: a convolution has groups, or pads by something
    other than zeros.

    >>> rng = np.random.default_rng(0)
    >>> adapter = Adapter(Linear(4, 3, rng=rng, dtype=np.float64), rng=rng)
    >>> x, target = rng.standard_normal((50, 4)), rng.standard_normal((50, 3))
    >>> adapter.lora_B.init_computation()
    >>> y, pullback = adapter.vjp(x)
    >>> dx = pullback(y - target)
    >>> adapter.lora_B.update_computation()
    >>> _ = adapter.lora_B.compute_optimal_updates(max_new=2)
    >>> adapter.lora_B.apply_change(scaling_factor=1.0)
    >>> adapter.rank, float(np.sum((adapter(x) - target) ** 2)) < float(np.sum((y - target) ** 2))
    (2, True)
    """

    def __init__(
        self, layer: Any, rank: int = 0, *, rng: np.random.Generator | None = None, name: str = "adapter"
    ) -> None:
        reason = _reason(layer)
        if reason is not None:
            raise reason
        whole_number("Adapter", "rank", rank, 0)
        rng, weight = np.random.default_rng() if rng is None else rng, layer.weight.data
        xp, (outputs, *read) = namespace(weight), weight.shape
        bound = 1.0 / math.sqrt(max(math.prod(read), 1))
        drawn = asarray(uniform((rank, *read), bound, rng, np.float64, None), like=weight, dtype=weight.dtype)
        zeros = xp.zeros((outputs, rank, *(1 for _ in read[1:])), dtype=weight.dtype, device=device_of(weight))
        first, second = _PAIRS[type(layer) is Linear]
        self.layer = layer.requires_grad_(False)
        self.lora_A = first._restored(layer=like(layer, drawn), name=f"{name}.lora_A")
        self.lora_B = second._restored(layer=type(layer).of(zeros), name=f"{name}.lora_B")
        self.lora_A.next_module, self.lora_B.previous_module = self.lora_B, self.lora_A

    _held = ("layer", "lora_A", "lora_B")

    def _check_held(self) -> None:
        shapes = [tuple(part.weight.shape) for part in (self.layer, self.lora_A, self.lora_B)]
        (outputs, *read), (rank, *kernel), pointwise = shapes
        if kernel != read or pointwise != (outputs, rank, *(1 for _ in read[1:])):
            raise ShapeError(f"Adapter: weights of layer, lora_A, lora_B have shapes {shapes}, which do not fit")

    @property
    def rank(self) -> int:
        """Rank of the change."""
        return int(self.lora_A.weight.shape[0])

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """Name and parameter of the pair; the layer has none to train."""
        yield from ((f"{prefix}{name}.weight", getattr(self, name).weight) for name in self._held[1:])

    def _find_parameters(self, by_id: dict[int, Parameter]) -> None:
        by_id.update((id(p), p) for _, p in self.named_parameters())

    def _named_arrays(self, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
        yield from self.layer._named_arrays(prefix)
        yield from ((name, p, "data") for name, p in self.named_parameters(prefix))

    def forward(self, x: Array) -> Array:
        """Value of the layer and of its change."""
        return self.layer(x) + self.lora_B(self.lora_A(x))

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """Value and pullback, which adds to the gradients of the pair; with ``wrt_x=False`` it returns None."""
        y, back = self.layer.vjp(x)
        inner, back_a = self.lora_A.vjp(x)
        change, back_b = self.lora_B.vjp(inner)

        def pullback(dy: Array, *, wrt_x: bool = True) -> Array:
            dx = back_a(back_b(dy), wrt_x=wrt_x)
            return back(dy) + dx if wrt_x else None

        return y + change, pullback

    def merge(self) -> Any:
        """The layer alone, of its own class, with the weight ``W + B A`` and its bias, to be trained or served.

        >>> adapter = Adapter(Linear(3, 2), rank=1)
        >>> adapter.merge()
        Linear(3, 2, bias=True)
        """
        weight, bias = self.layer.weight.data, self.layer.bias
        xp = namespace(weight)
        a, b = (xp.astype(part.weight.data, xp.float64) for part in (self.lora_A, self.lora_B))
        change = xp.reshape(b, b.shape[:2]) @ xp.reshape(a, (a.shape[0], math.prod(a.shape[1:])))
        total = xp.astype(weight, xp.float64) + xp.reshape(change, weight.shape)
        return like(
            self.layer, xp.astype(total, weight.dtype), None if bias is None else xp.asarray(bias.data, copy=True)
        )


_PAIRS: dict[bool, tuple[Any, Any]] = {
    True: (LinearGrowingModule, LinearGrowingModule),
    False: (Conv2dGrowingModule, RestrictedConv2dGrowingModule),  # which take kernels of any number of axes
}
"""Classes of A and B, by whether the layer is linear."""


def _reason(layer: Any) -> Exception | None:
    """Why a layer takes no adapter, None if it does."""
    kinds = (Linear, *_CONVOLUTIONS)
    if type(layer) not in kinds:
        names = ", ".join(kind.__name__ for kind in kinds)
        return TypeError(f"Adapter: found {shown(layer)}, expected one of {names}; leave the layer out of names")
    if type(layer) is Linear or (layer.groups == 1 and layer.padding_mode == "zeros"):
        return None
    return NotImplementedError(
        f"Adapter: found groups={layer.groups} and padding_mode={shown(layer.padding_mode)}, expected groups=1 and "
        "zeros, since one dense convolution stands beside the layer; leave the layer out of names"
    )


def adapt(
    network: Any,
    names: Collection[str] | None = None,
    rank: int | Mapping[str, int] = 0,
    *,
    rng: np.random.Generator | None = None,
) -> Any:
    """A copy of a network with an :class:`Adapter` in place of each layer of ``names``, and all else frozen.

    names : of layers, as in ``network.named_modules()``; by default every layer that takes an adapter
    rank : of each, or by name; those that it leaves out have rank 0

    The copy computes what the network does. :class:`growarray.networks.Growth` grows it, and chooses where.

    Raises KeyError: there is no layer of a name; TypeError, NotImplementedError: the layer of a name takes no adapter,
    or is part of a growing layer, which grows itself; GrowthError: no layer takes one.

    >>> from growarray.nn import ReLU, Sequential
    >>> network = adapt(Sequential(Linear(4, 8), ReLU(), Linear(8, 3)), rank={"2": 2})
    >>> [name for name, _ in network.named_parameters()], network[0].rank, network[2].rank
    (['0.lora_A.weight', '0.lora_B.weight', '2.lora_A.weight', '2.lora_B.weight'], 0, 2)
    """
    taken = [module for module in _modules(network) if isinstance(module[1], GrowingModule | Adapter)]
    inside = {id(inner): outer for _, outer in taken for inner in outer.modules()}
    layers = dict(_modules(network))
    if names is None:
        names = [name for name, layer in layers.items() if _reason(layer) is None and id(layer) not in inside]
        if not names:
            raise GrowthError(
                f"adapt: {type(network).__name__} has no layer that takes an adapter, expected a Linear or a "
                "convolution outside of growing layers; give a network of plain layers"
            )
    rng = np.random.default_rng() if rng is None else rng
    ranks = rank if isinstance(rank, Mapping) else dict.fromkeys(names, rank)
    for name in (*names, *ranks):
        if name not in layers or name not in names:
            examples = ", ".join(list(layers)[1:13])
            raise KeyError(f"adapt: there is no layer {shown(name)} to adapt, expected names such as {examples}")
        if id(layers[name]) in inside:
            outer = inside[id(layers[name])]
            raise TypeError(
                f"adapt: {name} belongs to {shown(outer)}, expected a plain layer; put its layer and its function into "
                "a Sequential first"
            )
    memo: dict[int, Any] = {}
    for name in names:
        layer = copy.deepcopy(layers[name])
        memo[id(layers[name])] = Adapter(layer, ranks.get(name, 0), rng=rng, name=name or "adapter")
    adapted = copy.deepcopy(network, memo)
    adapters = [module for module in adapted.modules() if isinstance(module, Adapter)]
    adapted.requires_grad_(False)
    for adapter in adapters:
        adapter.requires_grad_(True)
    return adapted


def merge_adapters(network: Any) -> Any:
    """A copy of a network with plain layers in place of its adapters, see :meth:`Adapter.merge`; nothing is frozen.

    >>> merge_adapters(adapt(Linear(3, 2), rank=1))
    Linear(3, 2, bias=True)
    """
    memo: dict[int, Any] = {id(m): m.merge() for m in network.modules() if isinstance(m, Adapter)}
    return copy.deepcopy(network, memo).requires_grad_(True)


def load_adapters(network: Any, state: Mapping[str, Any], *, scaling: float = 1.0) -> Any:
    """:func:`adapt` with the layers, ranks and weights of a file of adapters, such as PEFT and this library write.

    state : weights called ``<layer>.lora_A.weight`` and ``<layer>.lora_B.weight``, maybe behind ``base_model.model.``
    scaling : of the change, ``lora_alpha / r`` of PEFT's ``adapter_config.json``; B is multiplied by it

    Raises KeyError, TypeError, NotImplementedError: a name is of another kind, one of a pair is missing, or the network
    has no layer for it that takes an adapter; ShapeError: weights do not fit.

    >>> saved = {"0.lora_A.weight": np.ones((1, 2)), "0.lora_B.weight": np.ones((3, 1))}
    >>> from growarray.nn import Sequential
    >>> load_adapters(Sequential(Linear(2, 3)), saved, scaling=0.5)[0].lora_B.weight.data.tolist()
    [[0.5], [0.5], [0.5]]
    """
    pairs: dict[str, dict[str, Any]] = {}
    for key in state:
        match = _SAVED.fullmatch(key)
        if match is None:
            raise KeyError(
                f"load_adapters: found {shown(key)}, expected names such as 'fc1.lora_A.weight'; leave others out"
            )
        pairs.setdefault(match["name"], {})[f"lora_{match['side']}.weight"] = asarray(state[key])
    for name, pair in pairs.items():
        if len(pair) != 2:
            raise KeyError(f"load_adapters: found {name}.{next(iter(pair))} alone, expected lora_A and lora_B")
        pair["lora_B.weight"] = pair["lora_B.weight"] * scaling
    adapted = adapt(network, pairs, {name: pair["lora_A.weight"].shape[0] for name, pair in pairs.items()})
    weights = {f"{name}.{key}": value for name, pair in pairs.items() for key, value in pair.items()}
    adapted.load_state_dict({**adapted.state_dict(), **weights})
    return adapted


def _modules(network: Any) -> list[tuple[str, Any]]:
    if not isinstance(network, Owner):
        raise TypeError(f"adapt: network is {shown(network)}, expected a Module")
    return list(network.named_modules())
