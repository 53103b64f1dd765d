"""What runs on a CUDA device: text of kernels, generated for sizes, and the few calls that launch them."""
