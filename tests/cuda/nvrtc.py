"""NVIDIA's compiler of kernels, which needs no GPU, through its C interface."""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import importlib.util
from pathlib import Path
from typing import Any

__all__ = ["LIBRARY", "compiled"]


def _library() -> str | None:
    """Of the package ``nvidia-cuda-nvrtc-cu12``, else of the system."""
    try:
        spec = importlib.util.find_spec("nvidia.cuda_nvrtc")
    except ModuleNotFoundError:
        spec = None
    for folder in spec.submodule_search_locations or () if spec is not None else ():
        found = sorted(Path(folder).glob("lib/libnvrtc.so.*"))
        if found:
            return str(found[0])
    return ctypes.util.find_library("nvrtc")


LIBRARY = _library()


@functools.cache
def _loaded() -> Any:
    return ctypes.CDLL(LIBRARY or "")


def compiled(text: str, architecture: str = "compute_80") -> str:
    """PTX of a kernel. Raises ValueError with the compiler's log."""
    nvrtc, program, size = _loaded(), ctypes.c_void_p(), ctypes.c_size_t()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"growarray.cu", 0, None, None)
    options = (ctypes.c_char_p * 1)(f"-arch={architecture}".encode())
    failed = nvrtc.nvrtcCompileProgram(program, 1, options)
    kind = "ProgramLog" if failed else "PTX"
    getattr(nvrtc, f"nvrtcGet{kind}Size")(program, ctypes.byref(size))
    found = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, f"nvrtcGet{kind}")(program, found)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    if failed:
        raise ValueError(f"{found.value.decode()}\n{text}")
    return found.value.decode()
