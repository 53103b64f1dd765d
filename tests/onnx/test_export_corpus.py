"""Every ONNX graph of the corpus: imported, exported, and run by onnxruntime with the values that the case holds."""

import numpy as np
import onnx
import pytest

from growarray.checkpoint import from_onnx, to_onnx
from tests.corpus.case import FOLDER, all_cases
from tests.onnx.runtime import assert_close, run

GRAPHS = [case for case in all_cases() if case["kind"] == "onnx" and "io_npz" in case]


@pytest.mark.parametrize("case", GRAPHS, ids=lambda case: case["file"])
def test_import_and_export(case, tmp_path):
    path, network = tmp_path / "model.onnx", from_onnx(FOLDER / case["file"])
    with np.load(FOLDER / case["io_npz"]) as stored:
        values = dict(stored)
    inputs = {name: values[f"in.{name}"] for name in network.inputs}
    to_onnx(network, path, {name: array.shape for name, array in inputs.items()})
    onnx.checker.check_model(str(path), full_check=True)
    for name, found in zip(network.outputs, run(path, *inputs.values()), strict=True):
        assert_close(found, values[f"out.{name}"])
