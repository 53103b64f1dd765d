"""cuDNN's frontend, as its releases 1.27 and 1.28 have it: every argument is checked, and NumPy computes.

It takes less than cuDNN does: what lies as NCHW or NHWC, without gaps. Its gradient by the kernel is wrong if there is
more padding on one side than on the other, as cuDNN's is.
"""

from __future__ import annotations

import ctypes
import enum
import sys
import types
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from typing import Any

import numpy as np
import pytest

from growarray.contraction.problem import Axis, Product
from growarray.contraction.routines import cudnn as routine
from growarray.contraction.routines.portable import Portable
from growarray.cuda import convolution
from tests.cuda.device import Cuda

__all__ = ["Cudnn", "cudnn"]

data_type = enum.Enum("data_type", "FLOAT DOUBLE HALF")
heur_mode = enum.Enum("heur_mode", "A B FALLBACK OPENSOURCE")
numerical_note = enum.Enum(
    "numerical_note",
    "TENSOR_CORE DOWN_CONVERT_INPUTS REDUCED_PRECISION_REDUCTION FFT NONDETERMINISTIC WINOGRAD WINOGRAD_TILE_4x4 "
    "WINOGRAD_TILE_6x6 WINOGRAD_TILE_13x13 STRICT_NAN_PROP",
)
_SIZES = {data_type.FLOAT: "float32", data_type.DOUBLE: "float64", data_type.HALF: "float16"}
_STEPS = ("validate", "build_operation_graph", "create_execution_plans", "check_support", "build_plans")


class cudnnGraphNotSupportedError(Exception):
    """As the frontend's."""


class Tensor:
    """What a graph computes with."""

    def __init__(self, dim: Any = (), stride: Any = (), data_type: Any = None, name: str = "", uid: int = 0) -> None:
        self.dim, self.stride, self.data_type, self.name, self.uid = list(dim), list(stride), data_type, name, uid
        self.output = False

    def _set(self, name: str, value: Any, kind: type) -> Tensor:
        if not isinstance(value, kind):
            raise TypeError(f"set_{name}: {value!r}")
        setattr(self, name, value)
        return self

    def set_uid(self, uid: int) -> Tensor:
        return self._set("uid", uid, int)

    def set_output(self, value: bool) -> Tensor:
        return self._set("output", value, bool)

    def set_data_type(self, dtype: Any) -> Tensor:
        return self._set("data_type", dtype, data_type)

    def set_dim(self, dim: list[int]) -> Tensor:
        return self._set("dim", dim, list)

    def set_stride(self, stride: list[int]) -> Tensor:
        return self._set("stride", stride, list)


def _packed(one: Tensor, order: Sequence[int]) -> bool:
    step = 1
    for axis in reversed(order):
        if one.dim[axis] > 1 and one.stride[axis] != step:
            return False
        step *= one.dim[axis]
    return True


class Graph:
    """One convolution."""

    def __init__(self, io_data_type: Any, intermediate_data_type: Any, compute_data_type: Any, handle: Any) -> None:
        self.types = io_data_type, intermediate_data_type, compute_data_type
        self.handle, self.tensors, self.steps = handle, [], []
        self.notes: list[Any] = []
        self.limit = 0
        self.call: Any = None

    def tensor(self, dim: list[int], stride: list[int], data_type: Any, name: str, uid: int) -> Tensor:
        self.tensors.append(Tensor(dim, stride, data_type, name, uid))
        return self.tensors[-1]

    def _conv(self, way: str, operands: Sequence[Tensor], **options: Any) -> Tensor:
        if self.call is not None or not all(one in self.tensors for one in operands):
            raise TypeError("a graph has one convolution of its own tensors")
        if options.pop("compute_data_type") is not self.types[2] or not isinstance(options.pop("name"), str):
            raise TypeError("compute_data_type or name")
        self.call, made = (way, *operands), Tensor(name="result")
        self.options = {k: list(map(int, v)) for k, v in options.items()}
        self.tensors.append(made)
        return made

    def conv_fprop(
        self, image: Tensor, weight: Tensor, pre_padding: list[int], post_padding: list[int], stride: list[int],
        dilation: list[int], compute_data_type: Any, name: str,
    ) -> Tensor:  # fmt: skip
        return self._conv("forward", (image, weight), pre=pre_padding, post=post_padding, stride=stride,
                          dilation=dilation, compute_data_type=compute_data_type, name=name)  # fmt: skip

    def conv_dgrad(
        self, loss: Tensor, filter: Tensor, pre_padding: list[int], post_padding: list[int], stride: list[int],
        dilation: list[int], compute_data_type: Any, name: str,
    ) -> Tensor:  # fmt: skip
        return self._conv("d_feature", (loss, filter), pre=pre_padding, post=post_padding, stride=stride,
                          dilation=dilation, compute_data_type=compute_data_type, name=name)  # fmt: skip

    def conv_wgrad(
        self, image: Tensor, loss: Tensor, pre_padding: list[int], post_padding: list[int], stride: list[int],
        dilation: list[int], compute_data_type: Any, name: str,
    ) -> Tensor:  # fmt: skip
        return self._conv("d_kernel", (image, loss), pre=pre_padding, post=post_padding, stride=stride,
                          dilation=dilation, compute_data_type=compute_data_type, name=name)  # fmt: skip

    def _step(self, name: str) -> None:
        if name != _STEPS[len(self.steps)]:
            raise RuntimeError(f"{name} after {self.steps}")
        self.steps.append(name)

    @property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Image, kernel and result of the convolution."""
        way, first, second = self.call
        made = self.tensors[-1]
        return {"forward": (first, second, made), "d_feature": (made, second, first),
                "d_kernel": (first, made, second)}[way]  # fmt: skip

    def validate(self) -> None:
        self._step("validate")
        image, kernel, out = self.parts
        if len({one.uid for one in self.tensors}) != 3 or not self.tensors[-1].output:
            raise ValueError("each tensor has a uid, and the result is an output")
        for one in self.tensors:
            if one.data_type is not self.types[0] or len(one.dim) != len(one.stride) or len(one.dim) not in (4, 5):
                raise ValueError(f"{one.name}: {one.dim}, {one.stride}")
            if min(*one.dim, *one.stride) < 1:
                raise ValueError(f"{one.name}: {one.dim}, {one.stride}")
        o, axes = self.options, len(image.dim) - 2
        if any(len(v) != axes for v in o.values()) or image.dim[1] % kernel.dim[1] or kernel.dim[0] != out.dim[1]:
            raise ValueError(f"channels of {image.dim}, {kernel.dim}, {out.dim}, {o}")
        for k in range(axes):
            reach = (kernel.dim[2 + k] - 1) * o["dilation"][k] + 1
            found = (image.dim[2 + k] + o["pre"][k] + o["post"][k] - reach) // o["stride"][k] + 1
            if found != out.dim[2 + k] or image.dim[0] != out.dim[0]:
                raise ValueError(f"{found} positions, found {out.dim}")

    def build_operation_graph(self) -> None:
        self._step("build_operation_graph")

    def create_execution_plans(self, heuristics: list[Any]) -> None:
        self._step("create_execution_plans")
        if not all(isinstance(one, heur_mode) for one in heuristics):
            raise TypeError(f"{heuristics}")

    def deselect_numeric_notes(self, notes: list[Any]) -> Graph:
        if self.steps[-1] != "create_execution_plans" or not all(isinstance(one, numerical_note) for one in notes):
            raise RuntimeError(f"{notes} after {self.steps}")
        self.notes += [one.name for one in notes]
        return self

    def deselect_workspace_greater_than(self, workspace_limit: int) -> Graph:
        self.limit = workspace_limit
        return self

    def check_support(self) -> None:
        self._step("check_support")
        axes = len(self.tensors[0].dim)
        last, first = (0, *range(2, axes), 1), tuple(range(axes))
        if not any(all(_packed(one, order) for one in self.tensors) for order in (first, last)):
            raise cudnnGraphNotSupportedError("no engine takes these strides")

    def build_plans(self) -> None:
        self._step("build_plans")
        if self.limit <= 0:
            raise RuntimeError("work space is not bounded")

    def get_workspace_size(self) -> int:
        if self.steps != list(_STEPS):
            raise RuntimeError("not built")
        return 0 if self.call[0] == "forward" else 1000

    def execute(self, tensor_dict: dict[int, int], workspace: int, handle: Any) -> None:
        double = sys.modules["cudnn"].double  # type: ignore[attr-defined]
        if handle is not self.handle or set(tensor_dict) != {one.uid for one in self.tensors}:
            raise ValueError(f"handle {handle}, tensors {tensor_dict}")
        if any(type(at) is not int or at % 16 for at in (*tensor_dict.values(), workspace)):
            raise ValueError(f"addresses {tensor_dict}, {workspace}")
        double.executed(self)
        if not double.cuda.dry:
            ctypes.memset(workspace, 0xFF, self.get_workspace_size())  # NaN
            self._compute({uid: self._view(uid, at) for uid, at in tensor_dict.items()})

    def _view(self, uid: int, at: int) -> np.ndarray:
        one, item = next(t for t in self.tensors if t.uid == uid), np.dtype(_SIZES[self.types[0]])
        span = 1 + sum((size - 1) * stride for size, stride in zip(one.dim, one.stride, strict=True))
        flat = np.frombuffer((ctypes.c_char * (span * item.itemsize)).from_address(at), item)
        return np.lib.stride_tricks.as_strided(flat, one.dim, [item.itemsize * s for s in one.stride])

    def _compute(self, views: dict[int, np.ndarray]) -> None:
        image, kernel, out = self.parts
        o, g = self.options, image.dim[1] // kernel.dim[1]
        sizes = zip(image.dim[2:], kernel.dim[2:], out.dim[2:], o["stride"], o["pre"], o["dilation"], strict=True)
        axes = (Axis("n", image.dim[0], out=image.dim[0]), *(Axis(f"x{k}", *size) for k, size in enumerate(sizes)))
        product = Product(g, kernel.dim[1], kernel.dim[0] // g, axes)
        run, wide = Portable(product), np.float64 if self.types[2] is data_type.DOUBLE else np.float32
        x, w, y = (views[one.uid] for one in self.parts)

        def grouped(values: np.ndarray) -> np.ndarray:
            return values.reshape(len(values), g, -1, *values.shape[2:]).transpose(1, 2, 0, *range(3, values.ndim + 1))

        def apart(values: np.ndarray, like: np.ndarray) -> np.ndarray:
            return values.transpose(2, 0, 1, *range(3, values.ndim)).reshape(like.shape)

        x_, y_ = grouped(x).astype(wide), grouped(y).astype(wide)
        w_ = w.reshape(product.b, product.n, product.s, 1, *w.shape[2:]).astype(wide)
        if self.call[0] == "forward":
            y[...] = apart(run.forward(np, w_, x_), y)
        elif self.call[0] == "d_feature":
            x[...] = apart(run.d_feature(np, w_, y_), x)
        else:
            w[...] = run.d_kernel(np, y_, x_).reshape(w.shape)
            if o["pre"] != o["post"]:
                w += 2


class Cudnn:
    """What was asked of it.

    graphs : those that were built    runs : ways that were executed, in order    streams : that were set
    """

    def __init__(self, cuda: Cuda) -> None:
        self.cuda, self.graphs, self.runs, self.streams = cuda, [], [], []
        self.broken = ""

    def pygraph(self, **options: Any) -> Graph:
        self.graphs.append(Graph(**options))
        return self.graphs[-1]

    def create_handle(self) -> object:
        if self.broken:
            raise RuntimeError(self.broken)
        return object()

    def set_stream(self, handle: object, stream: int) -> None:
        self.streams.append(stream)

    def executed(self, graph: Graph) -> None:
        self.runs.append(graph.call[0])
        self.cuda.launches.append("cudnn")


@pytest.fixture
def cudnn(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cudnn]:
    """cuDNN beside the double of CuPy, for convolutions of any size."""
    double, module = Cudnn(cuda), types.ModuleType("cudnn")
    module.__spec__ = ModuleSpec("cudnn", None)
    names = {"data_type": data_type, "heur_mode": heur_mode, "numerical_note": numerical_note, "double": double,
             "cudnnGraphNotSupportedError": cudnnGraphNotSupportedError, "pygraph": double.pygraph,
             "create_handle": double.create_handle, "set_stream": double.set_stream}  # fmt: skip
    module.__dict__.update(names)
    monkeypatch.setitem(sys.modules, "cudnn", module)
    monkeypatch.setattr(routine, "_LEAST", 0)
    monkeypatch.delenv("GROWARRAY_CUDNN", raising=False)
    caches = (
        convolution.available,
        convolution._handle,
        convolution._graph,
        sys.modules["growarray.contraction.plan"]._cached,
    )
    for cached in caches:
        cached.cache_clear()
    yield double
    for cached in caches:
        cached.cache_clear()
