"""Files of real exporters: torch's two, and skl2onnx; they import, agree with onnxruntime, and train."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.backend.test
import onnxruntime
import pytest
from onnx import numpy_helper

from growarray.checkpoint import from_onnx, to_onnx
from growarray.errors import CheckpointError
from growarray.ops import mse
from growarray.optim import SGD
from growarray.testing import assert_close, check_vjp
from tests.onnx.models import CASES, build, feeds

onnxruntime.set_default_logger_severity(4)
DATA = Path(__file__).parent / "data"
TORCH = sorted(path.stem for path in DATA.glob("torch-*.onnx"))  # of both exporters of torch 2.13, with a dynamic batch
SKLEARN = sorted(path.stem for path in DATA.glob("sklearn-*.onnx"))  # of skl2onnx 1.20
LIGHT = Path(onnx.backend.test.__file__).parent / "data" / "light"


def fed(session: Any, batch: int, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """Random inputs; token numbers are below 11."""
    rng, found = np.random.default_rng(batch), {}
    for port in session.get_inputs():
        shape = [n if isinstance(n, int) else batch for n in port.shape]
        whole = "int" in port.type
        found[port.name] = rng.integers(0, 11, shape) if whole else rng.standard_normal(shape).astype(dtype)
    return found


@pytest.mark.parametrize("name", TORCH)
def test_models_of_torch_s_exporters_agree_with_onnxruntime(name: str) -> None:
    path = DATA / f"{name}.onnx"
    session, network = onnxruntime.InferenceSession(path), from_onnx(path)
    for batch in (1, 3):
        values = fed(session, batch)
        (expected,) = session.run(None, values)
        (found,) = network.run(values).values()
        assert found.dtype == expected.dtype
        assert_close(found, expected, rtol=1e-5)


@pytest.mark.parametrize("name", TORCH)
def test_they_train_a_step_with_the_gradients_of_differences(name: str) -> None:
    path = DATA / f"{name}.onnx"
    network = from_onnx(path, dtype="float64")
    (x,) = fed(onnxruntime.InferenceSession(path), 2, np.float64).values()
    parameters = network.parameters()

    def function(*values: Any) -> Any:
        for parameter, value in zip(parameters, values, strict=True):
            parameter.data = value
        y, back = network.vjp(x)

        def pullback(dy: Any) -> Any:
            network.zero_grad()
            back(dy)
            return [parameter.grad for parameter in parameters]

        return y, pullback

    data = [parameter.data for parameter in parameters]
    some = [i for i in range(len(data)) if data[i].size <= 24]  # the others are of the same kinds, and take long
    check_vjp(function, *data, wrt=some, rtol=1e-6)
    target, optimizer, losses = np.zeros_like(network(x)), SGD(parameters, lr=1e-3), []
    for _ in range(2):
        y, back = network.vjp(x)
        loss, d_loss = mse(y, target)
        losses.append(float(loss))
        network.zero_grad()
        back(d_loss(1.0))
        optimizer.step()
    assert losses[1] < losses[0]


@pytest.mark.parametrize("name", SKLEARN)
def test_networks_of_scikit_learn_agree_with_onnxruntime(name: str) -> None:
    path, x = DATA / f"{name}.onnx", np.random.default_rng(0).standard_normal((7, 4)).astype(np.float32)
    words = name == "sklearn-words"
    if words:
        with pytest.raises(CheckpointError, match="input 'classes' holds strings, which are not read"):
            from_onnx(path)
    network = from_onnx(path, outputs=["output_probability"] if words else None)
    names = list(network.outputs)
    for name, expected in zip(names, onnxruntime.InferenceSession(path).run(names, {"X": x}), strict=True):
        if isinstance(expected, list):  # of dictionaries, which ZipMap makes
            expected = np.array([list(chances.values()) for chances in expected])
        assert_close(network.run({"X": x})[name], expected, rtol=1e-5)


@pytest.mark.parametrize("name", [*TORCH, *SKLEARN])
def test_what_is_read_is_written_again(name: str, tmp_path: Path) -> None:
    path, again = DATA / f"{name}.onnx", tmp_path / "again.onnx"
    network = from_onnx(path, outputs=["output_probability"] if name == "sklearn-words" else None)
    values = fed(onnxruntime.InferenceSession(path), 2)
    shapes = {name: x.shape for name, x in values.items()}
    if name.startswith(("torch-gru", "torch-lstm")):
        with pytest.raises(
            NotImplementedError, match=r"DynamicShape\): it repeats a value for each entry of the batch"
        ):
            to_onnx(network, again, shapes)
        return
    to_onnx(network, again, shapes)
    onnx.checker.check_model(again, full_check=True)
    session = onnxruntime.InferenceSession(again)
    for batch in (2, 3):
        values = fed(session, batch)
        for port, found in zip(session.get_outputs(), session.run(None, values), strict=True):
            expected = network.run(values)[port.name]
            assert found.dtype == expected.dtype
            assert_close(found, expected, rtol=1e-5)


WRITTEN = [
    "resize-linear",
    "upsample",
    "where",
    "topk",
    "trilu",
    "cumsum",
    "einsum",
    "scatter",
    "mod",
    "reshape-two-free",
]


@pytest.mark.parametrize("name", WRITTEN)
def test_operations_are_written_as_onnxruntime_runs_them(name: str, tmp_path: Path) -> None:
    made = CASES[name].made
    values = feeds(made, {"h": 3, "w": 2, "t": 3})
    network = from_onnx(io.BytesIO(build(made).SerializeToString()))
    to_onnx(network, tmp_path / "again.onnx", {key: x.shape for key, x in values.items()}, dynamic_batch=False)
    found = onnxruntime.InferenceSession(tmp_path / "again.onnx").run(None, values)
    for value, expected in zip(found, network.run(values).values(), strict=True):
        assert_close(value, expected, rtol=1e-5)


def drawn(name: str) -> onnx.ModelProto:
    """One of the light models of the onnx package, with random weights in place of ones that are all the same."""
    model, rng = onnx.load(LIGHT / f"light_{name}.onnx"), np.random.default_rng(0)
    sizes = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    takers = {x: (node.op_type, i) for node in model.graph.node for i, x in enumerate(node.input)}
    nodes = list(model.graph.node)
    for node in nodes:
        if node.op_type != "ConstantOfShape":
            continue
        shape, positive = (
            tuple(sizes[node.input[0]]),
            takers[node.output[0]] in [("BatchNormalization", i) for i in (1, 4)],
        )
        spread = np.sqrt(2.0 / np.prod(shape[1:])) if len(shape) > 1 else 0.1
        values = rng.uniform(0.5, 1.5, shape) if positive else spread * rng.standard_normal(shape)
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), node.output[0]))
        model.graph.node.remove(node)
    return model


@pytest.mark.parametrize("name", ["shufflenet", "squeezenet", *os.environ.get("GROWARRAY_LIGHT", "").split()])
def test_light_models_agree_with_onnxruntime(name: str, tmp_path: Path) -> None:
    """Small ones; ``GROWARRAY_LIGHT`` names more: resnet50 densenet121 bvlc_alexnet inception_v1 inception_v2 vgg19."""
    path, model = tmp_path / "model.onnx", drawn(name)
    if model.graph.node[-1].op_type == "Softmax":  # which hides what comes before
        model.graph.output[0].name = model.graph.node[-1].input[0]
    onnx.save(model, path)
    session = onnxruntime.InferenceSession(path)
    values = fed(session, 1)
    (expected,), (found,) = session.run(None, values), from_onnx(path).run(values).values()
    assert_close(found, expected, rtol=1e-4)
