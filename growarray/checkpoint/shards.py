"""Checkpoints in several files: a JSON index says which shard holds which tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from growarray.checkpoint.names import flatten
from growarray.checkpoint.strict_json import expect_string, parse_json
from growarray.files.errors import Malformed, at, quote
from growarray.files.limits import Limits
from growarray.files.paths import ExternalFiles
from growarray.files.source import Source
from growarray.files.tensor import Contents, StoredTensor

Reader = Callable[[Source], Contents]


def read_index_file(source: Source, limits: Limits, external: ExternalFiles, read: Reader) -> Contents:
    """All tensors that the index names, each still in its shard. ``read`` reads one shard, whose kind it finds out.

    Raises Malformed if a shard is missing, lies elsewhere, is of another kind, or lacks a tensor of the index.
    """
    if source.size > limits.metadata:
        raise Malformed(f"index has {source.size} bytes; the limit is {limits.metadata} (Limits.metadata)")
    index = parse_json(source.view, memory=limits.memory + source.size)
    places = index.get("weight_map")
    if type(places) is not dict or not places:
        raise Malformed(
            f"weight_map is {quote(places)}; expected an object of names and shards, as in model.safetensors.index.json"
        )
    shards: dict[str, dict[str, StoredTensor]] = {}
    kinds: set[str] = set()
    notes: list[str] = []
    result: dict[str, StoredTensor] = {}
    for name, location in places.items():
        with at(f"weight_map {quote(name)}"):
            expect_string(location, "shard")
            if location not in shards:
                contents = _read_shard(location, external, read)
                kinds.add(contents.kind.split("-")[0])
                shards[location] = _flat(contents, limits, source)
                notes += contents.notes
            if name not in shards[location]:
                raise Malformed(f"shard {quote(location)} has no tensor of this name")
            result[name] = shards[location][name]
            if len(result) > limits.tensors:
                raise Malformed(f"more than {limits.tensors} tensors (Limits.tensors)")
    if len(kinds) != 1:
        raise Malformed(f"shards are of several kinds: {', '.join(sorted(kinds))}")
    left = sum(len(tensors) for tensors in shards.values()) - len(result)
    if left:
        notes.append(f"{left} tensors of the shards are not in the index and were left out")
    return Contents(f"{kinds.pop()}-index", result, metadata=_metadata(index), notes=notes)


def _read_shard(location: str, external: ExternalFiles, read: Reader) -> Contents:
    with at(f"shard {quote(location)}"):
        contents = read(external.find(location))
        if contents.kind not in ("safetensors", "torch-zip", "torch-legacy"):
            raise Malformed(f"is of the kind {contents.kind}; expected safetensors or a torch checkpoint")
        if location.endswith(".safetensors") and contents.kind != "safetensors":
            raise Malformed(f"is of the kind {contents.kind}, though it is named .safetensors")
        return contents


def _flat(contents: Contents, limits: Limits, source: Source) -> dict[str, StoredTensor]:
    if contents.kind == "safetensors":
        return contents.flat()
    tensors, rest = flatten(contents.tree, limits.memory + source.size)
    if rest:
        raise Malformed(f"shard holds {quote(next(iter(rest)))} besides its tensors; expected a flat state dict")
    return tensors


def _metadata(index: dict[str, Any]) -> dict[str, Any]:
    metadata = index.get("metadata", {})
    if type(metadata) is not dict:
        raise Malformed(f"metadata is {quote(metadata)}; expected an object")
    return metadata
