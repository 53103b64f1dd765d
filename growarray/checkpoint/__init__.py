"""Weights from files of other libraries, read without them: torch checkpoints, safetensors, ONNX, npz.

>>> from growarray.checkpoint import Limits
>>> Limits().depth
100
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from growarray.checkpoint.checkpoint import Checkpoint
from growarray.checkpoint.inspect import Inspection, inspect
from growarray.checkpoint.load import load_checkpoint
from growarray.checkpoint.save import save_npz, save_safetensors
from growarray.files.limits import Limits

if TYPE_CHECKING:
    from growarray.checkpoint.grown import Grown
    from growarray.onnx.export import to_onnx
    from growarray.onnx.lower import Edge, OnnxGraph, register_lowering
    from growarray.onnx.read import from_onnx

__all__ = [
    "Checkpoint",
    "Edge",
    "Grown",
    "Inspection",
    "Limits",
    "OnnxGraph",
    "from_onnx",
    "inspect",
    "load_checkpoint",
    "register_lowering",
    "save_npz",
    "save_safetensors",
    "to_onnx",
]

_MODULE_OF = {
    "Edge": "onnx.lower",
    "Grown": "checkpoint.grown",
    "OnnxGraph": "onnx.lower",
    "from_onnx": "onnx.read",
    "register_lowering": "onnx.lower",
    "to_onnx": "onnx.export",
}


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


def __getattr__(name: str) -> Any:
    """Load what knows networks at first use (PEP 562): reading weights alone needs none of it."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'growarray.checkpoint' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"growarray.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
