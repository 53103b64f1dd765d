"""Damaged files of every kind: a correct checkpoint or a CheckpointError comes out, in bounded memory.

``GROWARRAY_FUZZ`` is the number of files for each kind, 100 by default.
"""

import io
import os
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from growarray.checkpoint import load_checkpoint
from growarray.errors import CheckpointError
from tests.checkpoint.files import (
    EMPTY,
    FLOATS,
    SIX,
    WEIGHT,
    call,
    entry,
    field,
    onnx,
    ordered,
    pickled,
    safetensors,
    simple_npz,
    storage,
    tensor,
    tensor_proto,
    torch_legacy,
    torch_zip,
    varint,
)

EXAMPLES = int(os.environ.get("GROWARRAY_FUZZ", "100"))
LIMIT = 64 * 2**20

NESTED = {
    "model": ordered(
        {"w": WEIGHT, "t": tensor(storage("0", 6), 1, (2, 2), (3, 1))}, {"_metadata": {"": {"version": 1}}}
    ),
    "p": call("torch._utils", "_rebuild_parameter", WEIGHT, True, EMPTY),
    "rest": [1, -2.5, None, True, ("x", b"y"), {3: "z"}, call("torch", "Size", (2, 3))],
}


def legacy():
    weight = tensor(storage("0", 6, "FloatStorage", None), 0, (2, 3), (3, 1))
    half = tensor(storage("1", 4, "BFloat16Storage", ("v", 1, 2)), 0, (2,), (1,))
    return torch_legacy({"w": weight, "h": half, "n": [1, "a"]}, {"0": (6, SIX), "1": (4, bytes(8))})


def header():
    return safetensors(
        {"__metadata__": {"a": "b"}, "w": entry("F32", [2, 3], 0, 24), "h": entry("BF16", [2], 24, 28)}, SIX + bytes(4)
    )


def model():
    node = field(1, field(4, b"Op") + field(5, field(1, b"a") + field(5, tensor_proto("c", [6], 1, field(9, SIX)))))
    numbers = tensor_proto("n", [3], 7, field(7, b"".join(map(varint, (1, 300, 70000)))))
    return onnx(
        tensor_proto("w", [2, 3], 1, field(4, SIX)),
        numbers,
        tensor_proto("q", [3], 22, field(9, b"\x21\x03")),
        graph=node,
    )


def compressed():
    file = io.BytesIO()
    np.savez_compressed(file, w=FLOATS, b=np.array([True, False]))
    return file.getvalue()


SEEDS = {
    "torch-zip": torch_zip(NESTED, {"0": SIX}),
    "torch-legacy": legacy(),
    "safetensors": header(),
    "onnx": model(),
    "npz": simple_npz(w=FLOATS, i=np.arange(3)),
    "npz-compressed": compressed(),
}


@st.composite
def damaged(draw, data):
    """The file with some bytes changed, a stretch copied, moved or left out, or cut off."""
    out = bytearray(data)
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(out) - 1))
        kind = draw(st.sampled_from(["xor", "set", "number", "delete", "repeat", "insert"]))
        end = min(len(out), place + draw(st.integers(1, 40)))
        if kind == "xor":
            out[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set":
            out[place] = draw(st.sampled_from([0, 1, 0x28, 0x2E, 0x51, 0x52, 0x62, 0x7F, 0x80, 0xFF]))
        elif kind == "number":
            number = draw(st.sampled_from([0, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1]))
            out[place : place + 8] = number.to_bytes(8, "little")
        elif kind == "delete" and end - place < len(out):
            del out[place:end]
        elif kind == "repeat":
            out[place:place] = out[place:end]
        else:
            out[place:place] = draw(st.binary(max_size=8))
    return bytes(out[: draw(st.integers(0, len(out)))] if draw(st.integers(0, 7)) == 0 else out)


def read_everything(data):
    """Load and read all; what loads can be used."""
    checkpoint = load_checkpoint(io.BytesIO(data))
    tree = checkpoint.tree
    arrays = dict(checkpoint)
    assert [array.size for array in arrays.values()] == [stored.size for stored in checkpoint.stored.values()]
    assert all(type(array) is np.ndarray for array in arrays.values())
    assert str(checkpoint).isascii() or tree is not None
    return arrays


WRAPPED = {"torch-zip-pickle": (pickled(NESTED), lambda data: torch_zip(data, {"0": SIX}))}
"""Parts that are damaged before the checksums of the file around them are made."""


def refusal(data):
    """The message, or that there was none; no other exception may leave the library."""
    try:
        read_everything(data)
    except CheckpointError as error:
        return str(error)
    return "loaded"


@pytest.mark.parametrize("kind", SEEDS)
def test_seeds_load(kind):
    assert len(read_everything(SEEDS[kind])) >= 2


@pytest.mark.parametrize("kind", [*SEEDS, *WRAPPED])
def test_damaged_files(kind):
    seed, wrap = WRAPPED[kind] if kind in WRAPPED else (SEEDS[kind], bytes)

    @settings(max_examples=EXAMPLES, deadline=2000, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(damaged(seed))
    def check(data):
        assert refusal(wrap(data)).startswith(("<BytesIO>: ", "loaded"))

    tracemalloc.start()
    try:
        check()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < LIMIT, f"peak of {peak / 2**20:.0f} MiB"


@pytest.mark.parametrize("kind", ["torch-zip", "npz"])
def test_a_changed_byte_never_changes_values(kind):
    """Checksums cover data and structure: what loads after one flip is what was saved."""
    data = SEEDS[kind]
    expected = {name: array.tobytes() for name, array in read_everything(data).items()}
    for place in range(0, len(data), max(1, 800 // EXAMPLES)):
        flipped = bytearray(data)
        flipped[place] ^= 0x41
        try:
            arrays = read_everything(bytes(flipped))
        except CheckpointError:
            continue
        assert {name: array.tobytes() for name, array in arrays.items()} == expected, f"byte {place}"
