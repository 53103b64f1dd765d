"""Kernels of CUDA on the CPU: g++ compiles their text, blocks run one by one, threads of a block as fibres."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["COMPILER", "run"]

COMPILER = shutil.which("g++")

_HEAD = """
#include <ucontext.h>
#include <math.h>
static float exp(float v) { return expf(v); }  // as CUDA has them, without the headers of C++, which take long
static float log(float v) { return logf(v); }
static float sqrt(float v) { return sqrtf(v); }
static float expm1(float v) { return expm1f(v); }
static float log1p(float v) { return log1pf(v); }
static float tanh(float v) { return tanhf(v); }
static float erf(float v) { return erff(v); }
struct place { unsigned x; };
static place threadIdx, blockIdx, blockDim, gridDim;
#define __global__
#define __launch_bounds__(threads, blocks)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __device__ inline
#define __shared__ static
static const int MOST = 1024, STACK = 1 << 15;
static ucontext_t main_, fibres[MOST];
static char stacks[MOST][STACK];
static bool done[MOST];
static unsigned at;
static void __syncthreads() { swapcontext(&fibres[at], &main_); }
"""

_TAIL = """
static void** arguments;
static void body() { growarray(%s); done[at] = true; }
extern "C" void run(unsigned blocks, unsigned threads, void** given) {
  arguments = given; blockDim.x = threads; gridDim.x = blocks;
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    if (!%d) { for (at = 0; at < threads; ++at) { threadIdx.x = at; growarray(%s); } continue; }
    for (at = 0; at < threads; ++at) {
      done[at] = false; getcontext(&fibres[at]);
      fibres[at].uc_stack.ss_sp = stacks[at]; fibres[at].uc_stack.ss_size = STACK; fibres[at].uc_link = &main_;
      makecontext(&fibres[at], body, 0);
    }
    for (bool left = true; left;) {
      left = false;
      for (at = 0; at < threads; ++at) if (!done[at]) {
        threadIdx.x = at; swapcontext(&main_, &fibres[at]); left = left || !done[at];
      }
    }
  }
}
"""


@functools.cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="growarray-kernels-"))


@functools.cache
def _compiled(text: str) -> tuple[Any, tuple[str, ...]]:
    """The function, and the types of its arguments."""
    name = re.search(r"growarray\(([^)]*)\) \{", text)
    if name is None or COMPILER is None:
        raise ValueError(f"no kernel of the name growarray in {text!r}")
    short = {alias: plain for plain, alias in re.findall(r"typedef ([a-z ]+) ([A-Z]);", text)}
    types = tuple(argument.rpartition(" ")[0].strip() for argument in name[1].split(","))
    types = tuple(short.get(t, t) for t in types)
    values = ", ".join(
        f"({t})arguments[{i}]" if t.endswith("*") else f"*({t}*)arguments[{i}]" for i, t in enumerate(types)
    )
    stem = _folder() / hashlib.sha256(text.encode()).hexdigest()[:24]
    stem.with_suffix(".cpp").write_text(_HEAD + text + _TAIL % (values, "__syncthreads" in text, values))
    options = ["-O0", "-w", "-nostdinc++", "-nostdlib", "-shared", "-fPIC"]  # to link the library of C++ takes long
    command = [COMPILER, *options, "-o", f"{stem}.so", f"{stem}.cpp", "-lgcc", "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{done.stderr}\n{text}")
    return ctypes.CDLL(f"{stem}.so").run, types


_SCALARS = {"float": "float32", "double": "float64", "int": "int32", "long long": "int64",
            "unsigned long long": "uint64"}  # fmt: skip


def _held(kind: str, value: Any) -> int | np.ndarray:
    """An address, or the place of a scalar, which CuPy hands over in the size of its dtype, whatever the text says."""
    if kind.endswith("*"):
        return int(value)
    if not isinstance(value, np.generic) or value.dtype != _SCALARS[kind]:
        raise TypeError(f"the kernel takes {kind}, found {value!r} of {type(value)}")
    return np.asarray(value)


def run(text: str, blocks: int, threads: int, arguments: Sequence[Any]) -> None:
    """Run the kernel; pointers are addresses, scalars NumPy's numbers of the type that the text names."""
    function, types = _compiled(text)
    if len(types) != len(arguments):
        raise TypeError(f"the kernel takes {types}, found {len(arguments)} arguments")
    held = [_held(kind, value) for kind, value in zip(types, arguments, strict=True)]
    table = (ctypes.c_void_p * len(held))(*(h if isinstance(h, int) else h.ctypes.data for h in held))
    function(blocks, threads, table)
