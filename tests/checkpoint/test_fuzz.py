"""Damaged files of every format: a correct checkpoint or a CheckpointError comes out, in bounded time and memory.

``GROWARRAY_FUZZ`` is the number of files of each format, 100 by default. ``python -m tests.checkpoint.fuzz`` makes many
more, and ``tests/checkpoint/fuzz_atheris.py`` lets coverage guide them.
"""

import os
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from growarray.errors import CheckpointError
from tests.checkpoint import fuzz
from tests.checkpoint.seeds import SEEDS, WRAPPED, outcome, read_everything, seed_of

EXAMPLES = int(os.environ.get("GROWARRAY_FUZZ", "100"))
LIMIT = 64 * 2**20
KINDS = [*SEEDS, *WRAPPED, "index"]


@st.composite
def damaged(draw, data):
    """The file with some bytes changed, a stretch copied, moved or left out, or cut off."""
    out = bytearray(data)
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(out) - 1))
        kind = draw(st.sampled_from(["xor", "set", "number", "delete", "repeat", "insert"]))
        end = min(len(out), place + draw(st.integers(1, 40)))
        if kind == "xor":
            out[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set":
            out[place] = draw(st.sampled_from([0, 1, 0x28, 0x2E, 0x51, 0x52, 0x62, 0x7F, 0x80, 0xFF]))
        elif kind == "number":
            number = draw(st.sampled_from([0, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1]))
            out[place : place + 8] = number.to_bytes(8, "little")
        elif kind == "delete" and end - place < len(out):
            del out[place:end]
        elif kind == "repeat":
            out[place:place] = out[place:end]
        else:
            out[place:place] = draw(st.binary(max_size=8))
    return bytes(out[: draw(st.integers(0, len(out)))] if draw(st.integers(0, 7)) == 0 else out)


@pytest.mark.parametrize("kind", SEEDS)
def test_seeds_load(kind):
    assert len(read_everything(SEEDS[kind])) >= 2


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(kind, tmp_path):
    seed, wrap = seed_of(kind)

    @settings(max_examples=EXAMPLES, deadline=2000, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(damaged(seed))
    def check(data):
        assert outcome(kind, wrap(data), tmp_path) in ("refused", "loaded")

    tracemalloc.start()
    try:
        check()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < LIMIT, f"peak of {peak / 2**20:.0f} MiB"


@pytest.mark.parametrize("kind", KINDS)
def test_seeded_runs(kind, tmp_path):
    counts = fuzz.run(kind, files=2 * EXAMPLES, seed=1, folder=tmp_path)
    assert sum(counts.values()) == 2 * EXAMPLES
    assert counts["refused"] > 0


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
