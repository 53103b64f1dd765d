"""A network run by onnxruntime: exported once for each shape of a sample, the same interface, inference only."""

from __future__ import annotations

import copy
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np

from growarray.backend import Array, is_numpy
from growarray.errors import shown
from growarray.nn.module import Module, Pullback
from growarray.onnx.export import to_onnx

_MOST = 8  # sessions: each holds the weights once more


class Compiled(Module):
    """What :meth:`Module.compile` gives: the network as it was then, computed by onnxruntime.

    ``compiled(x)`` and ``compiled.predict(x)`` give what the network gives in evaluation mode. NumPy arrays in and
    out, of any batch. The first call for a shape of a sample exports it, later ones run. Several threads may call.
    """

    def __init__(self, network: Module, *, threads: int | None = None, dtype: Any = None) -> None:
        self._runtime = _runtime()
        self._network, self._threads, self._dtype = copy.deepcopy(network).eval(), threads, dtype
        self._sessions: dict[Any, Any] = {}
        self._making = threading.Lock()

    _links = ("_network",)  # its weights are those of the sessions, and not trained

    def forward(self, *inputs: Array) -> Any:
        """Value of the network; a tuple if it has several outputs.

        Raises TypeError for arrays of another library, and what :func:`to_onnx` raises for a network or shape that
        cannot be written.
        """
        if not inputs or not all(is_numpy(x) for x in inputs):
            raise TypeError(f"compiled {type(self._network).__name__}: found {shown(inputs)}, expected NumPy arrays")
        session = self._session(tuple(tuple(x.shape) for x in inputs))
        ports = session.get_inputs()
        kinds = [np.float64 if port.type == "tensor(double)" else np.float32 for port in ports]
        feeds = {p.name: np.asarray(x, dtype=kind) for p, x, kind in zip(ports, inputs, kinds, strict=True)}
        outputs = session.run(None, feeds)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def __call__(self, *inputs: Array) -> Any:
        """:meth:`forward`."""
        return self.forward(*inputs)

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """Not supported: onnxruntime computes no gradients."""
        raise NotImplementedError(
            f"compiled {type(self._network).__name__}: it runs forwards only; call vjp of the network itself"
        )

    def _session(self, shapes: tuple[tuple[int, ...], ...]) -> Any:
        batch = shapes[0][:1]
        key = tuple(shape[1:] if shape[:1] == batch else (None, *shape) for shape in shapes)
        with self._making:
            if key not in self._sessions:
                while len(self._sessions) >= _MOST:
                    del self._sessions[next(iter(self._sessions))]
                self._sessions[key] = self._made(shapes)
            return self._sessions[key]

    def _made(self, shapes: tuple[tuple[int, ...], ...]) -> Any:
        options = self._runtime.SessionOptions()
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.onnx"
            to_onnx(self._network, path, shapes[0] if len(shapes) == 1 else shapes, dtype=self._dtype)
            return self._runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def extra_repr(self) -> str:
        """The network."""
        return f"{type(self._network).__name__}, onnxruntime"


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError('compile needs onnxruntime; install the extra: pip install "growarray[serve]"') from error
    return onnxruntime
