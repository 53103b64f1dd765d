"""The MLP-mixer: patches of an image, mixed along patches and along features by blocks whose hidden width grows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from growarray.errors import ShapeError
from growarray.growing import GrowingDropout
from growarray.networks.images import ImageNetwork
from growarray.networks.resnet import LinearGrowingBlock
from growarray.networks.widths import check_widths, listed_widths
from growarray.nn import GELU, Conv2d, Flatten, Identity, LayerNorm, Linear, Module, ReduceMean, Sequential, Transpose
from growarray.ops.sizes import whole_number


class GrowingMLPMixer(ImageNetwork):
    """Patches with ``num_features`` each, ``num_blocks`` times mixed, then their mean and a linear layer.

    in_features : channels, height and width of an image, which squares of ``patch_size`` cut without a rest
    hidden_dim_token, hidden_dim_channel : hidden widths of the blocks that mix patches, and of those that mix features:
        of all, or of each; these grow, from 0 if need be
    dropout : behind both layers of a block; planned neurons are never dropped
    activation : between the two layers of a block, default GELU

    ``blocks`` holds a :class:`LinearGrowingBlock` for patches, then one for features, and so on. The signature is the
    original's; a mixer there is two blocks here, under other names: the page on names elsewhere has them.

    Raises ShapeError if patches do not fit, ValueError if there are not as many widths as blocks.

    Source: Tolstikhin et al. 2021, *MLP-Mixer: an all-MLP architecture for vision*.

    >>> network = GrowingMLPMixer((1, 8, 8), 10, 2, 6, hidden_dim_token=0, hidden_dim_channel=3, num_blocks=2)
    >>> network(np.zeros((5, 64), dtype=np.float32)).shape, network.widths
    ((5, 10), [0, 3, 0, 3])
    """

    def __init__(
        self,
        in_features: Sequence[int] = (3, 32, 32),
        out_features: int = 10,
        patch_size: int = 4,
        num_features: int = 128,
        hidden_dim_token: int | Sequence[int] = 64,
        hidden_dim_channel: int | Sequence[int] = 512,
        num_blocks: int = 8,
        dropout: float = 0.0,
        device: str | None = None,
        *,
        activation: Module | None = None,
        dtype: Any = None,
        rng: np.random.Generator | None = None,
    ) -> None:
        super().__init__(in_features, out_features)
        where, (channels, height, width) = "GrowingMLPMixer", self.image
        size = whole_number(where, "patch_size", patch_size, 1)
        if height % size or width % size:
            raise ShapeError(f"{where}: images of {height} x {width} cannot be cut into patches of {size} x {size}")
        hidden = [
            listed_widths(where, name, widths, num_blocks)
            for name, widths in (("hidden_dim_token", hidden_dim_token), ("hidden_dim_channel", hidden_dim_channel))
        ]
        if {len(widths) for widths in hidden} != {num_blocks}:
            raise ValueError(
                f"{where}: {' and '.join(str(len(w)) for w in hidden)} hidden widths for {num_blocks} blocks"
            )
        rng = np.random.default_rng() if rng is None else rng
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        patcher = Conv2d(channels, num_features, size, size, rng=rng, **kind)
        self.patcher = Sequential(patcher, Flatten(2), Transpose((0, 2, 1)))
        self.blocks: list[LinearGrowingBlock] = []
        patches = (height // size) * (width // size)
        for index, hidden_width in enumerate(w for pair in zip(*hidden, strict=True) for w in pair):
            mixes, turn = ((patches, Transpose((0, 2, 1))), (num_features, Identity()))[index % 2]
            drops = [GrowingDropout(dropout, rng=rng.spawn(1)[0]) for _ in range(2 if dropout else 0)]
            self.blocks.append(
                LinearGrowingBlock(
                    mixes, mixes, hidden_width, name=f"blocks.{index}",
                    pre_activation=Sequential(LayerNorm(num_features, **kind), turn),
                    mid_activation=Sequential(activation or GELU(), *drops[:1]),
                    pre_addition_function=Sequential(*drops[1:], turn), kwargs_layer={"rng": rng, **kind},
                )
            )  # fmt: skip
        self.head = Sequential(
            ReduceMean((1,), keepdims=False), Linear(num_features, self.out_features, rng=rng, **kind)
        )

    _held = ("image", "in_features", "out_features", "patcher", "blocks", "head")

    def _check_held(self) -> None:
        patcher: Any = self.patcher[0]
        last: Any = self.head[1]
        (channels, *sides), size = self.image, patcher.kernel_size
        patches = [side // taps for side, taps in zip(sides, size, strict=True)]
        check_widths("GrowingMLPMixer", channels, [(patcher.in_channels, patcher.out_channels)], last.in_features)
        for index, block in enumerate(self.blocks):
            width = last.in_features if index % 2 else patches[0] * patches[1]
            check_widths("GrowingMLPMixer", width, [block._ends], width)
        super()._check_held()

    @property
    def chain(self) -> list[Any]:
        """The patches, the blocks, the head."""
        return [self.patcher, *self.blocks, self.head]

    @property
    def growing_layers(self) -> list[Any]:
        """The second layer of every block: its input is a hidden width."""
        return [block.second_layer for block in self.blocks]
