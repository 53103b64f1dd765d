"""Convolution without a sum over channels on CuPy: one generated kernel, in which sizes are constants."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar

from growarray.backend import Array, load
from growarray.contraction.machine import Machine
from growarray.contraction.problem import Axis, Product
from growarray.contraction.routines.portable import Portable
from growarray.contraction.routines.protocol import D_FEATURE, D_KERNEL, FORWARD

__all__ = ["Depthwise", "depthwise_source"]


class Depthwise(Portable):
    """out[b, q] = sum over taps of kernel[b, tap] feature[b, q + tap], in one pass."""

    name: ClassVar[str] = "depthwise"
    ways: ClassVar[tuple[str, ...]] = (FORWARD, D_FEATURE, D_KERNEL)

    @classmethod
    def fits(cls, product: Product, library: str) -> bool:
        """A convolution without a sum over channels, of CuPy's arrays."""
        return library == "cupy" and product.s == product.n == 1 and product.is_conv

    @classmethod
    def seconds(cls, product: Product, machine: Machine, way: str) -> float:
        """One pass that reads every tap; the gradient by the kernel is a sum for each tap."""
        passes, item = 3 if way == D_KERNEL else 1, product.itemsize / 4
        work = passes * product.b * product.columns * product.taps * machine.element * item
        return work + machine.call * (product.taps if way == D_KERNEL else 1)

    def forward(self, xp: Any, kernel: Array, feature: Array) -> Array:
        """One call."""
        out = load("cupy").empty(self.product.shape, feature.dtype)
        _compiled(self.product.axes)(feature, kernel, out)
        return out


@lru_cache(maxsize=256)
def _compiled(axes: tuple[Axis, ...]) -> Any:
    cupy = load("cupy")
    return cupy.ElementwiseKernel("raw T x, raw T w", "T y", depthwise_source(axes), "growarray_depthwise")


def depthwise_source(axes: Sequence[Axis]) -> str:
    """CUDA source for one element ``y`` at flat index ``i``: sizes are constants, taps loop from the first axis in.

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
