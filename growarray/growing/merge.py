"""LinearMergeGrowingModule: the place where branches meet, which grows as one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from growarray.backend import Array, is_numpy, namespace
from growarray.contraction.kernels import RunningSum
from growarray.growing.moment import TensorStatistic, cross_moment
from growarray.growing.stream import Stream
from growarray.growing.through import GrowthThroughMerge
from growarray.growing.update import optimal_delta, rounding_floor

__all__ = ["LinearMergeGrowingModule"]


class LinearMergeGrowingModule(GrowthThroughMerge):
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
        super()._declare_statistics()
        self.tensor_s = TensorStatistic((own, own), self.compute_s_update, self._device, f"S({self.name})", reuse=True)
        if total > 0:
            self.previous_tensor_s = TensorStatistic(
                (total, total), self.compute_previous_s_update, self._device, f"S[-1]({self.name})", reuse=True
            )
            self.previous_tensor_m = TensorStatistic(
                (total, self.in_features), self.compute_previous_m_update, self._device, f"M[-1]({self.name})",
                reuse=True,
            )  # fmt: skip
        self._declare_growth_statistics()

    @property
    def input_statistic_for_next(self) -> TensorStatistic:
        """Second moment of the activity, ones last, which all next layers share."""
        return self.tensor_s

    def construct_full_activity(self) -> Array:
        """The full activity of the last batch, put together: (n, total_in_features). Statistics never need it."""
        return self.input_stream.materialise()

    def compute_s_update(self, *, out: Array | None = None) -> tuple[Array, int]:
        """Sum of ``B^T B`` of the merge's activity with ones, (d + 1, d + 1), last batch, and its samples."""
        stream = Stream(self.activity, bias=True)
        return cross_moment(stream, out=out), stream.samples

    def compute_previous_s_update(self, *, out: Array | None = None) -> tuple[Array, int]:
        """Sum of ``B^T B`` of the full activity, last batch; blocks that layers share are computed once."""
        stream = self.input_stream
        return cross_moment(stream, out=out), stream.samples

    def compute_previous_m_update(self, *, out: Array | None = None) -> tuple[Array, int]:
        """Sum of ``B^T dz``, full activity against the gradient at the merge, (total_in_features, in_features).

        Each previous layer's block is its weight gradient, which its pullback has computed already.
        """
        gradient = self._kept("pre_activity gradient", self.pre_activity_grad)
        blocks = [module.moment_with(gradient) for module in self.layers_before]
        return _stacked(blocks, out), int(gradient.shape[0])

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
        if self.previous_tensor_m is not None:  # first, as in a layer: a gradient that is not finite raises here
            self.previous_tensor_m.update()
        self._update_growth(update_covariance_loss_gradient)
        for statistic in (self.tensor_s, self.previous_tensor_s):
            if statistic is not None:
                statistic.update()

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
        floor = max((rounding_floor(module.weight.data) for module in self.layers_before), default=0.0)
        delta, self.parameter_update_decrease = optimal_delta(s, m, pseudo_inverse=force_pseudo_inverse, floor=floor)
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
        """Forget the planned deltas, and where the merge may grow its new neurons and what its next layers plan.

        With ``include_previous`` the deltas and extensions of the previous layers too.
        """
        self.parameter_update_decrease = None
        self._delete_growth()
        for module in self.layers_before if include_previous else ():
            module.delete_update(include_previous=False, delete_output=True)


def _stacked(blocks: Sequence[Array], out: Array | None) -> Array:
    """Blocks (d_i, o) one above the other: added to the running sum ``out`` where that can be, else a new array."""
    rows = sum(int(block.shape[0]) for block in blocks)
    if not (isinstance(out, RunningSum) and out.shape == (rows, int(blocks[0].shape[1]))):
        return namespace(*blocks).concat(list(blocks), axis=0)
    if not all(is_numpy(x) for x in (*blocks, out.array)) or not all(math.isfinite(np.vdot(b, b)) for b in blocks):
        return namespace(*blocks).concat(list(blocks), axis=0)  # whoever updates names what is not finite
    start = 0
    for block in blocks:
        out.array[start : start + len(block)] += block
        start += len(block)
    return out
