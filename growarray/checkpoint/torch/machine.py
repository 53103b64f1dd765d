"""A pickle machine that runs nothing: opcodes build plain data, and globals are names looked up in one table.

Every opcode that Python's own machine has beyond these is refused: INST, OBJ, NEWOBJ_EX, PERSID, the EXT registry
and out-of-band buffers. Source of the opcodes: ``pickletools`` of CPython, protocols 0 to 5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from growarray.checkpoint.torch.allowlist import Build, Global, OrderedTree, check_key, name_of, unknown_global
from growarray.checkpoint.torch.cursor import Cursor
from growarray.checkpoint.torch.opcodes import HANDLERS, NAMES, U8
from growarray.files.errors import Malformed, quote
from growarray.files.limits import Limits

_STOP = 0x2E
_BATCH = 512  # opcodes between two looks at the bounds
_BYTES_PER_STEP = 16  # of the file, each of which allows one opcode more
_MOST_STACK = 1_000_000
_MOST_TUPLE_KEYS = 2_000
_MAPPINGS = (dict, OrderedTree)
_CONTAINER, _NUMBER, _ENTRY, _SLOT = 72, 32, 100, 9  # bytes that CPython needs, near enough
_REBUILD, _LINE = 10, 3  # opcodes that take as long as one call of a function of the table, or as reading a line


class PickleMachine(Cursor):
    """Runs one pickle from ``position`` on and leaves ``position`` behind its STOP.

    ``table`` is the exact list of globals that may be named; ``persistent`` turns a persistent id into a storage.
    ``memory`` bounds the bytes of all objects made, freed ones too; ``file_size`` adds to the opcodes that may run.
    """

    __slots__ = (
        "below",
        "height",
        "memo",
        "memory",
        "persistent",
        "sparse_memo",
        "stack",
        "steps",
        "table",
        "tuple_keys",
    )

    def __init__(
        self,
        data: memoryview,
        limits: Limits,
        *,
        table: Mapping[tuple[str, str], Global],
        persistent: Callable[[Any], Any] | None,
        memory: int,
        position: int = 0,
        file_size: int = 0,
    ) -> None:
        super().__init__(data, limits, position)
        self.table = table
        self.persistent = persistent
        self.memory = memory
        self.steps = limits.steps + file_size // _BYTES_PER_STEP
        self.stack: list[Any] = []  # what lies above the last mark: so nothing below it can be popped
        self.below: list[list[Any]] = []
        self.height = 0  # values in all of ``below``
        self.memo: list[Any] = []
        self.sparse_memo: dict[int, Any] = {}
        self.tuple_keys = 0

    def run(self) -> Any:
        """The object that the pickle describes. Raises Malformed with the byte and the name of the opcode."""
        data, end = self.data, self.end
        start, code = self.position, _STOP
        try:
            while True:
                for _ in range(min(_BATCH, self.steps)):
                    start = self.position
                    if start >= end:
                        code = _STOP
                        raise Malformed(self._cut_off(1))
                    code = data[start]
                    self.position = start + 1
                    if code == _STOP:
                        return self._finish()
                    HANDLERS[code](self)
                self.steps -= _BATCH
                self._check_bounds()
        except IndexError:  # only the stack is indexed unseen
            fault = Malformed("stack is empty")
        except Malformed as error:
            fault = error
        place = f"byte {start}, opcode {NAMES[code]}" if code in NAMES else f"byte {start}"
        raise Malformed(f"{place}: {fault}") from None

    def _check_bounds(self) -> None:
        """What opcodes may overdraw by a little is looked at once a batch."""
        if self.steps <= 0:
            raise Malformed(f"pickle has more than {self.limits.steps} opcodes and those for its size (Limits.steps)")
        if self.height + len(self.stack) > _MOST_STACK:
            raise Malformed(f"more than {_MOST_STACK} values on the stack")
        self.charge(0)

    def charge(self, nbytes: int) -> None:
        """Count memory before it is used."""
        self.memory -= nbytes
        if self.memory < 0:
            raise Malformed(f"structure needs more than {self.limits.memory} bytes and the file's size (Limits.memory)")

    def _finish(self) -> Any:
        if len(self.stack) != 1 or self.below:
            raise Malformed(f"STOP with {self.height + len(self.stack)} values and {len(self.below)} marks left")
        self.charge(0)
        return self.stack.pop()

    # The stack, in parts: a mark puts it aside and begins a new one.

    def push(self, value: Any, cost: int = 0) -> None:
        """Put a value on the stack, whose cost is small."""
        self.memory -= cost
        self.stack.append(value)

    def pop_last(self, count: int) -> list[Any]:
        """Take the top values off the stack, the lowest first."""
        items = self.stack[-count:]
        if len(items) < count:
            raise Malformed("stack is empty")
        del self.stack[-count:]
        return items

    def pop_mark(self) -> list[Any]:
        """Take all values above the last mark off the stack, and the mark."""
        if not self.below:
            raise Malformed("there is no mark")
        items, self.stack = self.stack, self.below.pop()
        self.height -= len(self.stack)
        return items

    def mark(self) -> None:
        """Remember the height of the stack."""
        if len(self.below) >= 10 * self.limits.depth:
            raise Malformed(f"more than {10 * self.limits.depth} open marks (Limits.depth)")
        self.below.append(self.stack)
        self.height += len(self.stack)
        self.stack = []

    def drop(self) -> None:
        """POP takes a value, or a mark that has none above it."""
        if self.stack:
            self.stack.pop()
        elif self.below:
            self.pop_mark()
        else:
            raise Malformed("stack is empty")

    # The memo: only what an opcode put there can be fetched.

    def put(self, key: int) -> None:
        """Remember the top value under a number."""
        top, memo = self.stack[-1], self.memo
        if key < 0:
            raise Malformed(f"memo key {key} is negative")
        if key < len(memo):
            memo[key] = top
            return
        self.memory -= _SLOT if key == len(memo) else _ENTRY
        if len(memo) + len(self.sparse_memo) >= self.limits.memo:
            raise Malformed(f"memo has more than {self.limits.memo} entries (Limits.memo)")
        if key == len(memo):  # every writer counts up from 0
            memo.append(top)
        else:
            self.sparse_memo[key] = top

    def get(self, key: int) -> None:
        """Push what was remembered under a number."""
        if 0 <= key < len(self.memo):
            self.stack.append(self.memo[key])
        elif key in self.sparse_memo:
            self.stack.append(self.sparse_memo[key])
        else:
            raise Malformed(f"memo has no entry {key}")

    def memoize(self) -> None:
        """Remember the top value under the next number."""
        self.put(len(self.memo) + len(self.sparse_memo))

    # Containers: the target must be exactly of the type that the opcode is for.

    def append(self, items: list[Any]) -> None:
        """Add to the list on top of the stack."""
        target = self.stack[-1]
        if type(target) is not list:
            raise Malformed(f"target is {quote(target)}; expected a list")
        self.charge(_SLOT * len(items))
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        """Add keys and values to the mapping on top of the stack."""
        target = self.stack[-1]
        if type(target) not in _MAPPINGS:
            raise Malformed(f"target is {quote(target)}; expected a dictionary")
        self._fill(target, items)

    def add_items(self, items: list[Any]) -> None:
        """Add to the set on top of the stack."""
        target = self.stack[-1]
        if type(target) is not set:
            raise Malformed(f"target is {quote(target)}; expected a set")
        self.charge(_ENTRY * len(items))
        for item in items:
            self.check_key(item)
            target.add(item)

    def _fill(self, target: dict[Any, Any], items: list[Any]) -> None:
        if len(items) % 2:
            raise Malformed("a key has no value")
        self.charge(_ENTRY * (len(items) // 2))
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str:
                self.check_key(key)
            target[key] = value

    def check_key(self, key: Any) -> None:
        """Refuse keys that are not plain values, and many whose hash the file can choose."""
        if check_key(key):
            self.tuple_keys += 1
            if self.tuple_keys > _MOST_TUPLE_KEYS:
                raise Malformed(f"more than {_MOST_TUPLE_KEYS} tuples as keys")

    def new_dict(self, items: list[Any]) -> None:
        """Push a dictionary of keys and values in turn."""
        target: dict[Any, Any] = {}
        self.push(target, _CONTAINER)
        self._fill(target, items)

    def new_set(self, items: list[Any]) -> None:
        """Push a frozen set."""
        self.push(set(), _CONTAINER)
        self.add_items(items)
        self.charge(_CONTAINER + _ENTRY * len(items))
        self.push(frozenset(self.stack.pop()))

    def new_tuple(self, items: list[Any]) -> None:
        """Push a tuple."""
        self.charge(48 + 8 * len(items))
        self.stack.append(tuple(items))

    def new_list(self, items: list[Any]) -> None:
        """Push a list."""
        self.charge(_CONTAINER + _SLOT * len(items))
        self.stack.append(items)

    def push_text(self, length: int) -> None:
        """Push a string of ``length`` bytes of UTF-8, strictly: no lone surrogates."""
        raw = self._take_text(length)
        try:
            self.stack.append(raw.decode("utf-8"))
        except UnicodeDecodeError:
            raise Malformed(f"string {quote(raw)} is not UTF-8") from None

    def push_bytes(self, length: int, kind: type = bytes) -> None:
        """Push ``length`` bytes."""
        self.ensure(length)
        self.charge(64 + 2 * length)
        self.stack.append(kind(self.take(length)))

    def push_old_string(self, length: int) -> None:
        """Push a string of Python 2: text if it is UTF-8, else bytes."""
        raw = self._take_text(length)
        try:
            self.stack.append(raw.decode("utf-8"))
        except UnicodeDecodeError:
            self.stack.append(raw)

    def _take_text(self, length: int) -> bytes:
        """Bytes of a string, charged with what its characters will need: one byte in ASCII, up to four elsewhere."""
        self.ensure(length)
        self.charge(64 + length)
        start = self.position
        self.position = start + length
        raw = bytes(self.data[start : start + length])
        if not raw.isascii():
            self.charge(4 * length)
        return raw

    def line(self, most: int = 1024) -> bytes:
        """The bytes up to the next newline."""
        self.steps -= _LINE
        return super().line(most)

    def push_line(self, encoding: str) -> None:
        """Push the text of a line."""
        raw = self.line(self.limits.string)
        self.charge(64 + 4 * len(raw))
        try:
            text = raw.decode(encoding)
            text.encode("utf-8")
        except UnicodeError:
            raise Malformed(f"string {quote(raw)} is not {encoding}") from None
        self.push(text)

    def push_integer(self, length: int) -> None:
        """Push a signed integer of ``length`` bytes."""
        self.push(self.integer(length), 32 + max(length, 0))

    def push_decimal_float(self) -> None:
        """Push a float written as text."""
        raw = self.line(64)
        try:
            self.push(float(raw), _NUMBER)
        except ValueError:
            raise Malformed(f"float is written {quote(raw)}") from None

    # Globals: a name is looked up in one table, exactly as it is written, and stays a name.

    def find(self, module: Any, name: Any) -> None:
        """Push the global of this name, which is on the allowlist."""
        value = self.table.get((module, name)) if type(module) is type(name) is str else None
        if value is None:
            raise unknown_global(module, name)
        self.push(value)

    def find_lines(self) -> None:
        """GLOBAL: two lines of text."""
        module, name = (self.line().decode("utf-8", "backslashreplace") for _ in range(2))
        self.find(module, name)

    def find_stack(self) -> None:
        """STACK_GLOBAL: two strings from the stack."""
        name, module = self.stack.pop(), self.stack.pop()
        self.find(module, name)

    def reduce(self) -> None:
        """REDUCE: rebuild what a global of the table stands for."""
        arguments, function = self.stack.pop(), self.stack.pop()
        self.steps -= _REBUILD
        if type(function) is not Global or function.build is None:
            raise Malformed(f"calls {name_of(function)}, which is not a function")
        if type(arguments) is not tuple:
            raise Malformed(f"{function.name} gets {quote(arguments)}; expected a tuple of arguments")
        try:
            self.push(function.build(self, arguments), _CONTAINER)
        except Malformed as fault:
            raise Malformed(f"{function.name}: {fault}") from None

    def build(self) -> None:
        """BUILD: only objects that are made for it take a state."""
        state, target = self.stack.pop(), self.stack[-1]
        self.steps -= _REBUILD
        if not isinstance(target, Build):
            raise Malformed(f"sets the state of {name_of(target)}; only a state dict and NumPy values have one")
        target.set_state(state)

    def persist(self) -> None:
        """BINPERSID: a storage of the file."""
        if self.persistent is None:
            raise Malformed("refers to a storage, but none is allowed here")
        self.steps -= _REBUILD
        self.push(self.persistent(self.stack.pop()), 4 * _CONTAINER)

    def protocol(self) -> None:
        """PROTO: 0 to 5 are known."""
        version = self.byte()
        if version > 5:
            raise Malformed(f"pickle protocol {version}; expected 0 to 5")

    def frame(self) -> None:
        """FRAME: its length must be there, nothing else depends on it."""
        length = self.number(U8)
        if self.position + length > self.end:
            raise Malformed(f"frame of {length} bytes goes past the end of the file")
