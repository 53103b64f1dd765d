"""The routines that run products, one a file; :mod:`growarray.contraction.routines.choice` lists them."""
