"""Weights from files of other libraries, read without them: torch checkpoints, safetensors, ONNX, npz.

>>> from growarray.checkpoint import Limits
>>> Limits().depth
100
"""

from growarray.checkpoint.checkpoint import Checkpoint
from growarray.checkpoint.limits import Limits
from growarray.checkpoint.load import load_checkpoint

__all__ = ["Checkpoint", "Limits", "load_checkpoint"]
