"""C text that kernels share: storage types, flat numbers split into indices, addresses, walks along padded axes.

Indices have one letter and a number: ``b``, ``s`` and ``n`` as in :class:`growarray.contraction.problem.Product`, ``q``
for positions of the output, ``p`` of the feature map, ``t`` for taps. Sizes and strides are constants in the text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

THREADS = 256  # of a block

ACCUMULATED = {"float16": "float32", "float32": "float32", "float64": "float64"}
_C = {"float16": "half_t", "float32": "float", "float64": "double"}

_HALF = """#ifdef __CUDACC__
struct half_t { unsigned short bits; };
static __device__ float load(const half_t* p) {
  float v; asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(p->bits)); return v; }
static __device__ void store(half_t* p, float v) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(p->bits) : "f"(v)); }
#else
typedef _Float16 half_t;
static float load(const half_t* p) { return *p; }
static void store(half_t* p, float v) { *p = (half_t)v; }
#endif"""

BLOCK_SUMS = f"""template <class V> static __device__ V all_of(V v, V* held, bool largest) {{
  __syncthreads(); held[threadIdx.x] = v; __syncthreads();
  for (unsigned k = {THREADS // 2}; k; k >>= 1) {{
    if (threadIdx.x < k) {{
      const V a = held[threadIdx.x], b = held[threadIdx.x + k];
      held[threadIdx.x] = !largest ? a + b : a < b || b != b ? b : a;
    }}
    __syncthreads();
  }}
  return held[0];
}}
template <class V> static __device__ V sum_of(V v, V* held) {{ return all_of(v, held, false); }}
template <class V> static __device__ V max_of(V v, V* held) {{ return all_of(v, held, true); }}"""
"""Sum and largest over the threads of a block, the same for all of them; a NaN stays. All threads call."""

ROW_SUM = """static __device__ A row_sum(A v, A* held, unsigned lanes) {
  const unsigned lane = threadIdx.x % lanes;
  __syncthreads(); held[threadIdx.x] = v; __syncthreads();
  for (unsigned k = lanes / 2; k; k >>= 1) {
    if (lane < k) held[threadIdx.x] += held[threadIdx.x + k];
    __syncthreads();
  }
  return held[threadIdx.x - lane];
}"""
"""Sum over ``lanes`` threads side by side, a power of two, the same for all of them. All threads call."""


def each_of(count: str) -> str:
    """Every thread has one of ``count`` elements, i, or none.

    >>> each_of("n")
    'const I i = (I)blockIdx.x * 256 + threadIdx.x; if (i >= n) return;'
    """
    return f"const I i = (I)blockIdx.x * {THREADS} + threadIdx.x; if (i >= {count}) return;"


def lanes_for(count: int) -> int:
    """Threads that sum ``count`` values together: a power of two, from half a warp to a block.

    >>> lanes_for(3), lanes_for(100), lanes_for(5000)
    (16, 64, 256)
    """
    return min(THREADS, 1 << max(count.bit_length() - 1, 4))


class Walk(NamedTuple):
    """An axis of a feature map: output position q reads ``q stride + t dilation - before``, padded in a mode."""

    size: int
    taps: int = 1
    out: int = 1
    stride: int = 1
    before: int = 0
    after: int = 0
    dilation: int = 1
    mode: str = "zeros"

    @property
    def is_plain(self) -> bool:
        """Whether the outputs are the inputs."""
        return (self.taps, self.stride, self.before, self.out) == (1, 1, 0, self.size)


def kernel_text(
    dtype: str,
    arguments: str,
    lines: Sequence[str],
    wide: bool,
    *before: str,
    threads: int = THREADS,
    resident: int = 1,
) -> str:
    """A kernel of the name ``growarray``: T is the storage type, A that of sums, I of indices, 64 bits if ``wide``.

    N is I without a sign.    before : functions that stand before it
    threads : of a block    resident : blocks that a multiprocessor has registers for
    """
    stored, summed, index = _C[dtype], _C[ACCUMULATED[dtype]], "long long" if wide else "int"
    head = [
        *([_HALF] if dtype == "float16" else []),
        f"static __device__ {summed} load(const {summed}* p) {{ return *p; }}",
        f"static __device__ void store({summed}* p, {summed} v) {{ *p = v; }}",
        f"typedef {stored} T; typedef {summed} A; typedef {index} I; typedef unsigned {index} N;",
        *before,
        f'extern "C" __global__ void __launch_bounds__({threads}, {resident}) growarray({arguments}) {{',
    ]
    return "\n".join([*head, *lines, "}"]) + "\n"


def split(value: str, names: Sequence[str], sizes: Mapping[str, int]) -> list[str]:
    """Lines that declare the indices ``names`` of a flat number, the last one fastest.

    >>> split("i", ["q0", "q1"], {"q0": 3, "q1": 5})
    ['const I q1 = (i) % 5;', 'const I q0 = (i) / 5;']
    """
    lines, rest = [], value
    for place, name in reversed(list(enumerate(names))):
        if sizes[name] == 1:
            lines.append(f"const I {name} = 0;")
            continue
        outermost = all(sizes[other] == 1 for other in names[:place])
        lines.append(f"const I {name} = {rest if outermost else f'({rest}) % {sizes[name]}'};")
        rest = f"({rest}) / {sizes[name]}"
    return lines


def address(strides: Mapping[str, int], first: str = "") -> str:
    """Sum of index times stride.

    >>> address({"q0": 5, "q1": 1})
    'q0 * 5 + q1 * 1'
    """
    terms = [first] * bool(first) + [f"{name} * {stride}" for name, stride in strides.items() if stride]
    return " + ".join(terms) or "0"


def walk(
    axes: Sequence[Walk],
    inner: Sequence[str],
    *,
    backward: bool = False,
    taps: bool = True,
    opened: Callable[[int], Sequence[str]] = lambda axis: (),
) -> list[str]:
    """Lines around ``inner``, which run once for each position p that q reads, or ``backward`` for each q that read p.

    taps : whether to loop over the taps; else ``t0``, ``t1``, … are known    opened : lines within the loop of an axis
    """
    lines, braces = [], 0
    for k, axis in enumerate(axes):
        if axis.is_plain:
            lines.append(f"const I q{k} = p{k};" if backward else f"const I p{k} = q{k};")
            lines += opened(k)
            continue
        if backward:
            images = _images(axis, k)
            lines, braces = [*lines, *images], braces + sum(line.count("{") for line in images)
        if axis.taps == 1:
            lines.append(f"const int t{k} = 0;" if taps else "")
        elif taps:
            lines += ["#pragma unroll", f"for (int t{k} = 0; t{k} < {axis.taps}; ++t{k}) {{"]
            braces += 1
        lines += _read_by(axis, k) if backward else _reads(axis, k)
        braces += 1
        lines += opened(k)
    return [line for line in [*lines, *inner, "}" * braces] if line]


def _reads(axis: Walk, k: int) -> list[str]:
    """The position that an output reads at a tap."""
    p, size = f"p{k}", axis.size
    lines = [f"I {p} = q{k} * {axis.stride} + t{k} * {axis.dilation} - {axis.before};"]
    if axis.mode == "zeros":
        return [*lines, f"if ({p} >= 0 && {p} < {size}) {{"]
    wrapped = {
        "reflect": f"{p} = {p} < 0 ? -{p} : {p} >= {size} ? {2 * (size - 1)} - {p} : {p};",
        "replicate": f"{p} = {p} < 0 ? 0 : {p} >= {size} ? {size - 1} : {p};",
        "circular": f"{p} = {p} < 0 ? {p} + {size} : {p} >= {size} ? {p} - {size} : {p};",
    }
    return [*lines, wrapped[axis.mode], "{"]


def _images(axis: Walk, k: int) -> list[str]:
    """Loops over the places u of the padded axis that hold position p."""
    p, u, e, before, last = f"p{k}", f"u{k}", f"e{k}", axis.before, axis.size - 1
    padded = before + axis.size + axis.after
    if axis.mode == "zeros":
        return [f"{{ const I {u} = {p} + {before};"]
    if axis.mode == "replicate":
        start, stop = f"({p} == 0 ? 0 : {p} + {before})", f"({p} == {last} ? {padded - 1} : {p} + {before})"
        return [f"for (I {u} = {start}; {u} <= {stop}; ++{u}) {{"]
    inside = f"{u} >= 0 && {u} < {padded}"
    if axis.mode == "circular":
        place = f"{p} + {before} + ({e} - 1) * {axis.size}"
    else:  # the edges are not repeated
        place = f"{e} == 0 ? {p} + {before} : {e} == 1 ? {before} - {p} : {before + 2 * last} - {p}"
        inside += f" && !({e} == 1 && {p} == 0) && !({e} == 2 && {p} == {last})"
    return [f"for (int {e} = 0; {e} < 3; ++{e}) {{ const I {u} = {place};", f"if ({inside}) {{"]


def _read_by(axis: Walk, k: int) -> list[str]:
    """The output that reads place u of the padded axis at a tap."""
    v, by = f"v{k}", axis.stride
    fits = [f"{v} >= 0", *([f"{v} % {by} == 0"] if by > 1 else []), f"{v} < {axis.out * by}"]
    return [
        f"const I {v} = u{k} - t{k} * {axis.dilation};",
        f"if ({' && '.join(fits)}) {{",
        f"const I q{k} = {v} / {by};",
    ]
