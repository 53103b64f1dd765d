"""The bytes of a model: read back by onnx, beside external data, never half written."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from growarray import load_checkpoint, nn
from growarray.checkpoint import to_onnx
from growarray.files import paths
from growarray.onnx import model as onnx_write
from growarray.onnx.model import Model, Node, Port, Tensor, write_model
from tests.onnx.runtime import assert_close, run


def model(nodes=(), initializers=(), inputs=(), outputs=(), **options):
    return Model(
        name="g", dtype=np.dtype(np.float32), opset=21, producer=("p", "1"), nodes=list(nodes),
        initializers=list(initializers), inputs=list(inputs), outputs=list(outputs), **options,
    )  # fmt: skip


def written(path, *arguments, **options):
    write_model(path, model(*arguments, **options))
    return onnx.load(path)


@pytest.mark.parametrize("dtype", sorted(onnx_write.DATA_TYPES))
@pytest.mark.parametrize("size", [(), (0, 3), (2, 3), (300,)])
def test_tensors(dtype, size, tmp_path):
    array = np.arange(np.prod(size, dtype=int)).reshape(size).astype(dtype)
    found = written(tmp_path / "m.onnx", initializers=[Tensor("w", array)]).graph.initializer[0]
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(found), array, strict=True)
    np.testing.assert_array_equal(load_checkpoint(tmp_path / "m.onnx")["w"], array, strict=True)


def test_arrays_that_lie_in_another_order(tmp_path):
    array = np.arange(6, dtype=">f4").reshape(2, 3).T
    found = written(tmp_path / "m.onnx", initializers=[Tensor("w", array)]).graph.initializer[0]
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(found), array)


def test_attributes(tmp_path):
    given = {
        "whole": -3, "large": 2**40, "flag": True, "float": 0.5, "text": "wrap", "pads": (0, -1, 300), "none": (),
        "tensor": np.asarray([1, -1], np.int64),
    }  # fmt: skip
    (node,) = written(tmp_path / "m.onnx", [Node("Op", ["a", "", "b"], ["c"], "n", given)]).graph.node
    found = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(found.pop("tensor")), [1, -1])
    assert found == {
        "whole": -3, "large": 2**40, "flag": 1, "float": 0.5, "text": b"wrap", "pads": [0, -1, 300], "none": [],
    }  # fmt: skip
    assert (node.op_type, list(node.input), list(node.output), node.name) == ("Op", ["a", "", "b"], ["c"], "n")


def test_ports(tmp_path):
    graph = written(tmp_path / "m.onnx", inputs=[Port("x", ("n", 3, None))], outputs=[Port("ü", ())]).graph
    shape = graph.input[0].type.tensor_type.shape.dim
    assert [d.WhichOneof("value") for d in shape] == ["dim_param", "dim_value", None]
    assert (graph.output[0].name, len(graph.output[0].type.tensor_type.shape.dim)) == ("ü", 0)


def network():
    rng = np.random.default_rng(0)
    return nn.Sequential(nn.Linear(40, 30, rng=rng), nn.ReLU(), nn.Linear(30, 50, rng=rng))


def assert_same(path, layer):
    onnx.checker.check_model(str(path), full_check=True)
    x = np.random.default_rng(1).standard_normal((3, 40)).astype(np.float32)
    assert_close(run(path, x)[0], layer(x))
    found = load_checkpoint(path)
    for name, array in layer.state_dict().items():
        np.testing.assert_array_equal(found[name], array, strict=True)


def test_external_data(tmp_path):
    path, layer = tmp_path / "model.onnx", network()
    to_onnx(layer, path, (1, 40), external_data=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert path.stat().st_size < 2000 < (tmp_path / "model.onnx.data").stat().st_size
    assert_same(path, layer)
    places = {
        t.name: {e.key: e.value for e in t.external_data}
        for t in onnx.load(path, load_external_data=False).graph.initializer
    }
    assert places["0.weight"] == {"location": "model.onnx.data", "offset": "0", "length": "4800"}
    assert places["2.weight"]["offset"] == "8192"  # a page, so that a runtime can map it
    assert places["0.bias"] == {}


def test_without_large_weights_there_is_no_file_beside(tmp_path):
    to_onnx(nn.Linear(4, 3), tmp_path / "model.onnx", (1, 4), external_data=True)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_large_models_have_their_weights_beside_them(tmp_path, monkeypatch):
    path, layer = tmp_path / "model.onnx", network()
    to_onnx(layer, path, (1, 40))
    size = path.stat().st_size
    monkeypatch.setattr(onnx_write, "LARGEST", size)
    to_onnx(layer, path, (1, 40))
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    monkeypatch.setattr(onnx_write, "LARGEST", size - 1)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"the model has {size} bytes, one file holds {size - 1}"):
        to_onnx(layer, path, (1, 40), external_data=False)
    assert path.read_bytes() == before
    to_onnx(layer, path, (1, 40))
    assert (tmp_path / "model.onnx.data").exists()
    assert_same(path, layer)


def test_a_model_never_points_to_the_weights_of_another(tmp_path, monkeypatch):
    """Whatever kills the process: before and after each change of a name the old or the new model is there, whole."""
    path, seen = tmp_path / "model.onnx", []
    layers = [nn.Linear(40, 30, rng=np.random.default_rng(seed)) for seed in range(4)]
    weights = [layer.weight.data.tobytes() for layer in layers]
    to_onnx(layers[0], path, (1, 40), external_data=True)

    def look():
        seen.append(weights.index(load_checkpoint(path)["weight"].tobytes()))

    def looking(change):
        def changed(*arguments, **options):
            look()
            change(*arguments, **options)
            look()

        return changed

    monkeypatch.setattr(paths.os, "replace", looking(paths.os.replace))
    monkeypatch.setattr(Path, "unlink", looking(Path.unlink))
    for layer, names in zip(layers[1:], ["model.onnx.data.2", "model.onnx.data"] * 2, strict=False):
        to_onnx(layer, path, (1, 40), external_data=True)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", names]
    onnx.checker.check_model(str(path))
    for number in range(3):  # the values, the model, the old values
        before, after = number, number + 1
        assert seen[6 * number : 6 * number + 6] == [before, before, before, after, after, after]
    monkeypatch.undo()
    to_onnx(nn.Linear(4, 3), path, (1, 4), external_data=True)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("external", [False, True])
def test_a_write_that_fails_leaves_the_old_file_alone(external, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    to_onnx(network(), path, (1, 40), external_data=external)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(paths.os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        to_onnx(nn.Linear(40, 300), path, (1, 40), external_data=external)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
