"""Pure functions on arrays: each returns its value and a pullback."""

from growarray.ops.activation import (
    elu,
    gelu,
    hardtanh,
    identity,
    leaky_relu,
    log_softmax,
    relu,
    relu6,
    selu,
    sigmoid,
    silu,
    softmax,
    softplus,
    tanh,
)
from growarray.ops.attention import attention
from growarray.ops.conv import conv, conv_transpose
from growarray.ops.dropout import dropout
from growarray.ops.linear import linear
from growarray.ops.loss import cross_entropy, l1, mse
from growarray.ops.norm import batch_norm, batch_statistics, group_norm, layer_norm
from growarray.ops.pool import adaptive_avg_pool, avg_pool, max_pool

__all__ = [
    "adaptive_avg_pool",
    "attention",
    "avg_pool",
    "batch_norm",
    "batch_statistics",
    "conv",
    "conv_transpose",
    "cross_entropy",
    "dropout",
    "elu",
    "gelu",
    "group_norm",
    "hardtanh",
    "identity",
    "l1",
    "layer_norm",
    "leaky_relu",
    "linear",
    "log_softmax",
    "max_pool",
    "mse",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "tanh",
]
