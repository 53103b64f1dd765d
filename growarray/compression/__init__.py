"""Compress a network: which layers to factorize, in which format and at which rank, under one budget.

Not called ``compress``: importing a package of that name would put the package in the place of the function
:func:`growarray.compress`.
"""

from growarray.compression.report import Compression, Point
from growarray.compression.search import compress

__all__ = ["Compression", "Point", "compress"]
