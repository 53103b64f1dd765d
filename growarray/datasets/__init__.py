"""Data sets as NumPy arrays: the digits that come with the package, and tables from files."""

from growarray.datasets.dataset import Dataset, standardise
from growarray.datasets.digits import load_digits
from growarray.datasets.files import load_samples, load_table

__all__ = ["Dataset", "load_digits", "load_samples", "load_table", "standardise"]
