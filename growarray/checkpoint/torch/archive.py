"""Zip archives of ``torch.save`` (since 1.6): one pickle, and a record of raw bytes for each storage."""

from __future__ import annotations

import re
from typing import Any

from growarray.checkpoint.torch.machine import PickleMachine
from growarray.checkpoint.torch.rebuild import Rebuild, Storage, check_storage_id
from growarray.checkpoint.torch.tree import check_tree
from growarray.checkpoint.zip_index import DEFLATED, STORED, Member, read_index
from growarray.files.errors import Malformed, at, quote
from growarray.files.limits import Limits
from growarray.files.source import Region, Source, check_crc
from growarray.files.tensor import Contents

_VERSIONS = range(1, 11)


class _Archive:
    """The records of one archive, and the storages that its pickle refers to."""

    def __init__(self, source: Source, limits: Limits) -> None:
        self.source = source
        self.limits = limits
        self.members = read_index(source.view, limits, methods=(STORED, DEFLATED))
        self.checked = any(member.crc for member in self.members.values())  # all zero: written without checksums
        self.folder = _one_folder(self.members)
        for member in self.members.values():
            if member.method != STORED:
                raise Malformed(
                    f"zip member {quote(member.name)} is compressed; pack the archive again without compression"
                )
        self.storages: dict[str, Storage] = {}
        self.big_endian = self._byte_order()
        self._check_version()

    def record(self, name: str) -> memoryview:
        """The bytes of a small record, its checksum verified."""
        member = self.members[f"{self.folder}/{name}"]
        if member.size > self.limits.metadata:
            raise Malformed(f"{name} has {member.size} bytes; the limit is {self.limits.metadata} (Limits.metadata)")
        data = self.source.view[member.offset : member.offset + member.size]
        if self.checked:
            check_crc(data, member.crc, name)
        return data

    def has(self, name: str) -> bool:
        """Whether there is a record of this name."""
        return f"{self.folder}/{name}" in self.members

    def persistent(self, pid: Any) -> Storage:
        """The storage of a persistent id: its record must be there and have exactly its bytes."""
        key, dtype, numel = check_storage_id(pid, 5)
        existing = self.storages.get(key)
        if existing is not None:
            if existing.dtype is not dtype or existing.numel != numel:
                raise Malformed(
                    f"storage {quote(key)} is {existing.numel} {existing.dtype.name} and {numel} {dtype.name} at once"
                )
            return existing
        member = self.members.get(f"{self.folder}/data/{key}")
        if member is None:
            raise Malformed(f"storage {quote(key)} has no record data/{quote(key)[1:-1]}; the file is incomplete")
        if member.size != numel * dtype.itemsize:
            raise Malformed(f"storage {quote(key)} of {numel} {dtype.name} has a record of {member.size} bytes")
        crc = member.crc if self.checked else None
        region = Region(self.source, f"data/{key}", member.offset, member.size, crc=crc, big_endian=self.big_endian)
        self.storages[key] = storage = Storage(key, dtype, numel, region)
        return storage

    def _byte_order(self) -> bool:
        """Whether elements are big-endian; files of torch before 2.1 do not say, and are not."""
        if not self.has("byteorder"):
            return False
        order = bytes(self.record("byteorder")[:16])
        if order not in (b"little", b"big"):
            raise Malformed(f"byteorder is {quote(order)}; expected 'little' or 'big'")
        return order == b"big"

    def _check_version(self) -> None:
        if not self.has("version"):
            raise Malformed("record 'version' is missing; torch writes one into every checkpoint")
        text = bytes(self.record("version")[:16])
        if not re.fullmatch(rb"\d{1,4}\s*", text) or int(text) not in _VERSIONS:
            raise Malformed(f"version is {quote(text)}; expected 1 to 10")


def read_torch_zip(source: Source, limits: Limits) -> Contents:
    """The structure of a zip checkpoint; its tensors stay in the file. Raises Malformed for anything else."""
    archive = _Archive(source, limits)
    with at("data.pkl"):
        data = archive.record("data.pkl")
        rebuild = Rebuild(limits, source.size)
        machine = PickleMachine(
            data,
            limits,
            table=rebuild.table(),
            persistent=archive.persistent,
            memory=limits.memory + source.size,
            file_size=source.size,
        )
        root = machine.run()
        if machine.position != len(data):
            raise Malformed(f"{len(data) - machine.position} bytes follow the end of the pickle")
        check_tree(root, limits, machine.memory)
    return Contents("torch-zip", root, notes=rebuild.notes)


def _one_folder(members: dict[str, Member]) -> str:
    """The folder that holds everything; raises Malformed for an archive that is not a checkpoint."""
    folders = {name.split("/", 1)[0] for name in members}
    if len(folders) != 1:
        raise Malformed(f"zip archive has {len(folders)} top folders or files; a torch checkpoint has one folder")
    folder = folders.pop()
    inside = {name[len(folder) + 1 :] for name in members}
    if "constants.pkl" in inside or any(name.startswith("code/") for name in inside):
        raise Malformed("is a TorchScript archive (constants.pkl, code/), which is a program; save its state_dict()")
    if "archive_format" in inside or "models/model.json" in inside:
        raise Malformed("is a torch.export archive (.pt2), which is a program; save its state_dict with torch.save")
    if "data.pkl" not in inside:
        raise Malformed("has no record data.pkl; this zip archive is not a torch checkpoint")
    return folder
