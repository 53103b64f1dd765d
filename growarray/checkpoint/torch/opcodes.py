"""The opcodes of pickle that only build data, each with what it does to the machine."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NoReturn

from growarray.files.errors import Malformed

Handler = Callable[[Any], None]

_U2, _U4, U8 = struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<Q")
_I4, _F8 = struct.Struct("<i"), struct.Struct(">d")
_INT, _FLOAT, _CONTAINER = 32, 24, 72  # bytes of a Python object

_VALUES: dict[bytes, tuple[str, Handler]] = {
    b"N": ("NONE", lambda m: m.stack.append(None)),
    b"\x88": ("NEWTRUE", lambda m: m.stack.append(True)),
    b"\x89": ("NEWFALSE", lambda m: m.stack.append(False)),
    b"K": ("BININT1", lambda m: m.stack.append(m.byte())),
    b"M": ("BININT2", lambda m: m.push(m.number(_U2), _INT)),
    b"J": ("BININT", lambda m: m.push(m.number(_I4), _INT)),
    b"I": ("INT", lambda m: m.push(m.decimal(), 2 * _INT)),
    b"L": ("LONG", lambda m: m.push(m.decimal(b"L"), 2 * _INT)),
    b"\x8a": ("LONG1", lambda m: m.push_integer(m.byte())),
    b"\x8b": ("LONG4", lambda m: m.push_integer(m.number(_I4))),
    b"G": ("BINFLOAT", lambda m: m.push(m.number(_F8), _FLOAT)),
    b"F": ("FLOAT", lambda m: m.push_decimal_float()),
    b"X": ("BINUNICODE", lambda m: m.push_text(m.number(_U4))),
    b"\x8c": ("SHORT_BINUNICODE", lambda m: m.push_text(m.byte())),
    b"\x8d": ("BINUNICODE8", lambda m: m.push_text(m.number(U8))),
    b"V": ("UNICODE", lambda m: m.push_line("raw-unicode-escape")),
    b"T": ("BINSTRING", lambda m: m.push_old_string(m.number(_I4))),
    b"U": ("SHORT_BINSTRING", lambda m: m.push_old_string(m.byte())),
    b"B": ("BINBYTES", lambda m: m.push_bytes(m.number(_U4))),
    b"C": ("SHORT_BINBYTES", lambda m: m.push_bytes(m.byte())),
    b"\x8e": ("BINBYTES8", lambda m: m.push_bytes(m.number(U8))),
    b"\x96": ("BYTEARRAY8", lambda m: m.push_bytes(m.number(U8), bytearray)),
}

_CONTAINERS: dict[bytes, tuple[str, Handler]] = {
    b"]": ("EMPTY_LIST", lambda m: m.push([], _CONTAINER)),
    b"l": ("LIST", lambda m: m.new_list(m.pop_mark())),
    b"a": ("APPEND", lambda m: m.append([m.stack.pop()])),
    b"e": ("APPENDS", lambda m: m.append(m.pop_mark())),
    b"}": ("EMPTY_DICT", lambda m: m.push({}, _CONTAINER)),
    b"d": ("DICT", lambda m: m.new_dict(m.pop_mark())),
    b"s": ("SETITEM", lambda m: m.set_items(m.pop_last(2))),
    b"u": ("SETITEMS", lambda m: m.set_items(m.pop_mark())),
    b")": ("EMPTY_TUPLE", lambda m: m.stack.append(())),
    b"t": ("TUPLE", lambda m: m.new_tuple(m.pop_mark())),
    b"\x85": ("TUPLE1", lambda m: m.new_tuple(m.pop_last(1))),
    b"\x86": ("TUPLE2", lambda m: m.new_tuple(m.pop_last(2))),
    b"\x87": ("TUPLE3", lambda m: m.new_tuple(m.pop_last(3))),
    b"\x8f": ("EMPTY_SET", lambda m: m.push(set(), 3 * _CONTAINER)),
    b"\x90": ("ADDITEMS", lambda m: m.add_items(m.pop_mark())),
    b"\x91": ("FROZENSET", lambda m: m.new_set(m.pop_mark())),
}

_MACHINE: dict[bytes, tuple[str, Handler]] = {
    b"\x80": ("PROTO", lambda m: m.protocol()),
    b"\x95": ("FRAME", lambda m: m.frame()),
    b"(": ("MARK", lambda m: m.mark()),
    b"0": ("POP", lambda m: m.drop()),
    b"1": ("POP_MARK", lambda m: m.pop_mark()),
    b"2": ("DUP", lambda m: m.stack.append(m.stack[-1])),
    b"p": ("PUT", lambda m: m.put(m.decimal())),
    b"q": ("BINPUT", lambda m: m.put(m.byte())),
    b"r": ("LONG_BINPUT", lambda m: m.put(m.number(_U4))),
    b"\x94": ("MEMOIZE", lambda m: m.memoize()),
    b"g": ("GET", lambda m: m.get(m.decimal())),
    b"h": ("BINGET", lambda m: m.get(m.byte())),
    b"j": ("LONG_BINGET", lambda m: m.get(m.number(_U4))),
    b"c": ("GLOBAL", lambda m: m.find_lines()),
    b"\x93": ("STACK_GLOBAL", lambda m: m.find_stack()),
    b"R": ("REDUCE", lambda m: m.reduce()),
    b"b": ("BUILD", lambda m: m.build()),
    b"Q": ("BINPERSID", lambda m: m.persist()),
}

_REFUSED = {
    ord("i"): "INST",
    ord("o"): "OBJ",
    0x81: "NEWOBJ",
    0x92: "NEWOBJ_EX",
    ord("P"): "PERSID",
    ord("S"): "STRING",
    0x82: "EXT1",
    0x83: "EXT2",
    0x84: "EXT4",
    0x97: "NEXT_BUFFER",
    0x98: "READONLY_BUFFER",
}

_OPCODES = {code[0]: row for code, row in (_VALUES | _CONTAINERS | _MACHINE).items()}


def _refusing(code: int) -> Handler:
    """What stands in the table for an opcode that is not run."""
    what = f"opcode {_REFUSED[code]} is not allowed" if code in _REFUSED else f"{code:#04x} is not an opcode"

    def refuse(machine: Any) -> NoReturn:
        raise Malformed(f"{what}; expected the pickle of a state dict")

    return refuse


NAMES = {code: name for code, (name, _) in _OPCODES.items()}
"""Names of the opcodes that are run; STOP ends the loop and is not among them."""

HANDLERS: list[Handler] = [_OPCODES[code][1] if code in _OPCODES else _refusing(code) for code in range(256)]
"""What every byte does to the machine, which is what calls it; most of them refuse."""
