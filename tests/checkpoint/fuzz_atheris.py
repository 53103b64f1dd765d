"""Fuzzing that coverage guides, where atheris is installed: ``python -m tests.checkpoint.fuzz_atheris KIND [options]``.

The options are those of libFuzzer. ``KIND`` is a format of :mod:`tests.checkpoint.seeds`; its seed file begins the
corpus, which lies in a folder that is printed. ``python -m tests.checkpoint.fuzz_atheris torch-zip-pickle -runs=200000
-seed=1 -timeout=10 -rss_limit_mb=512`` stops at the first input that crashes, hangs, warns, or takes more memory.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["growarray.checkpoint"]):
    from tests.checkpoint.seeds import SEEDS, WRAPPED, outcome, seed_of

KINDS = (*SEEDS, *WRAPPED, "index")


def main(arguments: list[str]) -> None:
    """Fuzz one format."""
    if len(arguments) < 2 or arguments[1] not in KINDS:
        raise SystemExit(
            f"usage: python -m tests.checkpoint.fuzz_atheris KIND [options]; KIND is of {', '.join(KINDS)}"
        )
    kind = arguments[1]
    seed, wrap = seed_of(kind)
    corpus, beside = (Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-")) for name in (kind, "beside"))
    (corpus / "seed").write_bytes(seed)
    print(f"corpus: {corpus}", flush=True)
    warnings.simplefilter("error")

    def one(data: bytes) -> None:
        outcome(kind, wrap(data), beside)

    atheris.Setup([arguments[0], str(corpus), *arguments[2:]], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
