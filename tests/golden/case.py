"""One golden case: its arrays and scalars, and a record of which of them a check has compared."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from growarray.backend import to_numpy
from growarray.nn import Parameter

HERE = Path(__file__).parent
# more: made with the same originals, for layers without bias and for slopes that the original differentiates.
FOLDERS = [Path(os.environ["GROWARRAY_GOLDEN"])] if "GROWARRAY_GOLDEN" in os.environ else [HERE / "data", HERE / "more"]
RTOL = {"float64": 1e-9, "float32": 1e-4, "float16": 1e-2}
"""Relative to the largest entry, by the dtype in which the original computed: float32 too where a name starts so."""


def _decode(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"float"}:
        return float(value["float"])
    if isinstance(value, dict):
        return {k: _decode(v) for k, v in value.items()}
    return [_decode(v) for v in value] if isinstance(value, list) else value


class Case:
    """``case["in.x"]`` reads, ``case.check("out.y", y)`` compares; :meth:`finish` finds what was left out."""

    def __init__(self, entry: dict[str, Any]) -> None:
        self.name: str = entry["name"]
        self.kind: str = entry["kind"]
        self.config: dict[str, Any] = entry["config"]
        with np.load(Path(entry["folder"]) / entry["file"]) as file:
            self.arrays = {name: file[name] for name in file.files}
        self.scalars = {name: _decode(item["value"]) for name, item in entry["scalars"].items()}
        self.seen: set[str] = set()
        for array in self.arrays.values():
            array.setflags(write=False)

    def __contains__(self, name: str) -> bool:
        return self.arrays.get(name) is not None or self.scalars.get(name) is not None

    def __getitem__(self, name: str) -> Any:
        return self.arrays[name] if name in self.arrays else self.scalars[name]

    def get(self, name: str) -> Any:
        """The array or scalar, or None."""
        return self.arrays.get(name, self.scalars.get(name))

    def check(self, name: str, actual: Any, *, expected: Any = None, rtol: float | None = None) -> None:
        """Compare with the recorded value (or ``expected`` in its place); numbers to ``rtol``, the rest exactly."""
        assert name in self.arrays or name in self.scalars, f"{self.name}: the case has no {name}"
        self.seen.add(name)
        wanted = self[name] if expected is None else expected
        actual = actual.data if isinstance(actual, Parameter) else actual
        if rtol is None:
            dtype = "float32" if name.startswith("f32.") else str(getattr(wanted, "dtype", "float64"))
            rtol = RTOL.get(dtype, RTOL["float64"])
        _compare(f"{self.name}: {name}", actual, wanted, rtol)

    def check_any(self, name: str, actual: Any, *, rtol: float | None = None) -> None:
        """Compare with the recorded value; where none is recorded, as of a bias that is not there, None is right."""
        if name in self.arrays or name in self.scalars:
            self.check(name, actual, rtol=rtol)
        else:
            assert actual is None, f"{self.name}: the case has no {name}"

    def ignore(self, *names: str) -> None:
        """Outputs that are checked in another way, or describe the original only; say why beside the call."""
        self.seen.update(names)

    def finish(self) -> None:
        """Fail if an output, an invariant or a right answer was never looked at."""
        names = [*self.arrays, *self.scalars]
        left = [n for n in names if n.split(".")[0] in {"out", "inv", "fix"} and n not in self.seen]
        assert not left, f"{self.name} ({self.kind}): not compared: {left}"


def _compare(what: str, actual: Any, wanted: Any, rtol: float) -> None:
    if isinstance(wanted, np.ndarray):
        got = to_numpy(actual)
        assert got.shape == wanted.shape, f"{what}: shape {got.shape}, expected {wanted.shape}"
        if got.size:
            scale = max(float(np.abs(wanted).max()), 1e-12)
            difference = float(np.abs(got - wanted).max())
            assert difference <= rtol * max(scale, 1e-3), (
                f"{what}: largest difference {difference:.3e}, scale {scale:.3e}"
            )
    elif isinstance(wanted, dict):
        assert set(actual) == set(wanted), f"{what}: keys {sorted(actual)}, expected {sorted(wanted)}"
        for key, value in wanted.items():
            _compare(f"{what}[{key}]", actual[key], value, rtol)
    elif isinstance(wanted, list):
        assert len(actual) == len(wanted), f"{what}: {len(actual)} entries, expected {len(wanted)}"
        for i, (a, w) in enumerate(zip(actual, wanted, strict=True)):
            _compare(f"{what}[{i}]", a, w, rtol)
    elif isinstance(wanted, float) and not isinstance(wanted, bool):
        if np.isfinite(wanted):
            assert abs(float(actual) - wanted) <= rtol * max(abs(wanted), 1e-3), f"{what}: {actual}, expected {wanted}"
        else:
            assert str(float(actual)) == str(wanted), f"{what}: {actual}, expected {wanted}"
    else:
        assert actual == wanted, f"{what}: {actual!r}, expected {wanted!r}"


def all_cases() -> Iterator[dict[str, Any]]:
    """Manifest entries of every case, with the folder that it is in."""
    for folder in FOLDERS:
        for entry in json.loads((folder / "manifest.json").read_text())["cases"]:
            yield {**entry, "folder": str(folder)}
