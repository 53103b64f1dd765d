"""The arrays choose the library: namespace, device and dtype of what is passed in.

The only file that names array libraries. Everything above it speaks the array API
(https://data-apis.org/array-api), so that NumPy, CuPy and ``array_api_strict`` run the same
code. Nothing here copies between host and device except :func:`to_numpy` and :func:`asarray`.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import threading
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from growarray.errors import DeviceError, shown

__all__ = [
    "accurate_dtype",
    "asarray",
    "assign",
    "cholesky",
    "copied_along",
    "device_of",
    "is_array",
    "is_cupy",
    "is_numpy",
    "kind_of",
    "library",
    "library_of",
    "load",
    "namespace",
    "special_functions",
    "target_of",
    "to_device",
    "to_host",
    "to_numpy",
]

Array = Any
"""An array of any library that speaks the array API (a static type for it does not exist yet)."""

_loading = threading.RLock()
if hasattr(os, "register_at_fork"):  # a child would wait for ever for an import that another thread was at
    os.register_at_fork(before=_loading.acquire, after_in_parent=_loading.release, after_in_child=_loading.release)

_BY_NAME = {"cupy": "array_api_compat.cupy", "torch": "array_api_compat.torch"}
"""Namespaces of the libraries whose arrays do not name one themselves, by the package of their classes."""

copied_along: list[Any] = []
"""Functions that :func:`to_host` asks for arrays to copy along, and for a function that is given their values."""
_loaded: dict[str, Any] = {}  # modules whose import is done: to ask for one again takes importlib 2 us
_compat: dict[type, Any] = {}  # array type -> namespace, so that a lookup costs one dictionary access


def load(name: str) -> Any:
    """Import a slow module at its first use; ``os.fork`` waits until that is done.

    >>> load("math").sqrt(4.0)
    2.0
    """
    found = _loaded.get(name)
    if found is None or sys.modules.get(name) is not found:
        with _loading:
            found = _loaded[name] = importlib.import_module(name)
    return found


def is_array(x: object) -> bool:
    """Whether ``x`` is an array of a library that growarray can use."""
    kind = type(x)
    return kind in _compat or hasattr(x, "__array_namespace__") or kind.__module__.split(".")[0] in _BY_NAME


def is_cupy(x: object) -> bool:
    """Whether ``x`` is an array of CuPy, on which kernels can be launched."""
    return type(x).__module__.partition(".")[0] == "cupy"


def is_numpy(x: object) -> bool:
    """Whether ``x`` is a NumPy array, which has fast paths of its own."""
    return isinstance(x, np.ndarray)


def library_of(x: Any) -> Any:
    """Namespace of one array, whatever its dtype: for what stores and converts, and does not compute."""
    if (kind := type(x)) not in _compat:
        _refuse_masked(x)
        if isinstance(x, np.matrix):
            raise TypeError("expected an array, found a matrix, whose * is another product; pass numpy.asarray(x)")
        if isinstance(x, np.ndarray | np.generic):
            _compat[kind] = load("array_api_compat.numpy")
        elif kind.__module__.split(".")[0] in _BY_NAME:
            _compat[kind] = load(_BY_NAME[kind.__module__.split(".")[0]])
        elif hasattr(x, "__array_namespace__"):
            _compat[kind] = _in_double(x.__array_namespace__())
        else:
            raise TypeError(
                "expected an array of NumPy, CuPy or another array-API library, found "
                f"{f'{kind.__module__}.{kind.__qualname__}'.removeprefix('builtins.')}; convert it with "
                "growarray.backend.asarray(x)"
            )
    return _compat[kind]


def _in_double(xp: Any) -> Any:
    """``xp`` if it keeps float64, which sums and statistics need; JAX does so only if that is enabled."""
    if xp.__name__.startswith("jax") and not sys.modules["jax"].config.jax_enable_x64:
        raise TypeError("JAX arrays need float64; call jax.config.update('jax_enable_x64', True) before you make them")
    return xp


def _refuse_masked(x: Any) -> None:
    masked = getattr(sys.modules.get("numpy.ma"), "MaskedArray", ())  # none if nobody imported it
    if isinstance(x, masked):
        raise TypeError(
            f"expected an array, found a {type(x).__name__}, whose mask would be lost; fill what it hides, as in "
            "x.filled(0.0), or leave those samples out"
        )


def kind_of(x: Array) -> str:
    """NumPy's letter for the kind of dtype, of any library: ``'f'``, ``'i'``, ``'u'``, ``'b'``, ``'c'`` for complex.

    >>> kind_of(np.ones(2)), kind_of(np.ones(2, dtype=object))
    ('f', 'O')
    """
    known: str | None = getattr(x.dtype, "kind", None)
    if known:
        return known
    name = str(x.dtype).rpartition(".")[2]  # float32, int8, uint8, bool, complex64
    return "V" if name.startswith(("bfloat", "float8")) else name[:1]


def _refuse_kind(x: Array, where: str) -> NoReturn:
    remedies = {"c": "real and imaginary parts as features"}
    remedies |= dict.fromkeys("UTO", "numbers; numpy.unique(x, return_inverse=True) gives names and numbers of labels")
    remedy = remedies.get(kind_of(x), "numbers, as in x.astype(numpy.float64)")
    raise TypeError(f"{where}expected an array of real numbers, found {shown(x)}; pass {remedy}")


def _refuse_gradient(x: Array) -> NoReturn:
    kind = f"{type(x).__module__}.{type(x).__qualname__}"
    raise TypeError(f"a {kind} that requires a gradient cannot be taken; pass x.detach()")


def device_of(x: Array) -> Any:
    """Device on which ``x`` lives: ``'cpu'`` for NumPy, the library's own object elsewhere."""
    return "cpu" if isinstance(x, np.ndarray | np.generic) else x.device


def namespace(*arrays: Any, where: str = "") -> Any:
    """Array-API namespace that all ``arrays`` share; ``None`` and Python numbers are passed over.

    Whatever computes with arrays asks here first, so here it is said what an array must be.

    Raises TypeError: the arrays belong to two libraries or two devices, or there is no array among them; one is masked,
    a matrix, or holds something else than real numbers.

    >>> import numpy as np
    >>> namespace(np.ones(2), None, 3.0).__name__
    'array_api_compat.numpy'
    """
    first: Any = None
    xp: Any = None
    for x in arrays:
        plain = type(x) is np.ndarray  # looked at with as few questions as can be: every operation asks
        if not plain and (x is None or (isinstance(x, int | float) and not isinstance(x, np.generic))):
            continue  # float64's scalars are floats
        other = library_of(x)
        if (x.dtype.kind if plain else kind_of(x)) not in "fiub":
            _refuse_kind(x, where)
        if not plain and getattr(x, "requires_grad", False):
            _refuse_gradient(x)
        if xp is None:
            first, xp = x, other
        elif other is not xp:
            raise TypeError(
                f"arrays of two libraries cannot be mixed: {type(first).__module__}.{type(first).__name__} and "
                f"{type(x).__module__}.{type(x).__name__}; move one with growarray.backend.asarray(x, like=y)"
            )
        elif not plain and device_of(x) != device_of(first):
            raise TypeError(
                f"arrays on two devices cannot be mixed: {device_of(first)} and {device_of(x)}; "
                "move one with growarray.backend.to_device(x, device)"
            )
    if xp is None:
        raise TypeError("expected at least one array, found none; pass NumPy, CuPy or array-API arrays")
    return xp


def library(device: str | None) -> Any:
    """Namespace that makes arrays for a device name: NumPy for ``None`` and ``'cpu'``, else CuPy.

    ``'cuda'`` is the GPU that CuPy uses; ``'cuda:N'`` makes GPU N that one, since its operations run there alone.

    Raises DeviceError: ``device`` asks for CUDA and CuPy is not installed or sees no GPU; ValueError: the device name
    is unknown.
    """
    if device in (None, "cpu"):
        return library_of(np.empty(0))
    name = str(device)
    if name != "cuda" and not (name.startswith("cuda:") and name[5:].isdigit()):
        raise ValueError(f"unknown device {shown(device)}; expected None, 'cpu', 'cuda' or 'cuda:N'")
    try:
        count = int(load("cupy").cuda.runtime.getDeviceCount())
    except Exception as error:  # CuPy raises its own classes for a missing driver
        remedy = 'install one of the extras: pip install "growarray[cuda12]" or "growarray[cuda13]"'
        if not isinstance(error, ImportError):
            remedy = (
                "nvidia-smi shows driver and GPUs; update an old driver, or take the extra of an older CUDA, cuda12"
            )
        raise DeviceError(
            f"device {shown(device)} needs CuPy and an NVIDIA GPU ({type(error).__name__}: {error}); {remedy}"
        ) from error
    index = int(name[5:] or 0)
    if index >= count:
        raise DeviceError(f"device {shown(device)} does not exist; this machine has {count} GPU(s), counted from 0")
    if name != "cuda":
        load("cupy").cuda.Device(index).use()
    return load("array_api_compat.cupy")


def to_device(x: Array, device: Any) -> Array:
    """``x`` on ``device``: a name as in :func:`library`, a device of its own library, or an array to which it moves."""
    if is_array(device):
        return asarray(x, like=device)
    if device is None or device == device_of(x):
        return x
    if not isinstance(device, str):
        return load("array_api_compat").to_device(x, device)
    xp = library(device)
    if device == "cpu":
        return to_numpy(x)
    return x if is_cupy(x) and x.device.id == load("cupy").cuda.runtime.getDevice() else xp.asarray(to_numpy(x))


def asarray(x: Any, *, like: Array | None = None, dtype: Any = None) -> Array:
    """``x`` as an array: of the library and device of ``like`` if given, else of its own library, else NumPy.

    Objects of other libraries that speak DLPack are taken without their library being imported; bfloat16 and float8,
    which NumPy lacks, become float32 of the same value. Raises TypeError for one without values, on a device that is
    out of reach, or that asks for a gradient.
    """
    _refuse_masked(x)
    foreign = _is_foreign(x)
    x = _readable(x) if foreign else x
    if like is None:
        if is_array(x) and not isinstance(x, np.generic):
            return x if dtype is None else library_of(x).astype(x, dtype, copy=False)
        return np.asarray(_handed_over(x) if foreign else x, dtype=dtype)
    xp = library_of(like)
    if foreign and not (is_array(x) and library_of(x) is xp):
        x = _handed_over(x, None if is_numpy(like) else xp)
    elif is_array(x) and library_of(x) is not xp:
        x = to_numpy(x)
    if is_numpy(x) and not is_numpy(like) and not x.flags.writeable:
        x = x.copy()  # another library may share its memory, and write there
    return xp.asarray(x, dtype=dtype, device=None if is_numpy(like) else device_of(like))


# methods of torch, by how names of dtypes begin
_WIDER = {"bfloat16": "float", "float8": "float", "complex32": "cfloat"}
_HOST = 1  # device type of DLPack


def _is_foreign(x: object) -> bool:
    """Whether ``x`` speaks DLPack but not the array API, as tensors of torch do."""
    speaks_array_api = isinstance(x, np.ndarray | np.generic) or hasattr(x, "__array_namespace__")
    return hasattr(type(x), "__dlpack__") and not speaks_array_api and not is_cupy(x)


def _readable(x: Any) -> Any:
    """A foreign array whose values DLPack can hand over. Raises TypeError if it has none or asks for a gradient."""
    kind = f"{type(x).__module__}.{type(x).__qualname__}"
    if str(getattr(x, "device", "cpu")) == "meta" or "Uninitialized" in kind:
        raise TypeError(f"a {kind} without values cannot be taken; load or initialize it first")
    if getattr(x, "requires_grad", False):
        _refuse_gradient(x)
    for method in ("resolve_conj", "resolve_neg"):  # bits of torch that change values, of which DLPack is silent
        x = getattr(x, method, lambda x=x: x)()
    name = str(getattr(x, "dtype", "")).rpartition(".")[2]
    wider = next((method for start, method in _WIDER.items() if name.startswith(start)), "")
    return getattr(x, wider)() if wider else x


def _handed_over(x: Any, xp: Any = None) -> Any:
    """``x`` from :func:`_readable` by DLPack: an array of NumPy, or of ``xp`` if it lies on a GPU."""
    try:
        return np.from_dlpack(x) if xp is None or x.__dlpack_device__()[0] == _HOST else xp.from_dlpack(x)
    except Exception as error:  # every library has its own, for layouts, devices and types that DLPack lacks
        kind, device = f"{type(x).__module__}.{type(x).__qualname__}", str(getattr(x, "device", "cpu"))
        why = str(error).partition("\n")[0]
        raise TypeError(
            f"a {kind} on {device} cannot be taken by DLPack ({why}); pass a dense array in host memory, x.cpu()"
        ) from error


def to_numpy(x: Any) -> np.ndarray:
    """``x`` as a NumPy array: the one explicit copy from device to host."""
    if isinstance(x, np.ndarray | np.generic | int | float | list | tuple):
        _refuse_masked(x)
        return np.asarray(x)
    if is_cupy(x):
        return to_host([x])[0]
    if _is_foreign(x):
        return np.asarray(_handed_over(_readable(x)))
    try:
        return np.from_dlpack(x)
    except (RuntimeError, BufferError, AttributeError, ValueError, TypeError):
        xp = library_of(x)  # a device that DLPack cannot reach: go through the library's own first one
        return np.from_dlpack(x.to_device(xp.__array_namespace_info__().devices()[0]))


def to_host(arrays: Sequence[Any]) -> list[np.ndarray]:
    """Each as a NumPy array; those of CuPy come in one copy, so that the host waits once for all of them.

    >>> to_host([np.ones(2), 3.0])
    [array([1., 1.]), array(3.)]
    """
    on_gpu = [x for x in arrays if is_cupy(x)]
    if not on_gpu:
        return list(map(to_numpy, arrays))
    requests = [ask() for ask in copied_along]
    along = [array for asked, _ in requests for array in asked]
    copies = iter(load("growarray.cuda.copy").copied(load("cupy"), [*on_gpu, *along]))
    values = [next(copies) if is_cupy(x) else to_numpy(x) for x in arrays]
    for asked, look in requests:
        look([next(copies) for _ in asked])
    return values


def assign(array: Array, index: Any, values: Any, *, add: bool = False) -> Array:
    """``array`` with ``values`` set at ``index``, or added with ``add``; use the result, which may be a new array.

    It is ``array`` itself, changed in place, if its library can do that; JAX's arrays never change. With ``add`` an
    index names no place twice.

    >>> assign(np.zeros(3), slice(1, None), 2.0).tolist()
    [0.0, 2.0, 2.0]
    """
    if not isinstance(array, np.ndarray) and hasattr(array, "at"):
        place = array.at[index]
        return place.add(values) if add else place.set(values)
    if add:
        part = array[index]
        part += values
        if not (isinstance(part, np.ndarray) and np.may_share_memory(part, array)):
            array[index] = part
    else:
        array[index] = values
    return array


def cholesky(matrix: Array) -> Array | None:
    """Lower factor of a symmetric matrix, or None if it is not positive definite: some libraries raise, some give NaN.

    Of such a matrix cuSOLVER leaves numbers that may look like a factor; CuPy reads its verdict only if asked to.

    >>> cholesky(np.diag([4.0, 9.0])).tolist(), cholesky(np.diag([1.0, -1.0]))
    ([[2.0, 0.0], [0.0, 3.0]], None)
    """
    xp = namespace(matrix)
    asked = load("cupyx").errstate(linalg="raise") if is_cupy(matrix) else contextlib.nullcontext()
    try:
        with asked:
            factor = xp.linalg.cholesky(matrix)
    except Exception as error:
        if not type(error).__name__.endswith("LinAlgError"):  # each library has its own
            raise
        return None
    return factor if bool(xp.all(xp.isfinite(xp.linalg.diagonal(factor)))) else None


def target_of(array: Array) -> tuple[str, str]:
    """Dtype and device of an array as a plan takes them; of NumPy's dtypes the letter, since a name takes 5 us to make.

    >>> target_of(np.ones(2))
    ('d', 'cpu')
    """
    if is_numpy(array):
        return array.dtype.char, "cpu"
    return str(array.dtype).rpartition(".")[2], "gpu"


def accurate_dtype(xp: Any, x: Array) -> Any:
    """Dtype in which sums over ``x`` are kept: float64, or complex128 for complex input."""
    return xp.complex128 if xp.isdtype(x.dtype, "complex floating") else xp.float64


def special_functions(x: Array) -> Any:
    """The module of SciPy's special functions for the library of ``x``, or None if it has none."""
    if is_numpy(x):
        return load("scipy.special")
    return load("cupyx.scipy.special") if is_cupy(x) else None
