"""Dropout by the numbers of NumPy's generator, drawn where the array is: each thread goes ahead to its own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from growarray.backend import Array
from growarray.cuda.activation import gated
from growarray.cuda.device import NAMES, fits
from growarray.cuda.text import ACCUMULATED

# PCG64 of NumPy, state s: s <- multiplier s + increment, 128 bits; k steps are one with other numbers.
_MULTIPLIER, _BITS = 0x2360ED051FC65DA44385DF649FCCF645, 42


def _jumps() -> tuple[str, str]:
    """2^k steps for each k: the multipliers, and what the increment is times."""
    factor, share, factors, shares = _MULTIPLIER, 1, [], []
    for _ in range(_BITS):
        factors.append(factor)
        shares.append(share)
        factor, share = factor * factor % 2**128, share * (factor + 1) % 2**128
    as_text = (", ".join(f"{{{v >> 64}ULL, {v % 2**64}ULL}}" for v in values) for values in (factors, shares))
    return tuple(as_text)  # type: ignore[return-value]


_FACTORS, _SHARES = _jumps()
_PCG = f"""typedef unsigned long long U; struct wide_t {{ U high, low; }};
#ifdef __CUDACC__
static __device__ U high_of(U a, U b) {{ return __umul64hi(a, b); }}
#else
static U high_of(U a, U b) {{ return (U)((unsigned __int128)a * b >> 64); }}
#endif
static __device__ const wide_t factors[] = {{{_FACTORS}}};
static __device__ const wide_t shares[] = {{{_SHARES}}};
static __device__ wide_t times(wide_t a, wide_t b) {{
  return {{high_of(a.low, b.low) + a.high * b.low + a.low * b.high, a.low * b.low}}; }}
static __device__ wide_t plus(wide_t a, wide_t b) {{
  const U low = a.low + b.low; return {{a.high + b.high + (low < a.low), low}}; }}
static __device__ wide_t ahead(wide_t s, wide_t by, int k) {{
  return plus(times(factors[k], s), times(shares[k], by)); }}
static __device__ U drawn(wide_t s) {{
  const U x = s.high ^ s.low; const int by = s.high >> 58; return x >> by | x << (-by & 63); }}"""
_START = """wide_t s = {s1, s0}; const wide_t by = {b1, b0}; U steps = (U)first + 1;
for (int k = 0; steps; ++k, steps >>= 1) if (steps & 1) s = ahead(s, by, k);"""
_DRAW = "on = drawn(s) >> 11 >= least; r = on ? v * scale : (A)0; s = ahead(s, by, 8);"


def dropped(
    x: Array, p: float, rng: np.random.Generator, drawn: tuple[int, ...]
) -> tuple[Array, Callable[[Array], Array]] | None:
    """As in :mod:`growarray.ops.dropout`, with the very numbers that ``rng`` would draw in NumPy, drawn there.

    Only of PCG64, the generator of ``default_rng``; ``rng`` stands afterwards where drawing in NumPy leaves it.
    """
    source = rng.bit_generator
    if type(source) is not np.random.PCG64 or drawn != x.shape or not fits(x):
        return None
    number = np.dtype(ACCUMULATED[NAMES[x.dtype]]).type
    least = np.uint64(-int(-p * 2**53 // 1))  # numbers are those above 11 bits over 2^53
    scale = number(0.0 if p == 1.0 else 1.0 / (1.0 - p))
    arguments = ", U s1, U s0, U b1, U b0, U least, A scale"
    with source.lock:
        state = source.state
        numbers = (state["state"][name] for name in ("state", "inc"))
        scalars = (*(np.uint64(half) for v in numbers for half in (v >> 64, v % 2**64)), least, scale)
        result = gated(x, _START, _DRAW, "r = on ? v * scale : (A)0;", arguments, scalars, _PCG)
        source.advance(x.size)
        source.state = {**state, "state": source.state["state"]}  # advance() forgets half a number that is left over
    return result
