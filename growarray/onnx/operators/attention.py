"""Attention, and what turns its queries and keys by their positions, written in other operators."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from growarray import nn
from growarray.files.errors import Malformed
from growarray.nn.module import Module
from growarray.onnx.call import Calls, written
from growarray.onnx.lower import Edge, Lowering, OnnxGraph
from growarray.onnx.operators.row import ALL, Operator

_INFINITE = -math.inf


def _heads(call: Calls, x: str, heads: int | None) -> str:
    """(n, positions, heads * width) as (n, heads, positions, width)."""
    if heads is None or heads < 1:
        raise Malformed(f"the number of heads is {heads} for an input of three axes; expected at least 1")
    return str(call("Transpose", call("Reshape", x, np.array([0, 0, heads, -1])), perm=[0, 2, 1, 3]))


def _repeated(call: Calls, x: str, times: int, heads: int) -> str:
    """Each head of keys or values, for as many heads of queries in a row."""
    wide = call("Expand", call("Unsqueeze", x, np.array([2])), np.array([1, 1, times, 1, 1]))
    return str(call("Reshape", wide, np.array([0, heads, -1, call.sizes(x)[3]])))


def _allowed(call: Calls, queries: int, keys: int, past: int, lengths: str) -> str | None:
    """Which key each query sees, by the order of positions and by how many keys there are; None: every one."""
    causal, found = call.node.flag("is_causal"), []
    left, right = (call.node.get(f"{side}_window_size", "int", -1) for side in ("left", "right"))
    call.builder.account(8 * queries * keys)
    ahead: Any = np.arange(queries)[:, None] + past - np.arange(keys)[None, :]  # how far a key is behind its query
    if lengths:
        lengths = call("Reshape", lengths, np.array([-1, 1, 1, 1]))
        found.append(call("Less", np.arange(keys).reshape(1, 1, 1, -1), lengths))
        ahead = call("Add", ahead, call("Sub", lengths, queries))
    if causal:
        found.append(call("GreaterOrEqual", ahead, np.array(0)))
    if left >= 0:
        found.append(call("LessOrEqual", ahead, np.array(left)))
    if right >= 0:
        found.append(call("GreaterOrEqual", ahead, np.array(-right)))
    while len(found) > 1:
        found.append(call("And", found.pop(), found.pop()))
    return found[0] if found else None


def _bias(call: Calls, x: str, mask: str, allowed: str | None, keys: int) -> str | None:
    """What is added to the scores: the mask, and minus infinity for keys that a query does not see."""
    zero, never = (call.constant(value, x) for value in (0.0, _INFINITE))
    bias = None if allowed is None else call("Where", allowed, zero, never)
    if not mask:
        return bias
    added = call("Where", mask, zero, never) if call.value(mask).kind == "bool" else mask
    missing = keys - call.sizes(mask)[-1]
    if missing > 0:
        pads = [0] * len(call.shape(mask))
        added = call("Pad", added, np.array([*pads, *pads[1:], missing]), never)
    return added if bias is None else str(call("Add", added, bias))


def _attention(call: Calls) -> None:
    """``softmax(scale q k^T + bias) v`` for each head; a query that sees no key gives 0."""
    q, k, v, mask, past_k, past_v, lengths = (call.input(i) for i in range(7))
    get = call.node.get
    heads, kv_heads = get("q_num_heads", "int"), get("kv_num_heads", "int")
    scale, cap, mode = get("scale", "float"), get("softcap", "float", 0.0), get("qk_matmul_output_mode", "int", 0)
    get("softmax_precision", "int")
    flat = len(call.shape(q)) == 3
    if flat:
        q, k, v = _heads(call, q, heads), _heads(call, k, kv_heads), _heads(call, v, kv_heads)
    past = call.sizes(past_k)[2] if past_k else 0
    if past_k:
        k, v = call("Concat", past_k, k, axis=2), call("Concat", past_v, v, axis=2)
    call.bind(k, 1)
    call.bind(v, 2)
    (_, of_q, queries, width), (_, of_k, keys, _) = call.sizes(q), call.sizes(k)
    if of_k < 1 or of_q % of_k:
        raise Malformed(f"has {of_q} heads of queries and {of_k} of keys; expected a multiple")
    if of_q != of_k:
        k, v = (_repeated(call, x, of_q // of_k, of_q) for x in (k, v))
    scaled = call("Mul", q, 1.0 / math.sqrt(width) if scale is None else scale)
    scores = shown = call("MatMul", scaled, call("Transpose", k, perm=[0, 1, 3, 2]))
    if cap > 0.0:
        scores = shown = call("Mul", call("Tanh", call("Div", scores, cap)), cap)
    bias, dead = _bias(call, q, mask, _allowed(call, queries, keys, past, lengths), keys), None
    if bias is not None:
        shown = call("Add", scores, bias) if mode == 2 else shown
        dead = call("Equal", call("ReduceMax", bias, np.array([-1])), _INFINITE)
        known = call.array(dead)
        dead = None if known is not None and not known.any() else dead
        scores = call("Add", scores, bias if dead is None else call("Where", dead, call.constant(0.0, q), bias))
    chances = call("Softmax", scores, axis=-1)
    if dead is not None:
        chances = call("Where", dead, call.constant(0.0, q), chances)
    call.bind(chances if mode == 3 else shown, 3)
    y = call("MatMul", chances, v)
    call.bind(call("Reshape", call("Transpose", y, perm=[0, 2, 1, 3]), np.array([0, 0, -1])) if flat else y)


def _rotary(call: Calls) -> None:
    """Pairs of entries of each head rotated by the angle of their position."""
    x, places, get = call.input(0), call.input(3), call.node.get
    heads, count, mixed = get("num_heads", "int"), get("rotary_embedding_dim", "int", 0), call.node.flag("interleaved")
    flat = len(call.shape(x)) == 3
    y = call("Reshape", x, np.array([0, 0, heads or 1, -1])) if flat else x
    width = call.sizes(y)[-1]
    count = count or width
    if count % 2 or not 0 < count <= width:
        raise Malformed(f"rotary_embedding_dim is {count} for a head of {width} entries; expected an even part")
    angles = [call("Gather", call.input(i), places) if places else call.input(i) for i in (1, 2)]
    cos, sin = (call("Unsqueeze", angle, np.array([2 if flat else 1])) for angle in angles)

    def part(start: int, end: int, step: int = 1) -> str:
        return str(call("Slice", y, *(np.array([n]) for n in (start, end, 3, step))))

    ends = (part(0, count, 2), part(1, count, 2)) if mixed else (part(0, count // 2), part(count // 2, count))
    first, second = ends
    rotated = [
        call("Sub", call("Mul", cos, first), call("Mul", sin, second)),
        call("Add", call("Mul", sin, first), call("Mul", cos, second)),
    ]
    if mixed:
        rotated = [call("Unsqueeze", z, np.array([4])) for z in rotated]
        rotated = [call("Reshape", call("Concat", *rotated, axis=4), np.array([0, 0, 0, count]))]
    rest = [part(count, width)] if count < width else []
    y = call("Concat", *rotated, *rest, axis=3)
    call.bind(call("Reshape", y, np.array([0, 0, -1])) if flat else y)


def attended(graph: OnnxGraph, q: Edge, k: Edge, v: Edge, scale: float, causal: bool) -> Edge:
    """:func:`growarray.ops.attention` of q (..., t, d), k (..., t, d), v (..., t, e)."""
    *lead, t, _ = q.shape
    transposed = graph.transpose(k, (*range(len(lead)), k.ndim - 1, k.ndim - 2))
    scores = graph.node("MatMul", graph.node("Mul", q, graph.constant(scale)), transposed, shape=(*lead, t, t))
    if causal:
        scores = graph.node("Add", scores, graph.constant(np.triu(np.full((t, t), -np.inf), 1)))
    return graph.node("MatMul", graph.lower("", nn.Softmax(), scores), v, shape=(*lead, t, v.shape[-1]))


def _write_heads(graph: OnnxGraph, layer: nn.MultiheadAttention, x: Edge) -> Any:
    """Write attention as products and a softmax, which every operator set has."""
    graph.check_batch(x)
    (n, t, d), heads = graph.shape_after(layer, x), layer.num_heads
    width, names = d // heads, ("in_proj_weight", "in_proj_bias")
    weights = [graph.parameter(name, value) for name in names if (value := getattr(layer, name)) is not None]
    z = graph.node("Gemm", graph.reshape(x, (n * t, d)), *weights, shape=(n * t, 3 * d), transB=1)
    z = graph.reshape(z, (n, t, 3, heads, width))
    parts = [graph.lower("", nn.Slice((i,), (i + 1,), (2,)), z) for i in range(3)]
    q, k, v = (graph.transpose(graph.reshape(part, (n, t, heads, width)), (0, 2, 1, 3)) for part in parts)
    y = attended(graph, q, k, v, 1.0 / math.sqrt(width), layer.causal)
    joined = graph.reshape(graph.transpose(y, (0, 2, 1, 3)), (n, t, d))
    return graph.lower("out_proj", layer.out_proj, joined)


def _write_embedding(graph: OnnxGraph, layer: nn.Embedding, x: Edge) -> Edge:
    weight = graph.parameter("weight", layer.weight)
    return graph.node("Gather", weight, x, shape=graph.shape_after(layer, x), batch=x.batch, axis=0)


ROWS = (
    Operator("Attention", written(_attention), inputs=(3, 7), outputs=4, kinds=ALL),
    Operator("RotaryEmbedding", written(_rotary), inputs=(3, 4), kinds="fi"),
)

WRITES: dict[type[Module], Lowering] = {nn.MultiheadAttention: _write_heads, nn.Embedding: _write_embedding}
"""Layers that are written in other operators."""
