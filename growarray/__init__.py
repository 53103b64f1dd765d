"""Neural networks that grow, on NumPy and CuPy.

Public names load their module at first use, so that ``import growarray`` costs next to nothing.

>>> import growarray
>>> growarray.errors.ShapeError.__name__
'ShapeError'
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from growarray import (
        backend,
        checkpoint,
        contraction,
        datasets,
        decompose,
        errors,
        factorized,
        growing,
        networks,
        nn,
        ops,
        optim,
        testing,
    )
    from growarray.checkpoint import Checkpoint, Grown, from_onnx, load_checkpoint, save_safetensors, to_onnx
    from growarray.checkpoint.grown import load
    from growarray.factorized import FactorizedConv, FactorizedLinear, FactorizedTensor
    from growarray.growing import (
        FISHER,
        GRADMAX,
        TINY,
        GrowthRule,
        LinearGrowingModule,
        LinearMergeGrowingModule,
        Stream,
        TensorStatistic,
        cross_moment,
    )
    from growarray.networks import GrowingMLP, GrowingResidualMLP, Growth
    from growarray.networks.compress import compress

__all__ = [
    "FISHER",
    "GRADMAX",
    "TINY",
    "Checkpoint",
    "FactorizedConv",
    "FactorizedLinear",
    "FactorizedTensor",
    "GrowingMLP",
    "GrowingResidualMLP",
    "Grown",
    "Growth",
    "GrowthRule",
    "LinearGrowingModule",
    "LinearMergeGrowingModule",
    "RankStatistics",
    "Stream",
    "TensorStatistic",
    "__version__",
    "backend",
    "checkpoint",
    "compress",
    "contraction",
    "cross_moment",
    "datasets",
    "decompose",
    "errors",
    "factorized",
    "from_onnx",
    "growing",
    "load",
    "load_checkpoint",
    "networks",
    "nn",
    "ops",
    "optim",
    "save_safetensors",
    "testing",
    "to_onnx",
]

__version__ = "0.1.0"

_SUBMODULES = frozenset(
    [
        "backend",
        "checkpoint",
        "contraction",
        "datasets",
        "decompose",
        "errors",
        "factorized",
        "growing",
        "networks",
        "nn",
        "ops",
        "optim",
        "testing",
    ]
)

_MODULE_OF = {
    "Checkpoint": "growarray.checkpoint",
    "FISHER": "growarray.growing",
    "GRADMAX": "growarray.growing",
    "TINY": "growarray.growing",
    "FactorizedConv": "growarray.factorized",
    "FactorizedLinear": "growarray.factorized",
    "FactorizedTensor": "growarray.factorized",
    "GrowingMLP": "growarray.networks",
    "GrowingResidualMLP": "growarray.networks",
    "Growth": "growarray.networks",
    "Grown": "growarray.checkpoint",
    "GrowthRule": "growarray.growing",
    "LinearGrowingModule": "growarray.growing",
    "LinearMergeGrowingModule": "growarray.growing",
    "RankStatistics": "growarray.growing",
    "Stream": "growarray.growing",
    "TensorStatistic": "growarray.growing",
    "compress": "growarray.networks",
    "cross_moment": "growarray.growing",
    "from_onnx": "growarray.checkpoint",
    "load": "growarray.checkpoint.grown",
    "load_checkpoint": "growarray.checkpoint",
    "save_safetensors": "growarray.checkpoint",
    "to_onnx": "growarray.checkpoint",
}


def __getattr__(name: str) -> Any:
    """Load the module that a public name comes from (PEP 562), once."""
    if name in _SUBMODULES:
        return importlib.import_module(f"growarray.{name}")
    if name in _MODULE_OF:
        value = getattr(importlib.import_module(_MODULE_OF[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'growarray' has no attribute {name!r}; public names: {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
