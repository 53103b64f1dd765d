"""Writing arrays by name as safetensors or npz: one array at a time, under a temporary name until all is there."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from growarray.backend import to_numpy
from growarray.checkpoint.safetensors import DTYPES
from growarray.errors import shown
from growarray.files.dtypes import NUMPY_NAMES
from growarray.files.paths import is_safe_name, replacing

_CODES = {name: code for code, name in DTYPES.items()}
SAFETENSORS_TYPES = frozenset(_CODES)
"""Names of the element types that safetensors has."""
_MOST_HEADER = 100_000_000  # bytes; readers take no more


class _Plan(NamedTuple):
    """What is known of an array before it is written."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    nbytes: int


def save_safetensors(
    arrays: Mapping[str, Any], path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """Write ``arrays`` as a safetensors file; the package is not needed. Returns notes, a sentence each.

    arrays : arrays of any library by name, ``ml_dtypes`` ones too. Each is asked for twice, so a mapping that reads
        or casts when it is asked never holds two. Names keep their order.
    metadata : strings by name, which stand in the header.

    The values lie at multiples of 8 bytes or of their own size. Names that share one array are written in full, each,
    and a note says so. The file appears under ``path`` when it is whole; one that is there is replaced.

    Raises TypeError: an array of objects, text or another type that the format does not have; a name or metadata that
    is not text; ValueError: a name that cannot be written, or a header of over 100 MB; OSError: the file cannot be
    written.

    >>> import tempfile, numpy as np
    >>> from growarray.checkpoint import load_checkpoint
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     notes = save_safetensors({"w": np.eye(2)}, f"{folder}/w.safetensors", {"epoch": "3"})
    ...     found = load_checkpoint(f"{folder}/w.safetensors", mmap=False)
    ...     print(found["w"].tolist(), found.metadata)
    [[1.0, 0.0], [0.0, 1.0]] {'epoch': '3'}
    """
    plans = _plans(arrays, "save_safetensors", SAFETENSORS_TYPES, "safetensors")
    if not (metadata is None or isinstance(metadata, Mapping)):
        raise TypeError(f"save_safetensors: metadata is {shown(metadata)}, expected a mapping of strings")
    for key, text in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise TypeError(
                f"save_safetensors: metadata holds {shown(key)}: {shown(text)}; expected strings, such as str(value)"
            )
        _check_text(key, "save_safetensors: metadata")
        _check_text(text, f"save_safetensors: metadata {key!r}")
    if "__metadata__" in plans:
        raise ValueError("save_safetensors: '__metadata__' cannot name an array: the format reserves it; rename it")
    order = sorted(plans, key=lambda name: -plans[name].dtype.itemsize)  # large elements first: all are aligned
    places, place = {}, 0
    for name in order:
        places[name] = place
        place += plans[name].nbytes
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for name, (dtype, shape, nbytes) in plans.items():
        offsets = [places[name], places[name] + nbytes]
        header[name] = {"dtype": _CODES[dtype.name], "shape": list(shape), "data_offsets": offsets}
    head = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)
    if len(head) > _MOST_HEADER:
        raise ValueError(f"save_safetensors: names and metadata need {len(head)} bytes; readers take {_MOST_HEADER}")
    with replacing(Path(path)) as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for name in order:
            file.write(_bytes_of(_again(arrays, name, plans[name])))
    return _shared(arrays)


def save_npz(arrays: Mapping[str, Any], path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Write ``arrays`` as an ``.npz`` archive that is not compressed, for ``numpy.load`` and for this library.

    The same rules as :func:`save_safetensors` has, but NumPy's own types alone: cast ``ml_dtypes`` arrays first.
    Unlike ``numpy.savez`` it takes every name that makes a plain relative path, ``file`` too. Raises ValueError
    if there are no arrays: an empty archive would not be read again.

    >>> import tempfile, numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     notes = save_npz({"w": np.eye(2), "file": np.zeros(1)}, f"{folder}/w.npz")
    ...     with np.load(f"{folder}/w.npz") as found:
    ...         print(found.files)
    ['w', 'file']
    """
    dtypes = frozenset(row.name for row in NUMPY_NAMES.values())
    plans = _plans(arrays, "save_npz", dtypes, "npz")
    if not plans:
        raise ValueError(
            "save_npz: there are no arrays; an empty archive looks like a damaged file, so it would not be read"
        )
    for name in plans:
        if not is_safe_name(f"{name}.npy"):
            raise ValueError(
                f"save_npz: {name!r} is not a plain relative path, as names of npz members must be; rename it"
            )
    with replacing(Path(path)) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, plan in plans.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, _again(arrays, name, plan), allow_pickle=False)
    return _shared(arrays)


def _plans(arrays: Mapping[str, Any], where: str, dtypes: frozenset[str], format_: str) -> dict[str, _Plan]:
    """Type and shape of every array, all checked before a file is made."""
    if not isinstance(arrays, Mapping):
        raise TypeError(f"{where}: expected a mapping of names to arrays, found {type(arrays).__name__}")
    plans = {}
    for name in arrays:
        if not isinstance(name, str):
            raise TypeError(f"{where}: expected strings as names, found {shown(name)}")
        _check_text(name, f"{where}: name")
        array = _array(arrays[name], where, name)
        if array.dtype.name not in dtypes:
            raise TypeError(
                f"{where}: {name!r} has the dtype {array.dtype}, which {format_} does not have; "
                f"expected one of {', '.join(sorted(dtypes))}"
            )
        plans[name] = _Plan(array.dtype, tuple(array.shape), array.nbytes)
    return plans


def _array(value: Any, where: str, name: str) -> NDArray[Any]:
    try:
        array = to_numpy(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{where}: {name!r} is not an array: {error}") from error
    order = {"=": sys.byteorder, ">": "big"}.get(array.dtype.byteorder)
    return array.astype(array.dtype.newbyteorder("<"), copy=False) if order == "big" else array


def _again(arrays: Mapping[str, Any], name: str, plan: _Plan) -> NDArray[Any]:
    """The array, now for its values."""
    array = _array(arrays[name], "save", name)
    if (array.dtype, array.shape) != (plan.dtype, plan.shape):
        raise ValueError(
            f"save: {name!r} is {array.dtype} {array.shape} now, and was {plan.dtype} {plan.shape}; "
            "it must not change while it is written"
        )
    return array


def _bytes_of(array: NDArray[Any]) -> memoryview:
    """The values in row-major order; a copy only of an array that does not lie so."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _check_text(text: str, where: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{where} {text!r} has a lone surrogate, which UTF-8 cannot encode") from None


def _shared(arrays: Mapping[str, Any]) -> tuple[str, ...]:
    """A note for each group of names that share one array."""
    groups: dict[Any, list[str]] = {}
    if type(arrays) is dict:  # of a mapping that makes arrays when asked, addresses say nothing
        for name, array in arrays.items():
            if isinstance(array, np.ndarray) and array.nbytes:
                key = (array.__array_interface__["data"][0], array.shape, array.strides, array.dtype)
                groups.setdefault(key, []).append(name)
    return tuple(
        f"{', '.join(names)} share one array; it was written under each of the names"
        for names in groups.values()
        if len(names) > 1
    )
