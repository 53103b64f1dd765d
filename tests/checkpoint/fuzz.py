"""Many damaged files, each given by its format, a seed and a number: ``python -m tests.checkpoint.fuzz``.

``python -m tests.checkpoint.fuzz --files 200000 --seed 1`` runs every format, one after another; ``--kinds npz`` some
of them; ``--seed 1 --kinds npz --one 4711`` a single file again, which it writes where ``--write`` says. It stops at
the first file that neither loads nor is refused, takes more than a second of the processor, or warns, and names it.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

from tests.checkpoint.seeds import SEEDS, WRAPPED, outcome, seed_of

__all__ = ["damaged", "run"]

KINDS = (*SEEDS, *WRAPPED, "index")
SECONDS = 1.0
MEBIBYTES = 64
BYTES = (0x00, 0x01, 0x22, 0x28, 0x2E, 0x30, 0x51, 0x52, 0x5D, 0x62, 0x71, 0x74, 0x7B, 0x7F, 0x80, 0xFF)
NUMBERS = (0, 1, 2**15, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)


def damaged(kind: str, seed: int, number: int) -> bytes:
    """The file of a format, a seed and a number: the seed file with one to six places changed, or cut off."""
    rng = random.Random(f"{kind} {seed} {number}")
    data, wrap = seed_of(kind)
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        _damage(out, rng)
    if rng.random() < 0.1:
        del out[rng.randrange(len(out) + 1) :]
    return wrap(bytes(out))


def _damage(out: bytearray, rng: random.Random) -> None:
    """Change one place."""
    place = rng.randrange(len(out) + 1)
    end = min(len(out), place + rng.randint(1, 40))
    kind = rng.randrange(7)
    if kind == 0 and place < len(out):
        out[place] ^= 1 << rng.randrange(8)
    elif kind == 1 and place < len(out):
        out[place] = rng.choice(BYTES)
    elif kind == 2:
        width = rng.choice((1, 2, 4, 8))
        out[place : place + width] = (rng.choice(NUMBERS) % 256**width).to_bytes(width, rng.choice(("little", "big")))
    elif kind == 3:
        del out[place:end]
    elif kind == 4:
        out[place:place] = out[place:end] * rng.choice((1, 1, 1, 50))
    elif kind == 5:
        source = rng.randrange(len(out) + 1)
        out[place:end] = out[source : source + end - place]
    else:
        out[place:place] = rng.randbytes(rng.randint(1, 8))


def run(kind: str, *, files: int, seed: int, folder: Path, first: int = 0) -> Counter[str]:
    """How many of the files loaded and were refused. Raises AssertionError, which names the file, for all else."""
    counts: Counter[str] = Counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(first, first + files):
            data = damaged(kind, seed, number)
            start = time.process_time()
            try:
                counts[outcome(kind, data, folder)] += 1
            except BaseException as fault:
                raise AssertionError(f"{kind}, seed {seed}, file {number}: {type(fault).__name__}: {fault}") from fault
            seconds = time.process_time() - start
            assert seconds < SECONDS, f"{kind}, seed {seed}, file {number}: took {seconds:.1f} s"
    unit = 2**20 if sys.platform == "darwin" else 2**10
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / unit
    assert grown < MEBIBYTES, f"{kind}, seed {seed}: memory grew by {grown:.0f} MiB"
    return counts


def main() -> None:
    """Run what the command line says, and print a line for each format."""
    parser = argparse.ArgumentParser(prog="python -m tests.checkpoint.fuzz", description="many damaged files")
    parser.add_argument("--files", type=int, default=200_000, help="of each format")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", nargs="*", default=KINDS, choices=KINDS)
    parser.add_argument("--one", type=int, help="only the file of this number")
    parser.add_argument("--write", type=Path, help="where to write the file of --one")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for kind in chosen.kinds:
            if chosen.one is not None and chosen.write:
                chosen.write.write_bytes(damaged(kind, chosen.seed, chosen.one))
            start, first = time.process_time(), chosen.one or 0
            files = 1 if chosen.one is not None else chosen.files
            counts = run(kind, files=files, seed=chosen.seed, folder=Path(folder), first=first)
            seconds = time.process_time() - start
            print(f"{kind}: {counts['loaded']} loaded, {counts['refused']} refused, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
