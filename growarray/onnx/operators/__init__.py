"""The operators of ONNX, a family a file; each is one row that says how it is read and written."""
