"""Every file of the corpus: real ones load bit for bit, hostile ones are refused, within a second and 64 MiB."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import growarray
from growarray.errors import CheckpointError
from tests.corpus.case import EXPECT, FIELDS, FOLDER, GRAPH_FIELDS, KINDS, Expected, all_cases, stage

CASES = list(all_cases())
SECONDS = 1.0
MEBIBYTES = 64


def resident_peak() -> int:
    """Largest resident size of the process since the mark was reset, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise AssertionError("no VmHWM")


@pytest.fixture
def memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail if the peak of the process grows by more than 64 MiB; Linux keeps and resets the mark."""
    reset = Path("/proc/self/clear_refs")
    if not (sys.platform == "linux" and os.access(reset, os.W_OK)):
        yield
        return
    reset.write_text("5")
    before = resident_peak()
    yield
    grown = (resident_peak() - before) / 2**20
    assert grown <= MEBIBYTES, f"memory grew by {grown:.0f} MiB"


def holds_sentinel(value: Any, depth: int = 0) -> bool:
    """Whether an array has the value that only files outside the model's folder hold."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind == "f" and 0 < value.size < 1000 and bool((value == 1337).all())
    if depth > 5 or not isinstance(value, dict | list | tuple):
        return False
    items = list(value.values() if isinstance(value, dict) else value)[:100]
    return any(holds_sentinel(item, depth + 1) for item in items)


def test_entries_are_understood() -> None:
    assert CASES
    assert {case["kind"] for case in CASES} <= KINDS
    assert {case["expect"] for case in CASES} <= EXPECT
    assert {field for case in CASES for field in case} <= FIELDS | GRAPH_FIELDS
    assert {case.get("if_ok") for case in CASES} <= {None, "equal", "any"}


@pytest.mark.parametrize("entry", CASES, ids=lambda entry: entry["file"])
def test_corpus(entry: dict[str, Any], tmp_path: Path, memory: None) -> None:
    marker = Path(entry["marker"]) if "marker" in entry else None
    if marker is not None and marker.exists():
        marker.unlink()
    path = stage(entry, tmp_path)
    start = time.perf_counter()
    tree, refusal = None, None
    try:
        checkpoint = growarray.load_checkpoint(path)
        tree = checkpoint.tree
    except CheckpointError as error:
        refusal = str(error)
    if refusal is not None:
        check_refusal(entry, refusal, path)
    else:
        assert entry["expect"] != "refuse", "accepted"
        assert entry.get("sentinel_ok") or not holds_sentinel(tree)
        if "npz" in entry and entry.get("if_ok") != "any":
            Expected(entry).compare(tree)
            check_sharing(entry, checkpoint)
    seconds = time.perf_counter() - start
    assert seconds < SECONDS, f"took {seconds:.2f} s"
    assert marker is None or not marker.exists(), "the file ran code"


def check_refusal(entry: dict[str, Any], refusal: str, path: Path) -> None:
    """A message names the file, and what is wrong with it whatever the file is called."""
    message = refusal.replace(str(path), "FILE")
    assert entry["expect"] != "ok", message
    assert message != refusal
    assert message.isprintable()
    if entry["expect"] == "refuse" and "names" in entry:
        assert any(name.lower() in message.lower() for name in entry["names"]), message


def check_sharing(entry: dict[str, Any], checkpoint: growarray.Checkpoint) -> None:
    """Names that share storage in the file are tied, no others."""
    expected = Expected(entry)
    if expected.flat or expected.tree["t"] not in ("dict", "OrderedDict"):
        return
    groups: dict[int, set[str]] = {}
    for key, info in expected.info.items():
        name = key.replace("~1", "/").replace("~0", "~").removeprefix(checkpoint.prefix)
        if "/" not in key and name in checkpoint and "storage_group" in info:
            groups.setdefault(info["storage_group"], set()).add(name)
    wanted = {frozenset(group) for group in groups.values() if len(group) > 1}
    assert {frozenset(group) for group in checkpoint.tied} >= wanted


def files() -> dict[Path, int]:
    """Every file of the corpus, and when it was last changed."""
    return {path: path.stat().st_mtime_ns for path in FOLDER.rglob("*")}


def test_nothing_is_written_into_the_folder() -> None:
    before = files()
    for entry in CASES:
        with suppress(CheckpointError):
            growarray.load_checkpoint(FOLDER / entry["file"])
    assert files() == before
