"""Exported networks, checked by onnx and run by onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from growarray.checkpoint import to_onnx
from growarray.nn.module import Module

RNG = np.random.default_rng(5)
TOLERANCE = 1e-5  # of the largest output, in float32


def run(path: Path, *inputs: np.ndarray) -> list[np.ndarray]:
    """The outputs of a model."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]
    return session.run(None, dict(zip(names, inputs, strict=True)))


def operators(path: Path) -> list[str]:
    """What the nodes of a model are, without constants."""
    return [node.op_type for node in onnx.load(path).graph.node if node.op_type != "Constant"]


def assert_close(found: Any, expected: Any, tolerance: float = TOLERANCE) -> None:
    assert found.shape == expected.shape
    largest = max(float(np.max(np.abs(expected), initial=0.0)), 1e-30)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * largest)


def export(
    network: Module,
    path: Path,
    *shapes: tuple[int, ...],
    batches: tuple[int, ...] = (),
    draw: Any = RNG.standard_normal,
    **options: Any,
) -> list[str]:
    """Write a network, check the file, compare it with ``forward`` at several batch sizes; returns its operators."""
    to_onnx(network, path, shapes[0] if len(shapes) == 1 else shapes, **options)
    onnx.checker.check_model(str(path), full_check=True)
    network.eval()
    for batch in batches or (shapes[0][0], 3):
        inputs = [np.asarray(draw((batch, *shape[1:])), np.float32) for shape in shapes]
        expected = network(*inputs)
        expected = expected if isinstance(expected, tuple) else (expected,)
        for found, wanted in zip(run(path, *inputs), expected, strict=True):
            assert found.dtype == np.float32
            assert_close(found, wanted)
    return operators(path)
