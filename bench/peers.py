"""torch and TensorLy-Torch on the same layer, if they are installed."""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from growarray.cli.bench.layer import Layer
from growarray.cli.bench.measure import Peer
from growarray.contraction.machine import threads

__all__ = ["peers_for"]

_IMPLEMENTATIONS = {"cp": ("factorized", "mobilenet", "reconstructed")}  # of TensorLy-Torch
_ORDERS = 3  # spatial axes that torch's convolutions know


def _libraries() -> tuple[Any, Any]:
    """torch and TensorLy-Torch, None for one that is not installed."""
    torch: Any = None
    tltorch: Any = None
    with warnings.catch_warnings(), contextlib.suppress(ImportError):
        warnings.simplefilter("ignore")
        torch = importlib.import_module("torch")
        tltorch = importlib.import_module("tltorch")
    return torch, tltorch


def peers_for(
    layer: Layer, arrays: Sequence[np.ndarray], dy: np.ndarray, device: str | None
) -> tuple[list[Peer], list[str]]:
    """What can be run beside, with the same weights, and a line for what cannot.

    arrays, dy : operands and gradient of the output, NumPy's    device : as torch names it, None for the CPU
    """
    torch, tltorch = _libraries()
    if torch is None:
        return [], ["torch is not installed: no comparison with it and TensorLy-Torch"]
    if layer.order > _ORDERS:
        return [], [f"torch has no convolution of order {layer.order}: no comparison with it and TensorLy-Torch"]
    if device is not None and not torch.cuda.is_available():
        return [], [f"torch sees no GPU for device '{device}': no comparison with it and TensorLy-Torch"]
    torch.set_num_threads(threads())
    side = _Side(torch, layer, arrays, dy, device or "cpu")
    peers = [side.conv()]
    if tltorch is None:
        return peers, ["TensorLy-Torch is not installed: no comparison with it"]
    if not layer.rank:
        return peers, []
    lines = []
    for name in _IMPLEMENTATIONS.get(layer.format, ("factorized", "reconstructed")):
        try:
            peers.append(side.factorized(tltorch, name))
        except Exception as error:  # whatever its release does not take
            lines.append(
                f"TensorLy-Torch, {name}: not compared ({type(error).__name__}: {' '.join(str(error).split())})"
            )
    return peers, lines


class _Side:
    """The operands of one layer as tensors."""

    def __init__(self, torch: Any, layer: Layer, arrays: Sequence[np.ndarray], dy: np.ndarray, device: str) -> None:
        self.torch, self.layer, self.device = torch, layer, device
        self.tensors = [self._tensor(a) for a in arrays]
        self.kernel, self.dy = self._tensor(layer.dense_kernel(arrays)), self._tensor(dy)

    def _tensor(self, array: np.ndarray) -> Any:
        return self.torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def _padded(self, x: Any) -> tuple[Any, list[int]]:
        """The input, and the padding left to the convolution: torch's own is of zeros, the same on both sides."""
        pairs, mode = self.layer.padding, self.layer.padding_mode
        if mode == "zeros" and all(before == after for before, after in pairs):
            return x, [before for before, _ in pairs]
        flat = [n for pair in reversed(pairs) for n in pair]
        return self.torch.nn.functional.pad(x, flat, "constant" if mode == "zeros" else mode), [0] * len(pairs)

    def _peer(self, name: str, run: Callable[[Any], Any], weights: Sequence[Any]) -> Peer:
        torch, x = self.torch, self.tensors[0].clone().requires_grad_(True)

        def forward() -> Any:
            with torch.no_grad():
                return self._finished(run(x))

        def training() -> Any:
            gradients = torch.autograd.grad(run(x), [x, *weights], self.dy)
            return self._finished(gradients)

        forward()
        training()
        return Peer(name, forward, training, lambda: np.asarray(forward().cpu().numpy()))

    def _finished(self, value: Any) -> Any:
        if self.device != "cpu":
            self.torch.cuda.synchronize()
        return value

    def conv(self) -> Peer:
        """torch's convolution with the dense kernel, which is made before."""
        layer, kernel = self.layer, self.kernel.clone().requires_grad_(True)
        function = getattr(self.torch.nn.functional, f"conv{layer.order}d")

        def run(x: Any) -> Any:
            padded, padding = self._padded(x)
            return function(padded, kernel, None, list(layer.stride), padding, list(layer.dilation))

        return self._peer("torch conv, dense kernel", run, [kernel])

    def factorized(self, tltorch: Any, implementation: str) -> Peer:
        """TensorLy-Torch's layer with these factors."""
        layer = self.layer
        rank = layer.kind.format.rank_of(layer.rank)
        padding = self._padded(self.tensors[0])[1]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = tltorch.FactorizedConv(
                layer.in_channels, layer.out_channels, layer.kernel, stride=layer.stride, padding=tuple(padding),
                dilation=layer.dilation, factorization=layer.format, implementation=implementation,
                rank=list(rank) if isinstance(rank, tuple) else rank, dtype=self.kernel.dtype, device=self.device,
            )  # fmt: skip
        with self.torch.no_grad():
            for parameter, value in zip(module.weight.parameters(), self.tensors[1:], strict=True):
                parameter.copy_(value.reshape(parameter.shape))
        return self._peer(
            f"TensorLy-Torch, {implementation}", lambda x: module(self._padded(x)[0]), list(module.parameters())
        )
