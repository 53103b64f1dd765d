"""What a caller of ``to_onnx`` is promised: names, dtypes, the file, refusals before anything is written."""

import copy
import warnings

import numpy as np
import onnx
import pytest

from growarray import GrowingMLP, GrowingResidualMLP, load_checkpoint, nn
from growarray.checkpoint import from_onnx, register_lowering, to_onnx
from growarray.errors import ShapeError
from growarray.factorized import FactorizedConv
from growarray.networks import GrowingMLPMixer, GrowingResNet, GrowingVGG
from growarray.nn.module import Module
from growarray.onnx import lower as onnx_lower
from growarray.onnx.export import OPSETS
from tests.checkpoint.files import rows
from tests.networks.graph.graphs import image_graph
from tests.onnx.runtime import assert_close, export, operators, run

RNG = np.random.default_rng(0)


def small(**options):
    return nn.Sequential(nn.Linear(4, 8, rng=RNG, **options), nn.ReLU(), nn.Linear(8, 3, rng=RNG, **options))


STATES = {
    "sequential": (small, (2, 4)),
    "one layer": (lambda: nn.Linear(4, 3, rng=RNG), (2, 4)),
    "convolutions": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, rng=RNG), nn.Sequential(nn.ConvTranspose2d(4, 2, 2, rng=RNG))),
        (2, 3, 6, 6),
    ),
    "norms": (lambda: nn.Sequential(nn.LayerNorm((3, 2)), nn.GroupNorm(2, 6), nn.BatchNorm2d(6)), (2, 6, 3, 2)),
    "mlp": (lambda: GrowingMLP(4, 3, 5, 2, nn.Sequential(nn.BatchNorm1d(5), nn.SELU()), rng=RNG), (2, 4)),
    "residual": (lambda: GrowingResidualMLP(4, 3, 2, 5, 2, rng=RNG), (2, 4)),
    "growing VGG": (lambda: GrowingVGG((1, 6, 5), 3, [(2, 3)], nn.ELU(), rng=RNG), (2, 30)),
    "graph of images": (lambda: image_graph(dtype=np.float32), (2, 2, 6, 5)),
    "growing ResNet": (lambda: GrowingResNet((2, 4, 4), 3, (2, 3), 2, normalization=nn.BatchNorm2d), (2, 2, 4, 4)),
    "growing mixer": (lambda: GrowingMLPMixer((1, 4, 4), 3, 2, 4, 2, 3, 1, 0.1, rng=RNG), (2, 1, 4, 4)),
    "one layer twice": (lambda: nn.Sequential(*[nn.Linear(4, 4, rng=RNG)] * 2), (2, 4)),
}


@pytest.mark.parametrize("opset", [17, 21])
@pytest.mark.parametrize(("make", "size"), rows(STATES))
def test_the_state_dict_can_be_loaded_from_the_file(make, size, opset, tmp_path):
    network, path = make(), tmp_path / "model.onnx"
    for parameter in network.parameters():
        parameter.data = RNG.standard_normal(parameter.shape).astype(np.float32)
    to_onnx(network, path, size, opset=opset)
    state = {name: array for name, array in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    found = load_checkpoint(path)
    assert set(found) == set(state)
    for name, array in state.items():
        np.testing.assert_array_equal(found[name], array, strict=True)
    other = make()
    assert not other.load_state_dict(found, strict=False).unexpected
    x = RNG.standard_normal((3, *size[1:])).astype(np.float32)
    assert_close(other.eval()(x), run(path, x)[0])


def test_blocks_that_have_not_grown_yet_are_their_shortcut_and_a_constant(tmp_path):
    for network, size in (
        (GrowingResNet((2, 4, 4), 3, (2, 3), normalization=nn.BatchNorm2d, rng=RNG), (2, 2, 4, 4)),
        (GrowingMLPMixer((1, 4, 6), 3, 2, 4, [0, 2], [3, 0], num_blocks=2, rng=RNG), (2, 1, 4, 6)),
    ):
        for parameter in network.parameters():
            parameter.data = RNG.standard_normal(parameter.shape).astype(np.float32)
        to_onnx(network, tmp_path / "model.onnx", size)
        x = RNG.standard_normal((3, *size[1:])).astype(np.float32)
        assert_close(network.eval()(x), run(tmp_path / "model.onnx", x)[0])


def test_what_the_file_says_of_itself(tmp_path):
    path = tmp_path / "model.onnx"
    to_onnx(small(), path, (2, 4), metadata={"purpose": "test", "empty": ""}, input_names="x", output_names=["logits"])
    model = onnx.load(path)
    assert (model.producer_name, model.graph.name) == ("growarray", "Sequential")
    assert {entry.key: entry.value for entry in model.metadata_props} == {"purpose": "test", "empty": ""}
    (given,), (made,) = model.graph.input, model.graph.output
    assert (given.name, made.name) == ("x", "logits")
    dims = [[d.dim_param or d.dim_value for d in port.type.tensor_type.shape.dim] for port in (given, made)]
    assert dims == [["n", 4], ["n", 3]]
    assert [entry.version for entry in model.opset_import] == [21]
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)


def test_a_fixed_batch(tmp_path):
    path = tmp_path / "model.onnx"
    to_onnx(small(), path, (2, 4), dynamic_batch=False)
    assert onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2
    with pytest.raises(Exception, match="Got: 3 Expected: 2"):
        run(path, np.ones((3, 4), np.float32))


@pytest.mark.parametrize("opset", OPSETS)
def test_every_opset_passes_the_checker(opset, tmp_path):
    export(
        nn.Sequential(nn.Conv1d(2, 3, 3, rng=RNG), nn.GELU(), nn.Flatten()), tmp_path / "m.onnx", (2, 2, 6), opset=opset
    )
    version = onnx.load(tmp_path / "m.onnx").ir_version
    assert version >= onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", opset)])


def test_training_mode_is_left_as_it_was_and_inference_is_written(tmp_path):
    network = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.9, np.random.default_rng(1)), nn.Linear(4, 3, rng=RNG))
    network[1].eval()
    mean, state = network[0].running_mean.copy(), network[1].rng.bit_generator.state
    export_path = tmp_path / "model.onnx"
    to_onnx(network, export_path, (2, 4))
    assert [layer.training for layer in network] == [True, False, True]
    np.testing.assert_array_equal(network[0].running_mean, mean)
    assert network[1].rng.bit_generator.state == state
    x = RNG.standard_normal((5, 4)).astype(np.float32)
    assert_close(run(export_path, x)[0], network.eval()(x))


def test_nothing_of_a_collection_changes(tmp_path):
    network = GrowingMLP(4, 3, 5, 2, rng=RNG)
    network.init_computation()
    x = RNG.standard_normal((6, 4)).astype(np.float32)
    network.vjp(x)
    kept = network.layers[1].input
    to_onnx(network, tmp_path / "model.onnx", (2, 4))
    assert network.layers[1].input is kept


def test_arrays_of_any_library(xp, tmp_path):
    network = nn.Sequential(
        nn.Conv1d(2, 3, 3, rng=RNG), nn.BatchNorm1d(3), nn.GELU(), nn.AvgPool1d(2),
        FactorizedConv(3, 4, (2,), rank=2, rng=RNG), nn.Flatten(), nn.Linear(4, 2, rng=RNG),
    )  # fmt: skip
    plain, path = copy.deepcopy(network).eval(), tmp_path / "model.onnx"
    to_onnx(xp.adopt(network), path, (2, 2, 7))
    x = RNG.standard_normal((3, 2, 7)).astype(np.float32)
    assert_close(run(path, x)[0], plain(x))


# Dtypes.


def test_double_precision_is_kept(tmp_path):
    path = tmp_path / "model.onnx"
    network = nn.Sequential(*small(dtype=np.float64), nn.LayerNorm(3, dtype=np.float64), nn.Tanh(), nn.Softmax())
    to_onnx(network, path, (2, 4))
    x = RNG.standard_normal((3, 4))
    (found,) = run(path, x)
    assert found.dtype == np.float64
    assert_close(found, network(x), 1e-6)  # eps of the norm is an attribute, and those are float32
    assert load_checkpoint(path)["0.weight"].dtype == np.float64


@pytest.mark.parametrize(("kind", "written"), [("float64", "float64"), ("float32", "float32"), ("float16", "float32")])
def test_a_graph_without_parameters_has_the_precision_of_its_inputs(kind, written, tmp_path):
    """Half precision is computed in float32, as with parameters."""
    path, element = tmp_path / "model.onnx", onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    ports = [onnx.helper.make_tensor_value_info(name, element, [2, 3]) for name in ("x", "y")]
    constant = onnx.numpy_helper.from_array(np.array([0.1], kind), "c")
    node = onnx.helper.make_node("Add", ["x", "c"], ["y"])
    onnx.save(
        onnx.helper.make_model(onnx.helper.make_graph([node], "g", ports[:1], ports[1:], [constant]), ir_version=10),
        path,
    )
    to_onnx(from_onnx(path), path, (2, 3))
    (found,) = run(path, np.zeros((2, 3), written))
    np.testing.assert_array_equal(found, np.full((2, 3), np.array(0.1, kind).astype(written)), strict=True)
    to_onnx(from_onnx(path), path, (2, 3), dtype="float32")
    assert run(path, np.zeros((2, 3), np.float32))[0].dtype == np.float32


def test_an_operator_that_onnxruntime_lacks_in_double_precision_is_named(tmp_path):
    path = tmp_path / "model.onnx"
    network = nn.Sequential(nn.Conv1d(2, 3, 3, dtype=np.float64, rng=RNG))
    with pytest.raises(NotImplementedError, match=r"module '0' \(Conv1d\): onnxruntime has no Conv in float64; pass"):
        to_onnx(network, path, (2, 2, 6))
    to_onnx(network, path, (2, 2, 6), dtype="float64")
    onnx.checker.check_model(str(path), full_check=True)
    to_onnx(network, path, (2, 2, 6), dtype="float32")
    x = RNG.standard_normal((3, 2, 6))
    assert_close(run(path, x.astype(np.float32))[0], network(x))


def test_half_precision(tmp_path):
    path, network = tmp_path / "model.onnx", small()
    to_onnx(network, path, (2, 4), dtype="float16")
    onnx.checker.check_model(str(path), full_check=True)
    x = RNG.standard_normal((3, 4)).astype(np.float16)
    (found,) = run(path, x)
    assert found.dtype == np.float16
    assert_close(found, network(x.astype(np.float32)), 5e-3)


@pytest.mark.parametrize("dtype", ["int64", "bfloat16", "complex64", "no such"])
def test_other_dtypes_are_refused(dtype, tmp_path):
    with pytest.raises(TypeError, match=f"dtype is '{dtype}'; expected 'float16', 'float32' or 'float64'"):
        to_onnx(small(), tmp_path / "model.onnx", (2, 4), dtype=dtype)


# Modules of a user.


class Doubled(Module):
    """A module that holds others, as users write them."""

    def __init__(self):
        self.inner = nn.Linear(4, 4, rng=RNG)

    def vjp(self, x):
        y, back = self.inner.vjp(x)
        return y + y, lambda dy: back(dy + dy)


@pytest.fixture
def table():
    before = dict(onnx_lower._REGISTERED)
    yield
    onnx_lower._REGISTERED.clear()
    onnx_lower._REGISTERED.update(before)


@pytest.mark.usefixtures("table")
def test_a_module_of_a_user(tmp_path):
    path, network = tmp_path / "model.onnx", nn.Sequential(nn.ReLU(), Doubled())
    with pytest.raises(
        NotImplementedError, match=r"module '1' \(Doubled\) is of a class that cannot be exported; register"
    ):
        to_onnx(network, path, (2, 4))
    assert not list(tmp_path.iterdir())

    def lowering(graph, layer, x):
        y = graph.lower("inner", layer.inner, x)
        return graph.node("Add", y, y)

    register_lowering(Doubled, lowering)
    export(network, path, (2, 4))
    assert set(load_checkpoint(path)) == {"1.inner.weight", "1.inner.bias"}


@pytest.mark.usefixtures("table")
def test_a_function_of_this_library_can_be_replaced(tmp_path):
    register_lowering(nn.ReLU, lambda graph, layer, x: graph.node("Max", x, graph.constant(0.0)))
    export(small(), tmp_path / "model.onnx", (2, 4))
    assert operators(tmp_path / "model.onnx") == ["Gemm", "Max", "Gemm"]


def test_a_subclass_that_computes_something_else_is_refused(tmp_path):
    class Skip(nn.Sequential):
        def forward(self, x):
            return x + super().forward(x)

    with pytest.raises(NotImplementedError, match=r"the network \(Skip\) computes something other than Sequential"):
        to_onnx(Skip(nn.ReLU()), tmp_path / "model.onnx", (2, 4))

    class Named(nn.Sequential):
        pass

    export(Named(nn.ReLU()), tmp_path / "model.onnx", (2, 4))


@pytest.mark.parametrize(("kind", "function"), [(3, print), (int, print), (nn.ReLU, None)])
def test_wrong_registrations(kind, function):
    with pytest.raises(TypeError, match="register_lowering"):
        register_lowering(kind, function)


# The path, and other bad input.


def test_a_path_that_cannot_be_written(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder; give the path of a file in it"):
        to_onnx(small(), tmp_path, (2, 4))
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        to_onnx(small(), tmp_path / "nowhere" / "model.onnx", (2, 4))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="there is no folder"):
        to_onnx(small(), tmp_path / "file" / "model.onnx", (2, 4))


def test_a_refusal_leaves_the_old_file(tmp_path):
    path = tmp_path / "model.onnx"
    to_onnx(small(), path, (2, 4))
    before = path.read_bytes()
    with pytest.raises(ShapeError, match=r"module '0' \(Linear\)"):
        to_onnx(small(), path, (2, 5))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


BAD = {
    "a number": ({"input_shape": 4}, TypeError, "input_shape is 4, expected whole numbers"),
    "a float": ({"input_shape": (2, 4.0)}, TypeError, "input_shape is"),
    "a free batch": ({"input_shape": (None, 4)}, TypeError, "expected whole numbers"),
    "no batch": ({"input_shape": (0, 4)}, ValueError, "sizes of at least 1"),
    "two shapes": ({"input_shape": [(2, 4), (2, 4)], "input_names": ["x"]}, ValueError, "2 input shapes"),
    "opset": ({"opset": 16}, ValueError, "opset is 16, expected 17 to 22"),
    "names": ({"output_names": ["a", "b"]}, ValueError, "has 2 names, the network 1 outputs"),
    "names twice": ({"input_names": ["a", "a"]}, ValueError, "expected distinct names"),
    "name of a weight": ({"input_names": ["0.weight"]}, ValueError, "'0.weight' names an input or output and a"),
    "one name for two": ({"input_names": ["x"], "output_names": ["x"]}, ValueError, "pass output_names="),
    "metadata": ({"metadata": {"epoch": 3}}, TypeError, "metadata has 'epoch': 3, expected strings"),
}


@pytest.mark.parametrize(("options", "error", "message"), rows(BAD))
def test_bad_options(options, error, message, tmp_path):
    with pytest.raises(error, match=message):
        to_onnx(small(), tmp_path / "model.onnx", **{"input_shape": (2, 4), **options})
    assert not list(tmp_path.iterdir())


def test_what_is_no_network(tmp_path):
    with pytest.raises(TypeError, match=r"network is a ndarray, expected a growarray\.nn\.Module"):
        to_onnx(np.ones(3), tmp_path / "model.onnx", (2, 4))


def test_too_many_inputs(tmp_path):
    with pytest.raises(TypeError, match=r"the network \(Sequential\) does not take 2 inputs"):
        to_onnx(small(), tmp_path / "model.onnx", [(2, 4), (2, 4)])


def test_nothing_is_warned_about_and_no_weight_is_unused(tmp_path, capfd):
    network = nn.Sequential(nn.Conv2d(2, 4, 3, rng=RNG), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3, rng=RNG))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export(network, tmp_path / "model.onnx", (2, 2, 6, 6))
    assert capfd.readouterr().err == ""  # onnxruntime writes there about initializers that no node takes
