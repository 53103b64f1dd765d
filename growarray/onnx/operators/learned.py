"""Operators of ``ai.onnx.ml`` that networks of scikit-learn are exported with; strings are not supported."""

from __future__ import annotations

from typing import Any

import numpy as np

from growarray.files.errors import Malformed
from growarray.onnx.call import Calls, written
from growarray.onnx.operators.row import ALL, Operator

_DOMAIN = "ai.onnx.ml"


def _scaler(call: Calls) -> None:
    """``(x - offset) * scale``, with one number or one a feature."""
    x = call.input(0)
    for op, name, neutral in (("Sub", "offset", 0.0), ("Mul", "scale", 1.0)):
        values = np.array(call.node.get(name, "floats", [neutral]), np.float32)
        x = call(op, x, values if values.size > 1 else float(values[0]))
    call.bind(x)


def _extractor(call: Calls) -> None:
    """Entries of the last axis."""
    x, places = call.input(0), call("Reshape", call.input(1), np.array([-1]))
    found = call("Gather", x, places, axis=-1)
    call.bind(call("Unsqueeze", found, np.array([0])) if len(call.shape(x)) == 1 else found)


def _binarizer(call: Calls) -> None:
    x = call.input(0)
    call.bind(call("CastLike", call("Greater", x, call.node.get("threshold", "float", 0.0)), x))


def _encoder(call: Calls) -> None:
    """The value beside the key that each entry is, or the default."""
    x, found, defaults = call.input(0), dict[str, Any](), {"keys": None, "values": None, "default": -1}
    for part, missing in defaults.items():
        for kind, dtype, name in (("int", np.int64, "int64"), ("float", np.float32, "float")):
            given = call.node.get(f"{part}_{name}" if part == "default" else f"{part}_{name}s",
                                  kind if part == "default" else f"{kind}s")  # fmt: skip
            if given is not None:
                found[part] = np.asarray(given, dtype)
        found.setdefault(part, missing)
    keys, values = found["keys"], found["values"]
    if keys is None or values is None or keys.shape != values.shape:
        raise Malformed("has no keys and values of the same number; strings and tensors are not supported")
    default = np.asarray(found["default"], values.dtype)
    same = call("Equal", call("Unsqueeze", x, np.array([len(call.shape(x))])), keys)
    places = call("ArgMax", call("Cast", same, to=6), axis=-1, keepdims=0)
    known = call("Cast", call("ReduceMax", call("Cast", same, to=1), np.array([-1]), keepdims=0), to=9)
    call.bind(call("Where", known, call("Gather", call.constant(values), places), call.constant(default)))


def _zip_map(call: Calls) -> None:
    """Left off: the array of probabilities, and not a dictionary for each sample."""
    for kind in ("ints", "strings"):
        call.node.get(f"classlabels_{'int64s' if kind == 'ints' else kind}", kind)
    call.bind(call.input(0))


ROWS = (
    Operator("ArrayFeatureExtractor", written(_extractor), inputs=(2, 2), kinds=ALL, domain=_DOMAIN),
    Operator("Binarizer", written(_binarizer), domain=_DOMAIN),
    Operator("LabelEncoder", written(_encoder), kinds="fi", domain=_DOMAIN),
    Operator("Scaler", written(_scaler), domain=_DOMAIN),
    Operator("ZipMap", written(_zip_map), domain=_DOMAIN),
)
