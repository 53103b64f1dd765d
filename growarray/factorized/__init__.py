"""Factorized tensors, and convolutions whose kernel is one."""

from growarray.factorized.conv import FactorizedConv
from growarray.factorized.cp import CPTensor
from growarray.factorized.dense import DenseTensor
from growarray.factorized.sub import SubFactorizedConv
from growarray.factorized.tensor import FactorizedTensor, formats
from growarray.factorized.tt import TTTensor
from growarray.factorized.tucker import TuckerTensor

__all__ = [
    "CPTensor",
    "DenseTensor",
    "FactorizedConv",
    "FactorizedTensor",
    "SubFactorizedConv",
    "TTTensor",
    "TuckerTensor",
    "formats",
]
