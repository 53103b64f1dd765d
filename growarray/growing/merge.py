"""LinearMergeGrowingModule: the place where branches meet, which grows as one."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, ClassVar

from growarray.backend import Array, device_of, namespace
from growarray.errors import GrowthError, ShapeError
from growarray.growing.module import as_scalar
from growarray.growing.moment import TensorStatistic, cross_moment
from growarray.growing.neighbour import Recorder, require_neighbour
from growarray.growing.stream import JoinedStream, Stream
from growarray.growing.through import GrowthThroughMerge
from growarray.growing.update import activation_slope, optimal_delta
from growarray.nn import Identity, Linear, Module
from growarray.nn.module import Pullback

__all__ = ["LinearMergeGrowingModule", "MergeGrowingModule"]


class MergeGrowingModule(GrowthThroughMerge, Recorder):
    """What every merge has: neighbours, the sum that the caller made, statistics of what flows in and out.

    The caller adds the branches; the merge takes the sum, applies ``post_merge_function`` and hands the result to its
    next modules. It has no parameters of its own but those of the function.
    """

    _links: ClassVar[tuple[str, ...]] = ("previous_modules", "next_modules")
    use_bias = True

    def __init__(
        self,
        post_merge_function: Module | None = None,
        previous_modules: Iterable[Any] | None = None,
        next_modules: Iterable[Any] | None = None,
        allow_growing: bool = False,
        in_features: int | None = None,
        device: str | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__()
        if in_features is None:
            raise TypeError(f"{type(self).__name__}: in_features is required, the width of the branches' sum")
        self.name = name or f"{type(self).__name__}_{id(self):x}"
        self.post_merge_function = post_merge_function or Identity()
        self.in_features = int(in_features)
        self.allow_growing = allow_growing
        self._device = device
        self.previous_modules: list[Any] = []
        self.next_modules: list[Any] = []
        self._input: Array | None = None
        self._activity: Array | None = None
        self.pre_activity_grad: Array | None = None
        self.parameter_update_decrease: float | None = None
        self._start_growth()
        self._declare_statistics()
        self.set_previous_modules([] if previous_modules is None else previous_modules)
        self.set_next_modules([] if next_modules is None else next_modules)

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """``post_merge_function`` of the branches' sum, and the way back; what is asked for is kept."""
        y, back = self.post_merge_function.vjp(x)
        keeps = self.wants("input") or self.wants("activity")
        if keeps:
            self._input, self._activity, self.pre_activity_grad = x, y, None
            for statistic in self._statistics():
                statistic.updated = False

        def pullback(dy: Array) -> Array:
            dx = back(dy)
            if keeps and self._input is x:
                self.pre_activity_grad = dx
            return dx

        return y, pullback

    def _kept(self, what: str, value: Array | None) -> Array:
        if value is None:
            stored = self.wants("input") or self.wants("activity")
            hint = "run a forward pass and its pullback" if stored else "call init_computation()"
            raise GrowthError(f"{self.name}: no {what} is kept; {hint} first")
        return value

    @property
    def input(self) -> Array:
        """Sum of the branches in the last batch."""
        return self._kept("input", self._input if self.wants("input") else None)

    pre_activity = input

    @property
    def activity(self) -> Array:
        """Output of the last batch."""
        return self._kept("activity", self._activity if self.wants("activity") else None)

    @property
    def store_activity(self) -> int:
        """1 while the output of each batch is kept, else 0; may be set."""
        return int(self.wants("activity"))

    @store_activity.setter
    def store_activity(self, value: bool) -> None:
        (self.request if value else self.release)("activity", "user")

    def clear_pre_activity_grad(self) -> None:
        """Forget the gradient of the last batch."""
        self.pre_activity_grad = None

    @property
    def layers_before(self) -> list[Any]:
        """The previous modules that have weights: merges among them are left out, as in the original."""
        return [module for module in self.previous_modules if hasattr(module, "layer")]

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return self.in_features

    @property
    def input_volume(self) -> int:
        """Same as ``in_features``."""
        return self.in_features

    @property
    def output_volume(self) -> int:
        """Same as ``out_features``."""
        return self.out_features

    @property
    def number_of_successors(self) -> int:
        """Number of next modules."""
        return len(self.next_modules)

    @property
    def number_of_predecessors(self) -> int:
        """Number of previous modules."""
        return len(self.previous_modules)

    @property
    def total_in_features(self) -> int:
        """Width of the full activity: the inputs of all previous layers with their ones columns."""
        return self.sum_in_features(with_bias=True)

    def sum_in_features(self, with_bias: bool = False) -> int:
        """Sum of the previous layers' input widths, with a column of ones for each bias where asked for."""
        return sum(m.in_features + int(with_bias and m.use_bias) for m in self.layers_before)

    def sum_out_features(self) -> int:
        """Sum of the next modules' output widths."""
        return sum(int(m.out_features) for m in self.next_modules)

    @property
    def output_slope(self) -> float:
        """Derivative at zero from above of ``post_merge_function``."""
        return activation_slope(self.post_merge_function)

    # Neighbours.

    def set_previous_modules(self, previous_modules: Iterable[Any]) -> None:
        """Replace the previous modules; statistics of what flows in start anew.

        Raises
        ------
        TypeError
            A module is neither a growing layer nor a merge.
        ValueError
            Its output has another width than this merge. Nothing has changed then.
        """
        modules = list(previous_modules)
        for module in modules:
            require_neighbour(module, "previous", self.name)
            if int(module.out_features) != self.in_features:
                raise ShapeError(
                    f"{self.name}: previous module {module.name} has {module.out_features} outputs, the merge expects "
                    f"{self.in_features}; give them the same width"
                )
        self._warn_if_used(self.previous_tensor_s, self.previous_tensor_m)
        self.previous_modules = modules
        self._declare_statistics()

    def set_next_modules(self, next_modules: Iterable[Any]) -> None:
        """Replace the next modules; any module with ``in_features`` will do, a plain layer too.

        Raises
        ------
        TypeError
            A module has no ``in_features``.
        ValueError
            Its input has another width than this merge. Nothing has changed then.
        """
        modules = list(next_modules)
        for module in modules:
            width = getattr(module, "in_features", None)
            if width is None:
                raise TypeError(f"{self.name}: next module {type(module).__name__} has no in_features; expected a layer")
            if int(width) != self.out_features:
                raise ShapeError(
                    f"{self.name}: next module {getattr(module, 'name', type(module).__name__)} has {width} inputs, "
                    f"the merge has {self.out_features} outputs; give them the same width"
                )
        self._warn_if_used(self.tensor_s)
        self.next_modules = modules

    def _warn_if_used(self, *statistics: TensorStatistic | None) -> None:
        for statistic in statistics:
            if statistic is not None and statistic.samples:
                warnings.warn(f"{self.name}: {statistic.name} holds {statistic.samples} samples", stacklevel=3)

    def add_previous_module(self, module: Any) -> None:
        """Append one previous module."""
        self.set_previous_modules([*self.previous_modules, module])

    def add_next_module(self, module: Any) -> None:
        """Append one next module."""
        self.set_next_modules([*self.next_modules, module])

    def grow(self) -> None:
        """Check all neighbours again, after they grew; call :meth:`update_size` before."""
        self.set_next_modules(self.next_modules)
        self.set_previous_modules(self.previous_modules)

    def update_size(self) -> None:
        """Take the width of the previous modules over, and declare statistics for it."""
        if self.previous_modules:
            self.in_features = int(self.previous_modules[0].out_features)
        self._declare_statistics()

    def update_scaling_factor(self, scaling_factor: Any) -> None:
        """Scale the previous modules' output extensions and the next modules' changes by one factor.

        Raises
        ------
        TypeError
            A neighbour is not a growing layer, or the factor is not a number; nothing has changed then.
        """
        factor = as_scalar(scaling_factor, f"{self.name}.update_scaling_factor")
        for module in (*self.previous_modules, *self.next_modules):
            if not hasattr(module, "optimal_delta_scaling"):
                raise TypeError(
                    f"{self.name}: {type(module).__name__} is not a growing layer, so it has no scaling; "
                    "scale a chain of merges one by one"
                )
        for module in self.previous_modules:
            module.output_extension_scaling = factor
        for module in self.next_modules:
            module.scaling_factor = factor


class LinearMergeGrowingModule(MergeGrowingModule):
    """A merge of linear layers: ``post_merge_function(sum of the previous modules' outputs)``.

    Signature and names are the original's. Statistics run over the *full activity* ``(B_1 | … | B_k)`` of the previous
    layers; one solve gives the joint optimal delta of all of them. A merge among the previous modules contributes
    nothing to the full activity (it has no weights of its own to update), as in the original.

    ``allow_growing=True`` lets the merge itself widen, which the original refuses: new neurons read every previous
    layer's input, and every next layer reads them; see :meth:`compute_optimal_updates`.

    Differs from the original: arrays have the data's dtype; the singular previous S of two biased branches is always
    solved by the pseudo-inverse; a next layer without bias works; requests replace counters that went negative.

    >>> import numpy as np
    >>> from growarray.growing import LinearGrowingModule
    >>> a, b = LinearGrowingModule(3, 2), LinearGrowingModule(4, 2, use_bias=False)
    >>> merge = LinearMergeGrowingModule(previous_modules=[a, b], in_features=2)
    >>> merge.total_in_features, merge.number_of_predecessors
    (8, 2)
    """

    def _declare_statistics(self) -> None:
        own, total = self.in_features + 1, self.total_in_features
        self.tensor_s = TensorStatistic((own, own), self._s_of_batch, name=f"S({self.name})")
        self.previous_tensor_s: TensorStatistic | None = None
        self.previous_tensor_m: TensorStatistic | None = None
        if total > 0:
            self.previous_tensor_s = TensorStatistic(
                (total, total), self.compute_previous_s_update, name=f"S[-1]({self.name})"
            )
            self.previous_tensor_m = TensorStatistic(
                (total, self.in_features), self.compute_previous_m_update, name=f"M[-1]({self.name})"
            )
        self._declare_growth_statistics()

    def _statistics(self) -> list[TensorStatistic]:
        flowing_in = [s for s in (self.previous_tensor_s, self.previous_tensor_m) if s is not None]
        return [self.tensor_s, *flowing_in, *self._growth_statistics()]

    @property
    def input_statistic_for_next(self) -> TensorStatistic:
        """Second moment of the activity, ones last, which all next layers share."""
        return self.tensor_s

    @property
    def growth_statistic(self) -> TensorStatistic:
        """Second moment of the full activity."""
        if self.previous_tensor_s is None:
            raise GrowthError(f"{self.name}: there are no previous layers, so there is no full activity")
        return self.previous_tensor_s

    @property
    def input_stream(self) -> JoinedStream:
        """Inputs of all previous layers side by side, with their ones columns; never put together."""
        if not self.layers_before:
            raise GrowthError(f"{self.name}: there are no previous layers; call set_previous_modules() first")
        return JoinedStream(tuple(module.input_stream for module in self.layers_before))

    def construct_full_activity(self) -> Array:
        """The full activity of the last batch, put together: (n, total_in_features). Statistics never need it."""
        return self.input_stream.materialise()

    def _s_of_batch(self) -> tuple[Array, int]:
        stream = Stream(self.activity, bias=True)
        return cross_moment(stream), stream.samples

    def compute_s_update(self) -> tuple[Array, int]:
        """Sum of ``B^T B`` of the merge's activity with ones, (d + 1, d + 1), last batch, and its samples."""
        return self._s_of_batch()

    def compute_previous_s_update(self) -> tuple[Array, int]:
        """Sum of ``B^T B`` of the full activity, last batch; blocks that layers share are computed once."""
        stream = self.input_stream
        return cross_moment(stream), stream.samples

    def compute_previous_m_update(self) -> tuple[Array, int]:
        """Sum of ``B^T dz``, full activity against the gradient at the merge, (total_in_features, in_features).

        Each previous layer's block is its weight gradient, which its pullback has computed already.
        """
        gradient = self._kept("pre_activity gradient", self.pre_activity_grad)
        blocks = [module.moment_with(gradient) for module in self.layers_before]
        return namespace(*blocks).concat(blocks, axis=0), int(gradient.shape[0])

    def projected_v_goal(self) -> Array:
        """``dz - sum of dW_i B_i``: the part of the wanted change that no previous layer's delta makes, last batch.

        Deltas of the layers behind a previous merge are taken off too, as in the original.
        """
        goal = self._kept("pre_activity gradient", self.pre_activity_grad)
        for module in self.previous_modules:
            for layer in [module] if hasattr(module, "layer") else module.layers_before:
                if layer.optimal_delta_layer is None:
                    raise TypeError(f"{self.name}: {layer.name} has no optimal delta; call compute_optimal_delta()")
                goal = goal - layer.optimal_delta_layer(layer.input)
        return goal

    def init_computation(self) -> None:
        """Start a collection: empty statistics; keep input and activity here, inputs and gradients before."""
        self.reset_computation()
        self._declare_statistics()
        self.request("input", self)
        self.request("activity", self)
        for module in self.layers_before:
            module.request("input", self)
            module.request("pre_activity", self)
        self._init_growth()

    def update_computation(self, update_covariance_loss_gradient: bool = True) -> None:
        """Add the last batch to every statistic; a second call for the same batch changes nothing."""
        for statistic in (self.tensor_s, self.previous_tensor_s, self.previous_tensor_m):
            if statistic is not None:
                statistic.update()
        self._update_growth(update_covariance_loss_gradient)

    def reset_computation(self) -> None:
        """End a collection: forget statistics, and keep nothing any longer for this merge's sake."""
        for statistic in self._statistics():
            statistic.reset()
        for what in ("input", "activity"):
            self.release(what, self)
        for module in self.layers_before:
            module.release("input", self)
            module.release("pre_activity", self)
        self._reset_growth()
        if not (self.wants("input") or self.wants("activity")):
            self._input, self._activity, self.pre_activity_grad = None, None, None

    def compute_optimal_delta(
        self, update: bool = True, return_deltas: bool = False, force_pseudo_inverse: bool = False
    ) -> list[tuple[Array, Array | None]] | None:
        """Joint optimal delta of all previous layers from one solve, cut into weights and biases.

        With ``update`` each layer holds its part as ``optimal_delta_layer``; ``return_deltas`` returns them.

        Raises
        ------
        GrowthError
            There are no previous layers, or no samples.
        """
        s = self.growth_statistic()
        m = self.previous_tensor_m() if self.previous_tensor_m is not None else s
        delta, self.parameter_update_decrease = optimal_delta(s, m, pseudo_inverse=force_pseudo_inverse)
        deltas: list[tuple[Array, Array | None]] = []
        start = 0
        for module in self.layers_before:
            stop = start + module.in_features
            bias = delta[:, stop] if module.use_bias else None
            deltas.append((delta[:, start:stop], bias))
            if update:
                module.optimal_delta_layer = module.layer_of_tensor(*deltas[-1])
            start = stop + int(module.use_bias)
        return deltas if return_deltas else None

    def delete_update(self, include_previous: bool = False) -> None:
        """Forget planned deltas; with ``include_previous`` those of the previous layers and their extensions too."""
        self.parameter_update_decrease = None
        self._delete_growth()
        for module in self.layers_before if include_previous else ():
            module.delete_update(include_previous=False, delete_output=True)
