"""What a call passes through before and while it multiplies: few files, each entered once or twice, and few calls."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import growarray
from growarray.factorized import FactorizedConv
from growarray.nn import Conv2d, Module

ROOT = str(Path(growarray.__file__).parent)


def entries_and_calls(call: Callable[[], Any]) -> tuple[Counter[str], int]:
    """How often each file of the package is entered from another one, and the calls of Python functions in all."""
    entries: Counter[str] = Counter()
    calls = 0

    def profiler(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        if event != "call":
            return
        calls += 1
        name, caller = frame.f_code.co_filename, frame.f_back
        while caller is not None and not caller.f_code.co_filename.startswith(ROOT):
            caller = caller.f_back
        if name.startswith(ROOT) and (caller is None or caller.f_code.co_filename != name):
            entries[name[len(ROOT) + 1 :]] += 1

    before = sys.getprofile()
    sys.setprofile(profiler)
    try:
        call()
    finally:
        sys.setprofile(before)
    return entries, calls


def factorized(kind: str, **options: Any) -> FactorizedConv:
    return FactorizedConv(16, 32, 3, order=2, padding=1, factorization=kind, rng=np.random.default_rng(0), **options)


LAYERS: dict[str, Callable[[], Module]] = {
    "cp": lambda: factorized("cp", rank=8, bias=True),
    "cp, strided": lambda: factorized("cp", rank=8, stride=2),
    "tucker": lambda: factorized("tucker", rank=0.2),
    "tt": lambda: factorized("tt", rank=0.3),
    "dense": lambda: Conv2d(16, 32, 3, padding=1, rng=np.random.default_rng(0)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_no_file_is_entered_more_than_twice_and_twelve_are_touched(name):
    layer, x = LAYERS[name](), np.ones((1, 16, 9, 9), np.float32)
    for _ in range(2):  # the second finds work space for all steps
        layer.forward(x)
    entries, _ = entries_and_calls(lambda: layer.forward(x))
    assert {file: count for file, count in entries.items() if count > 2} == {}
    assert len(entries) <= 12, sorted(entries)


@pytest.mark.parametrize("name", LAYERS)
def test_a_warm_call_makes_few_calls(name):
    layer, x = LAYERS[name](), np.ones((1, 16, 9, 9), np.float32)
    for _ in range(2):  # the second finds work space for all steps
        layer.forward(x)
    _, calls = entries_and_calls(lambda: layer.forward(x))
    assert calls <= 90
