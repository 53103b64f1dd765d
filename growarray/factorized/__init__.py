"""Factorized tensors, and layers whose kernel or weight is one."""

from growarray.factorized.conv import FactorizedConv
from growarray.factorized.dropout import TensorDropout, remove_tensor_dropout, tensor_dropout
from growarray.factorized.embedding import FactorizedEmbedding
from growarray.factorized.formats import BlockTTTensor, CPTensor, DenseTensor, TRTensor, TTTensor, TuckerTensor
from growarray.factorized.growth import RankGrowth
from growarray.factorized.lasso import TensorLasso
from growarray.factorized.linear import FactorizedLinear
from growarray.factorized.linear_plan import tensorize
from growarray.factorized.report import Change, ConversionReport
from growarray.factorized.sub import SubFactorizedConv, SubFactorizedEmbedding, SubFactorizedLinear
from growarray.factorized.tcl import TCL
from growarray.factorized.tensor import FactorizedTensor, formats
from growarray.factorized.trl import TRL

__all__ = [
    "TCL",
    "TRL",
    "BlockTTTensor",
    "CPTensor",
    "Change",
    "ConversionReport",
    "DenseTensor",
    "FactorizedConv",
    "FactorizedEmbedding",
    "FactorizedLinear",
    "FactorizedTensor",
    "RankGrowth",
    "SubFactorizedConv",
    "SubFactorizedEmbedding",
    "SubFactorizedLinear",
    "TRTensor",
    "TTTensor",
    "TensorDropout",
    "TensorLasso",
    "TuckerTensor",
    "formats",
    "remove_tensor_dropout",
    "tensor_dropout",
    "tensorize",
]
