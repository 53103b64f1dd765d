"""``growarray compress``: factorize the layers of a network, or the tensors of a file."""
