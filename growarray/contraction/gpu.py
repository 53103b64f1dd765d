"""Fused kernels for CuPy, each compiled once for a geometry."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from growarray.backend import Array
from growarray.contraction.problem import Axis

__all__ = ["depthwise", "depthwise_source"]


def depthwise(feature: Array, kernel: Array, axes: Sequence[Axis]) -> Array | None:
    """out[b, 0, q] = sum over taps of kernel[b, 0, 0, tap] feature[b, 0, q + tap] in one pass; None if not on CuPy."""
    if type(feature).__module__.split(".")[0] != "cupy":
        return None
    cupy = importlib.import_module("cupy")
    out = cupy.empty((feature.shape[0], 1, *(a.out for a in axes)), feature.dtype)
    _compiled(tuple(axes))(feature, kernel, out)
    return out


@lru_cache(maxsize=256)
def _compiled(axes: tuple[Axis, ...]) -> Any:
    cupy = importlib.import_module("cupy")
    return cupy.ElementwiseKernel("raw T x, raw T w", "T y", depthwise_source(axes), "growarray_depthwise")


def depthwise_source(axes: Sequence[Axis]) -> str:
    """CUDA source for one element ``y`` at flat index ``i``: sizes are constants, taps loop from the first axis in.

    >>> from growarray.contraction.problem import Axis
    >>> "for" in depthwise_source([Axis("x", 8, 3, 6)])
    True
    """
    decode, loops, place, tap = ["long long r = i;"], [], "r", "r"
    for k in reversed(range(len(axes))):
        decode.append(f"const long long q{k} = r % {axes[k].out}; r /= {axes[k].out};")
    for k, a in enumerate(axes):
        loops.append(f"for (int t{k} = 0; t{k} < {a.taps}; ++t{k}) {{")
        loops.append(f"const long long p{k} = q{k} * {a.stride} + t{k} * {a.dilation} - ({a.before});")
        loops.append(f"if (p{k} < 0 || p{k} >= {a.size}) continue;")
        place, tap = f"({place}) * {a.size} + p{k}", f"({tap}) * {a.taps} + t{k}"
    body = f"sum += x[{place}] * w[{tap}];"
    return "\n".join([*decode, "T sum = 0;", *loops, body, "}" * len(axes), "y = sum;"])
