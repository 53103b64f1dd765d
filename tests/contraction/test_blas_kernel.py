"""A BLAS that leaves vectors of the processor unused is noticed."""

import pytest

from growarray.contraction import blas_kernel
from growarray.contraction.blas_kernel import blas_named, restriction

AVX2 = ["sse2", "avx", "avx2", "fma"]
AVX512 = [*AVX2, "avx512f", "avx512bw", "avx512dq", "avx512vl"]


class Library:
    def __init__(self, **facts):
        self.facts = facts

    def info(self):
        return self.facts


@pytest.mark.parametrize(
    ("architecture", "flags", "unused"),
    [
        ("Haswell", AVX2, None), ("Zen", AVX2, None), ("SkylakeX", AVX512, None), ("Sandybridge", ["avx"], None),
        ("Haswell", AVX512, "avx512"), ("Zen", AVX512, "avx512"), ("Prescott", AVX2, "avx2"),
        ("Sandybridge", AVX2, "avx2"), ("Nehalem", ["avx"], "avx"), ("Nehalem", ["sse2"], None),
        ("neoversen1", [], None), ("Cooperlake", AVX512[:-1], None),
    ],
)  # fmt: skip
def test_narrower_vectors_than_the_processor_has_are_named(architecture, flags, unused):
    found = restriction({"internal_api": "openblas", "architecture": architecture}, flags)
    kernels = f"OpenBLAS runs its {architecture} kernels, which leave the processor's {unused} unused"
    assert found == (f"{kernels}: figures are too slow" if unused else "")


def test_libraries_that_do_not_say_what_they_run_are_not_judged():
    assert restriction({"internal_api": "mkl"}, AVX512) == ""
    assert restriction({"internal_api": "openblas"}, AVX512) == ""


def test_the_environment_that_restricts_is_named_with_the_library(monkeypatch):
    known = Library(internal_api="openblas", version="0.3.31", architecture="Prescott")
    monkeypatch.setattr(blas_kernel, "libraries", lambda: [known])
    monkeypatch.setattr(blas_kernel, "_flags", lambda: AVX2)
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Prescott")
    assert blas_named() == (
        "openblas 0.3.31, Prescott kernels. OpenBLAS runs its Prescott kernels, which leave the processor's avx2 "
        "unused: figures are too slow; unset OPENBLAS_CORETYPE=Prescott"
    )
    monkeypatch.setattr(blas_kernel, "_flags", list)
    assert blas_named() == "openblas 0.3.31, Prescott kernels"
    monkeypatch.setattr(blas_kernel, "libraries", list)
    assert blas_named() == "an unknown BLAS"
