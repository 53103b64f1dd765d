"""Residual blocks whose branches end in a merge: both branches grow, and so does the width of the merge."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import numpy as np

from growarray.backend import Array
from growarray.growing import LinearGrowingModule, LinearMergeGrowingModule
from growarray.networks.network import GrowingNetwork
from growarray.networks.widths import check_chain, listed_widths, sample_width
from growarray.nn import Module, ReLU
from growarray.nn.module import Pullback
from growarray.ops.sizes import whole_number


class GrowingResidualBlock(Module):
    """``activation(second(activation(first(x))) + shortcut(x))``: two linear branches that end in a merge.

    ``second`` grows over the hidden width of its branch; ``merge`` grows over the output width of both branches,
    new neurons reading the inputs of ``second`` and of ``shortcut``. The shortcut is linear, so that it can widen too.
    """

    def __init__(
        self,
        in_features: int,
        num_features: int,
        hidden_features: int,
        activation: Module | None = None,
        name: str = "block",
        device: str | None = None,
        *,
        dtype: Any = None,
        rng: np.random.Generator | None = None,
    ) -> None:
        function = ReLU() if activation is None else activation
        rng = np.random.default_rng() if rng is None else rng
        kind: dict[str, Any] = {"device": device, "dtype": dtype, "rng": rng}
        self.first = LinearGrowingModule(
            in_features, hidden_features, post_layer_function=copy.deepcopy(function), name=f"{name}.first", **kind
        )
        self.second = LinearGrowingModule(
            hidden_features, num_features, previous_module=self.first, name=f"{name}.second", **kind
        )
        self.shortcut = LinearGrowingModule(in_features, num_features, False, name=f"{name}.shortcut", **kind)
        self.first.next_module = self.second
        self.merge = LinearMergeGrowingModule(
            copy.deepcopy(function),
            [self.second, self.shortcut],
            allow_growing=True,
            in_features=num_features,
            name=f"{name}.merge",
        )
        self.second.next_module = self.shortcut.next_module = self.merge

    _held = ("first", "second", "shortcut", "merge")
    in_features = property(attrgetter("first.in_features"), doc="Width of the input.")
    out_features = property(attrgetter("merge.in_features"), doc="Width of the output.")

    def _check_held(self) -> None:
        for branch in ([self.first, self.second], [self.shortcut]):
            check_chain("GrowingResidualBlock", self.in_features, branch, self.out_features)

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """Value (n, num_features) and the way back through both branches."""
        hidden, back_first = self.first.vjp(x)
        branch, back_second = self.second.vjp(hidden)
        skip, back_shortcut = self.shortcut.vjp(x)
        y, back_merge = self.merge.vjp(branch + skip)

        def pullback(dy: Array, *, wrt_x: bool = True) -> Array:
            dz = back_merge(dy)
            branch, skip = back_first(back_second(dz), wrt_x=wrt_x), back_shortcut(dz, wrt_x=wrt_x)
            return branch + skip if wrt_x else None

        return y, pullback

    def extended_forward(self, x: Array, x_ext: Array | None = None) -> tuple[Array, Array | None]:
        """Value with every planned change, and that of the merge's new neurons."""
        branch, branch_ext = self.second.extended_forward(*self.first.extended_forward(x, x_ext))
        skip, skip_ext = self.shortcut.extended_forward(x, x_ext)
        extension = None if branch_ext is None or skip_ext is None else branch_ext + skip_ext
        return self.merge.extended_forward(branch + skip, extension)


class GrowingResidualMLP(GrowingNetwork):
    """Residual blocks and a linear head. What grows: the hidden width of every block, and the width of every merge.

    >>> import numpy as np
    >>> network = GrowingResidualMLP(4, 3, num_features=2, hidden_features=2, num_blocks=2)
    >>> network(np.zeros((5, 4), dtype=np.float32)).shape, len(network.growing_layers)
    ((5, 3), 4)
    """

    def __init__(
        self,
        in_features: int | Sequence[int],
        out_features: int,
        num_features: int | Sequence[int],
        hidden_features: int | Sequence[int],
        num_blocks: int | None = None,
        activation: Module | None = None,
        device: str | None = None,
        *,
        dtype: Any = None,
        rng: np.random.Generator | None = None,
    ) -> None:
        where = "GrowingResidualMLP"
        count = len(listed_widths(where, "num_features", num_features, 1)) if num_blocks is None else num_blocks
        features = listed_widths(where, "num_features", num_features, count)
        hidden = listed_widths(where, "hidden_features", hidden_features, count)
        if count < 1:
            raise ValueError(f"GrowingResidualMLP: at least one block is needed, found num_blocks={num_blocks}")
        if len(features) != count or len(hidden) != count:
            raise ValueError(
                f"GrowingResidualMLP: {len(features)} widths and {len(hidden)} hidden widths for {count} blocks"
            )
        self.in_features = sample_width(where, in_features)
        self.out_features = whole_number(where, "out_features", out_features, 1)
        kind: dict[str, Any] = {"device": device, "dtype": dtype, "rng": rng or np.random.default_rng()}
        inputs = [self.in_features, *features]
        self.blocks = [
            GrowingResidualBlock(inputs[i], features[i], hidden[i], activation, f"blocks.{i}", **kind)
            for i in range(count)
        ]
        self.head = LinearGrowingModule(features[-1], self.out_features, name="head", **kind)
        for index, block in enumerate(self.blocks):
            following = (
                [self.blocks[index + 1].first, self.blocks[index + 1].shortcut] if index + 1 < count else [self.head]
            )
            for module in following:
                module.previous_module = block.merge
            block.merge.set_next_modules(following)

    _held = ("in_features", "out_features", "blocks", "head")

    def _check_held(self) -> None:
        check_chain("GrowingResidualMLP", self.in_features, self.chain, self.out_features)

    @property
    def growing_layers(self) -> list[Any]:
        """For each block the second layer (hidden width), then the merge (width of the block)."""
        return [layer for block in self.blocks for layer in (block.second, block.merge)]

    @property
    def chain(self) -> list[Any]:
        """The blocks, then the head."""
        return [*self.blocks, self.head]
