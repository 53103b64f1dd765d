"""Run benchmark suites: ``python -m bench [suite …] [--quick] [--json FILE]``.

``python -m bench paths …`` is ``growarray bench paths …`` with torch and TensorLy-Torch in the same rounds.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from bench.timing import show, use_threads, write_json
from growarray.contraction.blas_kernel import blas_named

SUITES = (
    "merge_statistics",
    "growth_cycle",
    "resnet_cycle",
    "graph_growth",
    "growth_defaults",
    "grown_digits",
    "adapters",
    "estimators",
    "distributed",
    "import_time",
    "kernels",
    "convolution",
    "conv_moments",
    "factorized",
    "checkpoint",
    "decomposition",
    "stress",
    "suite",
    "from_scratch",
    "gpu",
    "predicted_gpu",
    "serving",
)


def main() -> None:
    """Run the chosen suites, print their tables, write everything as JSON if asked."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="growarray beside its peers")
    parser.add_argument("suites", nargs="*", metavar="suite", help=f"of {', '.join(SUITES)}; default all")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller cases")
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    parser.add_argument("--threads", type=int, help="of each side; 1 counts processor seconds, not those of the wall")
    parser.add_argument("--cases", metavar="NUMBERS", help="of the suite 'suite', such as 3,7")
    parser.add_argument("--device", help="of the suite 'suite': cpu, cuda or cuda:N")
    parser.add_argument("--predict", action="store_true", help="of the suite 'gpu': what it should show, not measured")
    chosen = parser.parse_args()
    unknown = set(chosen.suites) - set(SUITES)
    if unknown:
        parser.error(f"unknown suites {sorted(unknown)}; known: {', '.join(SUITES)}")
    use_threads(chosen.threads)
    show(f"products by {blas_named()}\n")
    results: dict[str, Any] = {}

    def keep(name: str, result: Mapping[str, Any]) -> None:
        results[name] = result
        if chosen.json:
            write_json(chosen.json, results)

    for name in chosen.suites or SUITES:
        suite = importlib.import_module(f"bench.{name}")
        start = time.perf_counter()
        options = {"suite": {"cases": chosen.cases, "device": chosen.device}, "gpu": {"predict": chosen.predict}}
        keep(name, suite.run(quick=chosen.quick, progress=partial(keep, name), **options.get(name, {})))
        show(f"\n## {name} ({time.perf_counter() - start:.0f} s)\n\n{suite.report(results[name])}\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["paths"]:
        importlib.import_module("bench.paths").app(sys.argv[2:], prog_name="python -m bench paths")
    main()
