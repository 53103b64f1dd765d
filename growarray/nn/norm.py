"""Normalisation layers, which can be extended by features and keep their optimizer state."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from growarray.backend import Array, asarray, device_of, is_numpy, library, namespace, to_device
from growarray.contraction.checks import is_ordered, is_whole
from growarray.errors import ShapeError, shown
from growarray.nn.extension import PassesExtension
from growarray.nn.linear import real_dtype
from growarray.nn.module import Parameter, Pullback
from growarray.ops.norm import NormVjp, batch_norm, group_norm, layer_norm, normalised, tracked
from growarray.ops.sizes import whole_number


def _filled(shape: tuple[int, ...], value: float, dtype: Any, device: str | None) -> Array:
    library(device)
    return to_device(asarray(np.full(shape, value, dtype=real_dtype(dtype))), device)


def _check_eps(where: str, eps: float) -> float:
    if not 0.0 <= eps < math.inf:
        raise ValueError(f"{where}: eps must be finite and at least 0, found {eps}")
    return eps


class _Norm(PassesExtension):
    """What the norms share: optional weight and bias, neutral towards features that growth may add."""

    weight: Parameter | None
    bias: Parameter | None
    slope_at_zero = 1.0  # growth takes a normalisation for the identity, as the original does

    def _start(self, shape: tuple[int, ...], weight: bool, bias: bool, dtype: Any, device: str | None) -> None:
        self.weight = Parameter(_filled(shape, 1.0, dtype, device)) if weight else None
        self.bias = Parameter(_filled(shape, 0.0, dtype, device)) if bias else None

    _switches: ClassVar[tuple[str, ...]] = ("affine",)  # arguments that make arrays

    def _saved(self) -> dict[str, Any]:
        names = ("weight", "bias", *self._buffers)
        options = {name: value for name, value in vars(self).items() if name not in (*names, "training")}
        return {**options, "arrays": {name: getattr(self, name) for name in names}}

    @classmethod
    def _restored(cls, arrays: dict[str, Any], **options: Any) -> Self:
        layer = cls(**options, **dict.fromkeys(cls._switches, False))
        (size,) = (options[name] for name in ("normalized_shape", "num_features", "num_channels") if name in options)
        size = (size,) if is_whole(size) else size
        for name in ("weight", "bias", *cls._buffers):
            value, expected = arrays[name], () if name == "num_batches_tracked" else size
            if value is not None and tuple(value.shape) != expected:
                raise ShapeError(f"{cls.__name__}: {name} has shape {tuple(value.shape)}, expected {expected}")
            setattr(layer, name, value)
        return layer

    def _arrays(self) -> tuple[Array | None, Array | None]:
        return None if self.weight is None else self.weight.data, None if self.bias is None else self.bias.data

    def _pullback(self, back: NormVjp) -> Pullback:
        def pullback(dy: Array) -> Array:
            dx, dw, db = back(dy)
            for parameter, gradient in ((self.weight, dw), (self.bias, db)):
                if parameter is not None:
                    parameter.accumulate(gradient, fresh=True)
            return dx

        return pullback

    @property
    def parameters_per_feature(self) -> int:
        """Weights and biases over the number of features, the first axis of each."""
        return sum(p.size // p.shape[0] for p in self.parameters() if p.shape[0])

    def check_extend(self, by: int) -> None:
        """Raise ValueError unless ``by`` is a positive whole number."""
        if not is_whole(by) or by < 1:
            raise ValueError(
                f"{type(self).__name__}: the number of features to add must be at least 1, found {shown(by)}"
            )

    _size: ClassVar[str]  # the attribute that holds the number of features

    def _keep(self, index: Array) -> None:
        for name in ("weight", "bias", *self._buffers):
            held = getattr(self, name)
            if isinstance(held, Parameter):
                held.keep(0, index)
            elif held is not None and held.ndim:
                setattr(self, name, namespace(held, index).take(held, index, axis=0))
        size, count = getattr(self, self._size), int(index.shape[0])
        setattr(self, self._size, (count, *size[1:]) if isinstance(size, tuple) else count)

    def _append(self, shape: tuple[int, ...], **blocks: tuple[Array | None, float]) -> None:
        """Append to the first axis of each array a block of this shape, or its default value; all is checked first."""
        extensions: dict[str, Array] = {}
        for name, (block, default) in blocks.items():
            held = getattr(self, name)
            present = held.data if isinstance(held, Parameter) else held
            if present is None:
                if block is not None:
                    raise ValueError(
                        f"{type(self).__name__}: a block for {name} was given, but the layer has no {name}"
                    )
                continue
            xp = namespace(present, block)
            if block is not None and tuple(block.shape) != shape:
                raise ShapeError(
                    f"{type(self).__name__}: the block for {name} has shape {tuple(block.shape)}, expected {shape}"
                )
            filled = xp.full(shape, default, dtype=present.dtype, device=device_of(present))
            extensions[name] = filled if block is None else xp.astype(block, present.dtype, copy=False)
        for name, block in extensions.items():
            held = getattr(self, name)
            if isinstance(held, Parameter):
                held.extend(0, block)
            else:
                setattr(self, name, namespace(held, block).concat([held, block], axis=0))


class LayerNorm(_Norm):
    """Normalises the last axes of each sample, ``normalized_shape``; see :func:`growarray.ops.norm.layer_norm`.

    Weight 1 and bias 0 at first, of shape ``normalized_shape``, or None without ``elementwise_affine`` (or ``bias``).

    >>> import numpy as np
    >>> layer = LayerNorm(2, eps=0.0)
    >>> layer(np.array([[1.0, 3.0]], dtype=np.float32)).tolist()
    [[-1.0, 1.0]]
    """

    _switches = ("elementwise_affine",)
    _size = "normalized_shape"
    _shown = "{self.normalized_shape}, eps={self.eps}"

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        dtype: Any = None,
        device: str | None = None,
    ) -> None:
        sizes: Any = (normalized_shape,) if is_whole(normalized_shape) else normalized_shape
        if not is_ordered(sizes):
            raise TypeError(
                f"LayerNorm: normalized_shape must be whole numbers in order, found {shown(normalized_shape)}"
            )
        shape: tuple[int, ...] = tuple(sizes)
        if not shape or min(shape) < 0:
            raise ShapeError(f"LayerNorm: normalized_shape must name at least one axis, found {shape}")
        self.normalized_shape = shape
        self.eps = _check_eps("LayerNorm", eps)
        self._start(shape, elementwise_affine, elementwise_affine and bias, dtype, device)

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """Value and pullback; the pullback adds to ``weight.grad`` and ``bias.grad``."""
        count = len(self.normalized_shape)
        if tuple(x.shape[-count:]) != self.normalized_shape:
            raise ShapeError(
                f"LayerNorm: input has shape {tuple(x.shape)}, expected the last axes to be {self.normalized_shape}"
            )
        y, back = layer_norm(x, *self._arrays(), count, self.eps)
        return y, self._pullback(back)

    def extend(self, by: int, weight: Array | None = None, bias: Array | None = None) -> None:
        """Add ``by`` entries to the first axis of ``normalized_shape``; blocks (by, *rest), default weight 1, bias 0.

        Raises ValueError (by < 1, or a block for an array that the layer lacks) or ShapeError before anything changes.
        """
        self.check_extend(by)
        first, *rest = self.normalized_shape
        self._append((by, *rest), weight=(weight, 1.0), bias=(bias, 0.0))
        self.normalized_shape = (first + int(by), *rest)


class BatchNorm(_Norm):
    """Normalises each channel (axis 1) over the batch and further axes; see :func:`growarray.ops.norm.batch_norm`.

    In training by the statistics of the batch, which also move the running ones (``momentum`` of the new value;
    None: their plain average; the running variance is the unbiased one). In evaluation by the running ones, or
    those of the batch without ``track_running_stats``. Accepts any input of at least two axes.

    >>> import numpy as np
    >>> layer = BatchNorm(1, momentum=None, eps=0.0)
    >>> layer(np.array([[1.0], [3.0]], dtype=np.float32)).tolist(), layer.running_var.tolist()
    ([[-1.0], [1.0]], [2.0])
    """

    _buffers = ("running_mean", "running_var", "num_batches_tracked")
    _since: ClassVar[Mapping[str, int]] = {"num_batches_tracked": 2}
    _ndims: ClassVar[tuple[int, ...]] = ()
    _switches = ("affine", "track_running_stats")
    _size = "num_features"

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        dtype: Any = None,
        device: str | None = None,
    ) -> None:
        num_features = whole_number(type(self).__name__, "num_features", num_features, 0)
        if momentum is not None and not 0.0 <= momentum <= 1.0:
            raise ValueError(f"{type(self).__name__}: momentum must be between 0 and 1, or None, found {momentum}")
        self.num_features, self.eps, self.momentum = num_features, _check_eps(type(self).__name__, eps), momentum
        shape = (num_features,)
        self._start(shape, affine, affine, dtype, device)
        self.running_mean: Array | None = _filled(shape, 0.0, dtype, device) if track_running_stats else None
        self.running_var: Array | None = _filled(shape, 1.0, dtype, device) if track_running_stats else None
        self.num_batches_tracked: Array | None = None
        if track_running_stats:
            self.num_batches_tracked = to_device(asarray(np.zeros((), np.int64)), device)

    @property
    def track_running_stats(self) -> bool:
        """Whether running statistics are kept."""
        return self.running_mean is not None

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """Value and pullback, which adds to the gradients; training moves the running statistics."""
        name = type(self).__name__
        if (self._ndims and x.ndim not in self._ndims) or x.ndim < 2 or x.shape[1] != self.num_features:
            axes = f"{' or '.join(map(str, self._ndims))} axes" if self._ndims else "at least 2 axes"
            raise ShapeError(
                f"{name}: input has shape {tuple(x.shape)}, expected {axes} and {self.num_features} channels"
            )
        if self.track_running_stats and not self.training:
            y, back = batch_norm(
                x, *self._arrays(), mean=self.running_mean, var=self.running_var, training=False, eps=self.eps
            )
            return y, self._pullback(back)
        count = x.shape[0] * int(np.prod(x.shape[2:], dtype=np.int64))
        if count < 2:
            raise ShapeError(
                f"{name}: input has shape {tuple(x.shape)}, statistics of a batch need more than one value per channel"
                "; pass more samples, or call eval() to use the running ones"
            )
        namespace(x, *self._arrays())
        y, mean, var, back = normalised(x, *self._arrays(), None, None, True, self.eps)
        if self.training and self.track_running_stats:
            self._track(mean, var, count / (count - 1))
        return y, self._pullback(back)

    def _track(self, mean: Array, var: Array, unbiased: float) -> None:
        running: Array = self.running_mean
        batches: Array = self.num_batches_tracked
        xp = namespace(mean, running)
        self.num_batches_tracked = batches = xp.asarray(batches + 1)
        share: Any = self.momentum
        if share is None:  # a number of NumPy's; of others an array, as a number would wait for the device
            share = 1.0 / (float(batches) if is_numpy(batches) else xp.astype(batches, running.dtype))
        self.running_mean, self.running_var = tracked(running, self.running_var, mean, var, share, unbiased)

    def extend(
        self,
        by: int,
        weight: Array | None = None,
        bias: Array | None = None,
        running_mean: Array | None = None,
        running_var: Array | None = None,
    ) -> None:
        """Add ``by`` channels; blocks of shape (by,), default weight 1, bias 0, mean 0, variance 1.

        Raises ValueError (by < 1, or a block for an array that the layer lacks) or ShapeError before anything changes.
        """
        self.check_extend(by)
        self._append(
            (by,),
            weight=(weight, 1.0),
            bias=(bias, 0.0),
            running_mean=(running_mean, 0.0),
            running_var=(running_var, 1.0),
        )
        self.num_features += int(by)

    def rescale(self, scale: float) -> None:
        """The input will be ``scale`` times what it was: the running mean follows, the variance by the square."""
        if self.running_mean is not None and self.running_var is not None:
            self.running_mean = self.running_mean * scale
            self.running_var = self.running_var * (scale * scale)

    def extra_repr(self) -> str:
        """Channels and options."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.weight is not None}, "
            f"track_running_stats={self.track_running_stats}"
        )


class BatchNorm1d(BatchNorm):
    """:class:`BatchNorm` of an input (n, c) or (n, c, l); another number of axes raises ShapeError.

    >>> import numpy as np
    >>> BatchNorm1d(3)(np.ones((2, 3, 5), dtype=np.float32)).shape
    (2, 3, 5)
    """

    _ndims = (2, 3)


class BatchNorm2d(BatchNorm):
    """:class:`BatchNorm` of an input (n, c, y, x); another number of axes raises ShapeError.

    >>> import numpy as np
    >>> BatchNorm2d(3)(np.ones((2, 3, 5, 4), dtype=np.float32)).shape
    (2, 3, 5, 4)
    """

    _ndims = (4,)


class GroupNorm(_Norm):
    """Normalises each of ``num_groups`` groups of channels of each sample; see :func:`growarray.ops.norm.group_norm`.

    Raises ShapeError if ``num_groups`` does not divide ``num_channels``.

    >>> import numpy as np
    >>> GroupNorm(2, 4, eps=0.0)(np.array([[1.0, 3.0, 8.0, 2.0]], dtype=np.float32)).tolist()
    [[-1.0, 1.0, 1.0, -1.0]]
    """

    _shown = "{self.num_groups}, {self.num_channels}, eps={self.eps}"
    _size = "num_channels"

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        dtype: Any = None,
        device: str | None = None,
    ) -> None:
        self._check_groups(num_channels, num_groups)
        self.num_groups, self.num_channels, self.eps = num_groups, num_channels, _check_eps(type(self).__name__, eps)
        self._start((num_channels,), affine, affine, dtype, device)

    def _check_groups(self, channels: int, groups: int) -> None:
        if groups < 1 or channels < 0 or channels % groups:
            raise ShapeError(f"{type(self).__name__}: {channels} channels cannot be split into {groups} equal groups")

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """Value and pullback; the pullback adds to ``weight.grad`` and ``bias.grad``."""
        if x.ndim < 2 or x.shape[1] != self.num_channels:
            raise ShapeError(
                f"GroupNorm: input has shape {tuple(x.shape)}, "
                f"expected at least 2 axes and {self.num_channels} channels"
            )
        y, back = group_norm(x, self.num_groups, *self._arrays(), self.eps)
        return y, self._pullback(back)

    def check_extend(self, by: int) -> None:
        """Raise what ``extend(by)`` would raise, without changing anything."""
        super().check_extend(by)
        self._check_groups(self.num_channels + by, self.num_groups)

    def _check_keep(self, count: int) -> None:
        self._check_groups(count, self.num_groups)

    def extend(
        self, by: int, weight: Array | None = None, bias: Array | None = None, new_num_groups: int | None = None
    ) -> None:
        """Add ``by`` channels, cut into ``new_num_groups`` groups (default: as many as before); blocks (by,).

        Raises ValueError (by < 1, or a block for an array that the layer lacks) or ShapeError before anything changes.
        """
        super().check_extend(by)
        groups = self.num_groups if new_num_groups is None else new_num_groups
        self._check_groups(self.num_channels + by, groups)
        self._append((by,), weight=(weight, 1.0), bias=(bias, 0.0))
        self.num_channels, self.num_groups = self.num_channels + int(by), groups
