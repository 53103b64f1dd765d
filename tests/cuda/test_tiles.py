"""The kernel of any product with every way to cut it, and which one is chosen."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest

from growarray.contraction.routines import cupy as routine
from growarray.contraction.routines.protocol import D_FEATURE, D_KERNEL, FORWARD
from growarray.contraction.routines.tiles import Cut, Tile, cut
from tests.cuda.device import Cuda, cuda
from tests.cuda.test_products import DENSE, compare

__all__ = ["cuda"]

CUTS = {
    "whole": Cut(Tile(8, 8, 8, 16), True, 1, 0.0),
    "pieces": Cut(Tile(8, 4, 16, 8), True, 2, 0.0),
    "taps inside, pieces": Cut(Tile(4, 4, 16, 16), False, 3, 0.0),
}
GEOMETRIES: dict[str, Any] = {
    "plain": {"padding": 1},
    "wrapped": {"padding": 1, "padding_mode": "circular", "stride": 2},
    "phases": {"padding": ((1, 0), (2, 1)), "stride": (2, 3), "dilation": (2, 1)},
    "phases without taps": {"stride": (3, 4), "dilation": (1, 2)},
}


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("found", CUTS.values(), ids=CUTS)
def test_every_cut(cuda: Cuda, monkeypatch: pytest.MonkeyPatch, found: Cut, geometry: Any) -> None:
    monkeypatch.setattr(routine, "cut", lambda *_: found)
    planned = importlib.import_module("growarray.contraction.plan")._cached
    planned.cache_clear()  # plans keep their launches
    dtype = {1: "float16", 2: "float64", 3: "float32"}[found.slabs]
    compare(cuda, DENSE, [(2, 17, 6, 8), (10, 17, 2, 3)], dtype, optimize="factorized", **geometry)
    assert any(f"A acc[{found.tile.tall}][{found.tile.broad}];" in text for text in cuda.texts)
    planned.cache_clear()
    if geometry == {"padding": 1}:
        assert any("*(Four*)" in text for text in cuda.texts)


def test_strides_beyond_the_only_tap(cuda: Cuda) -> None:
    compare(cuda, "n c x, o c x -> n o x | x", [(2, 3, 7), (4, 3, 1)], stride=3)


def chosen(way: str, batch: int, channels: int, side: int, stride: int = 1) -> tuple[Cut, float, int]:
    """The cut of a 3 x 3 convolution, its operations over those of a full tile, and how many blocks it has."""
    out = side // stride
    axes = ((batch, 1, batch, 1), *[(side, 3, out, stride)] * 2)
    found = cut(way, 1, channels, channels, axes, False)
    rows = -(-channels // found.tile.rows)
    wide = {FORWARD: batch * out**2, D_FEATURE: batch * out**2, D_KERNEL: channels * (1 if found.apart else 9)}[way]
    parts = {FORWARD: 1, D_FEATURE: stride**2, D_KERNEL: 9 if found.apart else 1}[way]
    blocks = rows * -(-wide // found.tile.columns) * parts * found.slabs
    return found, 2.0 * batch * (channels * out * 3) ** 2 / found.operations, blocks


@pytest.mark.parametrize("way", [FORWARD, D_FEATURE, D_KERNEL])
@pytest.mark.parametrize(("batch", "channels", "side", "stride"), [(64, 64, 56, 1), (64, 128, 56, 2), (8, 512, 7, 1)])
def test_all_multiprocessors_are_busy(way: str, batch: int, channels: int, side: int, stride: int) -> None:
    found, share, blocks = chosen(way, batch, channels, side, stride)
    assert (found.tile.tall, found.tile.broad) == (8, 8)
    assert blocks > 100
    assert share > 0.6  # of the rate of the largest tiles; for every phase of a stride too


def test_small_products_stay_one_launch() -> None:
    assert chosen(FORWARD, 1, 64, 14)[0].slabs == 1
    assert chosen(FORWARD, 8, 512, 7)[0].slabs > 1
    few = cut(FORWARD, 1, 3, 64, ((8, 1, 8, 1), (224, 7, 112, 2), (224, 7, 112, 2)), False)
    assert not few.apart  # three channels would fill three places of eight for each of 49 taps
    assert math.isfinite(few.operations)
