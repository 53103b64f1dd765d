"""``growarray convert``: weights from one kind of file into another, and ONNX graphs, read and written again."""

from __future__ import annotations

import importlib
import importlib.util
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from growarray.checkpoint import Checkpoint, load_checkpoint
from growarray.checkpoint.inspect import Inspection, inspect, outline_extras
from growarray.checkpoint.save import SAFETENSORS_TYPES, save_npz, save_safetensors
from growarray.cli.files import (
    LimitsOption,
    LinksOption,
    PrefixOption,
    SelectOption,
    Texts,
    fixed_shape,
    limits_from,
    sizes_from,
)
from growarray.cli.options import choices, option, switch
from growarray.display import printable
from growarray.errors import CheckpointError, shown
from growarray.files.tensor import StoredTensor
from growarray.nn import Module, renamed
from growarray.nn.cast import cast
from growarray.onnx.export import to_onnx
from growarray.onnx.read import from_onnx

_DTYPES = ("float16", "bfloat16", "float32", "float64")
_KINDS = (".safetensors", ".npz", ".onnx")
_MOST_LISTED = 8

RenameOption = Annotated[
    Texts, option("OLD=NEW", "a name, or a prefix that ends in a dot; 'OLD.=' takes it off", "--rename")
]
ShapeOption = Annotated[
    Texts,
    option("SIZES", "such as 1,3,32,32, of an ONNX input that the file leaves open; one for each", "--input-shape"),
]


def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="torch, safetensors, ONNX, .npz, or an index of shards")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="a .safetensors, .npz or .onnx file")],
    select: SelectOption = None,
    prefix: PrefixOption = None,
    rename: RenameOption = None,
    dtype: Annotated[str | None, option(choices(*_DTYPES), "of all real numbers; default as in the file")] = None,
    input_shape: ShapeOption = None,
    force: Annotated[bool, switch("--force", "replace OUT if it exists")] = False,
    limits: LimitsOption = None,
    follow_links: LinksOption = False,
) -> None:
    """Check what is asked for, read, and write."""
    _check_target(source, target, force)
    if dtype is not None and dtype not in _DTYPES:
        raise ValueError(f"--dtype {dtype}: expected one of {', '.join(_DTYPES)}")
    bounds = limits_from(limits)
    if target.suffix == ".onnx":
        found = inspect(source, limits=bounds, follow_links=follow_links)
        _check_graph(found, target, {"--select": select, "--prefix": prefix, "--rename": rename}, dtype)
        network = from_onnx(source, limits=bounds, follow_links=follow_links)
        notes = _graph(network, found, target, dtype, input_shape)
    elif input_shape:
        raise ValueError(f"--input-shape: {target.suffix} files have no graph; leave it out")
    else:
        checkpoint = load_checkpoint(source, select=select, prefix=prefix, limits=bounds, follow_links=follow_links)
        notes = _weights(checkpoint, target, _rename(rename), dtype)
    for text in (f"written {target}: {target.stat().st_size:,} bytes", *notes):
        typer.echo(printable(text))


def _check_target(source: Path, target: Path, force: bool) -> None:
    if target.suffix not in _KINDS:
        raise ValueError(f"{target}: expected a name that ends in {', '.join(_KINDS)}, found {shown(target.suffix)}")
    if target.exists():
        if source.exists() and target.samefile(source):
            raise FileExistsError(f"{target} is the file that is read; name another one")
        if not force:
            raise FileExistsError(f"{target} exists already; name another file, or add --force to replace it")


def _rename(texts: Sequence[str] | None) -> dict[str, str | None]:
    """The mapping of ``OLD=NEW`` texts."""
    result: dict[str, str | None] = {}
    for text in texts or ():
        old, equals, new = text.partition("=")
        if not equals or old in result:
            problem = f"{shown(old)} twice" if equals else "no '='"
            raise ValueError(f"--rename {text}: expected OLD=NEW, each OLD once, found {problem}")
        result[old] = new
    return result


# Weights.


class _Arrays(Mapping[str, NDArray[Any]]):
    """Arrays of a checkpoint under their new names, each read, and cast, when it is asked for."""

    def __init__(self, stored: Mapping[str, StoredTensor], dtype: str | None, known: Callable[[str], bool]) -> None:
        self.stored, self.dtype, self.known = stored, dtype, known

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, name: str) -> NDArray[Any]:
        tensor = self.stored[name]
        if not self.casts(tensor):
            return tensor.read(ml_dtypes=self.known(tensor.dtype.name))
        return np.asarray(cast(tensor.read(), _dtype(str(self.dtype)), f"--dtype {self.dtype}: {shown(name)}"))

    def casts(self, tensor: StoredTensor) -> bool:
        """Whether ``--dtype`` changes the values' type: that of real numbers alone."""
        return self.dtype not in (None, tensor.dtype.name) and tensor.dtype.name.startswith(("float", "bfloat"))

    def becomes(self, tensor: StoredTensor) -> str:
        """Name of the type that is written."""
        if self.casts(tensor):
            return str(self.dtype)
        return tensor.dtype.name if self.known(tensor.dtype.name) else np.dtype(tensor.dtype.wide).name


def _dtype(name: str) -> Any:
    return importlib.import_module("ml_dtypes").bfloat16 if name == "bfloat16" else np.dtype(name)


def _weights(checkpoint: Checkpoint, target: Path, rename: dict[str, str | None], dtype: str | None) -> list[str]:
    """Write the tensors; returns the notes to print."""
    safetensors = target.suffix == ".safetensors"
    ml_dtypes = importlib.util.find_spec("ml_dtypes") is not None
    if dtype == "bfloat16" and not (safetensors and ml_dtypes):
        remedy = "pip install ml_dtypes" if safetensors else ".npz has no such type; write .safetensors"
        raise ValueError(f"--dtype bfloat16: {remedy}")
    stored = _with_aliases(checkpoint)
    names = renamed(stored, rename)
    if names.unused:
        first = ", ".join(list(stored)[:3])
        raise ValueError(f"--rename {names.unused[0]}: applies to no name; names are {first}, …")
    arrays = _Arrays(
        {new: stored[old] for new, old in names.old.items()},
        dtype,
        lambda name: safetensors and ml_dtypes and name in SAFETENSORS_TYPES,
    )
    notes = [f"{len(arrays)} tensors"]
    if safetensors:
        metadata = _metadata(checkpoint)
        save_safetensors(arrays, target, metadata)
    else:
        metadata = {}
        save_npz(arrays, target)
    changed = Counter((tensor.dtype.name, arrays.becomes(tensor)) for tensor in arrays.stored.values())
    notes += [f"{count} tensors from {old} to {new}" for (old, new), count in changed.items() if old != new]
    notes += [f"tied, written under each name: {', '.join(group)}" for group in checkpoint.tied]
    return notes + _left_out(checkpoint, metadata) + [f"note: {note}" for note in checkpoint.notes]


def _with_aliases(checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    """The tensors, and the aliases that the file gives to some of them."""
    stored = dict(checkpoint.stored)
    for group in checkpoint.tied:
        kept = next(name for name in group if name in checkpoint.stored)
        for name in group:
            stored.setdefault(name, checkpoint.stored[kept])
    return stored


def _metadata(checkpoint: Checkpoint) -> dict[str, str]:
    """The metadata of a safetensors file, without the aliases."""
    if checkpoint.kind != "safetensors":
        return {}
    return {key: text for key, text in checkpoint.metadata.items() if key not in checkpoint.aliases}


def _left_out(checkpoint: Checkpoint, metadata: Mapping[str, str]) -> list[str]:
    """Notes on what the input file holds and the output lacks."""
    notes = []
    extras = outline_extras(checkpoint.stored_extras, depth=1)
    if extras:
        shown = ", ".join(f"{extra.name} ({extra.kind} {extra.text})" for extra in extras[:_MOST_LISTED])
        more = f" and {len(extras) - _MOST_LISTED} more" if len(extras) > _MOST_LISTED else ""
        notes.append(f"left out: {shown}{more}")
    if checkpoint.kind == "onnx":
        notes.append("left out: the graph; the initializers alone were written")
    elif len(metadata) < len(_metadata(checkpoint)) or (checkpoint.metadata and checkpoint.kind != "safetensors"):
        notes.append(f"left out: metadata ({len(checkpoint.metadata)} entries)")
    return notes


# Graphs.


def _check_graph(found: Inspection, target: Path, given: Mapping[str, Any], dtype: str | None) -> None:
    """Raise unless the file has a graph, and the options make sense for one."""
    if found.refused:
        raise CheckpointError(found.refused)
    if found.kind != "onnx":
        raise ValueError(
            f"{target}: {found.source} is of the kind {found.kind}, which has weights and no graph; write .safetensors "
            "or .npz, or load it into a network and call growarray.checkpoint.to_onnx"
        )
    for flag, value in given.items():
        if value:
            raise ValueError(f"{flag}: from ONNX to ONNX the whole graph is written; leave it out")
    if dtype == "bfloat16":
        raise ValueError("--dtype bfloat16: expected float16, float32 or float64 for a graph")


def _graph(
    network: Module, found: Inspection, target: Path, dtype: str | None, texts: Sequence[str] | None
) -> list[str]:
    """Write a network that was read from a graph; returns the notes to print."""
    shapes, open_ = _shapes(found, texts)
    to_onnx(network, target, shapes, dtype=dtype, dynamic_batch=open_)
    notes = [f"{len(found.tensors)} initializers were read; what is constant is folded, and dropout left out"]
    half = Counter(row.dtype for row in found.tensors if row.dtype in ("float16", "bfloat16"))
    if dtype is None:
        notes += [f"{count} initializers from {name} to float32" for name, count in half.items()]
    return notes


def _shapes(found: Inspection, texts: Sequence[str] | None) -> tuple[dict[str, tuple[int, ...]], bool]:
    """Shape of every input, and whether the first axis is open; axes that the file leaves open come from ``texts``."""
    ports = found.graph.inputs if found.graph is not None else []
    if texts is not None and len(texts) != len(ports):
        names = ", ".join(port.name for port in ports)
        raise ValueError(f"--input-shape: expected one for each of {len(ports)} inputs ({names}), found {len(texts)}")
    shapes: dict[str, tuple[int, ...]] = {}
    for index, port in enumerate(ports):
        if texts is not None:
            shapes[port.name] = sizes_from(texts[index], "1,3,32,32")
            continue
        known = fixed_shape(port.shape)
        if known is None:
            file = "unknown" if port.shape is None else "x".join(map(str, port.shape))
            raise ValueError(
                f"input {shown(port.name)} has the shape {file} in the file; pass it, for example "
                "--input-shape 1,3,32,32"
            )
        shapes[port.name] = known
    return shapes, any(port.shape is None or any(isinstance(axis, str) for axis in port.shape[:1]) for port in ports)
