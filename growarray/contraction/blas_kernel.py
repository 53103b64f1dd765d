"""Which kernels NumPy's BLAS runs its products by, and whether the processor could run faster ones."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from growarray.contraction.blas import libraries

# what OpenBLAS calls its kernels for x86, by the widest vectors that they use; all others use those of 128 bits
_KERNELS = {
    "avx": ("sandybridge", "bulldozer", "piledriver", "steamroller"),
    "avx2": ("haswell", "zen", "excavator"),
    "avx512": ("skylakex", "cooperlake", "sapphirerapids"),
}
_NEEDS = {"avx": {"avx"}, "avx2": {"avx2", "fma"}, "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"}}


def restriction(library: Mapping[str, Any], flags: Collection[str], wanted: str = "") -> str:
    """A sentence if OpenBLAS runs narrower vectors than the processor has, else nothing.

    library : as ``threadpoolctl`` describes it    flags : of the processor    wanted : what the environment asks for

    >>> restriction({"internal_api": "openblas", "architecture": "Nehalem"}, {"avx", "avx2", "fma"})
    "OpenBLAS runs its Nehalem kernels, which leave the processor's avx2 unused: figures are too slow"
    """
    kind = str(library.get("architecture", ""))
    used = max((i for i, names in enumerate(_KERNELS.values()) if kind.lower() in names), default=-1)
    able = [i for i, width in enumerate(_KERNELS) if _NEEDS[width] <= set(flags)]
    if library.get("internal_api") != "openblas" or not kind or not able or used >= able[-1]:
        return ""
    unused, cause = list(_KERNELS)[able[-1]], f"; unset OPENBLAS_CORETYPE={wanted}" if wanted else ""
    return f"OpenBLAS runs its {kind} kernels, which leave the processor's {unused} unused: figures are too slow{cause}"


def blas_named() -> str:
    """NumPy's BLAS, the kernels that it runs, and the restriction of these if there is one."""
    library = next((library.info() for library in libraries()), {"internal_api": "an unknown BLAS"})
    known = (library["internal_api"], library.get("version"))
    kind = library.get("architecture")
    remark = restriction(library, _flags(), os.environ.get("OPENBLAS_CORETYPE", ""))
    return " ".join(filter(None, known)) + (f", {kind} kernels" if kind else "") + (f". {remark}" if remark else "")


def _flags() -> list[str]:
    """What the processor can do, if it is one of x86 and the system says so."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
