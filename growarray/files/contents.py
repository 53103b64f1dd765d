"""The result of a reader of any format: the structure, its tensors still in the file, and the metadata."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from growarray.files.tensor import StoredTensor


@dataclass
class Contents:
    """``tree`` is a structure of containers, plain values and stored tensors; ``aliases`` are names of other names."""

    kind: str
    tree: Any
    metadata: dict[str, Any] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def flat(self) -> dict[str, StoredTensor]:
        """The tree of a format that has no nesting."""
        tensors: dict[str, StoredTensor] = self.tree
        return tensors
