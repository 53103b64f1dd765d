"""Legacy checkpoints: five pickles and the bytes of the storages, every count checked against the others."""

import io

import numpy as np
import pytest

from growarray.checkpoint import load_checkpoint
from growarray.errors import CheckpointError
from tests.checkpoint.files import (
    FLOATS,
    MAGIC,
    SIX,
    glob,
    op,
    ordered,
    pickled,
    rows,
    simple_legacy,
    storage,
    tensor,
    torch_legacy,
)


def load(data, **options):
    return load_checkpoint(io.BytesIO(data), **options)


def weight(key="0", numel=6, view=None, kind="FloatStorage", size=(6,)):
    return tensor(storage(key, numel, kind, view), 0, size, (1,))


def test_a_state_dict():
    checkpoint = load(simple_legacy())
    assert checkpoint.kind == "torch-legacy"
    np.testing.assert_array_equal(checkpoint["w"], FLOATS.reshape(2, 3), strict=True)


def test_bytes_follow_the_order_of_the_key_list():
    root = ordered({"a": weight("x"), "b": weight("y", 2, kind="LongStorage", size=(2,))})
    storages = {"y": (2, np.array([7, -7], "<i8").tobytes()), "x": (6, SIX)}
    checkpoint = load(torch_legacy(root, storages))
    assert checkpoint["a"].tolist() == FLOATS.tolist()
    assert checkpoint["b"].tolist() == [7, -7]


def test_views_of_a_storage():
    root = ordered({"v": weight(view=("view", 2, 4), size=(4,)), "w": weight()})
    checkpoint = load(torch_legacy(root, {"0": (6, SIX)}))
    assert checkpoint["v"].tolist() == [2, 3, 4, 5]
    assert checkpoint.tied == (("v", "w"),)


ROOT = ordered({"w": weight()})
DATA = {"0": (6, SIX)}


def pickles(*values):
    return b"".join(map(pickled, values))


@pytest.mark.parametrize(
    ("data", "message"),
    rows(
        {
            "magic": (pickles(MAGIC + 1), "is a pickle, but not one of torch.save; loading"),
            "magic is a string": (pickles("magic"), "is a pickle, but not one of torch.save; loading"),
            "a pickle of something else": (pickles({"w": 1}), "but not one of torch.save"),
            "version": (pickles(MAGIC, 1002), "protocol version: is 1002, expected 1001"),
            "facts": (pickles(MAGIC, 1001, []), "system information: is a list of 0"),
            "code in the magic": (
                pickles(glob("os", "system")),
                r"is a pickle, but not one of torch.save \(it names 'os\.system'\)",
            ),
            "code in the version": (pickles(MAGIC, glob("os", "system")), "protocol version: .*'os.system'"),
            "code in the facts": (pickles(MAGIC, 1001, glob("os", "system")), "system information: .*'os.system'"),
            "code in the keys": (torch_legacy(ROOT, DATA, glob("os", "system")), "storage keys: .*'os.system'"),
            "even an allowed global": (torch_legacy(ROOT, DATA, glob("torch", "Size")), "storage keys: "),
            "keys are a tuple": (torch_legacy(ROOT, DATA, ("0",)), "list of storage keys is a tuple"),
            "keys are numbers": (torch_legacy(ROOT, DATA, [0]), "expected a list of strings"),
            "key missing": (torch_legacy(ROOT, DATA, []), "storage '0' is used, but not in the list"),
            "key unknown": (torch_legacy(ROOT, DATA, ["1", "0"]), "storage '1': .* nothing uses it"),
            "key twice": (torch_legacy(ROOT, DATA, ["0", "0"]), "has a duplicate"),
            "count differs": (torch_legacy(ROOT, {"0": (3, SIX)}), "has 3 elements, the object says 6"),
            "count negative": (torch_legacy(ROOT, {"0": (-6, SIX)}), "has -6 elements"),
            "storage cut off": (torch_legacy(ROOT, DATA)[:-1], "needs bytes up to"),
            "storage missing": (torch_legacy(ROOT, DATA)[:-32], "is missing"),
            "trailing": (torch_legacy(ROOT, DATA) + b"x", "1 bytes follow the last storage"),
            "larger than the file": (torch_legacy(ordered({"w": weight(numel=2**40)}), DATA), "larger than the file"),
            "two types": (
                torch_legacy(ordered({"a": weight(), "b": weight(kind="IntStorage")}), DATA),
                "is 6 float32 and 6 int32 at once",
            ),
            "view outside": (torch_legacy(ordered({"w": weight(view=("v", 4, 3))}), DATA), "does not lie inside its 6"),
            "view negative": (torch_legacy(ordered({"w": weight(view=("v", -1, 3))}), DATA), "from -1 with 3"),
            "view malformed": (
                torch_legacy(ordered({"w": weight(view=("v", 1))}), DATA),
                "expected .key, offset, size",
            ),
            "view of two shapes": (
                torch_legacy(
                    ordered({"a": weight(view=("v", 0, 3), size=(3,)), "b": weight(view=("v", 1, 3), size=(3,))}), DATA
                ),
                "view 'v' is described in two ways",
            ),
            "five items": (torch_legacy(ordered({"w": tensor(storage("0", 6), 0, (6,), (1,))}), DATA), "of 6 items"),
            "whole module": (
                torch_legacy(ordered({"m": type(ROOT)(op(("module", "cls", "file", "source")) + b"Q")}), DATA),
                "a whole module was pickled",
            ),
        }
    ),
)
def test_refusals(data, message):
    with pytest.raises(CheckpointError, match=message):
        load(data)


def test_cut_off_anywhere():
    whole = simple_legacy()
    for length in range(len(whole)):
        with pytest.raises(CheckpointError):
            load(whole[:length])


def test_unaligned_storages_are_copied_into_place():
    for length in range(8):
        root = ordered({"w": weight(), "note": "x" * length})
        array = load(torch_legacy(root, DATA))["w"]
        assert array.flags.aligned
        assert array.tolist() == FLOATS.tolist()
