"""Recurrent layers: the states of every step, of which the last ones are a part."""

from __future__ import annotations

import numpy as np

from growarray.files.errors import Malformed
from growarray.nn.operation import Operation
from growarray.onnx.call import Calls, written
from growarray.onnx.operators.row import Operator

_GATES = {"RNN": (1, ["Tanh"]), "LSTM": (4, ["Sigmoid", "Tanh", "Tanh"]), "GRU": (3, ["Sigmoid", "Tanh"])}


def _check(call: Calls, ways: int, steps: int | str) -> None:
    """Raise Malformed for what the layers do not compute."""
    node, (_, usual) = call.node, _GATES[call.node.op]
    given = node.get("activations", "strings")
    if given is not None and [name.lower() for name in given] != [name.lower() for name in usual * ways]:
        raise Malformed(f"activations are {', '.join(given)}, which is not supported; {', '.join(usual)} are")
    if node.get("clip", "float") is not None or node.flag("input_forget") or call.input(7):
        raise Malformed("has clip, input_forget or peepholes, which are not supported")
    lengths = call.array(call.input(4)) if call.input(4) else None
    if call.input(4) and (lengths is None or not (lengths == steps).all()):
        raise Malformed("sequence_lens differ from the number of steps, which is not supported")


def _read(call: Calls) -> None:
    builder, node, (gates, _) = call.builder, call.node, _GATES[call.node.op]
    direction, batch_first = node.get("direction", "string", "forward"), node.flag("layout")
    if direction not in ("forward", "reverse", "bidirectional"):
        raise Malformed(f"direction is {direction!r}; expected forward, reverse or bidirectional")

    def transposed(name: str, *perm: int) -> str:
        return str(call("Transpose", name, perm=list(perm))) if batch_first else name

    x, ways = transposed(call.input(0), 1, 0, 2), 2 if direction == "bidirectional" else 1
    _, rows, width = call.sizes(call.input(2))
    steps, batch, features = call.shape(x)
    shapes = call.sizes(call.input(1)), (ways, rows, features)
    if shapes[0] != shapes[1] or rows != gates * width or node.get("hidden_size", "int", width) != width:
        raise Malformed(f"weight has shape {shapes[0]}, expected {shapes[1]}, of {gates} gates of hidden_size each")
    _check(call, ways, steps)
    dtype = np.float64 if call.value(x).kind == "float64" else np.float32
    bias = call.input(3) or call.constant(np.zeros((ways, 2 * rows), dtype))
    starts = [call.input(i) for i in ((5, 6) if node.op == "LSTM" else (5,))]
    starts = [transposed(s, 1, 0, 2) if s else call.constant(np.zeros((ways, 1, width), dtype)) for s in starts]
    names = [x, call.input(1), call.input(2), bias, *starts]
    inputs = [call.dynamic(name) for name in names]
    hint, options = builder.hint(node), {"cell": node.op, "direction": direction}
    if node.op == "GRU":
        options["before"] = int(node.flag("linear_before_reset"))
    found = builder.add(Operation("Recurrent", **options), inputs, (steps, ways, batch, width * len(starts)), hint)
    states = builder.new_name()
    builder.define(states, found)

    def part(name: str, axis: int, start: int, end: int) -> str:
        return str(call("Slice", name, np.array([start]), np.array([end]), np.array([axis])))

    parts = [states] if len(starts) == 1 else [part(states, 3, i * width, (i + 1) * width) for i in range(2)]
    call.bind(transposed(parts[0], 2, 0, 1, 3))
    for i, name in enumerate(parts, start=1):
        if i < len(node.outputs) and node.outputs[i]:
            ends = [(0, 1) if direction == "reverse" or d else (-1, 2**31) for d in range(ways)]
            last = [part(part(name, 1, d, d + 1), 0, *end) for d, end in enumerate(ends)]
            whole = call("Concat", *last, axis=1) if ways > 1 else last[0]
            call.bind(transposed(call("Squeeze", whole, np.array([0])), 1, 0, 2), i)


ROWS = (
    Operator("GRU", written(_read), inputs=(3, 6), outputs=2),
    Operator("LSTM", written(_read), inputs=(3, 8), outputs=3),
    Operator("RNN", written(_read), inputs=(3, 6), outputs=2),
)
