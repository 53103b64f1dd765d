"""Self-attention with several heads."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from growarray.backend import Array, asarray, library, namespace, to_device
from growarray.errors import ShapeError
from growarray.nn.linear import Linear, real_dtype, uniform
from growarray.nn.module import Module, Parameter, Pullback
from growarray.ops.attention import attention
from growarray.ops.linear import linear
from growarray.ops.sizes import whole_number


class MultiheadAttention(Module):
    """Self-attention of (n, t, embed_dim) with ``num_heads`` heads, see :func:`growarray.ops.attention`.

    causal : each position sees itself and those before it

    Parameters and their names, initial weights too, are those of torch's module of this name with
    ``batch_first=True``: ``in_proj_weight`` (3 embed_dim, embed_dim) has the rows of queries, keys and values. A
    ``mask``, given to a call, is added to the scores (n, num_heads, t, t) and broadcast to them; ``-inf`` hides a key.

    Raises ShapeError if the heads do not divide ``embed_dim``.

    >>> layer = MultiheadAttention(8, 2, causal=True, rng=np.random.default_rng(0))
    >>> y, pullback = layer.vjp(np.ones((3, 5, 8), np.float32))
    >>> y.shape, pullback(y).shape, [name for name, _ in layer.named_parameters()]
    ((3, 5, 8), (3, 5, 8), ['in_proj_weight', 'in_proj_bias', 'out_proj.weight', 'out_proj.bias'])
    """

    _shown = "{self.embed_dim}, {self.num_heads}, causal={self.causal}"

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        bias: bool = True,
        causal: bool = False,
        *,
        rng: np.random.Generator | None = None,
        dtype: Any = None,
        device: str | None = None,
    ) -> None:
        whole_number("MultiheadAttention", "embed_dim", embed_dim, 1)
        whole_number("MultiheadAttention", "num_heads", num_heads, 1)
        self._check_heads(embed_dim, num_heads)
        library(device)
        rng = np.random.default_rng() if rng is None else rng
        bound = math.sqrt(6.0 / (4 * embed_dim))  # Glorot's, of the three matrices as one
        self.num_heads, self.causal = int(num_heads), causal
        self.in_proj_weight = Parameter(uniform((3 * embed_dim, embed_dim), bound, rng, dtype, device))
        zeros = [to_device(asarray(np.zeros(n * embed_dim, real_dtype(dtype))), device) for n in (3, 1)]
        self.in_proj_bias = Parameter(zeros[0]) if bias else None
        self.out_proj = Linear(embed_dim, embed_dim, bias, rng=rng, dtype=dtype, device=device)
        if self.out_proj.bias is not None:
            self.out_proj.bias.data = zeros[1]

    _held = ("num_heads", "causal", "in_proj_weight", "in_proj_bias", "out_proj")

    def _check_held(self) -> None:
        width, bias = self.embed_dim, self.in_proj_bias
        if self.in_proj_weight.shape != (3 * width, width) or (bias is not None and bias.shape != (3 * width,)):
            shapes = [None if p is None else p.shape for p in (self.in_proj_weight, bias)]
            raise ShapeError(
                f"MultiheadAttention: in_proj_weight and in_proj_bias have shapes {shapes}, which do not fit"
            )
        self._check_heads(width, whole_number("MultiheadAttention", "num_heads", self.num_heads, 1))

    @staticmethod
    def _check_heads(width: int, heads: int) -> None:
        if width % heads:
            raise ShapeError(
                f"MultiheadAttention: {width} features cannot be split into {heads} heads, expected a number that "
                "divides them"
            )

    @property
    def embed_dim(self) -> int:
        """Features of each position."""
        return int(self.in_proj_weight.shape[1])

    def forward(self, x: Array, mask: Array | None = None) -> Array:
        """Value of the layer alone."""
        return self.vjp(x, mask)[0]

    def __call__(self, x: Array, mask: Array | None = None) -> Array:
        """:meth:`forward`."""
        return self.forward(x, mask)

    def vjp(self, x: Array, mask: Array | None = None) -> tuple[Array, Pullback]:
        """Value and pullback, which adds to the gradients of the parameters."""
        if x.ndim != 3 or x.shape[-1] != self.embed_dim:
            raise ShapeError(
                f"MultiheadAttention: input has shape {tuple(x.shape)}, expected (n, positions, {self.embed_dim})"
            )
        xp, (n, t, d), heads = namespace(x), x.shape, self.num_heads
        bias = self.in_proj_bias
        z, back_in = linear(x, self.in_proj_weight.data, None if bias is None else bias.data)
        qkv = xp.permute_dims(xp.reshape(z, (n, t, 3, heads, d // heads)), (2, 0, 3, 1, 4))
        mixed, back_heads = attention(qkv[0, ...], qkv[1, ...], qkv[2, ...], mask, causal=self.causal)
        y, back_out = self.out_proj.vjp(xp.reshape(xp.permute_dims(mixed, (0, 2, 1, 3)), (n, t, d)))

        def pullback(dy: Array, *, wrt_x: bool = True) -> Array:
            d_mixed = xp.permute_dims(xp.reshape(back_out(dy), (n, t, heads, d // heads)), (0, 2, 1, 3))
            d_qkv = xp.permute_dims(xp.stack(back_heads(d_mixed)), (1, 3, 0, 2, 4))
            dx, dw, db = back_in(xp.reshape(d_qkv, (n, t, 3 * d)), wrt_x=wrt_x)
            self.in_proj_weight.accumulate(dw)
            if bias is not None:
                bias.accumulate(db)
            return dx

        return y, pullback
