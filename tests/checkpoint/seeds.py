"""Seed files of every format, and what may come out of a damaged one: a correct load, or a CheckpointError."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

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
    simple_safetensors,
    storage,
    tensor,
    tensor_proto,
    torch_legacy,
    torch_zip,
    varint,
    zipped,
)

__all__ = ["INDEX", "SEEDS", "WRAPPED", "npy", "outcome", "read_everything", "seed_of"]

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


def npy(array: np.ndarray) -> bytes:
    """An array as a member of an ``.npz`` archive."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


INDEX = {"metadata": {"total_size": 32}, "weight_map": {"w": "m.safetensors", "b": "m.safetensors"}}

WRAPPED: dict[str, tuple[bytes, Callable[[bytes], bytes]]] = {
    "torch-zip-pickle": (pickled(NESTED), lambda data: torch_zip(data, {"0": SIX})),
    "npz-member": (npy(FLOATS.reshape(2, 3)), lambda data: zipped({"w.npy": data})),
}
"""Parts that are damaged before the checksums of the file around them are made."""


def seed_of(kind: str) -> tuple[bytes, Callable[[bytes], bytes]]:
    """What to damage, and what makes a file of it."""
    if kind == "index":
        return json.dumps(INDEX).encode(), bytes
    return WRAPPED[kind] if kind in WRAPPED else (SEEDS[kind], bytes)


def read_everything(data: bytes | Path) -> dict[str, Any]:
    """Load and read all; what loads can be used."""
    checkpoint = load_checkpoint(data if isinstance(data, Path) else io.BytesIO(data))
    tree = checkpoint.tree
    arrays = dict(checkpoint)
    assert [array.size for array in arrays.values()] == [stored.size for stored in checkpoint.stored.values()]
    assert all(type(array) is np.ndarray for array in arrays.values())
    assert str(checkpoint).isascii() or tree is not None
    return arrays


def outcome(kind: str, data: bytes, folder: Path) -> str:
    """``'loaded'`` or ``'refused'``; no other exception may leave the library.

    The shard of an index lies beside it in ``folder``; other kinds are read from memory.
    """
    file: bytes | Path = data
    if kind == "index":
        (folder / "m.safetensors").write_bytes(simple_safetensors())
        file = folder / "m.safetensors.index.json"
        file.write_bytes(data)
    try:
        read_everything(file)
    except CheckpointError as error:
        message = str(error)
    else:
        return "loaded"
    assert message.startswith(f"{file}: " if isinstance(file, Path) else "<BytesIO>: "), message
    return "refused"
