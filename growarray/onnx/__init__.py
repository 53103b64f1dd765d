"""ONNX models: what is in them, networks made of them, and networks written as such."""
