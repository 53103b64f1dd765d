"""CuPy in which kernels run on the CPU, counted: the arrays are the doubles, which forbid what CuPy forbids."""

from __future__ import annotations

import ctypes
import sys
import types
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import pytest

from growarray import backend
from growarray.cuda import device, late
from tests import doubles
from tests.cuda import emulator

__all__ = ["Cuda", "counting", "cuda"]

_GUARD = 256  # bytes before and after memory that nobody may touch
_KINDS = {0: np.float32, 1: np.float64, 2: np.float16}


class OutOfMemoryError(MemoryError):
    """As CuPy's."""


class CUDARuntimeError(RuntimeError):
    """As CuPy's."""


class Memory:
    """A piece of memory with guards around it, full of NaN."""

    def __init__(self, count: int) -> None:
        self._bytes = np.full(count + 2 * _GUARD + 256, 0xFF, np.uint8)
        start = -(-(self._bytes.ctypes.data + _GUARD) // 256) * 256 - self._bytes.ctypes.data
        self.values, self.ptr = self._bytes[start : start + count], self._bytes.ctypes.data + start
        self._guards = self._bytes[:start], self._bytes[start + count :]

    @property
    def is_whole(self) -> bool:
        return all((guard == 0xFF).all() for guard in self._guards)


class Cuda:
    """What the fake device did: launches in order, pieces of memory.

    operations : what CuPy launches for portable operations    waits : where the host waits for the device
    flops : of products, by dtype    moved : bytes that were read or written, as far as they are known
    allocations : how often kernels asked for memory    peak : the most bytes that arrays held together
    room : bytes that may be asked for at once    dry : whether launches are counted only    stream : the current one
    computes : how the products were computed, as cuBLAS numbers it    ratio : how slow float64 is
    number, count : the GPU in use, and how many there are
    """

    def __init__(self) -> None:
        self.launches: list[str] = []
        self.operations: list[str] = []
        self.waits: list[str] = []
        self.uploads: list[int] = []
        self.allocations = self.peak = self.moved = 0
        self.flops: Counter[str] = Counter()
        self._sizes: dict[int, int] = {}
        self._live: dict[int, int] = {}
        self.texts: set[str] = set()
        self.memory: list[Memory] = []
        self.room = 1 << 40
        self.dry = False
        self.stream, self.ratio = 0, 2
        self.number, self.count = 0, 1
        self.computes: list[int] = []
        self.linalg = "ignore"

    def forget(self) -> None:
        """Count from now on."""
        for log in (self.launches, self.operations, self.waits, self.uploads):
            log.clear()
        self.flops.clear()
        self.allocations, self.moved, self.peak = 0, 0, sum(self._live.values())

    def move(self, *arguments: Any) -> None:
        """Count the bytes of arrays, or of what lies at known addresses, as read or written once."""
        for x in arguments:
            known = isinstance(x, doubles.DoubleArray)
            self.moved += x._values.nbytes if known else self._sizes.get(x, 0) if isinstance(x, int) else 0

    def hold(self, values: np.ndarray) -> None:
        """Count the memory of an array for as long as it is there."""
        while isinstance(values.base, np.ndarray):
            values = values.base
        if id(values) not in self._live:
            self._live[id(values)] = values.nbytes
            self.peak = max(self.peak, sum(self._live.values()))
            weakref.finalize(values, self._live.pop, id(values), None)

    def array(self, values: Any) -> Any:
        return doubles.DoubleArray(np.asarray(values))

    def alloc(self, count: int) -> Memory:
        if count > self.room:
            raise OutOfMemoryError(f"Out of memory allocating {count} bytes")
        self.allocations += 1
        if self.dry:
            values = np.zeros(count, np.uint8)
            self.hold(values)
            return _Data(values)
        self.memory.append(Memory(count))
        return self.memory[-1]

    def empty(self, shape: Any, dtype: Any) -> Any:
        shape = shape if isinstance(shape, tuple) else (shape,)
        piece = self.alloc(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        self._sizes[piece.ptr] = piece.values.nbytes
        return doubles.DoubleArray(piece.values.view(dtype).reshape(shape))

    def zeros(self, shape: Any, dtype: Any) -> Any:
        made = self.empty(shape, dtype)
        made._values[...] = 0
        return made

    def contiguous(self, x: Any, dtype: Any = None) -> Any:
        dtype = x.dtype if dtype is None else dtype
        if not x.ndim:
            x = doubles.DoubleArray(x._values.reshape(1))  # as in CuPy and NumPy
        if x.dtype == np.dtype(dtype) and x._values.flags.c_contiguous:
            return x
        self.operations.append("ascontiguousarray")
        made = self.empty(x.shape, dtype)
        made._values[...] = x._values
        return made

    def upload(self, there: int, here: int, count: int, kind: int, stream: int) -> None:
        if (kind, stream) != (1, 0):
            raise ValueError(f"kind {kind} on stream {stream}")
        self.uploads.append(count)
        ctypes.memmove(there, here, count)

    def kernel(self, text: str, name: str, **options: Any) -> Any:
        if name != "growarray":
            raise ValueError(f"kernel {name}")

        def launch(grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
            self.launches.append("kernel")
            self.move(*arguments)
            self.texts.add(text)
            if not 0 < block[0] <= 1024 or not 0 < grid[0] < 1 << 31:
                raise ValueError(f"grid {grid}, block {block}")
            if not self.dry:
                emulator.run(text, grid[0], block[0], [_address(a) for a in arguments])

        return launch

    def product(
        self, handle: int, ta: int, tb: int, m: int, n: int, k: int, alpha: int, a: int, a_kind: int, lda: int,
        ja: int, b: int, b_kind: int, ldb: int, jb: int, beta: int, c: int, c_kind: int, ldc: int, jc: int,
        count: int, compute: int, algorithm: int,
    ) -> None:  # fmt: skip
        """As cuBLAS documents it: column by column, leading dimensions checked, alpha and beta read where they are."""
        self.launches.append("product")
        self.move(a, b, c)
        self.flops[np.dtype(_KINDS[a_kind]).name] += 2 * m * n * k * count
        self.computes.append(compute)
        if compute not in (68, 70, 77):
            raise ValueError(f"computeType {compute}")
        kind = ctypes.c_double if compute == 70 else ctypes.c_float
        if (kind.from_address(alpha).value, kind.from_address(beta).value, handle, algorithm) != (1.0, 0.0, 7, -1):
            raise ValueError("alpha, beta, handle or algorithm")
        for ld, rows in ((lda, k if ta else m), (ldb, n if tb else k), (ldc, m)):
            if ld < max(1, rows):
                raise ValueError(f"leading dimension {ld} of {rows} rows")
        if self.dry:
            return
        left = _matrices(a, a_kind, (m, k), lda, ja, count, ta)
        right = _matrices(b, b_kind, (k, n), ldb, jb, count, tb)
        wide = np.float64 if compute == 70 else np.float32
        _matrices(c, c_kind, (m, n), ldc, jc, count, 0)[...] = np.matmul(left.astype(wide), right.astype(wide))

    @contextmanager
    def errstate(self, *, linalg: str) -> Iterator[None]:
        """Whether failures of cuSOLVER are looked at (``'raise'``) or not."""
        before, self.linalg = self.linalg, linalg
        try:
            yield
        finally:
            self.linalg = before

    def cholesky(self, x: np.ndarray) -> np.ndarray:
        """As cuSOLVER's: of what is not positive definite it leaves numbers, and CuPy says nothing unless asked."""
        try:
            return np.linalg.cholesky(x)
        except np.linalg.LinAlgError:
            if self.linalg == "raise":
                raise
            return np.tril(x)

    def check(self) -> None:
        """Raise if something was written beside its memory."""
        if not all(piece.is_whole for piece in self.memory):
            raise AssertionError("a kernel wrote outside of its memory")


def _address(argument: Any) -> Any:
    return argument.data.ptr if isinstance(argument, doubles.DoubleArray) else argument


def _matrices(
    start: int, kind: int, shape: tuple[int, int], ld: int, jump: int, count: int, transposed: int
) -> np.ndarray:
    dtype = np.dtype(_KINDS[kind])
    span = (
        jump * (count - 1) + ld * ((shape[0] if transposed else shape[1]) - 1) + (shape[1] if transposed else shape[0])
    )
    flat = np.frombuffer((ctypes.c_char * (span * dtype.itemsize)).from_address(start), dtype)
    steps = (jump, ld, 1) if transposed else (jump, 1, ld)
    return np.lib.stride_tricks.as_strided(flat, (count, *shape), [s * dtype.itemsize for s in steps])


class _Data:
    """Where an array lies; it keeps the memory."""

    def __init__(self, values: np.ndarray, start: int = 0) -> None:
        self.ptr, self.values = values.ctypes.data + start, values

    def __add__(self, start: int) -> _Data:
        return _Data(self.values, start)


def _ndarray(shape: tuple[int, ...], dtype: str, memptr: _Data) -> Any:
    start = memptr.ptr - memptr.values.ctypes.data
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return doubles.DoubleArray(memptr.values[start : start + count].view(dtype).reshape(shape))


class _Device(nullcontext):  # type: ignore[type-arg]
    """A GPU, which may be used from now on."""

    def __init__(self, here: Cuda, index: int) -> None:
        super().__init__()
        self.use = lambda: setattr(here, "number", index)


@contextmanager
def _as_cupy(patch: pytest.MonkeyPatch) -> Iterator[Cuda]:
    made = Cuda()
    cuda = types.SimpleNamespace(
        runtime=types.SimpleNamespace(
            getDevice=lambda: made.number,
            getDeviceCount=lambda: made.count,
            getDeviceProperties=lambda _: {"name": b"Double"},
            memcpyAsync=made.upload,
            runtimeGetVersion=lambda: 12080,
            cudaDevAttrSingleToDoublePrecisionPerfRatio=87,
            deviceGetAttribute=lambda number, device: {87: made.ratio}[number],
            CUDARuntimeError=CUDARuntimeError,
        ),
        get_current_stream=lambda: types.SimpleNamespace(
            ptr=made.stream, synchronize=lambda: made.waits.append("synchronize")
        ),
        alloc=made.alloc,
        Device=partial(_Device, made),
        memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        cublas=types.SimpleNamespace(gemmStridedBatchedEx=made.product),
        get_cublas_handle=lambda: 7,
    )
    modules: dict[str, Any] = {
        "cupy": types.SimpleNamespace(
            empty=made.empty,
            zeros=made.zeros,
            ascontiguousarray=made.contiguous,
            concatenate=lambda arrays: doubles.xp.concat(arrays),
            ndarray=_ndarray,
            RawKernel=made.kernel,
            cuda=cuda,
            __version__="14.0",
        ),
        "array_api_compat.cupy": doubles.xp,
        "cupy.cuda": cuda,
        "cupyx": types.SimpleNamespace(errstate=made.errstate),
    }
    for name, module in modules.items():
        patch.setitem(sys.modules, name, module)
    double = doubles.DoubleArray
    patch.setitem(backend._compat, double, doubles.xp)
    patch.setattr(doubles.compat.linalg, "cholesky", made.cholesky)
    patch.setattr(double, "__module__", "cupy")
    patch.setattr(type(doubles.DEVICE), "id", 0, raising=False)
    patch.setattr(double, "strides", property(lambda self: self._values.strides), raising=False)
    patch.setattr(double, "data", property(lambda self: _Data(self._values)), raising=False)
    patch.setattr(double, "nbytes", property(lambda self: self._values.nbytes), raising=False)
    patch.setattr(double, "reshape", lambda self, *shape: double(self._values.reshape(*shape)), raising=False)
    patch.setattr(double, "view", lambda self, dtype: double(self._values.view(dtype)), raising=False)
    patch.setattr(double, "flags", property(lambda self: self._values.flags), raising=False)
    _count(patch, made)
    _forget()
    yield made
    made.check()
    _forget()


def _forget() -> None:
    device._compiled.cache_clear()
    device._here.__dict__.clear()
    late._waiting.clear()
    late._records.clear()


def _count(patch: pytest.MonkeyPatch, made: Cuda) -> None:
    """Count operations that make or change an array, and what reads values on the host; views cost nothing."""
    double, call = doubles.DoubleArray, doubles._Function.__call__

    def known(arguments: Any) -> list[Any]:
        return [a._values for a in arguments if isinstance(a, double)]

    def function(self: Any, *arguments: Any, **options: Any) -> Any:
        found = call(self, *arguments, **options)
        result = found[0] if isinstance(found, tuple) else found
        if isinstance(result, double) and not self._name.startswith("empty"):
            views = any(np.may_share_memory(result._values, x) for x in known(arguments))
            if not views:
                made.move(result, *arguments)
                (made.uploads if self._name == "asarray" else made.operations).append(self._name)  # type: ignore[attr-defined]
        return found

    def counted(name: str, where: list[str]) -> None:
        plain = getattr(double, name)

        def method(self: Any, *arguments: Any, **options: Any) -> Any:
            if made.dry and name == "__matmul__":
                where.append(name)
                made.move(self, *arguments)
                found = double(np.zeros((*self.shape[:-1], arguments[0].shape[-1]), self.dtype))
                made.flops[str(self.dtype)] += 2 * found.size * self.shape[-1]
                return found
            found = plain(self, *arguments, **options)
            if name != "__getitem__" or not np.may_share_memory(found._values, self._values):
                where.append(name)
                made.move(self, *arguments, found)
            return found

        patch.setattr(double, name, method)

    plain = double.__init__

    def start(self: Any, values: np.ndarray) -> None:
        plain(self, values)
        made.hold(values)

    patch.setattr(double, "__init__", start)
    patch.setattr(doubles._Function, "__call__", function)
    both = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor")
    binary = [f"__{side}{word}__" for word in both for side in ("", "r", "i")]
    one = ("lt", "le", "eq", "ne", "gt", "ge", "neg", "abs", "invert", "getitem", "setitem")
    others = [f"__{word}__" for word in one]
    patch.setattr(double, "get", lambda self: np.array(self._values), raising=False)
    for name in (*binary, *others):
        counted(name, made.operations)
    for name in ("__float__", "__int__", "__bool__", "__index__", "__dlpack__", "get"):
        counted(name, made.waits)


@contextmanager
def counting() -> Iterator[Cuda]:
    """CuPy that counts, outside of tests."""
    with pytest.MonkeyPatch.context() as patch, _as_cupy(patch) as made:
        yield made


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cuda]:
    """CuPy on the CPU, for one test."""
    if emulator.COMPILER is None:
        pytest.skip("no g++")
    with _as_cupy(monkeypatch) as made:
        yield made
