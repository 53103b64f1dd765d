"""``import growarray`` loads nothing heavier than NumPy, and costs next to nothing over it."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import growarray

HEAVY = ["scipy", "opt_einsum", "matplotlib", "typer", "rich", "cupy", "array_api_compat", "threadpoolctl", "onnx"]
LIMIT_MS = 80.0  # of the processor, which does not count what else the machine does

PROGRAM = """
import json, sys, time
import numpy
before = set(sys.modules)
start = time.process_time()
import growarray
seconds = time.process_time() - start
print(json.dumps({"ms": 1000 * seconds, "file": growarray.__file__, "new": sorted(set(sys.modules) - before)}))
"""


def fresh_import(folder):
    """Time, place and new modules of ``import growarray`` in a fresh process that has imported NumPy."""
    environment = {**os.environ, "PYTHONPATH": str(Path(growarray.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("elsewhere")
    return [fresh_import(folder) for _ in range(5)]


def test_import_loads_nothing_heavy(reports):
    report = reports[0]
    assert report["file"] == growarray.__file__
    assert [name for name in report["new"] if name.split(".")[0] in HEAVY] == []


def test_import_is_fast(reports):
    times = [report["ms"] for report in reports]
    figures = ", ".join(f"{t:.1f}" for t in times)
    assert statistics.median(times) <= LIMIT_MS, f"import growarray took {figures} ms over NumPy; limit {LIMIT_MS} ms"
