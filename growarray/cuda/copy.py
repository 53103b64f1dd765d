"""Copying from a GPU: the host waits once, however many arrays there are. Imports nothing of the library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_PACKED = 1 << 26  # bytes of an array up to which it is packed with others: a larger one is copied from where it is


def copied(cupy: Any, arrays: Sequence[Any]) -> list[np.ndarray]:
    """Arrays of CuPy, of any dtypes, as NumPy's: in one copy from each device, and one for each that is large."""
    values: dict[int, np.ndarray] = {}
    packs: dict[Any, list[int]] = {}
    for i, x in enumerate(arrays):
        packs.setdefault(x.device.id if x.nbytes <= _PACKED else (i,), []).append(i)
    for pack in packs.values():
        if len(pack) == 1:
            values[pack[0]] = np.asarray(arrays[pack[0]].get())
            continue
        with cupy.cuda.Device(arrays[pack[0]].device.id):
            flat = [cupy.ascontiguousarray(arrays[i]).reshape(-1).view("uint8") for i in pack]
            packed = cupy.concatenate(flat).get()
        for i, part in zip(pack, np.split(packed, np.cumsum([x.nbytes for x in flat])[:-1]), strict=True):
            values[i] = part.copy().view(arrays[i].dtype).reshape(arrays[i].shape)
    return [values[i] for i in range(len(arrays))]
