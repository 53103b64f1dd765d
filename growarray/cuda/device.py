"""What a CUDA device is asked for: kernels compiled from text, strided products, memory. CuPy does it."""

from __future__ import annotations

import contextlib
import math
import operator
import sys
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from growarray.backend import Array, is_cupy, load, namespace
from growarray.cuda.text import ACCUMULATED, THREADS
from growarray.errors import DeviceError, ShapeError

Launch = Callable[[Sequence[int]], object]
"""Starts some work, given the table of addresses."""

NAMES = {np.dtype(name): name for name in ACCUMULATED}  # of the storage types: NumPy takes 5 us to name a dtype
WIDE = 1 << 30  # elements from which on an index takes 64 bits
_KEPT = 1 << 28  # bytes of a work space that a thread keeps; a larger one goes back to the pool at once
_KINDS = {"float32": 0, "float64": 1, "float16": 2}  # cudaDataType_t
_COMPUTE = {"float32": 68, "float64": 70, "float16": 68}  # cublasComputeType_t: float16 is summed in float32
_TF32 = 77
_SCALARS: dict[int, np.ndarray] = {68: np.asarray([1, 0], "float32"), 70: np.asarray([1, 0], "float64")}  # alpha, beta


class Kernel(NamedTuple):
    """One launch of a kernel of the name ``growarray``; ``slots`` are the places of its arguments in the table."""

    text: str
    blocks: int
    threads: int
    slots: tuple[int, ...]


class StridedProduct(NamedTuple):
    """Products of matrices that lie at equal distances, column by column as cuBLAS has them: ``c = op(a) op(b)``.

    transposed : whether a and b are    sizes : rows, columns and depth of each product, and how many there are
    ld, step : elements from one column, and from one matrix, to the next, of a, b and c    slots : of a, b, c
    tf32 : whether float32 may be multiplied with 10 bits of fraction
    """

    transposed: tuple[bool, bool]
    sizes: tuple[int, int, int, int]
    ld: tuple[int, int, int]
    step: tuple[int, int, int]
    dtype: str
    out_dtype: str
    slots: tuple[int, int, int]
    tf32: bool = False


def cuda() -> Any:
    """CuPy's module of that name: devices, streams, memory."""
    return load("cupy").cuda


def double_ratio() -> int:
    """How many times as long as in float32 the current GPU takes in float64; 1 if none is in use."""
    if "cupy" not in sys.modules:
        return 1
    runtime = cuda().runtime
    try:
        number = runtime.cudaDevAttrSingleToDoublePrecisionPerfRatio
        return max(int(runtime.deviceGetAttribute(number, runtime.getDevice())), 1)
    except runtime.CUDARuntimeError:  # there is no GPU
        return 1


@lru_cache(maxsize=1024)
def _compiled(text: str) -> Any:
    return load("cupy").RawKernel(text, "growarray")  # compiled at its first launch on a device, and kept on disk


def kernel_launch(kernel: Kernel) -> Launch:
    """The launch of a kernel as a function of the table of addresses."""
    function, grid, block = _compiled(kernel.text), (kernel.blocks,), (kernel.threads,)
    if len(kernel.slots) == 1:
        only = kernel.slots[0]
        return lambda table: function(grid, block, (table[only],))
    arguments = operator.itemgetter(*kernel.slots)
    return lambda table: function(grid, block, arguments(table))


def product_launch(product: StridedProduct) -> Launch:
    """The launch of strided products as a function of the table of addresses."""
    run = cuda().cublas.gemmStridedBatchedEx  # CuPy's attribute finds cuBLAS where pip put it; its module does not
    handle = cuda().get_cublas_handle  # of this thread and device; it follows the current stream
    rows, columns, depth, count = product.sizes
    kind, compute = _KINDS[product.dtype], _COMPUTE[product.dtype]
    alpha = _SCALARS[compute].ctypes.data
    beta = alpha + _SCALARS[compute].itemsize
    compute = _TF32 if product.tf32 and product.dtype == "float32" else compute
    (a, b, c), (lda, ldb, ldc), (ja, jb, jc) = product.slots, product.ld, product.step
    left, right = map(int, product.transposed)
    out_kind, default = _KINDS[product.out_dtype], -1
    return lambda table: run(
        handle(), left, right, rows, columns, depth, alpha, table[a], kind, lda, ja, table[b], kind, ldb, jb,
        beta, table[c], out_kind, ldc, jc, count, compute, default,
    )  # fmt: skip


def run(text: str, blocks: int, *arguments: Any) -> None:
    """Launch a kernel once, in blocks of ``THREADS``; arrays go by their addresses, None is no address."""
    _compiled(text)((blocks,), (THREADS,), tuple(0 if a is None else a for a in arguments))


def fits(*arrays: Array | None) -> bool:
    """Whether kernels of one storage type take these arrays: contiguous, with entries, of one dtype that they know."""
    present = [x for x in arrays if x is not None]
    return (
        all(is_cupy(x) and x.dtype == present[0].dtype and x.flags.c_contiguous and x.size > 0 for x in present)
        and present[0].dtype in NAMES
    )


def gradient(dy: Array, shape: tuple[int, ...], dtype: Any, like: Array) -> Array:
    """A gradient as kernels take it, contiguous. Raises ShapeError if it has another shape, TypeError if it is of
    another library or device than ``like``."""
    namespace(dy, like, where="pullback: ")
    if dy.shape != shape:
        raise ShapeError(
            f"pullback: the gradient has shape {tuple(dy.shape)}, the result has {shape}; pass a gradient of the "
            "result's shape"
        )
    return contiguous(dy, dtype)


def contiguous(array: Array, dtype: Any) -> Array:
    """The array itself, if it is contiguous and of this dtype, else a copy. Raises DeviceError without memory."""
    copy = _made("ascontiguousarray", array.shape, dtype, array, dtype)
    return copy if array.ndim else copy.reshape(())  # CuPy gives a single number an axis, as NumPy does


def uploaded(table: np.ndarray) -> int:
    """Address of a copy in the :func:`workspace`, for the launch that comes next. The host does not wait: CUDA has
    taken what it copies of pageable memory when the call returns."""
    here, address = cuda(), int(workspace(table.nbytes).ptr)
    here.runtime.memcpyAsync(address, table.ctypes.data, table.nbytes, 1, here.get_current_stream().ptr)
    return address


def current(array: Array) -> contextlib.AbstractContextManager[Any]:
    """Makes the device of ``array`` the one on which work is launched, if it is not."""
    index, here = array.device.id, cuda()
    return contextlib.nullcontext() if here.runtime.getDevice() == index else here.Device(index)


def _no_memory(count: int, error: Exception) -> DeviceError:
    return DeviceError(
        f"the GPU has no {count} bytes left ({error}); cut the batch, plan with a memory_limit=, or forget arrays and "
        "pullbacks that are not needed any more"
    )


def empty(shape: tuple[int, ...], dtype: Any) -> Array:
    """A new array. Raises DeviceError if there is no memory for it."""
    return _made("empty", shape, dtype, shape, dtype)


def zeros(shape: tuple[int, ...], dtype: Any) -> Array:
    """A new array of zeros. Raises DeviceError if there is no memory for it."""
    return _made("zeros", shape, dtype, shape, dtype)


def _made(name: str, shape: tuple[int, ...], dtype: Any, *operands: Any) -> Array:
    """An array of this shape and dtype, by a function of CuPy."""
    cupy = load("cupy")
    try:
        return getattr(cupy, name)(*operands)
    except cupy.cuda.memory.OutOfMemoryError as error:
        raise _no_memory(math.prod(shape) * np.dtype(dtype).itemsize, error) from error


def parts(shapes: Sequence[tuple[int, ...]], dtype: str) -> list[Array]:
    """New arrays that lie in one piece of memory, which is asked for once."""
    if not shapes:
        return []
    item = np.dtype(dtype).itemsize
    starts = np.cumsum([0, *(-(-item * math.prod(shape) // 16) * 16 for shape in shapes)]).tolist()
    whole, array = empty((starts[-1],), "uint8").data, load("cupy").ndarray
    return [array(shape, dtype, memptr=whole + start) for shape, start in zip(shapes, starts, strict=False)]


_here = threading.local()


def workspace(count: int) -> Any:
    """Memory that work on the current stream may use until this thread asks again; its address is ``.ptr``."""
    here = cuda()
    key = here.runtime.getDevice(), here.get_current_stream().ptr
    buffers: dict[Any, Any] = _here.__dict__.setdefault("held", {})
    buffer = buffers.get(key)
    if buffer is None or buffer[0] < count:
        buffers.pop(key, None)
        try:
            buffer = count, here.alloc(count)
        except here.memory.OutOfMemoryError as error:
            raise _no_memory(count, error) from error
        if count <= _KEPT:
            buffers[key] = buffer
            while len(buffers) > 8:
                buffers.pop(next(iter(buffers)))
    return buffer[1]
