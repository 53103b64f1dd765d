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
from growarray.checkpoint import from_onnx
from growarray.errors import CheckpointError
from growarray.nn import Graph
from growarray.testing import check_vjp
from tests.corpus.case import EXPECT, FIELDS, FOLDER, GRAPH_FIELDS, KINDS, Expected, all_cases, stage

CASES = list(all_cases())
GRAPHS = [case for case in CASES if case["kind"] == "onnx" and (case.get("io_npz") or case.get("graph_expect"))]
RUNNING = [case for case in GRAPHS if case.get("io_npz")]
SECONDS = 1.0  # of the processor, which does not count what else the machine does
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
    start = time.process_time()
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
    seconds = time.process_time() - start
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


@pytest.mark.parametrize("entry", GRAPHS, ids=lambda entry: entry["file"])
def test_graphs(entry: dict[str, Any], tmp_path: Path, memory: None) -> None:
    path, start = stage(entry, tmp_path), time.process_time()
    if entry.get("graph_expect") == "refuse":
        with pytest.raises(CheckpointError) as caught:
            from_onnx(path)
        message = str(caught.value).replace(str(path), "FILE")
        assert message.isprintable()
        assert any(name.lower() in message.lower() for name in entry.get("names", ["FILE"])), message
    else:
        network = from_onnx(path)
        if entry.get("io_npz"):
            check_outputs(entry, network)
    assert time.process_time() - start < SECONDS


def inputs_and_outputs(entry: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays that onnxruntime was given, and those that it gave."""
    with np.load(FOLDER / entry["io_npz"]) as file:
        arrays = {key: file[key] for key in file.files}
    given = {key[3:]: value for key, value in arrays.items() if key.startswith("in.")}
    return given, {key[4:]: value for key, value in arrays.items() if key.startswith("out.")}


def check_outputs(entry: dict[str, Any], network: Graph) -> None:
    """To the tolerance of the case, and to 1e-5 of the largest output."""
    given, wanted = inputs_and_outputs(entry)
    found = network.run(given)
    assert list(found) == list(network.outputs)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=entry["rtol"], atol=entry["atol"])
        assert np.abs(found[name] - value).max() <= 1e-5 * max(1.0, np.abs(value).max())


@pytest.mark.parametrize("entry", RUNNING, ids=lambda entry: entry["file"])
def test_gradients_of_graphs(entry: dict[str, Any]) -> None:
    """Along a random direction of each input and each parameter."""
    network, rng = from_onnx(FOLDER / entry["file"], dtype="float64"), np.random.default_rng(0)
    given, _ = inputs_and_outputs(entry)
    parameters = network.parameters()
    inputs = [np.asarray(given[name], np.float64) for name in network.inputs]
    starts = [*inputs, *(p.data for p in parameters)]
    ways = [rng.standard_normal(array.shape) / np.sqrt(max(array.size, 1)) for array in starts]

    def along(steps: Any) -> Any:
        moved = [array + step * way for array, step, way in zip(starts, steps, ways, strict=True)]
        for parameter, value in zip(parameters, moved[len(inputs) :], strict=True):
            parameter.data = value
        y, back = network.vjp(*moved[: len(inputs)])

        def pullback(dy: Any) -> Any:
            network.zero_grad()
            found = back(dy)
            gradients = [*(found if len(inputs) > 1 else (found,)), *(p.grad for p in parameters)]
            return np.array([np.sum(g * way) for g, way in zip(gradients, ways, strict=True)])

        return y, pullback

    check_vjp(along, np.zeros(len(starts)))


def files() -> dict[Path, int]:
    """Every file of the corpus, and when it was last changed."""
    return {path: path.stat().st_mtime_ns for path in FOLDER.rglob("*")}


def test_nothing_is_written_into_the_folder() -> None:
    before = files()
    for entry in CASES:
        with suppress(CheckpointError):
            growarray.load_checkpoint(FOLDER / entry["file"])
    for entry in GRAPHS:
        with suppress(CheckpointError):
            from_onnx(FOLDER / entry["file"])
    assert files() == before
