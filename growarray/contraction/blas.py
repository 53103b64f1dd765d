"""BLAS with one thread while plans run, in any thread and after any interrupt.

Blocks and pieces run one thread a core; products inside them must not start threads of their own, which would be slow
and would round another way. NumPy's OpenBLAS counts its threads for the whole process, so a run has to lower that count
and put it back: a product that another thread makes meanwhile, outside of plans, gets one thread too.

Other threads, signal handlers and forks come in after any call and at the top of any loop (CPython hands over the
interpreter's lock, and looks at signals, only there), and before Python 3.12 at any allocation too, where a collection
of garbage may run finalizers. So what must not be left half done is one call here, of :func:`_undisturbed`.
A free-threaded Python has no such lock, and is not supported.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import operator
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextvars import copy_context
from functools import partial
from pathlib import Path
from threading import get_ident
from typing import Any, NamedTuple, TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

from growarray.contraction import workspace

_T = TypeVar("_T")

_BUFFER = 1024  # elements; NumPy copies what lies in runs shorter than its buffer, which halves the speed of a pass

# how a library names reading and setting its number of threads; OpenBLAS adds a prefix and a suffix of the build
_SYMBOLS = {
    "openblas": ("openblas_get_num_threads", "openblas_set_num_threads"),
    "mkl": ("MKL_Get_Max_Threads", "MKL_Set_Num_Threads"),
    "blis": ("bli_thread_get_num_threads", "bli_thread_set_num_threads"),
    "flexiblas": ("flexiblas_get_num_threads", "flexiblas_set_num_threads"),
}


class _Count(NamedTuple):
    """Functions that read and set a number of threads: one call each that cannot be interrupted, as they keep the
    interpreter's lock. ``own``: the number is that of the calling thread alone (OpenBLAS built on OpenMP)."""

    get: Callable[[], int]
    set: Callable[[int], object]
    own: bool


def libraries() -> list[Any]:
    """Those that NumPy's products may run in: its own if its wheel brings one, else all."""
    found: list[Any] = ThreadpoolController().select(user_api="blas").lib_controllers
    folders = {Path(np.__file__).parent.parent / "numpy.libs", Path(np.__file__).parent / ".dylibs"}
    return [library for library in found if Path(library.filepath).parent in folders] or found


def _counts() -> list[_Count]:
    made = (_count(library) for library in libraries())
    return [count for count in made if count is not None]


def _count(library: Any) -> _Count | None:
    # not by the library's own methods: from threadpoolctl 3.8 on they do nothing if another thread came first
    names = _SYMBOLS.get(library.internal_api)
    loaded = ctypes.PyDLL(library.filepath)
    for before, after in itertools.product(("", "scipy_"), ("", "64_", "_64")):
        get, put = (getattr(loaded, f"{before}{name}{after}", None) for name in names or ())
        if get is not None and put is not None:
            put.argtypes, put.restype = [ctypes.c_int], None
            return _Count(get, put, getattr(library, "threading_layer", "") == "openmp")
    return None


_all = _counts()
_get, _set, _ones = [c.get for c in _all if not c.own], [c.set for c in _all if not c.own], [1] * len(_all)
_own_get, _own_set = [c.get for c in _all if c.own], [c.set for c in _all if c.own]
_inside: dict[int, None] = {}  # threads in a run
_normal = [0] * len(_set)  # the counts that hold when no thread is, while one is


def _undisturbed(*parts: Iterable[object]) -> Iterator[object]:
    """The parts, made of C functions alone, with no collection of garbage between their calls: ``deque(it, 0)`` runs
    them as one call, in which no other thread, signal handler or finalizer has its turn."""
    was: list[bool] = []
    return itertools.chain(
        map(was.append, map(operator.call, [gc.isenabled])),
        map(operator.call, [gc.disable]),
        *parts,
        map(operator.call, itertools.compress([gc.enable], was)),
    )


def _if_none_inside(items: Iterable[_T]) -> Iterator[_T]:
    """The items if no thread is in a run when they are taken, else nothing."""
    return itertools.compress(items, map(operator.not_, itertools.repeat(_inside)))


def single_threaded(body: Callable[[], _T]) -> _T:
    """``body()``, with BLAS in this thread, and if that is the process's affair in all threads, at one thread.

    A body inside another one of the same thread (a signal handler that runs a plan) has work space of its own.

    >>> single_threaded(lambda: 1 + 1)
    2
    """
    me = get_ident()
    if me in _inside:
        return workspace.apart(body)
    own = [get() for get in _own_get]
    enter = _undisturbed(
        map(_normal.__setitem__, _if_none_inside(range(len(_get))), map(operator.call, _get)),
        map(_inside.setdefault, [me]),
        map(operator.call, _set + _own_set, _ones),
    )
    leave = _undisturbed(
        map(_inside.pop, [me], [None]),
        map(operator.call, _own_set, own),
        map(operator.call, _set, _if_none_inside(_normal)),
    )
    try:
        deque(enter, 0)
        return body()
    finally:
        deque(leave, 0)


def settled(body: Callable[[], _T]) -> _T:
    """:func:`single_threaded`, and NumPy's buffer at a size that leaves rows of a matrix where they lie, in a context
    that is dropped afterwards."""
    return single_threaded(partial(copy_context().run, _buffered, body))


def _buffered(body: Callable[[], _T]) -> _T:
    np.setbufsize(_BUFFER)
    return body()


def forked() -> None:
    """Reset in a forked child, which has no other threads."""
    others = set(_inside) - {get_ident()}
    if others:
        back = map(operator.call, _set, _if_none_inside(_normal))
        deque(_undisturbed(map(_inside.__delitem__, others), back), 0)
