"""Contraction kernels: the products that everything above is made of."""

from growarray.contraction.kernels import Rows, row_products

__all__ = ["Rows", "row_products"]
