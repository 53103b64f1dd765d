"""Ctrl-C while modules are imported."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stops_at_once() -> Iterator[None]:
    """Ctrl-C ends the process on the spot, with exit code 130.

    Nothing is open yet, and an exception that appears inside an import is shown, changed or swallowed by others.
    """
    before = signal.getsignal(signal.SIGINT)
    default_handler = before is signal.default_int_handler and threading.current_thread() is threading.main_thread()
    if default_handler:
        signal.signal(signal.SIGINT, _stop)
    try:
        yield
    finally:
        if default_handler:
            signal.signal(signal.SIGINT, before)


def _stop(*_: object) -> None:
    os.write(2, b"\rgrowarray: interrupted\n" if os.isatty(2) else b"growarray: interrupted\n")
    os._exit(130)
