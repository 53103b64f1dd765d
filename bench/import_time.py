"""What it costs to import growarray and its peers, and what they take on the disk.

Times: medians over fresh interpreters of processor seconds (other processes do not count), files in the system's cache,
``import numpy`` first, then what is measured. Sizes: growarray is installed
with its five dependencies into a fresh environment (this asks the package index); a peer's size is the sum over its
own distribution and all that it requires, as installed beside this interpreter.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from bench.timing import repository, table

__all__ = ["report", "run"]

STATEMENTS = {
    "growarray": "import growarray",
    "growarray, a layer": "from growarray import LinearGrowingModule",
    "torch": "import torch",
    "gromo (the bare package)": "import gromo",
    "gromo, a layer": "from gromo.modules.linear_growing_module import LinearGrowingModule",
}
DEPENDENCIES = ("numpy", "scipy", "opt_einsum", "array-api-compat", "threadpoolctl")
_SCRIPT = """
import time, sys
a = time.process_time()
import numpy
b, before = time.process_time(), len(sys.modules)
{statement}
c = time.process_time()
print(b - a, c - b, len(sys.modules) - before)
"""


def _import(statement: str, repeat: int) -> dict[str, float]:
    environment = {**os.environ, "PYTHONPATH": str(repository())}
    samples = []
    for _ in range(repeat + 1):
        done = subprocess.run(
            [sys.executable, "-c", _SCRIPT.format(statement=statement)],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
            cwd=tempfile.gettempdir(),
        )
        samples.append([float(word) for word in done.stdout.split()])
    numpy_ms, over_ms, modules = (statistics.median(column) for column in zip(*samples[1:], strict=True))
    return {"numpy": 1e3 * numpy_ms, "over_numpy": 1e3 * over_ms, "modules": modules}


def _fresh_install() -> dict[str, float]:
    """MiB of site-packages, by distribution folder, of growarray and its dependencies in a fresh environment."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = Path(folder, "bin", "python")
        subprocess.run([python, "-m", "pip", "install", "--quiet", str(repository())], check=True)
        site = next(Path(folder, "lib").glob("python*/site-packages"))
        sizes: dict[str, float] = {}
        for path in site.rglob("*"):
            top = path.relative_to(site).parts[0]
            if path.is_file() and not re.match(r"(pip|setuptools|pkg_resources|_distutils_hack|distutils)", top):
                key = "growarray" if top.startswith("growarray") else "dependencies"
                sizes[key] = sizes.get(key, 0) + path.stat().st_size / 2**20
    return sizes


def _closure(name: str, seen: set[str]) -> set[str]:
    """A distribution and all that it requires without extras, as installed here."""
    key = re.sub(r"[-_.]+", "-", name).lower()
    if key in seen:
        return seen
    try:
        requirements = metadata.requires(key) or []
    except metadata.PackageNotFoundError:
        return seen
    seen.add(key)
    for requirement in requirements:
        if "extra ==" not in requirement:
            _closure(re.split(r"[\s;<>=!~\[(]", requirement)[0], seen)
    return seen


def _installed(name: str) -> float:
    """MiB of the files of a distribution and all that it requires."""
    files = (
        file for one in _closure(name, set()) if one not in ("setuptools", "pip") for file in metadata.files(one) or []
    )
    paths = {Path(str(file.locate())) for file in files}
    return sum(path.stat().st_size for path in paths if path.is_file()) / 2**20


def run(*, quick: bool = False, progress: object = None) -> dict[str, Any]:
    """Import times of growarray and the peers; sizes unless ``quick``."""
    times = [{"name": name, **_import(text, 5 if quick else 15)} for name, text in STATEMENTS.items()]
    sizes: list[dict[str, Any]] = []
    if not quick:
        fresh = _fresh_install()
        sizes.append({"name": "growarray alone", "mib": fresh["growarray"]})
        sizes.append({"name": f"growarray with {', '.join(DEPENDENCIES)}", "mib": sum(fresh.values())})
    for peer in ("torch", "gromo"):
        sizes.append({"name": f"{peer} {metadata.version(peer)} with its requirements", "mib": _installed(peer)})
    return {"times": times, "sizes": sizes}


def report(results: Mapping[str, Any]) -> str:
    """Both tables."""
    columns = {
        "name": "import",
        "numpy": "numpy itself ms:.0f",
        "over_numpy": "over numpy ms:.1f",
        "modules": "modules added:.0f",
    }
    sizes = table(results["sizes"], {"name": "installed", "mib": "MiB:.1f"})
    return f"{table(results['times'], columns)}\n\n{sizes}"
