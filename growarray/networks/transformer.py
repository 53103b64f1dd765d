"""A transformer block whose heads and MLP grow.

A head is two products of low rank: ``q k^T = (x Q^T + b) (K x^T)`` and ``A v O^T = (A x) V^T O^T``, A its weights. So
it attends over x itself, with the queries ``K^T q``, and what is between Q and K, or V and O, are neurons between two
linear layers, to which all of growth applies. Biases of keys and values would have no part of their own: the first add
one number to all scores of a query, the second a constant to the output. Source: Elhage et al. 2021, for the products.
"""

from __future__ import annotations

import math
from operator import attrgetter
from typing import Any, Self

import numpy as np

from growarray.backend import Array, namespace
from growarray.errors import ShapeError
from growarray.growing import LinearGrowingModule
from growarray.networks.widths import check_chain
from growarray.nn import GELU, LayerNorm, Module, MultiheadAttention
from growarray.nn.module import Pullback
from growarray.ops import attention
from growarray.ops.sizes import whole_number

_PAIRS = (("query", "key"), ("value", "output"))


class GrowingAttention(Module):
    """Self-attention of (n, t, embed_dim), each head able to grow in its queries and keys, and in its values.

    head_features : width of each head at first, of its queries and of its values; default embed_dim / num_heads, may be
        0: then a head weighs all positions alike, and gives 0
    causal : each position attends to itself and to those before it

    The places to grow are ``key[h]``, for the queries and keys of head h, and ``output[h]``, for its values. Scores are
    divided by the square root of embed_dim / num_heads, whatever the width, so that it may grow from any.
    A product of queries and keys takes embed_dim operations for each head, whatever its width.

    >>> layer = GrowingAttention(8, 2, head_features=1, rng=np.random.default_rng(0))
    >>> layer(np.ones((3, 5, 8), np.float32)).shape, [key.in_features for key in layer.key]
    ((3, 5, 8), [1, 1])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        head_features: int | None = None,
        causal: bool = False,
        *,
        name: str = "attention",
        rng: np.random.Generator | None = None,
        dtype: Any = None,
        device: str | None = None,
    ) -> None:
        whole_number("GrowingAttention", "embed_dim", embed_dim, 1)
        whole_number("GrowingAttention", "num_heads", num_heads, 1)
        if head_features is None and embed_dim % num_heads:
            raise ShapeError(
                f"GrowingAttention: {embed_dim} features cannot be split into {num_heads} heads, expected a number "
                "that divides them; or pass head_features="
            )
        width = embed_dim // num_heads if head_features is None else head_features
        whole_number("GrowingAttention", "head_features", width, 0)
        self.causal, self.scale = causal, math.sqrt(num_heads / embed_dim)
        kind: dict[str, Any] = {"rng": rng or np.random.default_rng(), "dtype": dtype, "device": device}
        heads: dict[str, list[LinearGrowingModule]] = {part: [] for pair in _PAIRS for part in pair}
        for h in range(num_heads):
            for first, second in _PAIRS:
                inner = LinearGrowingModule(embed_dim, width, first == "query", name=f"{name}.{first}.{h}", **kind)
                outer = LinearGrowingModule(
                    width, embed_dim, second == "output" and h == 0, previous_module=inner, name=f"{name}.{second}.{h}",
                    **kind,
                )  # fmt: skip
                inner.next_module = outer
                heads[first].append(inner)
                heads[second].append(outer)
        self.query, self.key, self.value, self.output = heads.values()

    @classmethod
    def of(cls, layer: MultiheadAttention) -> Self:
        """One that computes what ``layer`` does, of the same widths.

        >>> layer = MultiheadAttention(4, 2)
        >>> x = np.ones((2, 3, 4), np.float32)
        >>> bool(np.allclose(GrowingAttention.of(layer)(x), layer(x), atol=1e-6))
        True
        """
        d, heads, weight = layer.embed_dim, layer.num_heads, layer.in_proj_weight.data
        xp, grown = namespace(weight), cls(layer.embed_dim, heads, causal=layer.causal).to(weight)
        of_q, of_k, of_v = (xp.reshape(weight[i * d : (i + 1) * d, :], (heads, -1, d)) for i in range(3))
        out, bias = layer.out_proj.weight.data, layer.out_proj.bias
        columns = xp.reshape(out, (d, heads, -1))
        b = xp.zeros(3 * d, dtype=weight.dtype) if layer.in_proj_bias is None else layer.in_proj_bias.data
        for h in range(heads):
            grown.query[h].layer.weight.data = xp.asarray(of_q[h, ...], copy=True)
            grown.query[h].layer.bias.data = xp.asarray(xp.reshape(b[:d], (heads, -1))[h, :], copy=True)
            grown.key[h].layer.weight.data = xp.asarray(xp.matrix_transpose(of_k[h, ...]), copy=True)
            grown.value[h].layer.weight.data = xp.asarray(of_v[h, ...], copy=True)
            grown.output[h].layer.weight.data = xp.asarray(columns[:, h, :], copy=True)
        constant = out @ b[2 * d :]
        grown.output[0].layer.bias.data = constant if bias is None else constant + bias.data
        return grown

    _held = ("causal", "scale", "query", "key", "value", "output")
    embed_dim = property(lambda layer: layer.query[0].in_features, doc="Features of each position.")
    num_heads = property(lambda layer: len(layer.query), doc="Number of heads.")

    def _check_held(self) -> None:
        for first, second in _PAIRS:
            for pair in zip(getattr(self, first), getattr(self, second), strict=True):
                check_chain("GrowingAttention", self.embed_dim, pair, self.embed_dim)

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """Value and pullback, which adds to the gradients of all heads."""
        y, backs = None, []
        for query, key, value, output in zip(self.query, self.key, self.value, self.output, strict=True):
            q, back_q = query.vjp(x)
            u, back_k = key.vjp(q)
            seen, back_seen = attention(u, x, x, causal=self.causal, scale=self.scale)
            v, back_v = value.vjp(seen)
            part, back_o = output.vjp(v)
            y = part if y is None else y + part
            backs.append((back_q, back_k, back_seen, back_v, back_o))

        def pullback(dy: Array) -> Array:
            dx = None
            for back_q, back_k, back_seen, back_v, back_o in backs:
                du, *parts = back_seen(back_v(back_o(dy)))
                for part in (back_q(back_k(du)), *parts):
                    dx = part if dx is None else dx + part
            return dx

        return y, pullback


class GrowingTransformerBlock(Module):
    """``z = x + attention(norm1(x))``, then ``z + second(activation(first(norm2(z))))``, of (n, t, embed_dim).

    hidden_features : width of the MLP at first, over which ``second`` grows    num_heads, head_features, causal : see
        :class:`GrowingAttention`    activation : GELU by default

    A growing part of a network, for :class:`Growth`: it chooses between the MLP and both widths of every head.

    >>> block = GrowingTransformerBlock(8, 2, hidden_features=4, head_features=1, rng=np.random.default_rng(0))
    >>> y, pullback = block.vjp(np.ones((3, 5, 8), np.float32))
    >>> y.shape, pullback(y).shape
    ((3, 5, 8), (3, 5, 8))
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        hidden_features: int,
        head_features: int | None = None,
        causal: bool = False,
        activation: Module | None = None,
        *,
        name: str = "block",
        rng: np.random.Generator | None = None,
        dtype: Any = None,
        device: str | None = None,
    ) -> None:
        rng = np.random.default_rng() if rng is None else rng
        kind: dict[str, Any] = {"rng": rng, "dtype": dtype, "device": device}
        self.norm1 = LayerNorm(embed_dim, dtype=dtype, device=device)
        self.attention = GrowingAttention(embed_dim, num_heads, head_features, causal, name=f"{name}.attention", **kind)
        self.norm2 = LayerNorm(embed_dim, dtype=dtype, device=device)
        self.first = LinearGrowingModule(
            embed_dim, hidden_features, True, activation or GELU(), name=f"{name}.first", **kind
        )
        self.second = LinearGrowingModule(
            hidden_features, embed_dim, previous_module=self.first, name=f"{name}.second", **kind
        )
        self.first.next_module = self.second

    _held = ("norm1", "attention", "norm2", "first", "second")
    embed_dim = property(attrgetter("attention.embed_dim"), doc="Features of each position.")

    def _check_held(self) -> None:
        width = self.embed_dim
        check_chain("GrowingTransformerBlock", width, (self.first, self.second), width)
        for norm in (self.norm1, self.norm2):
            if norm.normalized_shape != (width,):
                raise ShapeError(f"GrowingTransformerBlock: a norm over {norm.normalized_shape}, expected ({width},)")

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """Value and pullback, which adds to the gradients of all parts."""
        normed, back_norm1 = self.norm1.vjp(x)
        mixed, back_attention = self.attention.vjp(normed)
        z = x + mixed
        inner, back_norm2 = self.norm2.vjp(z)
        hidden, back_first = self.first.vjp(inner)
        change, back_second = self.second.vjp(hidden)

        def pullback(dy: Array) -> Array:
            dz = dy + back_norm2(back_first(back_second(dy)))
            return dz + back_norm1(back_attention(dz))

        return z + change, pullback
