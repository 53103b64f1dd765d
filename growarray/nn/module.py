"""Module: the contract that every layer fulfils."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from growarray.backend import Array
from growarray.errors import shown
from growarray.nn.inference import gradients_kept, in_batches
from growarray.nn.owner import Owner
from growarray.nn.parameter import Parameter as Parameter

if TYPE_CHECKING:
    from growarray.nn.summary import Summary

_ENGINES = {"onnxruntime": "onnx.session"}  # what runs a network, and where it is

Pullback = Callable[..., Any]
ExtendedPullback = Callable[[Array | None, Array | None], tuple[Array | None, Array | None]]


class Module(Owner):
    """Base of all layers. ``y, pullback = layer.vjp(x)``; ``dx = pullback(dy)`` adds to parameter gradients.

    A subclass writes :meth:`vjp`, and also :meth:`forward` if that is cheaper. Nothing is kept between
    calls, so one layer may be used many times; a pullback may be called more than once.
    """

    is_identity: bool = False  # whether it hands its input on unchanged

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """Value of the layer and the way back."""
        raise NotImplementedError(f"{type(self).__name__} must define vjp(x) -> (y, pullback)")

    def forward(self, x: Array) -> Array:
        """Value of the layer alone."""
        return self.vjp(x)[0]

    def __call__(self, x: Array) -> Array:
        """:meth:`forward`."""
        return self.forward(x)

    @property
    def slope_at_zero(self) -> float:
        """Derivative of the layer at zero from above, by which growth scales what passes through it.

        The default is numeric, the original's behaviour: the pullback of a one-element float64 NumPy array
        ``[1e-5]``. Layers that know the number override this. Gradients of parameters stay as they were.
        """
        with gradients_kept(self):
            y, pullback = self.vjp(np.asarray([1e-5]))
            return float(np.sum(pullback(np.ones_like(y))))

    def extended_forward(self, x: Array | None, x_ext: Array | None = None) -> tuple[Array | None, Array | None]:
        """Values for the present features and for the features that growth may add; None stays None."""
        return None if x is None else self.forward(x), None if x_ext is None else self.forward(x_ext)

    def extended_vjp(
        self, x: Array | None, x_ext: Array | None = None
    ) -> tuple[tuple[Array | None, Array | None], ExtendedPullback]:
        """:meth:`extended_forward` and the way back, ``(dy, dy_ext) -> (dx, dx_ext)``; None stays None."""
        y, back = (None, None) if x is None else self.vjp(x)
        y_ext, back_ext = (None, None) if x_ext is None else self.vjp(x_ext)

        def pullback(dy: Array | None, dy_ext: Array | None = None) -> tuple[Array | None, Array | None]:
            return (
                None if back is None or dy is None else back(dy),
                None if back_ext is None or dy_ext is None else back_ext(dy_ext),
            )

        return (y, y_ext), pullback

    def check_extend(self, by: int) -> None:
        """Raise what ``extend(by)`` would raise, without changing anything."""

    @property
    def starts_at_zero(self) -> bool:
        """Whether a gradient passes if the input is exactly zero; in torch's ReLU it does not."""
        return True

    @property
    def parameters_per_feature(self) -> int:
        """Trained scalars that one more feature costs."""
        return 0

    def extend(self, by: int) -> None:
        """Take ``by`` more features of the input; nothing to do unless the layer keeps a value for each."""

    def _check_keep(self, count: int) -> None:
        """Raise what ``_keep`` of ``count`` features would raise, without changing anything."""

    def _keep(self, index: Array) -> None:
        """Lose all features of the input but these; nothing to do unless the layer keeps a value for each."""

    def rescale(self, scale: float) -> None:
        """The input will be ``scale`` times what it was; nothing to do unless the layer remembers its input."""

    @property
    def _needs_pullback(self) -> bool:
        """Whether a pullback has something to do here or below, other than to give the input's gradient."""
        return any(p.requires_grad for p in self.parameters()) or any(m._records for m in self.modules())

    def predict(self, *inputs: Array, batch_size: int = 4096) -> Any:
        """Value in evaluation mode, in batches along the first axis; every module's own mode is put back afterwards.

        Raises ValueError if ``batch_size`` is not positive, or there are no samples.

        >>> import numpy as np
        >>> from growarray.nn import Dropout
        >>> Dropout(0.5).predict(np.ones((3, 1)), batch_size=2).tolist()
        [[1.0], [1.0], [1.0]]
        """
        return in_batches(self, inputs, batch_size)

    def compile(self, backend: str = "onnxruntime", *, threads: int | None = None, dtype: Any = None) -> Module:
        """The network as it is now, in evaluation mode, run by an inference engine; it is called as the network is.

        backend : ``'onnxruntime'``, for which the extra ``serve`` is installed    threads : of one operator, by default
        the engine's choice    dtype : of the computation, by default the network's own
        The first call for each shape of a sample exports the network, as ``to_onnx`` does. It has no way back.

        Raises ValueError for another backend, ImportError if the engine is not installed.
        """
        if backend not in _ENGINES:
            raise ValueError(f"{type(self).__name__}.compile: backend is {shown(backend)}, expected 'onnxruntime'")
        engine = importlib.import_module(f"growarray.{_ENGINES[backend]}")  # a floor above, loaded when it is asked for
        compiled: Module = engine.Compiled(self, threads=threads, dtype=dtype)
        return compiled

    def summary(self, input_shape: Sequence[Any], *, dtype: Any = None) -> Summary:
        """Layers, shapes, parameters, FLOPs and predicted time for an input; the result prints as a table.

        input_shape : of the input, the batch first; a list of shapes for a network of several inputs
        dtype : of the input, such as ``'int64'`` for what an embedding looks up; by default that of the weights
        The network runs once, in evaluation mode, on zeros. FLOPs and time are those of products.

        Raises ShapeError if ``input_shape`` is no shape, and what the network raises for it.

        >>> import numpy as np
        >>> from growarray.nn import Linear, ReLU, Sequential
        >>> found = Sequential(Linear(3, 4), ReLU()).summary((2, 3))
        >>> [(layer.name, layer.kind, layer.output, layer.parameters, layer.flops) for layer in found.layers]
        [('0', 'Linear', (2, 4), 16, 48), ('1', 'ReLU', (2, 4), 0, None)]
        """
        from growarray.nn.summary import summary_of  # what prices products is needed here alone

        return summary_of(self, input_shape, dtype)


def for_parameters(pullback: Callable[..., Any], *gradients: Array) -> None:
    """Run a pullback for what it adds to parameters; one that takes ``wrt_x=False`` is spared the input's gradient.

    >>> import numpy as np
    >>> from growarray.nn.linear import Linear
    >>> layer = Linear(3, 2)
    >>> for_parameters(layer.vjp(np.ones((4, 3), np.float32))[1], np.ones((4, 2), np.float32))
    >>> layer.weight.grad.shape
    (2, 3)
    """
    options = {"wrt_x": False} if "wrt_x" in (getattr(pullback, "__kwdefaults__", None) or ()) else {}
    pullback(*gradients, **options)
