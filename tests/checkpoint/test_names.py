"""Flat names of a structure: the part that is taken, the prefixes that come off, and what is left over."""

import io
from dataclasses import replace

import pytest

from growarray.checkpoint import Limits, load_checkpoint
from growarray.checkpoint.names import strip_prefixes
from growarray.errors import CheckpointError
from growarray.files.errors import Malformed
from tests.checkpoint.files import SIX, WEIGHT, Raw, op, ordered, pickled, rows, simple_zip, torch_zip


def load(root, **options):
    return load_checkpoint(io.BytesIO(torch_zip(root, {"0": SIX})), **options)


STATE = ordered({"a": WEIGHT, "b": WEIGHT})
NESTED = {"epoch": 3, "model": STATE, "optimizer": {"state": {0: {"m": WEIGHT}}, "lr": 0.1}}


@pytest.mark.parametrize(
    ("root", "names", "extras"),
    rows(
        {
            "flat": (STATE, ["a", "b"], {}),
            "flat with a value": (ordered({"a": WEIGHT, "n": 3}), ["a"], {"n": 3}),
            "model and epoch": ({"epoch": 3, "model": STATE}, ["a", "b"], {"epoch": 3}),
            "random state beside it": ({"rng": WEIGHT, "model": STATE}, ["a", "b"], {"rng": ...}),
            "the only part": ({"whatever": STATE, "n": 1}, ["a", "b"], {"n": 1}),
            "state in a model": ({"model": {"state_dict": STATE, "n": 1}}, ["a", "b"], {"model": {"n": 1}}),
            "value in the model": ({"model": {"w": WEIGHT, "n": 1}}, ["w"], {"model": {"n": 1}}),
            "two unknown parts": ({"g": STATE, "d": {"x": WEIGHT}, "n": 1}, ["g.a", "g.b", "d.x"], {"n": 1}),
            "list": ([WEIGHT, {"x": WEIGHT}, 5], ["0", "1.x"], {"2": 5}),
            "bare": (WEIGHT, ["tensor"], {}),
            "no tensors": ({"a": 1, "b": [2]}, [], {"a": 1, "b": [2]}),
            "numbers as keys": ({0: WEIGHT, (1, 2): WEIGHT}, ["0", "(1, 2)"], {}),
        }
    ),
)
def test_selection(root, names, extras):
    checkpoint = load(root)
    assert list(checkpoint) == names
    assert {key: ... if key == "rng" else value for key, value in checkpoint.extras.items()} == extras


def test_a_nested_checkpoint():
    checkpoint = load(NESTED)
    assert list(checkpoint) == ["a", "b"]
    assert checkpoint.notes == (
        "weights were taken from 'model'; tensors are also in 'optimizer' (pass select= to take those)",
    )
    assert checkpoint.extras["epoch"] == 3
    assert checkpoint.extras["optimizer"]["state"][0]["m"].shape == (2, 3)
    assert list(checkpoint.tree) == ["epoch", "model", "optimizer"]


def test_select():
    assert list(load(NESTED, select="optimizer")) == ["state.0.m"]
    checkpoint = load(NESTED, select=("optimizer", "state", 0))
    assert list(checkpoint) == ["m"]
    assert checkpoint.extras["optimizer"]["lr"] == 0.1
    both = load({"nets": [STATE, ordered({"c": WEIGHT})], "n": 1}, select=("nets", 1))
    assert list(both) == ["c"]
    assert both.extras["n"] == 1
    assert list(both.extras["nets"][0]) == ["a", "b"]
    assert list(load([STATE, STATE], select=1)) == ["a", "b"]
    assert list(load({"1": {"x": WEIGHT}, 1: STATE}, select="1")) == ["x"]  # the text itself goes first
    assert list(load([{}, STATE], select="1")) == ["a", "b"]
    assert list(load({"w": WEIGHT, "n": 1}, select="w")) == ["tensor"]
    with pytest.raises(CheckpointError, match=r"select=\('epoch',\): there is 3, which has no tensors"):
        load(NESTED, select="epoch")
    with pytest.raises(CheckpointError, match=r"select=\('nope',\): there is no 'nope'; keys there: 'epoch', 'model'"):
        load(NESTED, select="nope")


def test_every_other_part_with_tensors_is_named():
    (note,) = load({"model": STATE, "averaged": [STATE], "log": [1.0]}).notes
    assert note == "weights were taken from 'model'; tensors are also in 'averaged' (pass select= to take those)"


def test_names_that_would_be_one():
    with pytest.raises(CheckpointError, match=r"two tensors would be called 'x.0'; pass select="):
        load({"x": {0: WEIGHT, "0": WEIGHT}, "y": {"w": WEIGHT}})


@pytest.mark.parametrize(
    ("names", "prefix", "expected", "taken"),
    [
        (["module.a", "module.b"], None, ["a", "b"], "module."),
        (["_orig_mod.module.a"], None, ["a"], "_orig_mod.module."),
        (["module.a", "b"], None, ["module.a", "b"], ""),
        (["module.a", "module.b"], (), ["module.a", "module.b"], ""),
        (["x.a", "b"], "x.", ["a", "b"], "x."),
        (["layer._orig_mod.a", "b"], None, ["layer.a", "b"], "…_orig_mod."),
        (["module."], None, ["module."], ""),
        ([], None, [], ""),
    ],
)
def test_prefixes(names, prefix, expected, taken):
    renamed, found = strip_prefixes(names, prefix)
    assert list(renamed.values()) == expected
    assert found == taken


@pytest.mark.parametrize(
    ("names", "prefix"),
    [(["a", "module.a"], None), (["a", "x.a"], "x."), (["l._orig_mod.a", "l.a"], None)],
)
def test_names_that_collide_without_their_prefix(names, prefix):
    with pytest.raises(Malformed, match=r"names collide without their prefix: .* pass prefix=\(\)"):
        strip_prefixes(names, prefix)
    assert list(strip_prefixes(names, ())[0]) == names


def test_the_prefix_is_reported_and_the_tree_keeps_it():
    checkpoint = load_checkpoint(io.BytesIO(simple_zip(**{"module.w": WEIGHT})))
    assert list(checkpoint) == ["w"]
    assert checkpoint.prefix == "module."
    assert checkpoint.notes == ("the prefix 'module.' was taken off the names",)
    assert list(checkpoint.tree) == ["module.w"]


def test_a_prefix_that_no_name_has_is_reported():
    data = simple_zip(**{"module.w": WEIGHT})
    assert load_checkpoint(io.BytesIO(data), prefix="modul.").notes == ("prefix='modul.': no name begins with it",)
    for kept in ((), ""):
        assert load_checkpoint(io.BytesIO(data), prefix=kept).notes == ()


def shared(levels, leaf):
    """Lists of two, each holding the one below it twice."""
    body = op([leaf])
    for i in range(levels):
        body += b"q" + bytes([i]) + b"0](h" + bytes([i]) + b"h" + bytes([i]) + b"e"
    return pickled(Raw(body))


def test_sharing_does_not_blow_up():
    with pytest.raises(CheckpointError, match=r"Limits\.items"):
        load(shared(40, 1))
    with pytest.raises(CheckpointError, match=r"Limits\.memory"):
        load(shared(20, WEIGHT))
    assert len(load(shared(5, WEIGHT))) == 32


@pytest.mark.parametrize("opening", [b"](", b"}(" + op("k"), b"("])
def test_depth(opening):
    closing = {b"]": b"e", b"}": b"u", b"(": b"t"}[opening[:1]]
    deep = pickled(Raw(opening * 150 + op(1) + closing * 150))
    with pytest.raises(CheckpointError, match=r"Limits\.depth"):
        load(deep)
    assert load(deep, limits=replace(Limits(), depth=150)).tree


def test_lists_and_dictionaries_may_contain_themselves():
    cyclic = load(pickled(Raw(b"]q\x00h\x00a"))).tree
    assert cyclic[0] is cyclic
    checkpoint = load(pickled(Raw(b"}q\x00" + op("me") + b"h\x00s" + op("w") + WEIGHT + b"s")))
    assert list(checkpoint) == ["w"]
    assert checkpoint.tree["me"] is checkpoint.tree
