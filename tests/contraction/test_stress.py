"""Plans among threads, forks, signals, at the interpreter's end: nothing hangs, no bit changes, nothing is left."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.contraction import stress

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork and SIGALRM")

TWO = {**os.environ, "GROWARRAY_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}


@pytest.mark.parametrize(
    ("kind", "amount"),
    [("interrupts", 300), ("handlers", 60), ("forks", 40), ("first_use", 0.0), ("first_use", 0.05), ("shared", 2.0)],
)
def test_nothing_goes_wrong(kind, amount):
    figures = stress.measured(kind, amount, environment=TWO)
    faults = {name: value for name, value in figures.items() if name.split()[0] in ("wrong", "hung", "lost")}
    assert faults
    assert set(faults.values()) == {0}, figures
    assert figures.get("calls", 1) > 0


FORKED = """
import os, threading, time
from growarray.contraction.threads import run_tasks
caller, begun, child = threading.get_ident(), threading.Event(), None
def task():
    global child
    if threading.get_ident() != caller:
        begun.set()
        time.sleep(0.2)
    elif child is None:
        begun.wait(120)
        child = os.fork()
said = "whole"
try:
    run_tasks([task] * 6)
except RuntimeError as error:
    said = str(error)
again = []
run_tasks([lambda k=k: again.append(k) for k in range(5)])
print("child" if child == 0 else "parent", said, sorted(again), flush=True)
if child:
    os.waitpid(child, 0)
"""


NESTED = """
import os, signal, threading, time
from growarray.contraction.threads import run_tasks
caller, inside, child = threading.get_ident(), threading.Event(), None
def outer():
    if threading.get_ident() != caller:
        inside.set()
        time.sleep(0.2)  # the caller waits for this task then
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.2)
    else:
        inside.wait(120)
def handler(*_):
    run_tasks([inner] * 2)
def inner():
    global child
    if threading.get_ident() == caller and child is None:
        child = os.fork()
signal.signal(signal.SIGUSR1, handler)
""" + FORKED[FORKED.index("said =") :].replace("[task] * 6", "[outer] * 2")


@pytest.mark.parametrize("code", [FORKED, NESTED], ids=["", "out of a signal handler that runs another"])
def test_a_fork_in_the_middle_of_ones_own_run_is_said_in_the_child(code):
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=TWO, capture_output=True, text=True, timeout=300, check=True)
    assert sorted(done.stdout.splitlines()) == [
        "child os.fork during a run: the child has lost a part of it; run it again [0, 1, 2, 3, 4]",
        "parent whole [0, 1, 2, 3, 4]",
    ]


PREPARED = """
import atexit, threading, time
import numpy as np
from growarray.contraction import plan
made = plan("n c y x, o c y x -> n o y x | y, x", (8, 16, 32, 32), (24, 16, 3, 3))
arrays = [np.ones((8, 16, 32, 32), "f4"), np.ones((24, 16, 3, 3), "f4")]
def run():
    print(float(made(*arrays).sum()), flush=True)
"""
LATE = {
    "a thread that outlives the main one": "threading.Thread(target=lambda: (time.sleep(0.2), run())).start()",
    "an atexit handler": "atexit.register(run)",
    "an atexit handler, after runs": "run(); atexit.register(run)",
    "a daemon thread that is at it": (
        "run()\ndef loop():\n    while True: made(*arrays)\n"
        "threading.Thread(target=loop, daemon=True).start(); time.sleep(0.2)"
    ),
}


@pytest.mark.parametrize("name", LATE)
def test_a_plan_runs_while_the_interpreter_ends(name):
    code = PREPARED + LATE[name]
    done = subprocess.run(
        [sys.executable, "-c", code], env=TWO, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert {float(line) for line in done.stdout.split()} == {8 * 24 * 30 * 30 * 16 * 9.0}
