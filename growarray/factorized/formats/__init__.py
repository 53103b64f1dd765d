"""The formats of factorized tensors: everything about a format is in its file, and importing it makes it known."""

from growarray.factorized.formats.block_tt import BlockTTTensor
from growarray.factorized.formats.cp import CPTensor
from growarray.factorized.formats.dense import DenseTensor
from growarray.factorized.formats.ring import TRTensor
from growarray.factorized.formats.tt import TTTensor
from growarray.factorized.formats.tucker import TuckerTensor

__all__ = ["BlockTTTensor", "CPTensor", "DenseTensor", "TRTensor", "TTTensor", "TuckerTensor"]
