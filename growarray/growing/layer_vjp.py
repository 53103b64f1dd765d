"""Value and pullback of a growing layer of any kind, with what its statistics need of the batch."""

from __future__ import annotations

from typing import Any

from growarray.backend import Array, namespace
from growarray.growing.moment import cross_moment
from growarray.nn.module import Pullback
from growarray.ops.gradient import check_gradient


def layer_vjp(module: Any, x: Array) -> tuple[Array, Pullback]:
    """Value and pullback; input and gradient at the pre-activity are kept while they are requested.

    The gradients kept are those of the latest pullback of the latest forward pass. ``pullback(dy, wrt_x=False)``
    returns None and spares the product that dx costs, for a layer at the network's input. ``module.value(x)`` gives
    the pre-activity and its way back.
    """
    layer, recorder, weight = module.layer, module.recorder, module.layer.weight.data
    pre, back = module.value(x)
    y, back_post = module.post_layer_function.vjp(pre)
    wrt_w = layer.weight.requires_grad
    if recorder.is_active:
        recorder.start(pre, input=x, pre_activity=pre)
        module.statistics.expect()

    def pullback(dy: Array, *, wrt_x: bool = True) -> Array:
        d_pre = back_post(dy)
        check_gradient(module.name, d_pre, pre.shape)
        records = recorder.is_latest(pre) and recorder.is_requested("pre_activity")
        if records:
            recorder.add("gradient", d_pre)
        shared = records and recorder.is_requested("input")
        if shared:
            # The weight gradient is M^T: one product, accurate in float64, serves both.
            left, right = module.input_stream, module.gradient_stream()
            moment = recorder.pooled((id(left), id(right)), lambda: (cross_moment(left, right), left, right))[0]
            recorder.add("moment", moment)
            dx = back(d_pre, wrt_w=False, wrt_b=False)[0] if wrt_x else None
            dw = namespace(moment).reshape(moment[: module.in_features, :].T, weight.shape)
            db = moment[-1, :] if module.use_bias else None
        else:
            dx, dw, db = back(d_pre, wrt_x=wrt_x, wrt_w=wrt_w)
        layer.weight.accumulate(dw, fresh=not shared)
        if layer.bias is not None:
            layer.bias.accumulate(db, fresh=not shared)
        return dx

    return y, pullback
