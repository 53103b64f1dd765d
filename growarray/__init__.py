"""Neural networks that grow, on NumPy and CuPy.

Public names load their module at first use, so that ``import growarray`` costs next to nothing.

>>> import growarray
>>> growarray.errors.ShapeError.__name__
'ShapeError'
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and editors, what _NAMES_OF says at run time
    from growarray import backend as backend
    from growarray import checkpoint as checkpoint
    from growarray import compression as compression
    from growarray import contraction as contraction
    from growarray import datasets as datasets
    from growarray import decompose as decompose
    from growarray import errors as errors
    from growarray import factorized as factorized
    from growarray import growing as growing
    from growarray import networks as networks
    from growarray import nn as nn
    from growarray import ops as ops
    from growarray import optim as optim
    from growarray import testing as testing
    from growarray.checkpoint import Checkpoint as Checkpoint
    from growarray.checkpoint import Grown as Grown
    from growarray.checkpoint import from_onnx as from_onnx
    from growarray.checkpoint import load_checkpoint as load_checkpoint
    from growarray.checkpoint import save_safetensors as save_safetensors
    from growarray.checkpoint import to_onnx as to_onnx
    from growarray.checkpoint.network import load as load
    from growarray.checkpoint.network import save as save
    from growarray.compression import compress as compress
    from growarray.factorized import FactorizedConv as FactorizedConv
    from growarray.factorized import FactorizedLinear as FactorizedLinear
    from growarray.factorized import FactorizedTensor as FactorizedTensor
    from growarray.growing import FISHER as FISHER
    from growarray.growing import GRADMAX as GRADMAX
    from growarray.growing import TINY as TINY
    from growarray.growing import GrowthRule as GrowthRule
    from growarray.growing import LinearGrowingModule as LinearGrowingModule
    from growarray.growing import LinearMergeGrowingModule as LinearMergeGrowingModule
    from growarray.growing import RankStatistics as RankStatistics
    from growarray.growing import Stream as Stream
    from growarray.growing import TensorStatistic as TensorStatistic
    from growarray.growing import cross_moment as cross_moment
    from growarray.networks import GrowingMLP as GrowingMLP
    from growarray.networks import GrowingResidualMLP as GrowingResidualMLP
    from growarray.networks import Growth as Growth

__version__ = "0.1.0"

_NAMES_OF = {
    "backend": "",
    "checkpoint": "Checkpoint Grown from_onnx load_checkpoint save_safetensors to_onnx",
    "checkpoint.network": "load save",
    "compression": "compress",
    "contraction": "",
    "datasets": "",
    "decompose": "",
    "errors": "",
    "factorized": "FactorizedConv FactorizedLinear FactorizedTensor",
    "growing": "FISHER GRADMAX TINY GrowthRule LinearGrowingModule LinearMergeGrowingModule RankStatistics Stream "
    "TensorStatistic cross_moment",
    "networks": "GrowingMLP GrowingResidualMLP Growth",
    "nn": "",
    "ops": "",
    "optim": "",
    "testing": "",
}
_MODULE_OF = {name: module for module, names in _NAMES_OF.items() for name in names.split()}

__all__ = sorted({"__version__", *(module for module in _NAMES_OF if "." not in module), *_MODULE_OF})


def __getattr__(name: str) -> Any:
    """Load the module that a public name comes from (PEP 562), once."""
    if name not in __all__:
        raise AttributeError(f"module 'growarray' has no attribute {name!r}; public names: {', '.join(__all__)}")
    module = importlib.import_module(f"growarray.{_MODULE_OF.get(name, name)}")
    return globals().setdefault(name, getattr(module, name) if name in _MODULE_OF else module)


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
