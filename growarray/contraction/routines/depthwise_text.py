"""Kernels of convolutions without a sum over channels, all axes and all kernels in a row at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from growarray.cuda.text import THREADS, Walk, address, kernel_text, split, walk

Strides = Mapping[str, int]


class Chain(NamedTuple):
    """``out[b, q] = sum over t of x[b, q stride + t ...] k1[b, t] k2[b, t] …``; a kernel has some of the indices.

    sizes : of every index    b : names of the indices that no axis has    axes : of the feature map
    factors : the strides of each kernel, by index
    """

    sizes: Mapping[str, int]
    b: tuple[str, ...]
    axes: tuple[Walk, ...]
    factors: tuple[Strides, ...]

    @property
    def taps(self) -> tuple[str, ...]:
        """The indices of the taps of all kernels."""
        return tuple(f"t{k}" for k, axis in enumerate(self.axes) if axis.taps > 1)

    def count(self, names: Sequence[str]) -> int:
        """How many values some indices have together."""
        return math.prod(self.sizes[name] for name in names)

    def places(self, letter: str) -> tuple[str, ...]:
        """The indices of positions of the output (``q``) or of the feature map (``p``)."""
        return tuple(f"{letter}{k}" for k in range(len(self.axes)))


def depthwise(chain: Chain, dtype: str, source: Strides, target: Strides, wide: bool, backward: bool = False) -> str:
    """Arguments: source, the kernels, target. One thread an element of the target; ``backward`` from out to feature."""
    names = sorted((*chain.b, *chain.places("p" if backward else "q")), key=lambda name: -target.get(name, 0))
    last = [max((int(n[1:]) for n in one if n[0] == "t"), default=-1) for one in chain.factors]

    def product(axis: int, before: str) -> str:
        known = [f"load(w{j} + {address(f)})" for j, f in enumerate(chain.factors) if last[j] == axis]
        return " * ".join([before, *known])

    def opened(axis: int) -> list[str]:
        return [f"const A f{axis + 1} = {product(axis, f'f{axis}')};"]

    inner = [f"sum += f{len(chain.axes)} * load(x + {address(source)});"]
    arguments = ["const T* x", *(f"const T* w{j}" for j in range(len(chain.factors))), "T* y"]
    lines = [
        f"const N i = (N)blockIdx.x * {THREADS} + threadIdx.x;",
        f"if (i >= {chain.count(names)}) return;",
        *split("i", names, chain.sizes),
        f"A sum = 0; const A f0 = {product(-1, '(A)1')};",
        *walk(chain.axes, inner, backward=backward, opened=opened),
        f"store(y + {address(target)}, sum);",
    ]
    return kernel_text(dtype, ", ".join(arguments), lines, wide)


def tap_sums(chain: Chain, dtype: str, d_out: Strides, feature: Strides, wide: bool, length: int) -> str:
    """Arguments: gradient of the output, feature map, sums (slab, b, taps); a block for each slab and b.

    length : elements of a slab. Every thread keeps one sum for each tap; those of a block are added in shared memory.
    """
    places, taps = chain.places("q"), chain.taps
    flat = address({name: chain.count(taps[place + 1 :]) for place, name in enumerate(taps)})
    count, whole = chain.count(taps), chain.count(places)
    loop = walk(chain.axes, [f"sum[{flat}] += g * load(x + {address(feature)});"])
    lines = [
        f"A sum[{count}];",
        "#pragma unroll",
        f"for (int t = 0; t < {count}; ++t) sum[t] = 0;",
        f"const N batch = blockIdx.x % {chain.count(chain.b)}, slab = blockIdx.x / {chain.count(chain.b)};",
        *split("batch", chain.b, chain.sizes),
        f"const N stop = (slab + 1) * {length} < {whole} ? (slab + 1) * {length} : {whole};",
        f"for (N i = slab * {length} + threadIdx.x; i < stop; i += {THREADS}) {{",
        *split("i", places, chain.sizes),
        f"const A g = load(d + {address(d_out)});",
        *loop,
        "}",
        f"__shared__ A all[{THREADS}];",
        "#pragma unroll",
        f"for (int t = 0; t < {count}; ++t) {{",
        "all[threadIdx.x] = sum[t]; __syncthreads();",
        f"for (int half = {THREADS // 2}; half; half /= 2) {{",
        "if (threadIdx.x < half) all[threadIdx.x] += all[threadIdx.x + half];",
        "__syncthreads(); }",
        f"if (threadIdx.x == 0) part[(I)blockIdx.x * {count} + t] = all[0];",
        "__syncthreads(); }",
    ]
    return kernel_text(dtype, "const T* d, const T* x, A* part", lines, wide)


def factor_gradients(
    chain: Chain, dtype: str, parts: Strides, targets: Mapping[int, Strides], slabs: int, wide: bool
) -> str:
    """Arguments: sums (slab, b, taps), all kernels but of a chain of one, the gradients by those in ``targets``.

    The gradient by one kernel is the sum of what belongs to a tap, times what the other kernels have there.
    """
    lines = [f"I i = (I)blockIdx.x * {THREADS} + threadIdx.x;"]
    names, many = (*chain.b, *chain.taps), len(chain.factors)
    for j, target in targets.items():
        own = [name for name in names if name in target or name in chain.b]
        others = [name for name in chain.taps if name not in target]
        rest = [f"load(w{i} + {address(f)})" for i, f in enumerate(chain.factors) if i != j]
        lines += [
            f"if (i < {chain.count(own)}) {{",
            *split("i", own, chain.sizes),
            "A sum = 0;",
            *(f"for (int {name} = 0; {name} < {chain.sizes[name]}; ++{name}) {{" for name in others),
            f"A all = 0; const A* at = part + {address(parts)};",
            f"for (int slab = 0; slab < {slabs}; ++slab) all += at[(I)slab * {chain.count(names)}];",
            f"sum += {' * '.join(['all', *rest])};",
            "}" * len(others),
            f"store(g{j} + {address(target)}, sum); return; }}",
            f"i -= {chain.count(own)};",
        ]
    arguments = ["const A* part", *(f"const T* w{j}" for j in range(many) if many > 1), *(f"T* g{j}" for j in targets)]
    return kernel_text(dtype, ", ".join(arguments), lines, wide)
