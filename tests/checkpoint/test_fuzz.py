"""Damaged files of every format: a correct checkpoint or a CheckpointError comes out, in bounded time and memory.

``GROWARRAY_FUZZ`` is the number of files of each format, 100 by default. ``python -m tests.checkpoint.fuzz`` makes many
more, and ``tests/checkpoint/fuzz_atheris.py`` lets coverage guide them.
"""

import os
import tracemalloc

import pytest

from growarray.errors import CheckpointError
from tests.checkpoint import fuzz
from tests.checkpoint.seeds import SEEDS, WRAPPED, read_everything

EXAMPLES = int(os.environ.get("GROWARRAY_FUZZ", "100"))
LIMIT = 64 * 2**20
KINDS = [*SEEDS, *WRAPPED, "index"]


@pytest.mark.parametrize("kind", SEEDS)
def test_seeds_load(kind):
    assert len(read_everything(SEEDS[kind])) >= 2


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(kind, tmp_path):
    counts = fuzz.run(kind, files=2 * EXAMPLES, seed=1, folder=tmp_path)
    assert sum(counts.values()) == 2 * EXAMPLES
    assert counts["refused"] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_memory_that_damaged_files_take(kind, tmp_path):
    tracemalloc.start()
    try:
        fuzz.run(kind, files=EXAMPLES, seed=2, folder=tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < LIMIT, f"peak of {peak / 2**20:.0f} MiB"


def test_a_seed_gives_the_same_file_again():
    one, again, other = (fuzz.damaged("torch-zip", seed, 7) for seed in (1, 1, 2))
    assert one == again != other


@pytest.mark.parametrize("kind", ["torch-zip", "npz"])
def test_a_changed_byte_never_changes_values(kind):
    """Checksums cover data and structure: what loads after one flip is what was saved."""
    data = SEEDS[kind]
    expected = {name: array.tobytes() for name, array in read_everything(data).items()}
    for place in range(0, len(data), max(1, 800 // EXAMPLES)):
        flipped = bytearray(data)
        flipped[place] ^= 0x41
        try:
            arrays = read_everything(bytes(flipped))
        except CheckpointError:
            continue
        assert {name: array.tobytes() for name, array in arrays.items()} == expected, f"byte {place}"
