"""Files of ``torch.save`` before 1.6: five pickles in a row, then the bytes of every storage.

The pickles are a magic number, a protocol version, facts about the writer, the object, and the keys of the storages
in the order in which their bytes follow, each after its number of elements. Bytes are always little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

from growarray.checkpoint.torch.allowlist import Global
from growarray.checkpoint.torch.machine import PickleMachine
from growarray.checkpoint.torch.plain_pickle import MAGIC
from growarray.checkpoint.torch.rebuild import Rebuild, Storage, check_storage_id
from growarray.checkpoint.torch.tree import check_tree
from growarray.files.errors import Malformed, at, quote
from growarray.files.limits import Limits
from growarray.files.source import Region, Source
from growarray.files.tensor import Contents

_VERSION = 1001
_COUNT = struct.Struct("<q")


class _Reader:
    """Goes through one file from front to back."""

    def __init__(self, source: Source, limits: Limits) -> None:
        self.source = source
        self.limits = limits
        self.data = source.view
        self.position = 0
        self.memory = 0  # what the last pickle left of it
        self.storages: dict[str, Storage] = {}
        self.views: dict[str, Storage] = {}

    def pickle(self, table: Mapping[tuple[str, str], Global], persistent: Callable[[Any], Any] | None = None) -> Any:
        """The next pickle."""
        machine = PickleMachine(
            self.data,
            self.limits,
            table=table,
            persistent=persistent,
            memory=self.limits.memory + self.source.size,
            position=self.position,
            file_size=self.source.size,
        )
        result = machine.run()
        self.position, self.memory = machine.position, machine.memory
        return result

    def persistent(self, pid: Any) -> Storage:
        """The storage of a persistent id; its bytes are found when the object has been read."""
        key, dtype, numel = check_storage_id(pid, 6)
        storage = self.storages.get(key)
        if storage is None:
            if numel * dtype.itemsize > self.source.size:
                raise Malformed(f"storage {quote(key)} of {numel} {dtype.name} is larger than the file")
            region = Region(self.source, f"storage {quote(key)}", -1, numel * dtype.itemsize)
            self.storages[key] = storage = Storage(key, dtype, numel, region)
        elif storage.dtype is not dtype or storage.numel != numel:
            raise Malformed(
                f"storage {quote(key)} is {storage.numel} {storage.dtype.name} and {numel} {dtype.name} at once"
            )
        return storage if pid[5] is None else self._view(storage, pid[5])

    def _view(self, storage: Storage, view: Any) -> Storage:
        """The part of a storage that ``(key, offset, size)`` in elements names."""
        if type(view) is not tuple or len(view) != 3 or type(view[0]) is not str:
            raise Malformed(f"view of storage {quote(storage.key)} is {quote(view)}; expected (key, offset, size)")
        key, first, numel = view
        whole = type(first) is int and type(numel) is int
        if not whole or numel < 0 or not 0 <= first <= first + numel <= storage.numel:
            raise Malformed(
                f"view of storage {quote(storage.key)} from {quote(first)} with {quote(numel)} elements "
                f"does not lie inside its {storage.numel}"
            )
        existing = self.views.get(key)
        if existing is None:
            self.views[key] = existing = Storage(key, storage.dtype, numel, storage.region, first)
        elif existing.region is not storage.region or existing.first != first or existing.numel != numel:
            raise Malformed(f"view {quote(key)} is described in two ways")
        return existing

    def place(self, keys: Any) -> None:
        """Find the bytes of every storage, in the order of the key list."""
        if type(keys) is not list or any(type(key) is not str for key in keys):
            raise Malformed(f"list of storage keys is {quote(keys)}; expected a list of strings")
        missing = sorted(set(self.storages) - set(keys))
        if missing:
            raise Malformed(f"storage {quote(missing[0])} is used, but not in the list of keys")
        if len(set(keys)) != len(keys):
            raise Malformed("list of storage keys has a duplicate")
        for key in keys:
            with at(f"storage {quote(key)}"):
                self._place(key)
        if self.position != len(self.data):
            raise Malformed(f"{len(self.data) - self.position} bytes follow the last storage")

    def _place(self, key: str) -> None:
        storage = self.storages.get(key)
        if storage is None:
            raise Malformed("is in the list of keys, but nothing uses it, so its type is not known")
        start = self.position + _COUNT.size
        if start > len(self.data):
            raise Malformed(f"is missing: the file ends at {len(self.data)}; it is cut off")
        (numel,) = _COUNT.unpack_from(self.data, self.position)
        if numel != storage.numel:
            raise Malformed(f"has {numel} elements, the object says {storage.numel}")
        if start + storage.region.nbytes > len(self.data):
            raise Malformed(
                f"needs bytes up to {start + storage.region.nbytes}, the file ends at {len(self.data)}; it is cut off"
            )
        storage.region.offset = start
        self.position = start + storage.region.nbytes


def read_torch_legacy(source: Source, limits: Limits) -> Contents:
    """The structure of a legacy checkpoint; its tensors stay in the file. Raises Malformed for anything else."""
    reader = _Reader(source, limits)
    with at("magic number"):
        magic = reader.pickle({})
        if magic != MAGIC:
            raise Malformed(f"is {quote(magic)}, expected {MAGIC:#x}")
    with at("protocol version"):
        version = reader.pickle({})
        if type(version) is not int or version != _VERSION:
            raise Malformed(f"is {quote(version)}, expected {_VERSION}")
    with at("system information"):
        facts = reader.pickle({})
        if type(facts) is not dict:
            raise Malformed(f"is {quote(facts)}, expected a dictionary")
    rebuild = Rebuild(limits, source.size)
    with at("object"):
        root = reader.pickle(rebuild.table(), reader.persistent)
        check_tree(root, limits, reader.memory)
    with at("storage keys"):
        keys = reader.pickle({})
    reader.place(keys)
    return Contents("torch-legacy", root, notes=rebuild.notes)
