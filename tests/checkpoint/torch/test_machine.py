"""The pickle machine builds data, and refuses everything else with the byte and the opcode."""

import pickle
import struct
from dataclasses import replace

import pytest

from growarray.checkpoint.torch.machine import PickleMachine
from growarray.checkpoint.torch.values import TABLE
from growarray.files.errors import Malformed
from growarray.files.limits import Limits
from tests.checkpoint.files import Raw, call, glob, op, pickled, rows


def run(data, limits=None, memory=2**20):
    limits = limits or Limits()
    return PickleMachine(memoryview(data), limits, table=TABLE, persistent=None, memory=memory).run()


PLAIN = {
    "a": [1, -1, 255, 256, 65536, 2**31, -(2**63), 2**70],
    "b": (None, True, False, 1.5, float("inf")),
    "nested": {"list": [[], {}, ()], (1, "x"): "tuple key", 3: "int key"},
    "text": "é☃\U0001f600 with\nnewline",
    "long": "x" * 300,
    "tuples": ((1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
}


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_of_every_protocol(protocol):
    assert run(pickle.dumps(PLAIN, protocol)) == PLAIN


@pytest.mark.parametrize("protocol", range(1, 6))  # protocol 0 writes bytes as text that only Python reads
def test_bytes_sets_and_numbers(protocol):
    value = {"bytes": b"\x00\xff", "empty": b"", "array": bytearray(b"ab"), "set": {1, 2}, "complex": 1 + 2j}
    assert run(pickle.dumps(value, protocol)) == value


def test_shared_objects_stay_shared():
    inner = [1]
    result = run(pickle.dumps([inner, inner], 4))
    assert result[0] is result[1]


def test_what_is_refused_is_never_executed(tmp_path):
    marker = tmp_path / "marker"

    class Evil:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    for protocol in range(6):
        with pytest.raises(Malformed, match=r"global '(io|_io)\.open' is not among those"):
            run(pickle.dumps(Evil(), protocol))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("body", "message"),
    rows(
        {
            "unknown global": (glob("os", "system"), "global 'os.system' is not among"),
            "prefix of an allowed name": (glob("collections", "OrderedDict.copy"), "OrderedDict.copy"),
            "dotted through a stack global": (op("numpy") + op("dtype.__init__") + b"\x93", "numpy.dtype.__init__"),
            "global that is no string": (op(1) + op("dtype") + b"\x93", "STACK_GLOBAL: global .1, 'dtype'"),
            "module": (glob("torch.nn.modules.linear", "Linear"), "save its state_dict"),
            "sparse": (glob("torch._utils", "_rebuild_sparse_tensor"), "save tensor.to_dense"),
            "quantized": (glob("torch._utils", "_rebuild_qtensor"), "save tensor.dequantize"),
            "packed type": (glob("torch", "float4_e2m1fn_x2"), "element type that is not read; save tensor.view"),
            "bits": (glob("torch", "bits8"), "element type that is not read; save tensor.view"),
            "inst": (b"(ios\nsystem\n", "opcode INST is not allowed"),
            "obj": (b"(" + glob("collections", "OrderedDict") + b"o", "opcode OBJ is not allowed"),
            "newobj": (glob("collections", "OrderedDict") + b")\x81", "opcode NEWOBJ is not allowed"),
            "extension": (b"\x82\x01", "opcode EXT1 is not allowed"),
            "text persistent id": (b"P0\n", "opcode PERSID is not allowed"),
            "buffer": (b"\x97", "opcode NEXT_BUFFER is not allowed"),
            "no opcode": (b"\xff", "0xff is not an opcode"),
            "storage where none can be": (op("0") + b"Q", "refers to a storage"),
            "reduce a string": (op("f") + b")R", "calls 'f', which is not a function"),
            "reduce a type": (glob("numpy", "ndarray") + b")R", "calls numpy.ndarray, which is not a function"),
            "arguments in a list": (glob("collections", "OrderedDict") + b"]R", "expected a tuple"),
            "build a dict": (b"}}b", "sets the state of a dict"),
            "build a function": (glob("_codecs", "encode") + b"}b", "sets the state of _codecs.encode"),
            "setitem on a list": (b"]" + op(0) + op(1) + b"s", "target is a list of 0; expected a dictionary"),
            "append to a dict": (b"}" + op(1) + b"a", "expected a list"),
            "append to an OrderedDict": (call("collections", "OrderedDict") + op(1) + b"a", "expected a list"),
            "add to a list": (b"](" + op(1) + b"\x90", "expected a set"),
            "list as a key": (b"}]Ns", "key is a list"),
            "bytearray as a key": (b"}\x96" + struct.pack("<Q", 0) + b"Ns", "key is b''|key is"),
            "huge int as a key": (b"}" + op(2**61 - 1) + b"Ns", "key is 2305843009213693951"),
            "long tuple as a key": (b"}" + op((0,) * 65) + b"Ns", "key is a tuple of 65"),
            "key without a value": (b"}(" + op("a") + b"u", "a key has no value"),
            "empty stack": (b"a", "stack is empty"),
            "below the mark": (op(1) + b"(\x85", "stack is empty"),
            "no mark": (b"t", "there is no mark"),
            "mark left": (op(1) + b"(", "1 marks left"),
            "two values left": (op(1) + op(2), "2 values"),
            "unknown memo": (b"h\x07", "memo has no entry 7"),
            "negative memo": (b"Np-1\n", "memo key -1 is negative"),
            "protocol 99": (b"\x80\x63N", "pickle protocol 99"),
            "frame beyond the end": (b"\x95" + struct.pack("<Q", 2**40) + b"N", "frame of 1099511627776 bytes"),
            "string beyond the end": (b"X" + struct.pack("<I", 10**6), "needs 1000000 bytes"),
            "8-byte string length": (b"\x8d" + struct.pack("<Q", 2**62), "Limits.string"),
            "negative length": (b"T" + struct.pack("<i", -1), "length -1 is negative"),
            "negative integer length": (b"\x8b" + struct.pack("<i", -1), "integer of -1 bytes"),
            "huge integer": (b"\x8b" + struct.pack("<i", 1000) + bytes(1000), "integer of 1000 bytes"),
            "long text integer": (b"I" + b"9" * 2000 + b"\n", "line without an end"),
            "text integer": (b"I1_0\n", "expected decimal digits"),
            "text float": (b"Fnope\n", "float is written b'nope'"),
            "lone surrogate": (b"X" + struct.pack("<I", 3) + b"\xed\xa0\x80", "is not UTF-8"),
            "surrogate in text": (b"V\\ud800\n", "is not raw-unicode-escape"),
            "endless line": (b"V" + b"x" * 100, "line without an end"),
        }
    ),
)
def test_refusals(body, message):
    with pytest.raises(Malformed, match=message):
        run(pickled(Raw(body)))


def test_cut_off_anywhere():
    whole = pickle.dumps(PLAIN, 2)
    for length in range(len(whole)):
        with pytest.raises(Malformed):
            run(whole[:length])


@pytest.mark.parametrize(
    ("limits", "value", "message"),
    [
        ({"steps": 10}, list(range(20)), "Limits.steps"),
        ({"string": 10}, "x" * 11, "Limits.string"),
        ({"memo": 5}, [f"{i}" for i in range(9)], "Limits.memo"),
        ({"metadata": 20}, "x" * 40, "Limits.metadata"),
    ],
)
def test_limits(limits, value, message):
    with pytest.raises(Malformed, match=message):
        run(pickle.dumps(value, 2), replace(Limits(), **limits))


@pytest.mark.parametrize(
    ("body", "message"),
    rows(
        {
            "containers": (b"(" + b"}" * 100_000 + b"t", "Limits.memory"),
            "bytes of one string, many times": (
                op("x" * 10_000)
                + b"q\x00("
                + (glob("_codecs", "encode") + b"(h\x00" + op("latin1") + b"tR") * 500
                + b"t",
                "Limits.memory",
            ),
            "sparse memo": (
                b"N" + b"".join(b"r" + struct.pack("<I", 7 * i + 9) for i in range(20_000)),
                "Limits.memory",
            ),
            "marks": (b"(" * 5000, "open marks"),
            "one tuple as a key, that shares": (
                b"}(tq\x00" + b"0(h\x00h\x00tq\x00" * 60 + b"Ns",
                "key is a tuple",
            ),
            "tuples in a set": (b"\x8f(" + b"".join(op((i, i)) for i in range(2100)) + b"\x90", "tuples as keys"),
            "tuple keys": (b"}(" + b"".join(op((i, i)) + b"N" for i in range(2100)) + b"u", "tuples as keys"),
        }
    ),
)
def test_bombs(body, message):
    with pytest.raises(Malformed, match=message):
        run(b"\x80\x02" + body + b".")


def test_many_short_lines_are_not_quadratic():
    data = b"(" + b"Vx\n" * 20_000 + b"t."
    assert len(run(data, memory=2**23)) == 20_000


def test_the_machine_stops_at_stop():
    data = pickled(1) + glob("os", "system")
    machine = PickleMachine(memoryview(data), Limits(), table=TABLE, persistent=None, memory=2**20)
    assert machine.run() == 1
    assert machine.position == len(pickled(1))
