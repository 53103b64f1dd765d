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
from growarray.checkpoint.limits import Limits
from growarray.checkpoint.load import load_checkpoint
from growarray.checkpoint.save import save_npz, save_safetensors

if TYPE_CHECKING:
    from growarray.checkpoint.grown import Grown
    from growarray.checkpoint.onnx_export import to_onnx
    from growarray.checkpoint.onnx_import import from_onnx
    from growarray.checkpoint.onnx_lower import Edge, OnnxGraph, register_lowering

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
    "Edge": "onnx_lower",
    "Grown": "grown",
    "OnnxGraph": "onnx_lower",
    "from_onnx": "onnx_import",
    "register_lowering": "onnx_lower",
    "to_onnx": "onnx_export",
}


def __getattr__(name: str) -> Any:
    """Load what knows networks at first use (PEP 562): reading weights alone needs none of it."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'growarray.checkpoint' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"growarray.checkpoint.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value
