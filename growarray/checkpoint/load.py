"""Opening a checkpoint: its kind by content, its structure checked, its weights named; no tensor is read."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, BinaryIO

from growarray.checkpoint.checkpoint import Checkpoint
from growarray.checkpoint.names import Select, Selection, flatten, select_state, strip_prefixes
from growarray.checkpoint.npz import read_npz
from growarray.checkpoint.safetensors import read_safetensors
from growarray.checkpoint.shards import read_index_file
from growarray.checkpoint.torch.allowlist import OrderedTree
from growarray.checkpoint.torch.archive import read_torch_zip
from growarray.checkpoint.torch.legacy import read_torch_legacy
from growarray.checkpoint.torch.plain_pickle import compressed_pickle, is_torch_legacy, looks_like_pickle, plain_pickle
from growarray.checkpoint.torch.tree import check_tree, full_parts, resolve
from growarray.errors import shown
from growarray.files.errors import Malformed, at, naming, quote
from growarray.files.limits import Limits, limits_or_default
from growarray.files.paths import ExternalFiles
from growarray.files.source import Source, source_name
from growarray.files.tensor import Contents, StoredTensor
from growarray.onnx.initializers import looks_like_onnx, read_onnx

_STRANGERS = (  # first bytes, what they are, what to do
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "run 'git lfs pull'"),
    (b"<", "an HTML or XML page, not a checkpoint", "the download gave an error page; fetch the file again"),
    (b"PK\x05\x06", "a zip archive without members", "it holds no array; write it again"),
    (b"\x1f\x8b", "compressed with gzip", "unpack it first"),
    (b"\xfd7zXZ", "compressed with xz", "unpack it first"),
    (b"BZh", "compressed with bzip2", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard", "unpack it first"),
    (b"\x04\x22\x4d\x18", "compressed with LZ4, as joblib does", "unpack it first"),
    (b"\x89HDF", "an HDF5 file", "load it with Keras or h5py, and save .npz or .safetensors"),
    (b"GGUF", "a GGUF file", "convert it to .safetensors"),
    (b"\x93NUMPY", "a single .npy array", "load it with numpy.load"),
)
_REMEDY = "expected a torch checkpoint, .safetensors or its index, .onnx or .npz"


def kind_of(source: Source, limits: Limits) -> str:
    """``torch-zip``, ``torch-legacy``, ``safetensors``, ``onnx``, ``npz``, or ``index`` of a checkpoint in shards.

    Raises Malformed that says what the file looks like, if it is none of them.
    """
    data = source.view
    head = bytes(data[:512])
    if not head:
        raise Malformed(f"is empty; {_REMEDY}")
    if head.startswith(b"PK\x03\x04"):
        return "npz" if _is_npz(head) else "torch-zip"
    if head[8:9] == b"{" and head[4:8] == bytes(4):
        return "safetensors"
    packed = compressed_pickle(data, limits)
    if packed is not None:
        raise packed
    if head[8:9] == b"{" and not (head[:1] == b"{" or looks_like_onnx(data)):
        return "safetensors"  # whose length is wrong
    if is_torch_legacy(data):
        return "torch-legacy"
    if head[0] == 0x80 and looks_like_pickle(data):
        raise plain_pickle(data, limits)
    if head.lstrip()[:1] == b"{":
        return "index"
    for start, what, remedy in _STRANGERS:
        if head.lstrip().startswith(start):
            raise Malformed(f"is {what}; {remedy}")
    if _is_tar(head):
        raise Malformed(
            "is a tar archive, as torch before 0.2 wrote them, which is not read; "
            "load it with torch.load(weights_only=False) if you trust it, and save it again"
        )
    damaged = head[:1] == b"\x08" and source.name.endswith(".onnx")  # the reader then says what is wrong
    if damaged or looks_like_onnx(data):
        return "onnx"
    if looks_like_pickle(data):
        raise plain_pickle(data, limits)
    raise Malformed(f"is not a recognised checkpoint: it starts with {quote(head[:16])}; {_REMEDY}{_hint(source)}")


def _is_npz(head: bytes) -> bool:
    """Whether the first member of an archive is named like an array of NumPy; its name follows 30 fixed bytes."""
    length = int.from_bytes(head[26:28], "little")
    return head[30 : 30 + length].endswith(b".npy")


def _is_tar(head: bytes) -> bool:
    """Whether the first block is a tar header: its checksum is that of the block with blanks in its place."""
    if len(head) < 512:
        return False
    field = head[148:156].strip(b" \0")
    return bool(re.fullmatch(rb"[0-7]{1,8}", field)) and int(field, 8) == sum(head[:148] + b" " * 8 + head[156:])


def _hint(source: Source) -> str:
    """What the name promises, which the content does not keep."""
    suffix = source.name.rpartition(".")[2].lower()
    if suffix in ("safetensors", "onnx", "npz", "pt", "pth", "bin", "ckpt", "json"):
        return f"; it is named .{suffix}, but its content is damaged or of another kind"
    return ""


_READERS: dict[str, Callable[[Source, Limits], Contents]] = {
    "torch-zip": read_torch_zip,
    "torch-legacy": read_torch_legacy,
    "safetensors": read_safetensors,
    "npz": read_npz,
}


def load_checkpoint(
    path: str | os.PathLike[str] | BinaryIO,
    *,
    select: Select = None,
    prefix: str | Sequence[str] | None = None,
    limits: Limits | None = None,
    follow_links: bool = False,
    ml_dtypes: bool = False,
    mmap: bool = True,
    checksums: bool = True,
) -> Checkpoint:
    """Open a file of weights: torch (``.pt``, ``.pth``, ``.bin``), safetensors, ONNX, ``.npz``, or an index of shards.

    Nothing in the file is executed, imported or extracted, and its kind is told by its content.

    select : key of the part to take (``'model'``), or keys from the outside in; by default the part that looks
        like a state dict. The rest is in ``extras``.
    prefix : prefixes to take off the names; by default ``module.`` and ``_orig_mod.`` if every name has them;
        ``()`` keeps the names of the file.
    limits : what the file may ask for, see :class:`Limits`.
    follow_links : read shards and external data through links that leave the model's folder.
    ml_dtypes : bfloat16 and float8 as ``ml_dtypes`` arrays, in place of float32 of the same value.
    mmap : map the file; False reads it whole, for a file that may change.
    checksums : check the CRC-32 that zip archives record for a tensor when it is first read; that is about
        two thirds of the time to read a large file from the system's cache, and torch does not do it.

    Raises CheckpointError, which names the file, the place, what was expected and what was found; TypeError if
    ``path`` is neither a path nor an open file, or ``limits`` no Limits.

    >>> import io, numpy as np
    >>> file = io.BytesIO()
    >>> np.savez(file, weight=np.eye(2, dtype=np.float32))
    >>> checkpoint = load_checkpoint(io.BytesIO(file.getvalue()))
    >>> checkpoint["weight"].tolist(), checkpoint.kind
    ([[1.0, 0.0], [0.0, 1.0]], 'npz')
    """
    limits, name = limits_or_default(limits), source_name(path)
    with naming(name):
        source = Source.of(path, name=name, mapped=mmap)
        source.checksums = checksums
        external = ExternalFiles(source, limits, follow_links=follow_links, mapped=mmap)
        contents = _read(source, limits, external)
        return _checkpoint(contents, source, limits, select, prefix, ml_dtypes)


def _read(source: Source, limits: Limits, external: ExternalFiles) -> Contents:
    kind = kind_of(source, limits)
    if kind == "onnx":
        return read_onnx(source, limits, external)
    if kind == "index":
        return read_index_file(source, limits, external, partial(_read_shard, limits))
    return _READERS[kind](source, limits)


def _read_shard(limits: Limits, source: Source) -> Contents:
    """A file that an index names: it may not name further files."""
    kind = kind_of(source, limits)
    if kind not in _READERS:
        raise Malformed(f"is of the kind {kind}; expected safetensors or a torch checkpoint")
    return _READERS[kind](source, limits)


def _checkpoint(
    contents: Contents, source: Source, limits: Limits, select: Select, prefix: str | Sequence[str] | None, ml: bool
) -> Checkpoint:
    """Name the tensors of what was read."""
    if contents.kind.startswith("torch-") and contents.kind != "torch-index":
        chosen = select_state(contents.tree, select)
        stored, leaves = _named(chosen.node, limits.memory + source.size)
        rest = _rest(contents.tree, chosen, leaves)
        metadata = _versions(chosen, limits)
    elif select is not None:
        raise Malformed(f"select={shown(select)}: files of the kind {contents.kind} have no parts; do not pass select")
    else:
        chosen, stored, rest, metadata = Selection(None), contents.flat(), {}, contents.metadata
    renamed, taken = strip_prefixes(list(stored), prefix, aliases=list(contents.aliases))
    stored = {renamed[name]: tensor for name, tensor in stored.items()}
    notes = [*contents.notes, *chosen.notes]
    if taken:
        notes.append(f"the prefix {taken!r} was taken off the names")
    elif prefix:
        notes.append(f"prefix={shown(prefix)}: no name begins with it")
    aliases = {alias: renamed[kept] for alias, kept in contents.aliases.items()}
    return Checkpoint(
        source=source.name,
        kind=contents.kind,
        stored=stored,
        tree=contents.tree,
        rest=rest,
        metadata=metadata,
        tied=_tied(stored, {renamed[alias]: kept for alias, kept in aliases.items()}),
        aliases=aliases,
        prefix=taken,
        paths={new.rpartition(".")[0]: old.rpartition(".")[0] for old, new in renamed.items()} if metadata else {},
        notes=tuple(notes),
        ml_dtypes=ml,
    )


def _named(node: Any, memory: int) -> tuple[dict[str, StoredTensor], Any]:
    """Tensors and other leaves by name; a sequence without a tensor stays as it is, for it may be long."""
    if type(node) in (list, tuple) and not full_parts(node):
        return {}, node
    return flatten(node, memory)


def _versions(chosen: Selection, limits: Limits) -> dict[str, Any]:
    """What torch notes about the modules of a state dict (``_metadata``), as plain data."""

    def refuse(tensor: StoredTensor) -> Any:
        raise Malformed("_metadata of the state dict holds a tensor")

    metadata = chosen.node.metadata if type(chosen.node) is OrderedTree else None
    with at("_metadata"):
        check_tree(metadata or {}, limits, limits.memory)
        versions: dict[str, Any] = resolve(metadata or {}, refuse)
    return versions


def _rest(root: Any, chosen: Selection, leaves: Any) -> Any:
    """The structure without the tensors of the chosen part: its other leaves stay where it was."""
    if not chosen.keys:
        return leaves
    first, *further = chosen.keys
    rest = {key: value for key, value in (root.items() if isinstance(root, dict) else enumerate(root)) if key != first}
    inner = _rest(root[first], Selection(chosen.node, tuple(further)), leaves)
    return {**rest, first: inner} if inner else rest


def _tied(stored: dict[str, StoredTensor], aliases: dict[str, str]) -> tuple[tuple[str, ...], ...]:
    """Groups of two names and more that lie in one storage."""
    groups: dict[int, list[str]] = {}
    for name, tensor in stored.items():
        groups.setdefault(id(tensor.region), []).append(name)
    for alias, kept in aliases.items():
        groups[id(stored[kept].region)].append(alias)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)
