"""Small growing networks for tests: two layers, or branches that meet in a merge; seeded, float64 by default."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from growarray.backend import to_numpy
from growarray.growing import LinearGrowingModule, LinearMergeGrowingModule
from growarray.nn import activation

Loss = Callable[[Any], tuple[float, Any]]


def layer(inputs: int, outputs: int, bias: bool = True, seed: int = 0, **options: Any) -> LinearGrowingModule:
    """A growing layer with seeded weights."""
    options.setdefault("dtype", np.float64)
    return LinearGrowingModule(inputs, outputs, bias, rng=np.random.default_rng(seed), **options)


@dataclasses.dataclass
class Pair:
    """``second(act(first(x)))``; growth widens what is between."""

    first: LinearGrowingModule
    second: LinearGrowingModule

    @classmethod
    def of(
        cls,
        sizes: Sequence[int] = (4, 3, 2),
        function: str = "tanh",
        bias: tuple[bool, bool] = (True, True),
        seed: int = 0,
        **options: Any,
    ) -> Pair:
        first = layer(
            sizes[0], sizes[1], bias[0], seed, post_layer_function=activation(function), name="first", **options
        )
        second = layer(sizes[1], sizes[2], bias[1], seed + 1, previous_module=first, name="second", **options)
        first.next_module = second
        return cls(first, second)

    def forward(self, x: Any) -> Any:
        return self.second(self.first(x))

    def extended(self, x: Any) -> Any:
        return self.second.extended_forward(*self.first.extended_forward(x))[0]

    def back(self, x: Any, gradient: Callable[[Any], Any]) -> Any:
        """Forward and pullback of ``gradient(y)``, the gradient of the sum of the sample losses; returns dx."""
        h, back_first = self.first.vjp(x)
        y, back_second = self.second.vjp(h)
        return back_first(back_second(gradient(y)))

    def collect(self, x: Any, gradient: Callable[[Any], Any], batches: int = 1) -> Pair:
        """One collection over ``x`` cut into batches; ``gradient`` knows the sample by its row."""
        self.second.init_computation()
        for part in np.array_split(np.arange(x.shape[0]), batches):
            chosen = slice(int(part[0]), int(part[-1]) + 1)
            self.back(x[chosen, ...], lambda y, at=chosen: gradient(y, at))  # type: ignore[misc]
            self.second.update_computation()
        return self


@dataclasses.dataclass
class MergeCase:
    """Branches over inputs ``sources`` that meet in a merge, and the layers that read it."""

    branches: list[LinearGrowingModule]
    merge: LinearMergeGrowingModule
    readers: list[LinearGrowingModule]
    sources: list[int]

    @classmethod
    def of(
        cls,
        inputs: Sequence[int] = (4, 3),
        outputs: Sequence[int] = (2,),
        *,
        width: int = 3,
        function: str = "tanh",
        bias: bool | Sequence[bool] = True,
        next_bias: bool = True,
        sources: Sequence[int] | None = None,
        allow_growing: bool = True,
        seed: int = 0,
        **options: Any,
    ) -> MergeCase:
        biases = [bias] * len(inputs) if isinstance(bias, bool) else list(bias)
        branches = [layer(d, width, biases[i], seed + i, name=f"branch{i}", **options) for i, d in enumerate(inputs)]
        merge = LinearMergeGrowingModule(
            activation(function), branches, allow_growing=allow_growing, in_features=width, name="merge"
        )
        readers = [
            layer(width, o, next_bias, seed + 10 + i, previous_module=merge, name=f"reader{i}", **options)
            for i, o in enumerate(outputs)
        ]
        merge.set_next_modules(readers)
        return cls(branches, merge, readers, list(range(len(inputs))) if sources is None else list(sources))

    @property
    def modules(self) -> list[Any]:
        return [*self.branches, self.merge, *self.readers]

    def forward(self, xs: Sequence[Any]) -> list[Any]:
        z: Any = 0.0
        for branch, source in zip(self.branches, self.sources, strict=True):
            z = z + branch(xs[source])
        a = self.merge(z)
        return [reader(a) for reader in self.readers]

    def extended(self, xs: Sequence[Any]) -> list[Any]:
        z: Any = 0.0
        z_ext: Any = 0.0
        for branch, source in zip(self.branches, self.sources, strict=True):
            part, part_ext = branch.extended_forward(xs[source])
            z, z_ext = z + part, None if part_ext is None else z_ext + part_ext
        a, a_ext = self.merge.extended_forward(z, z_ext)
        return [reader.extended_forward(a, a_ext)[0] for reader in self.readers]

    def back(self, xs: Sequence[Any], gradients: Callable[[list[Any]], list[Any]]) -> None:
        z: Any = 0.0
        backs = []
        for branch, source in zip(self.branches, self.sources, strict=True):
            part, back = branch.vjp(xs[source])
            z, backs = z + part, [*backs, back]
        a, back_merge = self.merge.vjp(z)
        ys, back_readers = zip(*[reader.vjp(a) for reader in self.readers], strict=True)
        da: Any = 0.0
        for back, dy in zip(back_readers, gradients(list(ys)), strict=True):
            da = da + back(dy)
        dz = back_merge(da)
        for back in backs:
            back(dz)

    def collect(self, xs: Sequence[Any], gradients: Callable[[list[Any]], list[Any]]) -> MergeCase:
        self.merge.init_computation()
        self.back(xs, gradients)
        self.merge.update_computation()
        return self


def square_loss(target: np.ndarray) -> tuple[Callable[[Any], float], Callable[..., Any]]:
    """Mean over samples of half the squared distance, and the gradient of the *sum* of the sample losses."""

    def loss(y: Any) -> float:
        return float(np.sum((to_numpy(y) - target) ** 2)) / 2 / len(target)

    return loss, lambda y, at=slice(None): y - target[at]


def linear_loss(slope: np.ndarray) -> tuple[Callable[[Any], float], Callable[..., Any]]:
    """Mean over samples of ``<slope, y>``, and the gradient of the sum: no curvature of its own."""
    return lambda y: float(np.sum(to_numpy(y) * slope)) / len(slope), lambda y, at=slice(None): slope[at]
