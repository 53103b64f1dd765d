"""History: plain entries that survive a round trip; files that are whole or not there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from growarray.errors import DataError
from growarray.networks import History, write_atomically


def example() -> History:
    history = History(final={"score": 0.5})
    history.add("train", epoch=1, train_loss=0.1)
    history.add("growth", added=2, widths=[3, 4])
    history.add("train", epoch=2, train_loss=float("inf"))
    return history


def test_entries_are_numbered_and_found_by_kind() -> None:
    history = example()
    assert [entry["step"] for entry in history.steps] == [0, 1, 2]
    assert [entry["epoch"] for entry in history.of("train")] == [1, 2]
    assert history.of("nothing") == []


def test_a_file_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    history = example()
    history.save(tmp_path / "history.json")
    loaded = History.load(tmp_path / "history.json")
    assert (loaded.steps, loaded.final) == (history.steps, history.final)
    assert os.listdir(tmp_path) == ["history.json"]


def test_a_list_given_is_not_shared() -> None:
    steps = [{"step": 0, "event": "train"}]
    history = History(steps)
    history.add("train")
    assert len(steps) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "history: not JSON"),
        ("[]", "expected an object with a list 'steps'"),
        ('{"final": 1}', "expected an object with a list 'steps'"),
        ('{"steps": {}}', "expected an object with a list 'steps'"),
        ('{"steps": [1]}', "expected entries with an 'event'"),
        ('{"steps": [{"epoch": 1}]}', "expected entries with an 'event'"),
        ('{"steps": [], "final": 3}', "expected an object or null as 'final'"),
        ("[" * 100_000, "history: not JSON"),
    ],
    ids=["broken", "list", "no_steps", "steps_no_list", "number", "no_event", "final", "deep"],
)
def test_anything_else_is_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        History.from_json(text)


def test_a_file_of_another_kind_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "run.png").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(DataError, match=r"run\.png: not a history in UTF-8"):
        History.load(tmp_path / "run.png")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(handle: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_write_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for text in (b"old", b"new"):
        write_atomically(path, text)
    assert path.read_bytes() == b"new"
    assert json.loads(example().to_json())["final"] == {"score": 0.5}
