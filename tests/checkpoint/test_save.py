"""Files that are written: read back here and by their own libraries, bit for bit, or not there at all."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from growarray import nn
from growarray.checkpoint import load_checkpoint, save_npz, save_safetensors
from tests.checkpoint.files import rows
from tests.conftest import frozen

DTYPES = ["bool", "float16", "float32", "float64", "complex64"]
DTYPES += [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
WRITERS = {".safetensors": save_safetensors, ".npz": save_npz}

each_writer = pytest.mark.parametrize("suffix", WRITERS)


def with_package(path: Path) -> dict[str, np.ndarray]:
    """What the format's own library reads."""
    if path.suffix == ".npz":
        with np.load(path) as found:
            return dict(found)
    return pytest.importorskip("safetensors.numpy").load_file(path)


def examples() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {f"of.{name}": rng.integers(0, 2, (2, 3)).astype(name) for name in DTYPES}
    return arrays | {
        "scalar": np.array(3.5, np.float32),
        "empty": np.empty((2, 0), np.int16),
        "transposed": np.arange(12.0).reshape(3, 4).T,
        "sliced": np.arange(12, dtype=np.int8)[::3],
        "big-endian": np.arange(3, dtype=">i4"),
        "frozen": frozen([1.0, 2.0]),
        'nän·尺 "q" \\n': np.ones(1, np.uint8),
        "special": np.array([np.nan, -0.0, np.inf]),
    }


@each_writer
def test_what_is_written_is_read_back(tmp_path, suffix):
    arrays = examples()
    if suffix == ".npz":
        arrays = {name: array for name, array in arrays.items() if "\\" not in name}
    path = tmp_path / f"w{suffix}"
    assert WRITERS[suffix](arrays, path) == ()
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    ours, theirs = load_checkpoint(path), with_package(path)
    assert list(ours) == list(arrays)
    assert set(theirs) == set(arrays)
    for name, array in arrays.items():
        native = array.astype(array.dtype.newbyteorder("="))
        np.testing.assert_array_equal(ours[name], native, strict=True)
        np.testing.assert_array_equal(theirs[name], native, strict=True)


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda name: name != "__metadata__"),
        hnp.arrays(st.sampled_from(DTYPES), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)),
        max_size=6,
    )
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_names_and_shapes(tmp_path, arrays):
    path = tmp_path / "w.safetensors"
    save_safetensors(arrays, path)
    ours, theirs = load_checkpoint(path), with_package(path)
    assert list(ours) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(ours[name], array, strict=True)
        assert theirs[name].tobytes() == array.tobytes()


def test_the_header_is_aligned_and_so_is_every_tensor(tmp_path):
    path = tmp_path / "w.safetensors"
    save_safetensors({"a": np.ones(3, np.int8), "b": np.ones(2), "c": np.ones(1, np.float16)}, path, {"k": "v"})
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    header = json.loads(data[8 : 8 + length])
    assert list(header) == ["__metadata__", "a", "b", "c"]
    assert {name: header[name]["data_offsets"] for name in "abc"} == {"a": [18, 21], "b": [0, 16], "c": [16, 18]}
    assert header["__metadata__"] == {"k": "v"}
    assert load_checkpoint(path).metadata == {"k": "v"}


def test_types_of_ml_dtypes(tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    names = ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"]
    arrays = {name: np.array([[1.0, 2.0, 0.5]]).astype(getattr(ml_dtypes, name)) for name in names}
    path = tmp_path / "w.safetensors"
    save_safetensors(arrays, path)
    found = load_checkpoint(path, ml_dtypes=True)
    for name in names:
        assert found.stored[name].dtype.name == name
        assert found[name].dtype == arrays[name].dtype
        assert found[name].tobytes() == arrays[name].tobytes()
    assert set(pytest.importorskip("safetensors").deserialize(path.read_bytes())[0][1]) == {"dtype", "shape", "data"}
    with pytest.raises(TypeError, match="'bfloat16' has the dtype bfloat16, which npz does not have"):
        save_npz(arrays, tmp_path / "w.npz")


class Once(Mapping[str, np.ndarray]):
    """Arrays that are made when they are asked for; counts how many are alive."""

    def __init__(self):
        self.asked = []

    def __getitem__(self, name):
        self.asked.append(name)
        return np.full(4, float(name))

    def __iter__(self):
        return iter("123")

    def __len__(self):
        return 3


@each_writer
def test_a_lazy_mapping_is_asked_twice_for_each_array(tmp_path, suffix):
    arrays = Once()
    assert WRITERS[suffix](arrays, tmp_path / f"w{suffix}") == ()
    assert arrays.asked == ["1", "2", "3"] * 2
    assert load_checkpoint(tmp_path / f"w{suffix}")["2"].tolist() == [2.0] * 4


@each_writer
def test_a_checkpoint_or_a_state_dict_is_written(tmp_path, suffix):
    layer = nn.Linear(3, 2)
    first, second = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    WRITERS[suffix](layer.state_dict(), first)
    WRITERS[suffix](load_checkpoint(first), second)
    assert first.read_bytes() == second.read_bytes()
    assert not nn.Linear(3, 2).load_state_dict(load_checkpoint(second))


@each_writer
def test_shared_arrays_are_noted_and_written_in_full(tmp_path, suffix):
    shared = np.ones((2, 2))
    arrays = {"a": shared, "b": shared, "c": shared.T, "d": np.ones((2, 2)), "e": shared[:1]}
    notes = WRITERS[suffix](arrays, tmp_path / f"w{suffix}")
    assert notes == ("a, b share one array; it was written under each of the names",)
    assert {array.shape for array in load_checkpoint(tmp_path / f"w{suffix}").values()} == {(2, 2), (1, 2)}


@each_writer
@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    rows(
        {
            "objects": ({"a": np.ones(1), "w": np.array([None])}, TypeError, "'w' has the dtype object"),
            "text": ({"w": np.array(["x"])}, TypeError, "'w' has the dtype <U1"),
            "records": ({"w": np.zeros(1, "f4,i4")}, TypeError, "'w' has the dtype"),
            "dates": ({"w": np.zeros(1, "M8[s]")}, TypeError, r"datetime64\[s\]"),
            "long double": ({"w": np.zeros(1, np.longdouble)}, TypeError, "'w' has the dtype"),
            "ragged": ({"w": [[1], [2, 3]]}, TypeError, "'w' is not an array"),
            "dictionary": ({"w": {"a": 1}}, TypeError, "'w'"),
            "number as name": ({1: np.ones(1)}, TypeError, "expected strings as names, found 1"),
            "lone surrogate": ({"\ud800": np.ones(1)}, ValueError, "lone surrogate"),
            "no mapping": ([np.ones(1)], TypeError, "expected a mapping of names to arrays, found list"),
        }
    ),
)
def test_what_cannot_be_written_leaves_the_file_as_it_was(tmp_path, suffix, arrays, error, message):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(b"before")
    with pytest.raises(error, match=message):
        WRITERS[suffix](arrays, path)
    assert path.read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 1


class Failing(Once):
    """A mapping whose last array cannot be read a second time."""

    def __getitem__(self, name):
        if self.asked.count("3") == 1 and name == "3":
            raise OSError("disk is gone")
        return super().__getitem__(name)


class Changing(Once):
    """A mapping whose arrays grow between the two times that they are read."""

    def __getitem__(self, name):
        return np.ones(len(self.asked) + len(super().__getitem__(name)))


@each_writer
@pytest.mark.parametrize(
    ("arrays", "error", "message"), [(Failing, OSError, "disk is gone"), (Changing, ValueError, "it must not change")]
)
def test_a_failure_half_way_leaves_nothing(tmp_path, suffix, arrays, error, message):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(b"before")
    with pytest.raises(error, match=message):
        WRITERS[suffix](arrays(), path)
    assert path.read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 1


@each_writer
def test_paths_that_cannot_be_written(tmp_path, suffix):
    with pytest.raises(IsADirectoryError, match="found a folder"):
        WRITERS[suffix]({"w": np.ones(1)}, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*no; make it first"):
        WRITERS[suffix]({"w": np.ones(1)}, tmp_path / "no" / "w")
    long = tmp_path / ("w" * 250)  # the name that it is written under is longer, and too long
    with pytest.raises(OSError, match=re.escape(f"{long}: cannot be written (File name too long)")):
        WRITERS[suffix]({"w": np.ones(1)}, long)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("metadata", "error", "message"),
    rows(
        {
            "number": ({"epoch": 3}, TypeError, r"metadata holds 'epoch': 3; expected strings, such as str\(value\)"),
            "key": ({3: "epoch"}, TypeError, "metadata holds 3"),
            "lone surrogate": ({"a": "\ud800"}, ValueError, "metadata 'a'.* lone surrogate"),
        }
    ),
)
def test_metadata_that_is_refused(tmp_path, metadata, error, message):
    with pytest.raises(error, match=message):
        save_safetensors({"w": np.ones(1)}, tmp_path / "w.safetensors", metadata)
    assert list(tmp_path.iterdir()) == []


def test_names_that_a_format_cannot_have(tmp_path):
    with pytest.raises(ValueError, match="'__metadata__' cannot name an array"):
        save_safetensors({"__metadata__": np.ones(1)}, tmp_path / "w.safetensors")
    with pytest.raises(TypeError, match="'w' has the dtype complex128, which safetensors does not have"):
        save_safetensors({"w": np.ones(1, complex)}, tmp_path / "w.safetensors")
    for name in ("../w", "/w", "a\\b", "a//b", "a\nb"):
        with pytest.raises(ValueError, match="not a plain relative path"):
            save_npz({name: np.ones(1)}, tmp_path / "w.npz")
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_write_is_a_file_too(tmp_path):
    save_safetensors({}, tmp_path / "w.safetensors")
    assert len(load_checkpoint(tmp_path / "w.safetensors")) == 0
    assert with_package(tmp_path / "w.safetensors") == {}


def test_no_arrays_make_no_npz_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="save_npz: there are no arrays"):
        save_npz({}, tmp_path / "w.npz")
    assert not list(tmp_path.iterdir())
