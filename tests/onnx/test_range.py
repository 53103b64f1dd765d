"""Values beyond the range of a dtype are refused by name, written to ONNX and read from it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from growarray import nn
from growarray.checkpoint import from_onnx, load_checkpoint, to_onnx
from growarray.errors import CheckpointError
from growarray.factorized import FactorizedConv
from growarray.nn.arithmetic import Mul
from growarray.nn.module import Module
from tests.checkpoint.files import rows
from tests.onnx.models import Made, build
from tests.onnx.runtime import run


def linear(value: float, dtype: Any = np.float32) -> nn.Linear:
    layer = nn.Linear(2, 1, bias=False, dtype=dtype)
    layer.weight.data = np.array([[1.0, value]], dtype)
    return layer


def batch_norm() -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(2)
    layer.running_var = np.float32([1.0, 1e6])
    return layer


def factorized() -> FactorizedConv:
    layer = FactorizedConv(4, 4, 3, order=2, padding=1, rank=3)
    for parameter in layer.parameters():
        parameter.data = np.full_like(parameter.data, 300.0)
    return layer


@pytest.mark.parametrize(
    ("make", "shape", "dtype", "message"),
    rows(
        {
            "weight": (
                lambda: linear(1e5),
                (1, 2),
                "float16",
                r"weight 'weight': 100000\.0 at \(0, 1\) is beyond the range",
            ),
            "inner": (
                lambda: nn.Sequential(linear(-7e4)),
                (1, 2),
                "float16",
                r"weight '0\.weight': -70000\.0 at \(0, 1\)",
            ),
            "variance": (batch_norm, (1, 2, 3, 3), "float16", r"weight 'running_var': 1000000\.0 at \(1,\)"),
            "double": (lambda: linear(1e39, np.float64), (1, 2), "float32", r"1e\+39 at \(0, 1\) is beyond .* float32"),
            "product of factors": (
                factorized,
                (1, 4, 5, 5),
                "float16",
                r"weight 'path\.\d': (90000|27000000)\.0 at \(.*\) is beyond",
            ),
            "constant": (lambda: Mul(1e5), (1, 2), "float16", r"network \(Mul\): a constant: 100000\.0 is beyond"),
            "range": (lambda: nn.Hardtanh(-1.0, 1e5), (1, 2), "float16", r"\(Hardtanh\): a constant: 100000\.0"),
            "small constant": (lambda: Mul(1e-9), (1, 2), "float16", r"\(Mul\): a constant: 1e-09 is beyond the range"),
            "attribute": (
                lambda: nn.ELU(1e39),
                (1, 2),
                None,
                r"\(ELU\): alpha of Elu: 1e\+39 is beyond the range of float32",
            ),
            "eps": (lambda: nn.BatchNorm1d(2, 1e-50), (1, 2), None, r"epsilon of BatchNormalization: 1e-50 is beyond"),
        }
    ),
)
def test_what_does_not_fit_is_not_written(make: Any, shape: Any, dtype: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        to_onnx(make(), tmp_path / "model.onnx", shape, dtype=dtype)
    assert not list(tmp_path.iterdir())


def test_infinities_and_roundings_are_written(tmp_path: Path) -> None:
    path, layer = tmp_path / "model.onnx", linear(0.1)
    layer.weight.data[0, 0] = np.inf
    to_onnx(layer, path, (1, 2), dtype="float16")
    np.testing.assert_array_equal(load_checkpoint(path)["weight"], np.float16([[np.inf, 0.1]]), strict=True)


def test_the_largest_half_is_written_and_computes_the_same(tmp_path: Path) -> None:
    path, layer = tmp_path / "model.onnx", linear(65519.0)
    to_onnx(layer, path, (1, 2), dtype="float16")
    x = np.float16([[0.0, 0.5]])
    assert run(path, x)[0].tolist() == [[65504.0 / 2]]


def double(op: str, *constants: Any, **attributes: Any) -> io.BytesIO:
    """A model of one node in double precision."""
    fixed = {f"c{i}": np.asarray(value) for i, value in enumerate(constants)}
    nodes = [(op, ["x", *fixed], ["y"], attributes)]
    made = Made(nodes, {"x": (1, 2)}, fixed=fixed, element=TensorProto.DOUBLE)
    return io.BytesIO(build(made).SerializeToString())


@pytest.mark.parametrize(
    ("op", "constants", "message"),
    rows(
        {
            "weight": (
                "MatMul",
                [np.array([[1.0], [1e39]])],
                r"weight 'c0': 1e\+39 at \(1, 0\) is beyond the range of",
            ),
            "operand": (
                "Add",
                [np.array([1.0, -1e39])],
                r"operand 'c0': -1e\+39 at \(1,\) is beyond the range of float32",
            ),
            "number": (
                "Mul",
                [np.array(1e39)],
                r"operand 'c0': 1e\+39 is beyond the range of float32; pass dtype='float64'",
            ),
            "padding": ("Pad", [np.array([0, 1, 0, 0]), np.array(1e39)], r"constant_value 'c1': 1e\+39 is beyond"),
            "exponent": ("Pow", [np.array(1e39)], r"exponent 'c0': 1e\+39 is beyond"),
        }
    ),
)
def test_what_does_not_fit_is_not_read(op: str, constants: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=f"operator '{op}' .*{message}"):
        from_onnx(double(op, *constants), dtype="float32")
    assert from_onnx(double(op, *constants)).run({"x": np.zeros((1, 2))})["y"].dtype == np.float64


def test_the_ends_of_a_range_are_those_of_its_type() -> None:
    model = double("Clip", np.array(-1e300), np.array(1e39))
    wide = from_onnx(model)
    assert wide.run({"x": np.array([[1e50, -1e50]])})["y"].tolist() == [[1e39, -1e50]]
    model.seek(0)
    narrow: Module = from_onnx(model, dtype="float32")
    assert narrow(np.float32([[3e38, -3e38]])).tolist() == np.float32([[3e38, -3e38]]).tolist()
