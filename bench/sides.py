"""One case of the merge statistics, built in both libraries: same data, same weights, float32.

The input takes part in the backward pass on both sides, as it does inside a network. ``forward_backward`` leaves a
batch behind, ``update`` adds it to the statistics; together they are one step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

__all__ = ["Case", "Side", "data_of", "ours", "theirs"]


@dataclass(frozen=True)
class Case:
    """``layers`` layers d -> d with bias on n samples; 1 is a layer alone, more meet in a merge."""

    layers: int
    shared: bool
    n: int
    d: int

    @property
    def kind(self) -> str:
        """A layer's S and M, or the previous S and M of a merge, with separate inputs or a shared one."""
        return "layer" if self.layers == 1 else f"merge {self.layers} {'shared' if self.shared else 'separate'}"

    @property
    def bytes(self) -> int:
        """Rough peak of the heavier side: inputs, outputs, gradients, the full activity twice, statistics."""
        arrays = 4 * self.n * self.d * (2 + 4 * self.layers + 2 * self.layers)
        return arrays + 4 * 4 * (self.layers * self.d) ** 2


class Side(Protocol):
    """What both libraries are asked for."""

    def forward_backward(self) -> None:
        """Forward and backward pass of the batch, fresh parameter gradients."""

    def update(self) -> None:
        """Statistics S and M of that batch."""

    def reset(self) -> None:
        """Forget all samples."""

    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean S and M."""


def data_of(case: Case) -> tuple[list[np.ndarray], np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """Inputs (ReLU-like, as a layer sees them), gradient of the output, weights and biases."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    inputs = [np.maximum(draw(case.n, case.d), 0) for _ in range(1 if case.shared else case.layers)]
    inputs *= case.layers if case.shared else 1
    scale = np.float32(case.d**-0.5)
    return inputs, draw(case.n, case.d), [(scale * draw(case.d, case.d), draw(case.d)) for _ in range(case.layers)]


class _Side:
    """What both libraries name alike."""

    layers: list[Any]
    merge: Any

    def statistics(self) -> tuple[Any, Any]:
        if self.merge is None:
            return self.layers[0].tensor_s, self.layers[0].tensor_m
        return self.merge.previous_tensor_s, self.merge.previous_tensor_m

    def update(self) -> None:
        for statistic in self.statistics():
            statistic.updated = False
            statistic.update()

    def reset(self) -> None:
        for statistic in self.statistics():
            statistic.reset()


class _Ours(_Side):
    def __init__(self, case: Case) -> None:
        from growarray.growing import LinearGrowingModule, LinearMergeGrowingModule

        self.inputs, self.gradient, weights = data_of(case)
        self.shared = case.shared
        self.layers = [LinearGrowingModule(case.d, case.d) for _ in weights]
        for layer, (weight, bias) in zip(self.layers, weights, strict=True):
            layer.layer.weight.data, layer.layer.bias.data = weight, bias
        self.merge: Any = None
        if case.layers > 1:
            self.merge = LinearMergeGrowingModule(previous_modules=self.layers, in_features=case.d)
            for layer in self.layers:
                layer.next_module = self.merge
        (self.merge or self.layers[0]).init_computation()

    def forward_backward(self) -> None:
        for layer in self.layers:
            layer.layer.weight.grad = layer.layer.bias.grad = None
        results = [layer.vjp(x) for layer, x in zip(self.layers, self.inputs, strict=True)]
        total = results[0][0]
        for y, _ in results[1:]:
            total = total + y
        d_total = self.gradient
        if self.merge is not None:
            _, back = self.merge.vjp(total)
            d_total = back(d_total)
        gradients = [back(d_total) for _, back in results]
        if self.shared:
            for other in gradients[1:]:
                gradients[0] += other

    def means(self) -> tuple[np.ndarray, np.ndarray]:
        s, m = self.statistics()
        return s(), m()


class _Theirs(_Side):
    def __init__(self, case: Case) -> None:
        import torch
        from gromo.modules.linear_growing_module import LinearGrowingModule, LinearMergeGrowingModule

        inputs, gradient, weights = data_of(case)
        tensors = {id(x): torch.from_numpy(x).requires_grad_() for x in inputs}
        self.inputs, self.gradient = [tensors[id(x)] for x in inputs], torch.from_numpy(gradient)
        device = torch.device("cpu")
        self.layers = [LinearGrowingModule(case.d, case.d, device=device) for _ in weights]
        for layer, (weight, bias) in zip(self.layers, weights, strict=True):
            layer.layer.weight.data, layer.layer.bias.data = torch.from_numpy(weight), torch.from_numpy(bias)
        self.merge: Any = None
        if case.layers > 1:
            self.merge = LinearMergeGrowingModule(previous_modules=self.layers, in_features=case.d, device=device)
            for layer in self.layers:
                layer.next_module = self.merge
        (self.merge or self.layers[0]).init_computation()

    def forward_backward(self) -> None:
        for layer, x in zip(self.layers, self.inputs, strict=True):
            layer.layer.weight.grad = layer.layer.bias.grad = x.grad = None
        results = [layer(x) for layer, x in zip(self.layers, self.inputs, strict=True)]
        total = results[0]
        for y in results[1:]:
            total = total + y
        if self.merge is not None:
            total = self.merge(total)
        total.backward(self.gradient)

    def means(self) -> tuple[np.ndarray, np.ndarray]:
        s, m = self.statistics()
        return s().numpy(), m().numpy()


def ours(case: Case) -> Side:
    """The case in growarray."""
    return _Ours(case)


def theirs(case: Case) -> Side:
    """The case in GroMo."""
    return _Theirs(case)
