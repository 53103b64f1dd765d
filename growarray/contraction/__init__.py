"""Contraction kernels: the products that everything above is made of."""

from growarray.contraction.kernels import row_products

__all__ = ["row_products"]
