"""Pickles that are made to take long or much: refused or loaded soon, in memory that their size bounds."""

import io
import time
import tracemalloc
from contextlib import suppress
from dataclasses import replace

import pytest

from growarray.checkpoint import Limits, load_checkpoint
from growarray.errors import CheckpointError
from tests.checkpoint.files import EMPTY, SIX, WEIGHT, Raw, call, glob, op, storage, torch_zip

MEBIBYTE = 2**20
SECONDS = 3.0  # of the processor; some tenths where the machine does nothing else
SPARE = 16  # MiB over the structure's own: Limits leaves as much to 64


def calls(function, *arguments):
    """A function and its arguments in the memo, called again and again."""
    return op(function) + b"q\x00" + op(tuple(arguments)) + b"q\x01", b"h\x00h\x01R0"


BIG = {str(i): None for i in range(20_000)}
V2 = glob("torch._utils", "_rebuild_tensor_v2")
WITH_STATE = glob("torch._utils", "_rebuild_parameter_with_state")
SCALAR = glob("numpy.core.multiarray", "scalar")

CASES = {  # name: opcodes at the beginning, what is repeated
    "values": (b"", b"N0"),
    "marks": (b"", b"(1"),
    "small strings": (b"", b"X\1\0\0\0a0"),
    "lines": (b"N", b"p0\n"),
    "decimals": (b"", b"I1\n0"),
    "globals": (b"", b"cnumpy\ndtype\n0"),
    "memo": (b"N", b"\x94"),
    "list": (b"](", b"N"),
    "lists": (b"](", b"]"),
    "lists in lists": (b"](", b"]]a"),
    "nested lists": (b"", b"]"),
    "nested tuples": (b"N", b"\x85"),
    "keys": (b"}", b"NNs"),
    "sizes": calls(glob("torch", "Size"), (1,) * 64),
    "tensors": calls(V2, storage("0", 6), 0, (2, 3), (3, 1), False, EMPTY),
    "tensors of 64 axes": calls(V2, storage("0", 6), 0, (1,) * 64, (1,) * 64, False, EMPTY),
    "storages": (op(("storage", glob("torch", "FloatStorage"), "0", "cpu", 6)) + b"q\x00", b"h\x00Q0"),
    "scalars": calls(SCALAR, call("numpy", "dtype", "f4"), b"1234"),
    "large states": calls(WITH_STATE, WEIGHT, False, EMPTY, BIG),
    "large tuples as states": calls(WITH_STATE, WEIGHT, False, EMPTY, (None,) * 50_000),
}


def archive(name, nbytes):
    """A checkpoint whose pickle has about so many bytes."""
    head, unit = CASES[name]
    return torch_zip(b"\x80\x02" + head + unit * (nbytes // len(unit)) + b"N.", {"0": SIX})


@pytest.mark.parametrize("name", CASES)
def test_time(name):
    data = archive(name, MEBIBYTE // 2)
    start = time.process_time()
    with suppress(CheckpointError):
        load_checkpoint(io.BytesIO(data))
    assert time.process_time() - start < SECONDS


@pytest.mark.parametrize("name", CASES)
def test_memory(name):
    data = archive(name, MEBIBYTE // 8)
    limits = replace(Limits(), memory=2 * MEBIBYTE)
    tracemalloc.start()
    try:
        with suppress(CheckpointError):
            load_checkpoint(io.BytesIO(data), limits=limits)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < (2 + SPARE) * MEBIBYTE + len(data)


def test_steps_grow_with_the_file():
    limits = replace(Limits(), steps=1000)
    many = torch_zip(op([None] * 2000) + b".", {"0": SIX})
    with pytest.raises(CheckpointError, match=r"more than 1000 opcodes.*Limits.steps"):
        load_checkpoint(io.BytesIO(many), limits=limits)
    larger = torch_zip(op([None] * 2000) + b".", {"0": SIX, "1": bytes(20_000)})
    assert load_checkpoint(io.BytesIO(larger), limits=limits).tree == [None] * 2000


def test_a_rebuild_counts_as_ten_steps():
    head, unit = calls(V2, storage("0", 6), 0, (6,), (1,), False, EMPTY)
    data = torch_zip(b"\x80\x02" + head + unit * 200 + b"N.", {"0": SIX})
    with pytest.raises(CheckpointError, match=r"Limits.steps"):
        load_checkpoint(io.BytesIO(data), limits=replace(Limits(), steps=2000))


def test_a_list_without_tensors_is_left_whole():
    values = list(range(5000))
    checkpoint = load_checkpoint(io.BytesIO(torch_zip(op(values) + b".", {"0": SIX})))
    assert checkpoint.extras == checkpoint.tree == values
    assert len(checkpoint) == 0


def test_shared_parts_are_found_below_small_containers():
    """Small containers are looked through again where they are shared; tensors in them are found all the same."""
    part = Raw(op([WEIGHT]) + b"q\x07")
    checkpoint = load_checkpoint(io.BytesIO(torch_zip({"a": part, "c": Raw(b"h\x07"), "d": [1]}, {"0": SIX})))
    assert list(checkpoint) == ["a.0", "c.0"]
    assert checkpoint.extras == {"d": [1]}


def test_depth_counts_small_containers():
    def nested(depth):
        return torch_zip(b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b".")

    assert load_checkpoint(io.BytesIO(nested(100))).tree
    with pytest.raises(CheckpointError, match=r"Limits.depth"):
        load_checkpoint(io.BytesIO(nested(101)))


def test_remembering_containers_is_counted():
    data = torch_zip(b"\x80\x02](" + b"](]e" * 5000 + b"e.")
    limits = replace(Limits(), memory=1_400_000)
    with pytest.raises(CheckpointError, match=r"Limits.memory"):
        load_checkpoint(io.BytesIO(data), limits=limits)
    assert len(load_checkpoint(io.BytesIO(data)).tree) == 5000
