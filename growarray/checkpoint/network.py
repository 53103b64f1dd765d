"""A network in one file: structure and weights as safetensors, which any reader of the format sees as a state dict."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from growarray.checkpoint.grown import Grown, load_folder
from growarray.checkpoint.load import load_checkpoint
from growarray.checkpoint.save import save_safetensors
from growarray.checkpoint.strict_json import parse_json
from growarray.checkpoint.structure import Reader, Writer
from growarray.errors import CheckpointError, shown
from growarray.files.errors import Malformed, naming, quote
from growarray.files.limits import Limits
from growarray.networks.history import History
from growarray.nn.owner import Owner
from growarray.optim import Optimizer

_VERSION = 1
_KEY = "growarray"
_OF_ITS_OWN = Owner | Optimizer | History | Grown


def save(value: Any, path: str | os.PathLike[str]) -> None:
    """Write a network to one file, structure and weights, for :func:`load`.

    value : any network of this library, a :class:`Grown`, or a dictionary of what belongs together, such as
        ``{"network": network, "optimizer": optimizer, "history": loop.history, "loop": loop.state()}``: networks,
        optimizers with their state, histories, plain data and arrays
    The file is safetensors; tensors have the names of the state dict, after the key of the dictionary if there is one.
    What is shared stays shared. Not kept are gradients, planned changes and statistics that are being collected.

    Raises TypeError for a class that is not of this library, OSError if the file cannot be written. The file appears
    when it is whole; one that is there is replaced.

    >>> import tempfile, numpy as np, growarray
    >>> from growarray import nn
    >>> network = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     growarray.save(network, f"{folder}/network.safetensors")
    ...     again = growarray.load(f"{folder}/network.safetensors")
    >>> x = np.ones((1, 3), dtype=np.float32)
    >>> bool(np.all(again(x) == network(x)))
    True
    """
    parts = value if isinstance(value, Mapping) else {"": value}
    if not any(isinstance(part, _OF_ITS_OWN) for part in parts.values()):
        raise TypeError(f"save: expected a network, or a dictionary with one, found {shown(value)}")
    writer = Writer(dict(_names(parts)), slots=any(isinstance(part, Optimizer) for part in parts.values()))
    document = writer.document(dict(value) if isinstance(value, Mapping) else value)
    text = json.dumps({"version": _VERSION, **document}, separators=(",", ":"), allow_nan=False)
    save_safetensors(writer.arrays, path, {_KEY: text})


def _names(parts: Mapping[Any, Any]) -> Iterator[tuple[int, str]]:
    """The identity and the name of every array of a state dict."""
    for key, part in parts.items():
        network = part.network if isinstance(part, Grown) else part
        if isinstance(network, Owner):
            for name, holder, attribute in network._named_arrays(f"{key}." if key else ""):
                yield id(getattr(holder, attribute)), name


def load(path: str | os.PathLike[str]) -> Any:
    """What :func:`save` wrote to a file; or the :class:`Grown` of a folder that ``growarray grow --output`` wrote.

    Nothing is executed: the file names classes of this library, and their constructors check what it gives them.
    Arrays are NumPy's; ``network.to("cuda")`` moves them.

    Raises CheckpointError: the file is damaged, was written by a later version, holds weights alone, or says what is
    not so; the folder holds no finished run.

    >>> import growarray
    >>> try:
    ...     growarray.load("nowhere")
    ... except growarray.errors.CheckpointError as error:
    ...     print(error)
    nowhere: there is no such file or folder; check the path
    """
    if not Path(path).exists():
        raise CheckpointError(f"{path}: there is no such file or folder; check the path")
    if not Path(path).is_file():
        return load_folder(path)
    name = os.fspath(path)
    checkpoint = load_checkpoint(path, prefix=(), mmap=False)
    with naming(name):
        text = checkpoint.metadata.get(_KEY) if checkpoint.kind == "safetensors" else None
        if text is None:
            raise Malformed(
                f"holds no network that growarray.save wrote (it is of the kind {checkpoint.kind}); load_checkpoint "
                "reads weights, from_onnx reads ONNX graphs"
            )
        document = parse_json(text.encode(), memory=Limits().memory + 8 * len(text))
        version = document.get("version")
        if version != _VERSION:
            raise Malformed(
                f"is of version {quote(version)} of the format; this growarray reads version {_VERSION}: "
                "load it with a later one"
            )
        return Reader(checkpoint).value(document)
