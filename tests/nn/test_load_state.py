"""Loading a state dict: renaming, what fits and what does not, and nothing changed where it fails."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from growarray import nn
from growarray.backend import device_of, to_numpy
from growarray.checkpoint import Checkpoint, load_checkpoint
from growarray.errors import CheckpointError, ShapeError
from growarray.nn import LoadReport, Module, renamed
from tests.checkpoint.files import entry, rows, safetensors
from tests.conftest import Library, frozen


def state_of(layer: Module) -> dict[str, Any]:
    return dict(layer.state_dict())


def unchanged(layer: Module, before: Mapping[str, Any]) -> bool:
    return all(np.array_equal(value, before[name]) for name, value in layer.state_dict().items())


def saved(**arrays: Any) -> Checkpoint:
    """A checkpoint of these arrays, dots written as two underscores."""
    file = io.BytesIO()
    np.savez(file, **{name.replace("__", "."): value for name, value in arrays.items()})
    return load_checkpoint(io.BytesIO(file.getvalue()))


class Counted(dict[str, Any]):
    """A state that counts how often each name is read."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.read: list[str] = []

    def __getitem__(self, name: str) -> Any:
        self.read.append(name)
        return super().__getitem__(name)


# What fits.


def test_everything_fits() -> None:
    layer, other = nn.Linear(3, 2), nn.Linear(3, 2)
    report = layer.load_state_dict(other.state_dict())
    assert not report
    assert report == LoadReport(matched=("weight", "bias"))
    assert unchanged(layer, other.state_dict())


@pytest.mark.parametrize("kind", ["dict", "checkpoint", "npz"])
def test_lax_loading_takes_what_fits_in_the_layer_s_dtype(kind: str) -> None:
    layer = nn.Linear(3, 2)
    source = frozen([5.0, 6.0])
    state: Any = {"bias": source, "weight": np.ones(1)}
    if kind == "checkpoint":
        state = saved(**state)
    elif kind == "npz":
        file = io.BytesIO()
        np.savez(file, **state)
        state = np.load(io.BytesIO(file.getvalue()))
    report = layer.load_state_dict(state, strict=False)
    assert layer.bias is not None
    assert layer.bias.data.tolist() == [5.0, 6.0]
    assert layer.bias.data.dtype == np.float32
    assert not np.shares_memory(layer.bias.data, source)
    assert report.matched == ("bias",)
    assert [tuple(entry) for entry in report.misshapen] == [("weight", (1,), (2, 3))]
    assert list(map(tuple, report.casts)) == [("bias", "float64", "float32")]


def test_values_are_copies_even_without_a_cast() -> None:
    layer = nn.Linear(3, 2, dtype=np.float64)
    source = np.ones((2, 3))
    layer.load_state_dict({"weight": source, "bias": [1, 2]})
    source[:] = 7
    assert layer.weight.data.tolist() == [[1.0] * 3] * 2
    assert layer.bias is not None
    assert layer.bias.data.tolist() == [1.0, 2.0]


def test_each_tensor_is_read_once_and_only_those_that_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(3, 2)
    state = Counted({"weight": np.ones((2, 3)), "bias": np.ones(2), "extra": np.ones(9)})
    layer.load_state_dict(state, strict=False, rename={"extra": None})
    assert sorted(state.read) == ["bias", "weight"]

    checkpoint = saved(weight=np.ones((2, 3)), bias=np.ones(5), extra=np.ones(9))
    read: list[str] = []
    original = Checkpoint.__getitem__
    monkeypatch.setattr(Checkpoint, "__getitem__", lambda self, name: (read.append(name), original(self, name))[1])
    report = layer.load_state_dict(checkpoint, strict=False)
    assert read == ["weight"]
    assert report.unexpected == ("extra",)
    assert report.shapes["extra"] == (9,)
    with pytest.raises(KeyError):
        layer.load_state_dict(checkpoint)
    assert read == ["weight"]


def test_stored_types_are_those_of_the_file() -> None:
    data = safetensors({"weight": entry("BF16", [1, 2], 0, 4)}, np.array([0x3F80, 0xC000], "<u2").tobytes())
    layer = nn.Linear(2, 1, bias=False)
    report = layer.load_state_dict(load_checkpoint(io.BytesIO(data)))
    assert list(map(tuple, report.casts)) == [("weight", "bfloat16", "float32")]
    assert layer.weight.data.tolist() == [[1.0, -2.0]]


def test_arrays_of_ml_dtypes_are_taken() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    layer = nn.Linear(2, 1, bias=False)
    report = layer.load_state_dict({"weight": np.array([[1, -2]], ml_dtypes.bfloat16)})
    assert str(report) == (
        "1 matched, 1 casts: every name and shape agrees\n"
        "what  name    found     expected  remark\n"
        "cast  weight  bfloat16  float32"
    )
    assert layer.weight.data.tolist() == [[1.0, -2.0]]


@pytest.mark.parametrize("source", ["host", "own", "checkpoint"])
def test_every_library_keeps_its_arrays(xp: Library, source: str) -> None:
    layer = xp.adopt(nn.BatchNorm1d(2))
    weight, state = layer.weight.data, state_of(xp.adopt(nn.BatchNorm1d(2)))
    if source != "own":
        state = {name: to_numpy(value) for name, value in state.items()}
    state["weight"] = np.float64([3, 4]) if source != "own" else xp.asarray(np.float32([3, 4]))
    report = layer.load_state_dict(saved(**state) if source == "checkpoint" else state)
    assert [cast.name for cast in report.casts] == ([] if source == "own" else ["weight"])
    found = layer.weight.data
    assert (type(found), found.dtype, device_of(found)) == (type(weight), weight.dtype, device_of(weight))
    assert to_numpy(found).tolist() == [3.0, 4.0]
    assert int(layer.num_batches_tracked) == 0


TIED = {"head": "weight"}


def test_a_tied_name_is_found_without_its_prefix() -> None:
    tied = {"module.1.weight": "module.0.weight"}
    header = json.dumps({"module.0.weight": entry("F32", [1, 1], 0, 4), "__metadata__": tied}).encode()
    checkpoint = load_checkpoint(io.BytesIO(len(header).to_bytes(8, "little") + header + np.float32(3).tobytes()))
    network = nn.Sequential(*(nn.Linear(1, 1, bias=False) for _ in range(2)))
    assert not network.load_state_dict(checkpoint)
    assert [p.data.tolist() for p in network.parameters()] == [[[3.0]], [[3.0]]]


@pytest.mark.parametrize("rename", [None, {"head": "second.weight", "weight": "first.weight"}])
def test_a_name_that_the_file_calls_tied_is_found(rename: Any) -> None:
    header = json.dumps({"weight": entry("F32", [1, 2], 0, 8), "__metadata__": TIED}).encode()
    data = len(header).to_bytes(8, "little") + header + np.float32([3, 4]).tobytes()
    checkpoint = load_checkpoint(io.BytesIO(data))
    assert list(checkpoint) == ["weight"]
    if rename is None:
        assert not nn.Linear(2, 1, bias=False).load_state_dict(checkpoint)  # the alias is not unexpected
        return

    class Pair(Module):
        def __init__(self) -> None:
            self.first, self.second = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)

    pair = Pair()
    report = pair.load_state_dict(checkpoint, rename=rename)
    assert report.matched == ("first.weight", "second.weight")
    assert pair.second.weight.data.tolist() == [[3.0, 4.0]]


# What does not fit.


@pytest.mark.parametrize(
    ("state", "error", "message"),
    rows(
        {
            "missing": ({"weight": np.ones((2, 3))}, KeyError, "missing: bias; pass strict=False"),
            "unexpected": ({"weight": np.ones((2, 3)), "bias": np.ones(2), "x": 1}, KeyError, "unexpected: x;"),
            "misshapen": (
                {"weight": np.ones((2, 3)), "bias": np.ones(3)},
                ShapeError,
                r"misshapen: bias has shape \(3,\), expected \(2,\);",
            ),
            "transposed": (
                {"weight": np.ones((3, 2)), "bias": np.ones(2)},
                ShapeError,
                r"weight has shape \(3, 2\), expected \(2, 3\) \(transposed\?\)",
            ),
            "near": (
                {"weight": np.ones((2, 3)), "biases": np.ones(2)},
                KeyError,
                r"missing: bias \(near: biases\); unexpected: biases",
            ),
            "complex": (
                {"weight": np.ones((2, 3), np.complex64), "bias": np.ones(2)},
                TypeError,
                "refused casts: weight from complex64 to float32",
            ),
            "text": ({"weight": np.full((2, 3), "x"), "bias": np.ones(2)}, TypeError, "weight from str32 to float32"),
            "objects": ({"weight": np.full((2, 3), None), "bias": np.ones(2)}, TypeError, "from object to float32"),
        }
    ),
)
def test_strict_loading_raises_before_any_change(state: Any, error: type[Exception], message: str) -> None:
    layer = nn.Linear(3, 2)
    before = layer.state_dict()
    with pytest.raises(error, match=message) as raised:
        layer.load_state_dict(state)
    assert unchanged(layer, before)
    assert raised.value.__notes__[0].splitlines()[1].split() == ["what", "name", "found", "expected", "remark"]


@pytest.mark.parametrize(
    ("found", "expected", "fits"),
    rows(
        {
            "half": (np.float16, np.float64, True),
            "down": (np.float64, np.float16, True),
            "integer": (np.int64, np.float32, True),
            "bool": (np.bool_, np.float32, True),
            "to complex": (np.float64, np.complex64, True),
            "complex to real": (np.complex128, np.float64, False),
            "real to integer": (np.float32, np.int64, False),
            "real to bool": (np.float32, np.bool_, False),
            "small integer": (np.uint8, np.int64, True),
            "large integer": (np.int64, np.int32, False),
            "unsigned": (np.uint64, np.int64, False),
            "bytes": (np.bytes_, np.float32, False),
            "date": ("datetime64[s]", np.float32, False),
        }
    ),
)
def test_which_casts_are_done(found: Any, expected: Any, fits: bool) -> None:
    layer = nn.Linear(1, 1, bias=False, dtype=np.float64)
    layer.weight.data = np.zeros((1, 1), expected)
    state = {"weight": np.zeros((1, 1), found)}
    report = layer.load_state_dict(state, strict=False)
    assert report.matched == (("weight",) if fits else ())
    assert [cast.name for cast in (report.casts if fits else report.refused)] == ["weight"]
    assert bool(report) is not fits
    assert layer.weight.data.dtype == expected


def test_integers_in_the_counter_of_batches_stay_integers() -> None:
    layer = nn.BatchNorm1d(2)
    state = state_of(layer) | {"num_batches_tracked": np.float32(3)}
    with pytest.raises(TypeError, match="num_batches_tracked from float32 to int64"):
        layer.load_state_dict(state)
    layer.load_state_dict(state | {"num_batches_tracked": 3})
    assert int(layer.num_batches_tracked) == 3


class Failing(dict[str, Any]):
    """A state whose last tensor cannot be read, though its shape is known."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.stored = checkpoint.stored

    def __getitem__(self, name: str) -> Any:
        if name == "bias":
            raise CheckpointError("file: tensor 'bias': CRC-32 is 1, the file records 2")
        return super().__getitem__(name)


@pytest.mark.parametrize("strict", [True, False])
def test_nothing_changes_where_reading_fails_half_way(strict: bool) -> None:
    layer = nn.Linear(3, 2)
    before = layer.state_dict()
    state = Failing(saved(weight=np.ones((2, 3)), bias=np.ones(2)))
    with pytest.raises(CheckpointError, match="CRC-32") as raised:
        layer.load_state_dict(state, strict=strict)
    assert unchanged(layer, before)
    assert raised.value.__notes__ == ["while 'bias' was read for 'bias'; nothing has been changed"]


@pytest.mark.parametrize("state", [None, nn.Linear(1, 1), [("weight", 1)], "weights.pt"], ids=repr)
def test_what_is_no_state_is_refused(state: Any) -> None:
    with pytest.raises(TypeError, match="expected a mapping of names to arrays, found"):
        nn.Linear(1, 1).load_state_dict(state)


def test_keys_that_are_no_names_are_refused() -> None:
    with pytest.raises(TypeError, match="expected names, found 0 as a key"):
        nn.Linear(1, 1).load_state_dict({0: np.ones(1)}, strict=False)  # type: ignore[dict-item]
    for rename in ({"a.": "b."}, {"": "b."}, str.upper):
        with pytest.raises(TypeError, match="expected names, found 0 as a key"):
            nn.Linear(1, 1).load_state_dict({0: np.ones(1)}, rename=rename)  # type: ignore[dict-item]


def test_a_ragged_list_is_refused_with_its_name() -> None:
    with pytest.raises(ValueError, match="inhomogeneous") as raised:
        nn.Linear(1, 2).load_state_dict({"weight": [[1.0], [2.0, 3.0]], "bias": [0, 0]})
    assert "the value of 'weight' is a list" in raised.value.__notes__[0]


# Renaming.


@pytest.mark.parametrize(
    ("rename", "expected"),
    rows(
        {
            "nothing": (None, {"a.w": "a.w", "a.b.w": "a.b.w", "c": "c"}),
            "name": ({"c": "d"}, {"a.w": "a.w", "a.b.w": "a.b.w", "d": "c"}),
            "prefix": ({"a.": "x."}, {"x.w": "a.w", "x.b.w": "a.b.w", "c": "c"}),
            "prefix off": ({"a.": ""}, {"w": "a.w", "b.w": "a.b.w", "c": "c"}),
            "longer prefix first": ({"a.": "x.", "a.b.": "y."}, {"x.w": "a.w", "y.w": "a.b.w", "c": "c"}),
            "name before prefix": ({"a.": "x.", "a.w": "z"}, {"z": "a.w", "x.b.w": "a.b.w", "c": "c"}),
            "once": ({"a.": "c.", "c.": "d.", "c": "e"}, {"c.w": "a.w", "c.b.w": "a.b.w", "e": "c"}),
            "left out": ({"a.": None}, {"c": "c"}),
            "one part alone": ({"a.b.": "", "": None}, {"w": "a.b.w"}),
            "before all": ({"": "m."}, {"m.a.w": "a.w", "m.a.b.w": "a.b.w", "m.c": "c"}),
            "swap": ({"a.w": "c", "c": "a.w"}, {"c": "a.w", "a.b.w": "a.b.w", "a.w": "c"}),
            "function": (lambda name: None if name == "c" else name.upper(), {"A.W": "a.w", "A.B.W": "a.b.w"}),
        }
    ),
)
def test_renamed(rename: Any, expected: dict[str, str]) -> None:
    assert renamed(["a.w", "a.b.w", "c"], rename).old == expected


@pytest.mark.parametrize(
    ("rename", "error", "message"),
    rows(
        {
            "collision": ({"a.": "b."}, ValueError, "'a.w' and 'b.w' both become 'b.w'"),
            "collision of a function": (lambda name: "x", ValueError, "'a.w' and 'b.w' both become 'x'"),
            "dot lost": ({"a.": "x"}, ValueError, r"'a\.' is a prefix, so expected 'x\.', found 'x'"),
            "dot lost before all": ({"": "x"}, ValueError, r"every name, so expected 'x\.'"),
            "number": ({"a.w": 1}, TypeError, "expected names, found 'a.w': 1"),
            "function gives bytes": (str.encode, TypeError, "'a.w' became bytes; expected a name, or None"),
            "text": ("a.", TypeError, "expected a mapping of names or a function, found str"),
        }
    ),
)
def test_renamings_that_are_refused(rename: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        renamed(["a.w", "b.w"], rename)
    layer = nn.Linear(1, 1)
    before = layer.state_dict()
    with pytest.raises(error):
        layer.load_state_dict({"a.w": 1, "b.w": 2}, rename=rename, strict=False)
    assert unchanged(layer, before)


def test_loading_under_other_names() -> None:
    layer = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    source = nn.Linear(3, 2)
    state = {f"backbone.fc.{name}": value for name, value in source.state_dict().items()} | {"head.weight": np.ones(1)}
    report = layer.load_state_dict(state, rename={"backbone.fc.": "0.", "head.": None, "typo.": "x."})
    assert not report
    assert report.matched == ("0.weight", "0.bias")
    assert str(report).splitlines()[-1] == "rename: 'typo.' applies to no name"
    assert np.array_equal(layer.state_dict()["0.weight"], source.state_dict()["weight"])


def test_a_state_may_be_any_mapping() -> None:
    class Lazy(Mapping[str, Any]):
        def __getitem__(self, name: str) -> Any:
            return {"weight": np.ones((2, 3)), "bias": np.ones(2)}[name]

        def __iter__(self) -> Iterator[str]:
            return iter(["weight", "bias"])

        def __len__(self) -> int:
            return 2

    assert not nn.Linear(3, 2).load_state_dict(Lazy())
