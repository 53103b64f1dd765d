"""Peak memory of one step with its update, each side in a process of its own.

``python -m bench.memory ours 2 separate 4096 256`` builds the case, runs a step of a tiny case so that libraries are
loaded and threads started, resets the kernel's high-water mark (5 into ``/proc/self/clear_refs``) and runs one step.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bench import sides
from bench.timing import repository, use_threads

__all__ = ["increase", "peak"]


def increase(function: Callable[[], object]) -> int:
    """Bytes by which the resident memory of this process rises while a call runs."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    function()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}; peak memory needs Linux")


def _measure(which: str, case: sides.Case) -> dict[str, int]:
    build = {"ours": sides.ours, "theirs": sides.theirs}[which]
    tiny = build(sides.Case(case.layers, case.shared, 256, 16))
    use_threads()
    tiny.forward_backward()
    tiny.update()
    side = build(case)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    side.forward_backward()
    side.update()
    peak_bytes = _status("VmHWM")
    return {"before": before, "increase": peak_bytes - before, "total": peak_bytes}


def peak(which: str, case: sides.Case) -> dict[str, int]:
    """Bytes resident before the step, the peak during it, and the difference; ``which`` is ours or theirs."""
    words = [which, str(case.layers), "shared" if case.shared else "separate", str(case.n), str(case.d)]
    environment = {**os.environ, "PYTHONPATH": str(repository())}
    done = subprocess.run(
        [sys.executable, "-m", "bench.memory", *words],
        capture_output=True,
        text=True,
        check=True,
        cwd=repository(),
        env=environment,
    )
    result: dict[str, int] = json.loads(done.stdout)
    return result


def main(arguments: list[str]) -> None:
    """Print the measurement of one side as JSON."""
    which, layers, inputs, n, d = arguments
    print(json.dumps(_measure(which, sides.Case(int(layers), inputs == "shared", int(n), int(d)))))


if __name__ == "__main__":
    main(sys.argv[1:])
