"""Convolutions by cuDNN through NVIDIA's frontend, an extra: a graph for each geometry, built once and kept."""

from __future__ import annotations

import importlib.metadata
import os
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, NamedTuple

from growarray.backend import load
from growarray.cuda.device import cuda, kernel_launch
from growarray.errors import DeviceError

WORKSPACE = 1 << 28  # bytes of work space that a convolution may take at most
_KEPT = 256  # graphs
_ALIGNED = 16  # bytes: the frontend says so of every tensor
_IMAGE, _KERNEL, _OUT = 1, 2, 3  # how the tensors of a graph are told apart
_TYPES = {"float16": ("HALF", "FLOAT"), "float32": ("FLOAT", "FLOAT"), "float64": ("DOUBLE", "DOUBLE")}
_LESS_PRECISE = ("DOWN_CONVERT_INPUTS", "REDUCED_PRECISION_REDUCTION")


@lru_cache(maxsize=1)
def available() -> bool:
    """Whether its frontend is installed; ``GROWARRAY_CUDNN=0``, set before the first plan, leaves it alone."""
    return os.environ.get("GROWARRAY_CUDNN", "1") != "0" and find_spec("cudnn") is not None


class Layout(NamedTuple):
    """A tensor (batch, channels, *positions), or a kernel (n, s, *taps): its sizes, and strides in elements."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]


class Convolution(NamedTuple):
    """A convolution (``'forward'``), or its gradient by the image (``'d_feature'``) or the kernel (``'d_kernel'``).

    image, kernel, out : of the convolution, whichever of them is computed    before, after : zeros beside the image
    slots : of image, kernel, out and work space in the table of addresses
    otherwise : kernels that are launched in its place if an address is none that cuDNN takes
    """

    way: str
    image: Layout
    kernel: Layout
    out: Layout
    before: tuple[int, ...]
    after: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    dtype: str
    tf32: bool
    slots: tuple[int, ...] = ()
    otherwise: tuple[Any, ...] = ()

    @property
    def alone(self) -> Convolution:
        """The convolution without the slots of its arrays, on which its graph does not depend."""
        return self._replace(slots=(), otherwise=())


def convolution_workspace(conv: Convolution) -> int | None:
    """Bytes of work space that a convolution needs on the current device; None if cuDNN does not take it.

    Raises DeviceError if cuDNN is installed and cannot be used.
    """
    graph = _graph(conv.alone, _device())
    return None if graph is None else int(graph.get_workspace_size())


def convolution_launch(conv: Convolution) -> Callable[[Sequence[int]], object]:
    """The launch of a convolution as a function of the table of addresses."""
    device = _device()
    graph, handle, set_stream = _graph(conv.alone, device), _handle(device), load("cudnn").set_stream
    current_stream = cuda().get_current_stream
    image, kernel, out, space = conv.slots
    otherwise = [kernel_launch(each) for each in conv.otherwise]

    def launch(table: Sequence[int]) -> None:
        if (table[image] | table[kernel] | table[out]) % _ALIGNED:
            for each in otherwise:
                each(table)
            return
        operands = {_IMAGE: table[image], _KERNEL: table[kernel], _OUT: table[out]}
        with _one_at_a_time:
            set_stream(handle, current_stream().ptr)
            graph.execute(operands, table[space], handle=handle)

    return launch


_one_at_a_time = threading.Lock()  # neither a handle nor a plan of cuDNN may be used by two threads at once


def _device() -> int:
    return int(cuda().runtime.getDevice())


@lru_cache(maxsize=64)
def _handle(device: int) -> Any:
    """cuDNN's handle of the current device, made at the first convolution there."""
    major = cuda().runtime.runtimeGetVersion() // 1000
    others = sorted({12, 13} - {major})
    if not _installed(major) and any(map(_installed, others)):
        raise DeviceError(
            f"cuDNN: nvidia-cudnn-cu{next(filter(_installed, others))} is installed, but CuPy is for CUDA {major}; "
            f'pip install "growarray[cudnn{major}]", or set GROWARRAY_CUDNN=0 to convolve without it'
        )
    try:
        return load("cudnn").create_handle()
    except (RuntimeError, ImportError, OSError) as error:
        raise DeviceError(
            f'cuDNN: its frontend is installed, but no handle can be made ({error}); pip install "growarray[cudnn'
            f'{major}]", or set GROWARRAY_CUDNN=0 to convolve without it'
        ) from error


def _installed(major: int) -> bool:
    try:
        return bool(importlib.metadata.version(f"nvidia-cudnn-cu{major}"))
    except importlib.metadata.PackageNotFoundError:
        return False


@lru_cache(maxsize=_KEPT)
def _graph(conv: Convolution, device: int) -> Any:
    """A graph that is ready to run; None if no engine of cuDNN takes it."""
    cudnn, handle = load("cudnn"), _handle(device)
    stored, summed = (getattr(cudnn.data_type, name) for name in _TYPES[conv.dtype])
    graph = cudnn.pygraph(
        io_data_type=stored, intermediate_data_type=summed, compute_data_type=summed, handle=handle
    )  # fmt: skip
    operands = {"image": (conv.image, _IMAGE), "kernel": (conv.kernel, _KERNEL), "out": (conv.out, _OUT)}
    call, names, result = {
        "forward": (graph.conv_fprop, {"image": "image", "weight": "kernel"}, "out"),
        "d_feature": (graph.conv_dgrad, {"loss": "out", "filter": "kernel"}, "image"),
        "d_kernel": (graph.conv_wgrad, {"image": "image", "loss": "out"}, "kernel"),
    }[conv.way]

    def tensor(name: str) -> Any:
        (sizes, strides), uid = operands[name]
        return graph.tensor(dim=list(sizes), stride=list(strides), data_type=stored, name=name, uid=uid)

    output = call(
        **{argument: tensor(name) for argument, name in names.items()},
        pre_padding=list(conv.before), post_padding=list(conv.after),
        stride=list(conv.stride), dilation=list(conv.dilation), compute_data_type=summed, name=conv.way,
    )  # fmt: skip
    (sizes, strides), uid = operands[result]
    output.set_uid(uid).set_output(True).set_data_type(stored).set_dim(list(sizes)).set_stride(list(strides))
    notes = [*_LESS_PRECISE, "TENSOR_CORE"] if conv.dtype == "float32" else [_LESS_PRECISE[1]]
    if conv.tf32:
        notes = [_LESS_PRECISE[1]]
    try:
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
        graph.deselect_numeric_notes([getattr(cudnn.numerical_note, name) for name in notes])
        graph.deselect_workspace_greater_than(WORKSPACE)
        graph.check_support()
        graph.build_plans()
    except cudnn.cudnnGraphNotSupportedError:
        return None
    return graph
