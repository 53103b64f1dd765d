"""A network in one file: saved and loaded it is the same, to the last bit, and what is not so is refused by name."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import growarray
from growarray import nn
from growarray.checkpoint import load_checkpoint, save_safetensors
from growarray.checkpoint.structure import saved_classes
from growarray.errors import CheckpointError
from growarray.networks import GrowingMLP, Growth, History
from growarray.networks.scale import Scale
from growarray.nn import Module, Parameter
from growarray.optim import SGD, Adam, AdamW, Optimizer
from tests.checkpoint.networks import LABELS, NETWORKS, X, graph, grown, rng
from tests.nn.layers import EXAMPLES
from tests.onnx.models import CASES, feeds

PLANS = {"update", "trace_precision", "extended_output_layer", "recorder", "statistics", "selected", "common_scaling"}
SCALES = {"optimal_delta_scaling", "input_extension_scaling", "output_extension_scaling"}
NOT_KEPT = PLANS | SCALES | {"training", "_kind"}
Pairs = set[tuple[int, int]]


def assert_same(a: Any, b: Any, seen: Pairs | None = None, place: str = "") -> None:
    """Both are alike in class, attributes and values, and share what they share alike."""
    seen = set() if seen is None else seen
    if (id(a), id(b)) in seen:
        return
    seen.add((id(a), id(b)))
    assert type(a) is type(b), place
    if isinstance(a, np.ndarray):
        assert a.dtype == b.dtype, place
        np.testing.assert_array_equal(a, b, err_msg=place)
    elif isinstance(a, np.random.Generator):
        assert a.bit_generator.state == b.bit_generator.state, place
    elif isinstance(a, dict):
        assert list(a) == list(b), place
        for key in a:
            assert_same(a[key], b[key], seen, f"{place}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), place
        for i, (one, other) in enumerate(zip(a, b, strict=True)):
            assert_same(one, other, seen, f"{place}.{i}")
    elif isinstance(a, Parameter):
        assert_same(a.data, b.data, seen, f"{place}.data")
        assert a.requires_grad == b.requires_grad, place
    elif hasattr(a, "__dict__"):
        assert getattr(a, "training", None) == getattr(b, "training", None), place
        kept = [{k: v for k, v in sorted(vars(x).items()) if k not in NOT_KEPT} for x in (a, b)]
        assert_same(*kept, seen, place)
    else:
        assert a == b or (a != a and b != b), place


def through(value: Any, folder: Path) -> Any:
    growarray.save(value, folder / "network.safetensors")
    return growarray.load(folder / "network.safetensors")


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_the_same_to_the_last_bit(name: str, tmp_path: Path) -> None:
    network, shape = NETWORKS[name]()
    x = np.random.default_rng(1).standard_normal(shape).astype(next(iter(network.parameters()), x64()).data.dtype)
    again = through(network, tmp_path)
    assert_same(network, again)
    np.testing.assert_array_equal(again.predict(x), network.predict(x))
    assert list(again.state_dict()) == list(network.state_dict())
    assert {id(p) for p in again.parameters()}.isdisjoint({id(p) for p in network.parameters()})
    names = set(load_checkpoint(tmp_path / "network.safetensors"))
    assert names >= {name for name, p in network.named_parameters() if not shared(network, p)}


def x64() -> Parameter:
    return Parameter(np.zeros(1))


def shared(network: Module, parameter: Parameter) -> bool:
    return sum(p is parameter for _, p in network.named_parameters()) > 1


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_layer_is_the_same_to_the_last_bit(name: str, tmp_path: Path) -> None:
    example = EXAMPLES[name]
    layer = example.build()
    again = through(layer, tmp_path)
    assert_same(layer, again)
    x = np.abs(np.random.default_rng(1).standard_normal(example.shape)) + 0.2
    np.testing.assert_array_equal(again.eval()(x), layer.eval()(x))


@pytest.mark.parametrize("name", CASES)
def test_a_graph_of_onnx_is_the_same_to_the_last_bit(name: str, tmp_path: Path) -> None:
    network, inputs = graph(name), feeds(CASES[name].made)
    again = through(network, tmp_path)
    assert_same(network, again)
    for output, value in network.run(inputs).items():
        np.testing.assert_array_equal(again.run(inputs)[output], value)


def test_every_module_of_the_library_can_be_saved() -> None:
    def below(kind: type) -> set[type]:
        return {kind, *(inner for sub in kind.__subclasses__() for inner in below(sub))}

    known = set(saved_classes().values())
    library = {kind for kind in below(Module) | below(Optimizer) if kind.__module__.startswith("growarray.")}
    own = {kind for kind in library if ".cli." not in kind.__module__ and kind.__name__ != "Compiled"}
    missing = {k.__qualname__ for k in own - known if not k.__name__.startswith("_") and not k.__subclasses__()}
    assert missing == set()
    assert not any(inspect.isabstract(kind) for kind in known)


@pytest.mark.parametrize(
    "make",
    [lambda n: SGD(n, 0.1, momentum=0.9, nesterov=True), Adam, lambda n: AdamW(n, betas=(0.8, 0.9), amsgrad=True)],
    ids=["sgd", "adam", "adamw"],
)
def test_an_optimizer_goes_on_as_if_nothing_had_come_between(make: Callable[..., Any], tmp_path: Path) -> None:
    def step(network: Module, optimizer: Any) -> None:
        y, back = network.vjp(X)
        optimizer.zero_grad()
        back(y)
        optimizer.step()

    network = grown().network
    optimizer = make(network)
    for _ in range(2):
        step(network, optimizer)
    again = through({"network": network, "optimizer": optimizer}, tmp_path)
    for _ in range(2):
        step(network, optimizer)
        step(again["network"], again["optimizer"])
    assert_same(network.state_dict(), again["network"].state_dict())
    assert_same(optimizer.state_dict(), again["optimizer"].state_dict())


def test_a_run_goes_on_as_if_nothing_had_come_between(tmp_path: Path) -> None:
    loop = grown(epochs=6)
    saved = {"network": loop.network, "optimizer": loop.optimizer, "loop": loop.state(), "history": loop.history}
    found = through(saved, tmp_path)
    assert found["history"].steps == loop.history.steps
    again = Growth(found["network"], found["optimizer"], (X, LABELS), settings=loop.settings, rng=rng())
    again.load_state(found["loop"])
    again.run(until=5)
    loop.run(until=5)
    assert again.history.steps == loop.history.steps
    assert_same(loop.network.state_dict(), again.network.state_dict())
    assert isinstance(found["history"], History)


def test_a_network_alone_has_no_slots(tmp_path: Path) -> None:
    again = through(grown().network, tmp_path)
    assert all(p.slots == {} and p.grad is None for p in again.parameters())


def test_a_loaded_network_grows_on(tmp_path: Path) -> None:
    again = through(grown().network, tmp_path)
    before = list(again.widths)
    again.init_computation()
    y, back = again.vjp(X)
    back(y - 1.0)
    again.update_computation()
    again.compute_optimal_updates(max_new=1)
    again.select_best_update()
    again.apply_change(scaling_factor=0.1)
    assert sum(again.widths) == sum(before) + 1


def test_plain_data_and_arrays_come_back_as_they_were(tmp_path: Path) -> None:
    data = {
        "numbers": [0, -1, 2**127, 0.1, -0.0, float("inf"), float("nan"), True, None],
        "nested": {("a", 1): [(), {}], "text": '\u00e9 " \\ '},
        "array": np.arange(6.0).reshape(2, 3)[:, ::2],
        "scalar": np.float32(0.5),
    }
    network = nn.Linear(2, 2, rng=rng())
    found = through({"network": network, **data, "again": network}, tmp_path)
    assert found["again"] is found["network"]
    assert_same({**data, "scalar": 0.5}, {name: found[name] for name in data})


def test_a_class_of_the_user_is_refused_by_name(tmp_path: Path) -> None:
    class Own(Module):
        pass

    class Mine(nn.Linear):
        pass

    for layer in (Own(), Mine(2, 2)):
        with pytest.raises(TypeError, match=rf"save: value\.layers\.1 is .*{type(layer).__name__}.*save_safetensors"):
            growarray.save(nn.Sequential(nn.ReLU(), layer), tmp_path / "network.safetensors")
    with pytest.raises(TypeError, match="expected a network"):
        growarray.save([nn.ReLU()], tmp_path / "network.safetensors")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def parts(folder: Path, value: Any = None) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The document and the arrays of a file."""
    path = folder / "network.safetensors"
    growarray.save(nn.Sequential(nn.Linear(3, 2), nn.ReLU(0.5)) if value is None else value, path)
    found = load_checkpoint(path, mmap=False)
    return json.loads(found.metadata["growarray"]), dict(found)


def written(folder: Path, document: Any, arrays: dict[str, np.ndarray]) -> Path:
    text = document if isinstance(document, str) else json.dumps(document)
    save_safetensors(arrays, folder / "hostile.safetensors", {"growarray": text})
    return folder / "hostile.safetensors"


def put(path: str, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    """A change of one entry of the document, named by its keys."""

    def change(document: Any, arrays: dict[str, Any]) -> None:
        *keys, last = (int(key) if key.isdecimal() else key for key in path.split("/"))
        for key in keys:
            document = document[key]
        if value is ...:
            del document[last]
        else:
            document[last] = value

    return change


def array(name: str, value: np.ndarray | None) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(document: Any, arrays: dict[str, Any]) -> None:
        if value is None:
            del arrays[name]
        else:
            arrays[name] = value

    return change


# objects of the file: 0 and 1 parameters, 2 Linear, 3 ReLU, 4 Sequential
HOSTILE: dict[str, tuple[Callable[..., None], str]] = {
    "a later version": (put("version", 2), "is of version 2 of the format; this growarray reads version 1"),
    "no version": (put("version", ...), "is of version None"),
    "no objects": (put("objects", ...), "has the objects None"),
    "objects that are none": (put("objects/2", [1]), "object 2: is a list of 1; expected class"),
    "a further entry": (put("objects/2/code", "x"), "object 2: is a dict of 3"),
    "a class of Python": (put("objects/3/class", "builtins.eval"), "class 'builtins.eval', which is none"),
    "a class of the system": (put("objects/3/class", "os.system"), "class 'os.system', which is none"),
    "a module of ours": (put("objects/3/class", "backend.numpy"), "class 'backend.numpy', which is none"),
    "a path in place of a class": (put("objects/3/class", "nn.Linear.__init__"), "which is none"),
    "a class that is no text": (put("objects/3/class", ["nn.ReLU"]), "class a list of 1"),
    "another class": (put("objects/3/class", "nn.Linear"), "object 3: nn.Linear: cannot be made"),
    "an argument too many": (put("objects/3/saved/__class__", 1), "object 3: nn.ReLU: cannot be made"),
    "a method": (put("objects/3/saved/vjp", 1), "object 3: nn.ReLU: cannot be made"),
    "an argument too few": (put("objects/2/saved/weight", ...), "object 2: nn.Linear: cannot be made"),
    "text for a number": (put("objects/3/saved/at_zero", "0"), "has at_zero='0'; expected float"),
    "a number for an object": (put("objects/4/saved/layers", [1]), "Sequential: entry 0 is a int"),
    "an object that comes later": (put("objects/2/saved/weight", {"object": 4}), "needs object 4"),
    "itself": (put("objects/4/saved/layers", [{"object": 4}]), "needs object 4, which is not among the 4 before it"),
    "a negative object": (put("value", {"object": -1}), "value: needs object -1"),
    "a kind that is none": (put("value", {"eval": "1"}), "value: has a value of the kind 'eval'"),
    "a reader's own name": (put("value", {"_made": {}}), "has a value of the kind '_made'"),
    "two kinds": (put("value", {"object": 4, "int": "1"}), "has a dict of 2"),
    "a number that is none": (put("value", {"int": "0x10"}), "is no int"),
    "a number without an end": (put("value", {"int": "9" * 10_000}), "is no int"),
    "a generator of ours": (
        put("value", {"generator": {"dict": [["bit_generator", "default_rng"]]}}),
        "has the generator 'default_rng'",
    ),
    "a key that is a list": (put("value", {"dict": [[[], 1]]}), "is no dict"),
    "links of a layer that has none": (put("objects/2/linked", {"next": None}), "is linked by a dict of 1"),
    "an array that is not there": (array("0.weight", None), "object 0: nn.Parameter: has a value that is no array"),
    "an array too many": (array("further", np.ones(3)), "array 'further' belongs to no object"),
    "an array of another shape": (array("0.bias", np.ones(3)), r"weight and bias have shapes \[\(2, 3\), \(3,\)\]"),
    "an array of more axes": (array("0.weight", np.ones((2, 3, 1))), "weight and bias have shapes"),
    "deep lists": (put("value", "deep"), "nested too deeply"),
    "no JSON": (put("value", "cut"), "JSON is damaged"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_by_name(name: str, tmp_path: Path) -> None:
    change, message = HOSTILE[name]
    document, arrays = parts(tmp_path)
    change(document, arrays)
    text = json.dumps(document)
    text = text.replace('"deep"', "[" * 20_000 + "]" * 20_000) if name == "deep lists" else text
    text = text[:-9] if name == "no JSON" else text
    with pytest.raises(CheckpointError, match=rf"hostile\.safetensors: .*{message}"):
        growarray.load(written(tmp_path, text, arrays))


def test_widths_that_do_not_fit_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    document, arrays = parts(tmp_path, GrowingMLP(4, 3, hidden_size=5))
    arrays["layers.1.layer.weight"] = np.ones((3, 6), dtype=np.float32)
    with pytest.raises(CheckpointError, match=r"GrowingMLP: parts that give widths \[4, 5, 3\] are followed by"):
        growarray.load(written(tmp_path, document, arrays))
    document, arrays = parts(tmp_path, nn.Sequential(nn.BatchNorm1d(4), Scale([1.0], [2.0])))
    (norm,) = (entry for entry in document["objects"] if entry["class"] == "nn.BatchNorm1d")
    norm["saved"]["num_features"] = 10**15
    with pytest.raises(CheckpointError, match=r"BatchNorm1d: weight has shape \(4,\), expected \(1000000000000000,\)"):
        growarray.load(written(tmp_path, document, arrays))


def test_a_file_that_is_cut_at_any_place_is_refused(tmp_path: Path) -> None:
    growarray.save(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    for end in [0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1]:
        (tmp_path / "cut").write_bytes(whole[:end])
        with pytest.raises(CheckpointError, match="cut: "):
            growarray.load(tmp_path / "cut")


def test_random_changes_are_refused_or_read(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    growarray.save(grown().network, tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    size = int.from_bytes(whole[:8], "little")
    for _ in range(300):
        changed = bytearray(whole)
        for place in draw.integers(8, 8 + size, size=3):
            changed[place] = draw.integers(32, 127)
        (tmp_path / "changed").write_bytes(changed)
        with suppress(CheckpointError):  # and nothing else
            growarray.load(tmp_path / "changed")


def test_files_of_other_kinds_are_refused_with_what_reads_them(tmp_path: Path) -> None:
    save_safetensors({"w": np.ones(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"holds no network.*kind safetensors\); load_checkpoint reads weights"):
        growarray.load(tmp_path / "weights.safetensors")
    np.savez(tmp_path / "weights.npz", w=np.ones(2))
    with pytest.raises(CheckpointError, match=r"holds no network.*kind npz"):
        growarray.load(tmp_path / "weights.npz")
    with pytest.raises(CheckpointError, match=r"nowhere.safetensors: there is no such file or folder"):
        growarray.load(tmp_path / "nowhere.safetensors")
