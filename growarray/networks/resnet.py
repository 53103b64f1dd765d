"""Residual networks of images: blocks that start with no hidden channels, and grow them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, ClassVar

import numpy as np

from growarray.backend import Array, namespace
from growarray.errors import ShapeError
from growarray.growing import (
    Conv2dGrowingModule,
    GrowingDropout2d,
    GrowingModule,
    LinearGrowingModule,
    RestrictedConv2dGrowingModule,
)
from growarray.networks.images import ImageNetwork, Normalization, function_of
from growarray.networks.widths import check_widths, listed_widths
from growarray.nn import AdaptiveAvgPool2d, Conv2d, Flatten, Identity, Linear, Module, ReLU, Sequential
from growarray.nn.module import Pullback


def _second(name: str, doc: str) -> Any:
    return property(attrgetter(f"second_layer.{name}"), doc=doc)


class GrowingBlock(Module):
    """``second_layer(first_layer(pre_activation(x))) + downsample(x)``, whose hidden width grows.

    pre_activation, downsample : default the identity, which needs as many features out as in

    Without hidden neurons the block is its shortcut, and the bias of the second layer. Statistics, plan and growth are
    those of the second layer, the most used of them under its names; ``second_layer`` has all of them.

    Raises ShapeError if the two layers do not fit each other, or the shortcut is the identity between two widths.
    """

    hidden_neurons = _second("in_neurons", "Neurons, or channels, between the two layers.")
    init_computation = _second("init_computation", "Start a collection.")
    update_computation = _second("update_computation", "Add the last batch to every statistic.")
    reset_computation = _second("reset_computation", "End a collection.")
    compute_optimal_updates = _second("compute_optimal_updates", "Plan by a rule.")
    sub_select_optimal_added_parameters = _second("sub_select_optimal_added_parameters", "Keep the best neurons.")
    apply_change = _second("apply_change", "Carry the plan out.")
    delete_update = _second("delete_update", "Forget the plan.")
    set_scaling_factor = _second("set_scaling_factor", "Set the scaling factor.")
    first_order_improvement = _second("first_order_improvement", "What the plan promises.")

    def __init__(
        self,
        first_layer: GrowingModule,
        second_layer: GrowingModule,
        pre_activation: Module | None = None,
        name: str = "block",
        downsample: Module | None = None,
    ) -> None:
        first: Any = first_layer
        second: Any = second_layer
        self.name = name
        self.pre_activation = pre_activation or Identity()
        self.first_layer, self.second_layer = first, second
        self.downsample = downsample or Identity()
        self._check_held()
        second.previous_module, first.next_module = first, second

    _held = ("name", "pre_activation", "first_layer", "second_layer", "downsample")

    def _check_held(self) -> None:
        hidden, (width, out) = (self.first_layer.out_features, self.second_layer.in_neurons), self._ends
        if hidden[0] != hidden[1]:
            raise ShapeError(f"{self.name}: the first layer gives {hidden[0]} neurons, the second reads {hidden[1]}")
        if self.downsample.is_identity and width != out:
            raise ShapeError(
                f"{self.name}: {width} input and {out} output features cannot be added; pass a downsample= from one "
                "to the other"
            )

    @property
    def _ends(self) -> tuple[int, int]:
        """Width of the input and of the output."""
        return int(self.first_layer.in_neurons), int(self.second_layer.out_features)

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """Value, and the way back through branch and shortcut."""
        branch, back_pre = self.pre_activation.vjp(x)
        branch, back_first = self.first_layer.vjp(branch)
        branch, back_second = self.second_layer.vjp(branch)
        skip, back_skip = self.downsample.vjp(x)

        def pullback(dy: Array) -> Array:
            return back_pre(back_first(back_second(dy))) + back_skip(dy)

        return branch + skip, pullback

    def extended_forward(self, x: Array, x_ext: Array | None = None) -> tuple[Array, None]:
        """Value with the planned change, scaled, and None: the width of the output does not grow."""
        hidden = self.first_layer.extended_forward(self.pre_activation(x), None)
        return self.second_layer.extended_forward(*hidden)[0] + self.downsample(x), None


class LinearGrowingBlock(GrowingBlock):
    """Two linear layers and a shortcut, as :class:`GrowingBlock` puts them together.

    activation : before each of them, unless ``pre_activation`` or ``mid_activation`` is given; default the identity
    pre_addition_function : behind the second    kwargs_layer, kwargs_first_layer, kwargs_second_layer : for the layers

    >>> import numpy as np
    >>> block = LinearGrowingBlock(4, 4)
    >>> block(np.ones((2, 4), dtype=np.float32)).shape, block.hidden_neurons
    ((2, 4), 0)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden_features: int = 0,
        target_hidden_features: int | None = None,
        activation: Module | None = None,
        pre_activation: Module | None = None,
        mid_activation: Module | None = None,
        pre_addition_function: Module | None = None,
        name: str = "block",
        kwargs_layer: dict[str, Any] | None = None,
        kwargs_first_layer: dict[str, Any] | None = None,
        kwargs_second_layer: dict[str, Any] | None = None,
        downsample: Module | None = None,
        *,
        _layer: Any = LinearGrowingModule,
        _target: str = "target_in_features",
    ) -> None:
        pre, mid = (copy.deepcopy(activation) if f is None else f for f in (pre_activation, mid_activation))
        common, first, second = (
            dict(kwargs or {}) for kwargs in (kwargs_layer, kwargs_first_layer, kwargs_second_layer)
        )
        super().__init__(
            _layer(
                in_features, hidden_features,
                **{"name": f"{name}.first_layer", "post_layer_function": mid, **common, **first},
            ),
            _layer(
                hidden_features, out_features,
                **{"name": f"{name}.second_layer", "post_layer_function": pre_addition_function, **common, **second},
                **{_target: target_hidden_features},
            ),
            pre, name, downsample,
        )  # fmt: skip


class Conv2dGrowingBlock(LinearGrowingBlock):
    """Two convolutions, of ``growing_conv_type``, and a shortcut; the rest as in LinearGrowingBlock.

    kernel_size : of both, unless ``kwargs_first_layer`` and ``kwargs_second_layer`` give one each

    >>> import numpy as np
    >>> block = Conv2dGrowingBlock(2, 2, 3, kwargs_layer={"padding": 1})
    >>> block(np.ones((2, 2, 4, 4), dtype=np.float32)).shape, block.hidden_neurons
    ((2, 2, 4, 4), 0)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] | None = None,
        hidden_channels: int = 0,
        target_hidden_channels: int | None = None,
        activation: Module | None = None,
        pre_activation: Module | None = None,
        mid_activation: Module | None = None,
        pre_addition_function: Module | None = None,
        name: str = "conv_block",
        kwargs_layer: dict[str, Any] | None = None,
        kwargs_first_layer: dict[str, Any] | None = None,
        kwargs_second_layer: dict[str, Any] | None = None,
        downsample: Module | None = None,
        growing_conv_type: type[Conv2dGrowingModule] = RestrictedConv2dGrowingModule,
    ) -> None:
        common = {**({} if kernel_size is None else {"kernel_size": kernel_size}), **(kwargs_layer or {})}
        for kwargs in (kwargs_first_layer, kwargs_second_layer):
            if "kernel_size" not in {**common, **(kwargs or {})}:
                raise ValueError(f"{name}: no kernel_size is given; pass kernel_size=3")
        super().__init__(
            in_channels, out_channels, hidden_channels, target_hidden_channels, activation, pre_activation,
            mid_activation, pre_addition_function, name, common, kwargs_first_layer, kwargs_second_layer, downsample,
            _layer=growing_conv_type, _target="target_in_channels",
        )  # fmt: skip


class GrowingResNet(ImageNetwork):
    """A convolution, stages of residual blocks whose hidden channels grow from none, the mean over positions, a head.

    in_features : channels, height and width of an image
    channels : of the residual stream in each stage; the first block of all stages but the first halves the image, by a
        stride and a projected shortcut
    hidden_channels : of all blocks, or of each    blocks_per_stage : number of blocks in a stage
    activation, normalization, growing_conv_type : as in :class:`GrowingVGG`; the first two come before convolutions
    use_bias : of all convolutions but those of shortcuts    dropout_rate : of the hidden channels of blocks

    >>> import numpy as np
    >>> network = GrowingResNet((1, 8, 8), 10, channels=(4, 8), rng=np.random.default_rng(0))
    >>> network(np.zeros((6, 1, 8, 8), dtype=np.float32)).shape, network.widths
    ((6, 10), [0, 0])
    """

    _links: ClassVar[tuple[str, ...]] = ("_function",)

    def __init__(
        self,
        in_features: Sequence[int],
        out_features: int,
        channels: Sequence[int],
        hidden_channels: int | Sequence[int] = 0,
        blocks_per_stage: int = 1,
        activation: Module | None = None,
        normalization: Normalization | None = None,
        growing_conv_type: type[Conv2dGrowingModule] = RestrictedConv2dGrowingModule,
        use_bias: bool = True,
        device: str | None = None,
        *,
        dropout_rate: float = 0.0,
        dtype: Any = None,
        rng: np.random.Generator | None = None,
    ) -> None:
        super().__init__(in_features, out_features)
        widths = listed_widths("GrowingResNet", "channels", channels, 1)
        hidden = listed_widths("GrowingResNet", "hidden_channels", hidden_channels, len(widths) * blocks_per_stage)
        if len(hidden) != len(widths) * blocks_per_stage or not hidden:
            raise ValueError(
                f"GrowingResNet: {len(hidden)} hidden channels for {len(widths)} stages of {blocks_per_stage} blocks"
            )
        self._function = ReLU(at_zero=1.0) if activation is None else activation
        self._normalization, self._conv, self._use_bias = normalization, growing_conv_type, use_bias
        self._dropout_rate = dropout_rate
        self._kind: dict[str, Any] = {"device": device, "dtype": dtype, "rng": rng or np.random.default_rng()}
        self.stem = Sequential(Conv2d(in_features[0], widths[0], 3, padding=1, bias=use_bias, **self._kind))
        self.stages: list[Sequential] = []
        before = widths[0]
        for i, width in enumerate(widths):
            self.stages.append(Sequential())
            for count in range(blocks_per_stage):
                stride = 2 if i and not count else 1
                self._add(i, before, width, hidden[i * blocks_per_stage + count], stride)
                before = width
        self.head = Sequential(
            self._before(widths[-1]), AdaptiveAvgPool2d(1), Flatten(), Linear(before, self.out_features, **self._kind)
        )

    _held = (
        "image", "in_features", "out_features", "stem", "stages", "head", "_function", "_normalization", "_conv",
        "_use_bias", "_dropout_rate",
    )  # fmt: skip

    def _check_held(self) -> None:
        stem: Any = self.stem[0]
        head: Any = self.head[3]
        ends = [(stem.in_channels, stem.out_channels), *(block._ends for block in self.blocks)]
        check_widths("GrowingResNet", self.image[0], ends, head.in_features)
        self._kind = {"device": None, "dtype": stem.weight.data.dtype, "rng": np.random.default_rng()}
        super()._check_held()

    def _before(self, channels: int) -> Module:
        return function_of(channels, self._function, self._normalization)

    def _add(self, stage: int, before: int, width: int, hidden: int, stride: int = 1) -> GrowingBlock:
        middle = self._before(hidden)
        if self._dropout_rate:
            middle = Sequential(middle, GrowingDropout2d(self._dropout_rate, rng=self._kind["rng"].spawn(1)[0]))
        shortcut = Conv2d(before, width, 1, stride, bias=False, **self._kind) if stride > 1 or before != width else None
        block = Conv2dGrowingBlock(
            before, width, 3, hidden, pre_activation=self._before(before), mid_activation=middle,
            name=f"stages.{stage}.{len(self.stages[stage])}", kwargs_first_layer={"stride": stride},
            kwargs_layer={"padding": 1, "use_bias": self._use_bias, **self._kind}, downsample=shortcut,
            growing_conv_type=self._conv,
        )  # fmt: skip
        self.stages[stage].layers.append(block)
        return block

    def append_block(self, stage: int = -1, hidden_channels: int = 0) -> GrowingBlock:
        """Add a block at the end of a stage; with no hidden channels the network computes what it did. Returns it.

        Its parameters are new: give them to an optimizer.
        """
        stage = range(len(self.stages))[stage]
        width = int(self.blocks_of(stage)[-1].second_layer.out_features)
        block = self._add(stage, width, width, hidden_channels)
        if self._use_bias:
            bias = block.second_layer.bias
            bias.data = namespace(bias.data).zeros_like(bias.data)
        return block

    @property
    def blocks(self) -> list[Any]:
        """The blocks of all stages."""
        return [block for stage in range(len(self.stages)) for block in self.blocks_of(stage)]

    def blocks_of(self, stage: int) -> list[Any]:
        """The blocks of one stage."""
        return self.stages[stage].layers

    @property
    def chain(self) -> list[Any]:
        """The first convolution, the stages, the head."""
        return [self.stem, *self.stages, self.head]

    def outline(self) -> dict[str, Any]:
        """Channels of the residual stream and hidden ones of each block beside it, as plain data."""
        nodes, edges = {"image": self.image[0], "sum 0": self.blocks[0].first_layer.in_channels}, [["image", "sum 0"]]
        for i, block in enumerate(self.blocks, 1):
            before, hidden, after = f"sum {i - 1}", f"block {i}", f"sum {i}"
            nodes |= {hidden: block.hidden_neurons, after: block.second_layer.out_features}
            edges += [[before, hidden], [hidden, after], [before, after]]
        return {"nodes": nodes | {"output": self.out_features}, "edges": [*edges, [after, "output"]]}

    @property
    def growing_layers(self) -> list[Any]:
        """The second layer of every block: its input is a hidden width."""
        return [block.second_layer for block in self.blocks]
