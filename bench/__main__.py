"""Run benchmark suites: ``python -m bench [suite …] [--quick] [--json FILE]``."""

from __future__ import annotations

import argparse
import importlib
import time

from bench.timing import show, write_json

SUITES = ("merge_statistics", "growth_cycle", "import_time", "kernels")


def main() -> None:
    """Run the chosen suites, print their tables, write everything as JSON where asked."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="growarray beside its peers")
    parser.add_argument("suites", nargs="*", metavar="suite", help=f"of {', '.join(SUITES)}; default all")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller cases")
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    chosen = parser.parse_args()
    unknown = set(chosen.suites) - set(SUITES)
    if unknown:
        parser.error(f"unknown suites {sorted(unknown)}; known: {', '.join(SUITES)}")
    results = {}
    for name in chosen.suites or SUITES:
        suite = importlib.import_module(f"bench.{name}")
        start = time.perf_counter()
        results[name] = suite.run(quick=chosen.quick)
        show(f"\n## {name} ({time.perf_counter() - start:.0f} s)\n\n{suite.report(results[name])}\n")
        if chosen.json:
            write_json(chosen.json, results)


if __name__ == "__main__":
    main()
