"""Contraction engine: einsum with convolution modes, planned and run, forward and backward."""

from growarray.contraction.kernels import Rows, row_products
from growarray.contraction.plan import Plan, contract, plan

__all__ = ["Plan", "Rows", "contract", "plan", "row_products"]
