"""``growarray bench``: contraction paths of a layer, and the machine model."""
