"""Linear layers that collect statistics and grow, and merges of them."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from growarray.backend import Array
from growarray.growing.compat import LayerNames, MergeNames
from growarray.growing.layer import GrowingModule
from growarray.growing.layer_vjp import layer_vjp
from growarray.growing.merge import MergeGrowingModule
from growarray.nn import Linear, Module
from growarray.ops import linear


class LinearGrowingModule(LayerNames, GrowingModule):
    """``post_layer_function(x W^T + b)`` over the last axis of (n, d) or (n, t, d), able to grow.

    in_features, out_features, use_bias : of the layer; in_features may be 0, the output is then the bias
    post_layer_function : activation (with normalisation, as a Sequential), default the identity
    previous_module, next_module : neighbours, linked but not owned
    target_in_features : width that :meth:`complete_growth` fills up to
    dtype, rng : of the weights, default float32 and a fresh generator

    One collection: ``init_computation()``, then for each batch forward, pullback, ``update_computation()``, at last
    ``compute_optimal_updates()``, ``apply_change(scaling_factor=g)``, ``delete_update()``, ``reset_computation()``.
    While statistics are collected the weight gradient of the pullback *is* the batch's M, computed once.

    Differs from the original: updates are float64 whatever the data's dtype; optimizer state survives growth;
    growth through a merge works; a layer without input features gives its bias; GrowthError and ShapeError (both
    ValueErrors) replace the assertions of the original.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> first = LinearGrowingModule(3, 2, rng=rng, dtype=np.float64)
    >>> second = LinearGrowingModule(2, 1, previous_module=first, rng=rng, dtype=np.float64)
    >>> second.init_computation()
    >>> x = rng.standard_normal((20, 3))
    >>> h, back1 = first.vjp(x)
    >>> y, back2 = second.vjp(h)
    >>> _ = back1(back2(y - x[:, :1] ** 2))
    >>> second.update_computation()
    >>> _ = second.compute_optimal_updates(max_new=1)
    >>> second.apply_change(scaling_factor=0.1)
    >>> first.out_features, second.in_features, second.first_order_improvement > 0
    (3, 3, True)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        use_bias: bool = True,
        post_layer_function: Module | None = None,
        extended_post_layer_function: Module | None = None,
        previous_module: Any = None,
        next_module: Any = None,
        allow_growing: bool = False,
        device: str | None = None,
        name: str | None = None,
        target_in_features: int | None = None,
        *,
        dtype: Any = None,
        rng: np.random.Generator | None = None,
    ) -> None:
        layer = Linear(in_features, out_features, use_bias, rng=rng, dtype=dtype, device=device)
        super().__init__(
            layer,
            post_layer_function,
            extended_post_layer_function,
            previous_module,
            next_module,
            allow_growing,
            name,
            target_in_features,
        )

    @classmethod
    def _restored(cls, **saved: Any) -> Self:
        module = cls.__new__(cls)
        GrowingModule.__init__(module, **saved)
        return module

    def value(self, x: Array) -> tuple[Array, Any]:
        """Pre-activity ``x W^T + b`` and its way back."""
        return linear(x, self.weight.data, None if self.bias is None else self.bias.data)

    vjp = layer_vjp


class LinearMergeGrowingModule(MergeNames, MergeGrowingModule):
    """A merge of linear layers: ``post_merge_function(sum of the previous modules' outputs)``.

    Signature and names are the original's. Statistics run over the *full activity* ``(B_1 | … | B_k)`` of the previous
    layers; one solve gives the joint optimal delta of all of them. A merge among the previous modules contributes
    nothing to the full activity (it has no weights of its own to update), as in the original.

    ``allow_growing=True`` lets the merge itself widen, unlike in the original: new neurons read every previous
    layer's input, and every next layer reads them; see :meth:`compute_optimal_updates`.

    Differs from the original: arrays have the data's dtype; the singular previous S of two biased branches is always
    solved by the pseudo-inverse; a next layer without bias works; requests replace counters that went negative.

    >>> a, b = LinearGrowingModule(3, 2), LinearGrowingModule(4, 2, use_bias=False)
    >>> merge = LinearMergeGrowingModule(previous_modules=[a, b], in_features=2)
    >>> merge.total_in_features, merge.number_of_predecessors
    (8, 2)
    """
