"""A checkpoint: weights by name, read on access, everything else that the file holds, and its table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from growarray.checkpoint.torch.tree import resolve
from growarray.display import Displayed, Table, printable, text_of
from growarray.files.errors import naming
from growarray.files.tensor import StoredTensor


class Checkpoint(Displayed, Mapping[str, NDArray[Any]]):
    """A mapping from flat name to array, as :func:`load_checkpoint` returns it.

    An array is read from the file at each access: a view of a private map if NumPy can hold the stored type, a
    copy elsewhere (bfloat16, float8, the other byte order, unaligned bytes). Arrays can be written to, the file never
    is. ``len``, ``in`` and the names cost nothing; :attr:`stored` has shapes and types without reading.
    """

    def __init__(
        self,
        *,
        source: str,
        kind: str,
        stored: dict[str, StoredTensor],
        tree: Any,
        rest: Any,
        metadata: dict[str, Any],
        tied: tuple[tuple[str, ...], ...],
        aliases: dict[str, str],
        prefix: str,
        paths: dict[str, str],
        notes: tuple[str, ...],
        ml_dtypes: bool,
    ) -> None:
        self.source = source
        """The file, as it was named."""
        self.kind = kind
        """``torch-zip``, ``torch-legacy``, ``safetensors``, ``onnx``, ``npz``, or an index of shards."""
        self.stored = stored
        """Shape, type and place of every tensor, by name."""
        self.metadata = metadata
        """What the file says of itself: strings of safetensors, versions of torch modules, opset of ONNX."""
        self.tied = tied
        """Groups of names that share storage. An alias that safetensors notes is named here, though it is no key."""
        self.aliases = aliases
        """Entries of the metadata by which safetensors gives a tensor another name: that name, and the key."""
        self.prefix = prefix
        """Prefix that was taken off all names, ``''`` for none."""
        self.notes = notes
        """What was chosen or left out, a sentence each."""
        self._tree = tree
        self._rest = rest
        self._paths = paths
        self._ml_dtypes = ml_dtypes

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._read(self.stored[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def __contains__(self, name: object) -> bool:
        return name in self.stored

    def __repr__(self) -> str:
        nbytes = sum(tensor.nbytes for tensor in self.stored.values())
        return f"Checkpoint({self.source!r}, kind={self.kind!r}, tensors={len(self)}, nbytes={nbytes})"

    def __str__(self) -> str:
        return table(self.stored, title=f"{self.source} ({self.kind})", tied=self.tied, notes=self.notes)

    @property
    def versions(self) -> dict[str, int]:
        """Versions of torch's modules by the path of their tensors, as far as :attr:`metadata` tells."""
        return {
            path: entry["version"]
            for path, key in self._paths.items()
            if type(entry := self.metadata.get(key)) is dict and type(entry.get("version")) is int
        }

    @cached_property
    def tree(self) -> Any:
        """The whole structure of the file as dictionaries, lists, tuples, plain values and arrays; names as stored.

        Dtypes and devices of torch are their names (``'torch.float16'``, ``'cuda:0'``), sizes are tuples. Everything
        is read at the first access, and kept.
        """
        with naming(self.source):
            return resolve(self._tree, self._read)

    @cached_property
    def extras(self) -> Any:
        """What the file holds besides the selected tensors: epoch, optimizer state, hyper-parameters."""
        with naming(self.source):
            return resolve(self._rest, self._read)

    @property
    def stored_extras(self) -> Any:
        """The structure behind :attr:`extras`; its tensors are still in the file, as those of :attr:`stored` are."""
        return self._rest

    def _read(self, tensor: StoredTensor) -> NDArray[Any]:
        return tensor.read(ml_dtypes=self._ml_dtypes)


def table(
    stored: Mapping[str, StoredTensor], *, title: str, tied: Sequence[Sequence[str]], notes: Sequence[str]
) -> str:
    """Text with a line for each tensor, then the groups of tied names and the notes."""
    rows = [(printable(name), shape_text(t.shape), t.dtype.name, f"{t.nbytes:,}") for name, t in stored.items()]
    lines = [f"{len(stored)} tensors, {sum(t.nbytes for t in stored.values()):,} bytes"]
    lines += [f"tied: {', '.join(map(printable, group))}" for group in tied]
    lines += [f"note: {note}" for note in notes]
    return text_of([title, Table([("name", "shape", "dtype", "bytes"), *rows], left=3), *lines])


def shape_text(shape: tuple[int, ...]) -> str:
    """``2x3``, or ``scalar``."""
    return "x".join(map(str, shape)) or "scalar"
