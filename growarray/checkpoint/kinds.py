"""The kind of a file by its content; for one that is not a checkpoint, what it looks like."""

from __future__ import annotations

import re

from growarray.checkpoint.torch.plain_pickle import compressed_pickle, is_torch_legacy, looks_like_pickle, plain_pickle
from growarray.files.errors import Malformed, quote
from growarray.files.limits import Limits
from growarray.files.source import Source
from growarray.onnx.initializers import looks_like_onnx

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
    if looks_like_onnx(data) or (
        head[:1] == b"\x08" and source.name.endswith(".onnx")
    ):  # the latter to say what is wrong
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
