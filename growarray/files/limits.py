"""How much a foreign file may ask for before it is refused."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Bounds on what a file may contain. Every error names the field to raise, if the file is trusted.

    >>> from dataclasses import replace
    >>> replace(Limits(), depth=20).depth
    20
    """

    tensors: int = 1_000_000
    """Tensors in a file."""
    depth: int = 100
    """Nesting of containers, JSON values or ONNX subgraphs."""
    items: int = 10_000_000
    """Leaves of the structure; a container that is used twice counts twice."""
    steps: int = 2_000_000
    """Opcodes of a pickle, and one more for each 16 bytes of its file; fields of an ONNX model, of whose layers each
    that is made counts as 40.

    A tensor takes about 40 opcodes and 10 more for its rebuilding, a number in a list takes 1. This is what bounds the
    time until a file is refused: about a second for one of 10 MB, whatever is in it.
    """
    memo: int = 2_000_000
    """Entries in the memo of a pickle."""
    string: int = 16 * 2**20
    """Bytes of one string."""
    metadata: int = 100_000_000
    """Bytes of a pickle, of a JSON header, or of a directory of zip entries."""
    memory: int = 48 * 2**20
    """Bytes for the structure (names, shapes, plain values), over and above the size of the file."""
    expanded: int = 64 * 2**20
    """Bytes that views may come to when they are larger than what the file stores for them, all together."""
    sharing: int = 16
    """How many times the size of the file all tensors together may come to (tied weights count once a name)."""
    inflated: int = 4 * 2**30
    """Bytes of all compressed arrays of an ``.npz`` file after decompression."""
    files: int = 10_000
    """Further files that a model may name: shards, external data."""


def limits_or_default(limits: Limits | None) -> Limits:
    """The given limits, or the default ones. Raises TypeError for anything else."""
    if limits is None:
        return Limits()
    if not isinstance(limits, Limits):
        raise TypeError(
            f"limits: expected a Limits, found {type(limits).__name__}; pass Limits(depth=200), for example"
        )
    return limits
