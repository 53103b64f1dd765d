"""Convolution and transposed convolution over any number of spatial axes, channels first.

n batch · g groups · c, o in and out channels of one group · z, y, x positions (x0, x1, … above three axes)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from growarray.backend import Array, device_of, is_numpy, namespace
from growarray.contraction import Plan, plan
from growarray.contraction.checks import precision_on
from growarray.contraction.geometry import ConvAxis, conv_axes
from growarray.contraction.plan import frozen
from growarray.contraction.transpose import transpose
from growarray.errors import ShapeError, shown
from growarray.ops.sizes import each_axis, whole_number

_DENSE = "n c {at}, o c {at} -> n o {at} | {axes}"
_GROUPED = "n g c {at}, g o c {at} -> n g o {at} | {axes}"
_DEPTHWISE = "n g {at}, g {at} -> n g {at} | {axes}"

Sizes = int | Sequence[int]
Vjp = Callable[..., tuple[Array | None, Array, Array | None]]


@lru_cache
def _names(axes: int) -> tuple[str, ...]:
    return ("z", "y", "x")[3 - axes :] if axes <= 3 else tuple(f"x{i}" for i in range(axes))


@lru_cache
def _equation(form: str, axes: int) -> str:
    names = _names(axes)
    return form.format(at=" ".join(names), axes=", ".join(names))


def _form(w_shape: Sequence[int], groups: int) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    """The equation for a kernel (g o, c, *kernel), and the channels of feature map and kernel as it names them."""
    o, c = w_shape[0] // groups, w_shape[1]
    if groups == 1:
        return _DENSE, (c,), (o, c)
    if c == o == 1:
        return _DEPTHWISE, (groups,), (groups,)
    return _GROUPED, (groups, c), (groups, o, c)


def conv_geometry(
    kernel: Sequence[int], stride: Any = 1, padding: Any = 0, dilation: Any = 1, padding_mode: str = "zeros"
) -> tuple[ConvAxis, ...]:
    """Stride, padding and dilation of each spatial axis; raises PlanError if an option does not make sense.

    >>> [axis.before for axis in conv_geometry((3, 5), padding="same")]
    [1, 2]
    """
    names = _names(len(kernel))
    options = {"stride": stride, "padding": padding, "dilation": dilation, "padding_mode": padding_mode}
    return conv_axes(names, kernel, **options)


def paddings(axes: Sequence[ConvAxis]) -> tuple[int | tuple[int, int], ...]:
    """The padding of each axis as users write it: a number, or a pair if the two sides differ.

    >>> paddings(conv_geometry((3, 4), padding="same"))
    (1, (1, 2))
    """
    return tuple(axis.before if axis.before == axis.after else (axis.before, axis.after) for axis in axes)


def _check_shapes(where: str, x_shape: Sequence[int], w_shape: Sequence[int], groups: int, parts: str) -> None:
    """Raise unless input and weight have as many spatial axes, and ``groups`` divides the channels of the weight."""
    if len(w_shape) < 3:
        raise ShapeError(
            f"{where}: weight has shape {tuple(w_shape)}, expected ({parts}, *kernel) with at least one spatial axis; "
            "a kernel without any is ops.linear"
        )
    if len(x_shape) != len(w_shape):
        raise ShapeError(
            f"{where}: input has shape {tuple(x_shape)}, weight of shape {tuple(w_shape)} expects "
            f"(n, c, {', '.join(_names(len(w_shape) - 2))}); add a batch axis with x[None, ...] if it is missing"
        )
    whole_number(where, "groups", groups, 1)
    if w_shape[0] % groups:
        raise ShapeError(
            f"{where}: groups={groups} does not divide the {w_shape[0]} channels of the weight ({parts}, *kernel); "
            "choose a divisor of them"
        )


def _check_dtypes(where: str, x: Array, w: Array, b: Array | None) -> Any:
    """The namespace of the arrays, which must be real floats of one dtype."""
    xp = namespace(x, w, b)
    for name, array in (("weight", w), ("bias", b)):
        if array is not None and array.dtype != x.dtype:
            raise TypeError(f"{where}: input is {x.dtype}, {name} {array.dtype}; {_as_in(array.dtype)}")
    if not xp.isdtype(x.dtype, "real floating"):
        raise TypeError(f"{where}: input is {x.dtype}, expected real floats; {_as_in('float32')}")
    return xp


def _as_in(dtype: Any) -> str:
    return f"convert the input, as in x.astype({str(dtype).rpartition('.')[2]!r})"


def _check_bias(where: str, b: Array | None, out_channels: int) -> None:
    if b is not None and tuple(b.shape) != (out_channels,):
        raise ShapeError(
            f"{where}: bias has shape {tuple(b.shape)}, expected ({out_channels},), one entry for each output channel"
        )


def plan_target(x: Array, precision: str | None = None) -> dict[str, Any]:
    """Dtype and device of an array, and the precision if it has a say there, as a plan takes them.

    >>> import numpy as np
    >>> plan_target(np.ones(2), "tf32")
    {'dtype': 'float64', 'device': 'cpu', 'precision': None}
    """
    dtype, device = str(x.dtype).rpartition(".")[2], "cpu" if is_numpy(x) else "gpu"
    return {"dtype": dtype, "device": device, "precision": precision_on(precision, dtype, device)}


def conv_plan(
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    **options: Any,
) -> Plan:
    """The contraction that :func:`conv` runs for these shapes; ``options`` are those of ``contraction.plan``.

    Raises what :func:`conv` raises for wrong shapes and options.

    >>> conv_plan((8, 6, 28, 28), (6, 1, 3, 3), groups=6, padding=1).equation
    'n g y x, g y x -> n g y x | y, x'
    """
    _check_shapes("conv", x_shape, w_shape, groups, "o, c / groups")
    expected = w_shape[1] * groups
    if x_shape[1] != expected:
        whole = expected > 0 and x_shape[1] > 0 and not x_shape[1] % w_shape[1]
        raise ShapeError(
            f"conv: input has {x_shape[1]} channels, weight expects {expected}"
            + (f"; did you mean groups={x_shape[1] // w_shape[1]}?" if whole else f" with groups={groups}")
        )
    form, x_lead, w_lead = _form(w_shape, groups)
    return plan(
        _equation(form, len(w_shape) - 2), (x_shape[0], *x_lead, *x_shape[2:]), (*w_lead, *w_shape[2:]),
        stride=stride, padding=padding, dilation=dilation, padding_mode=padding_mode, **options,
    )  # fmt: skip


def _shaped(xp: Any, array: Array, *shape: int) -> Array:
    return array if shape == tuple(array.shape) else xp.reshape(array, shape)


def _add_bias(xp: Any, y: Array, b: Array | None) -> Array:
    """``y`` with the bias of each channel added in place: it is the fresh result of a contraction."""
    if b is not None:
        y += xp.reshape(b, (-1, *(1,) * (y.ndim - 2)))
    return y


def _d_bias(xp: Any, dy: Array, b: Array | None) -> Array | None:
    return None if b is None else xp.sum(dy, axis=(0, *range(2, dy.ndim)))


def check_output_padding(where: str, extra: int, stride: int, dilation: int) -> None:
    """Raise ``ValueError`` unless ``extra`` positions at the end are fewer than the larger of stride and dilation."""
    most = max(stride, dilation) - 1
    if extra > most:
        raise ValueError(
            f"{where}: output_padding {extra} with stride {stride} and dilation {dilation}, expected at most {most}; "
            "pad the result instead"
        )


class _TransposedAxis(NamedTuple):
    """Positions of the result, how many from the start an input reaches, and the padding of the convolution back.

    An output padding first gives back what the padding cuts off; then a convolution may leave less than a stride over.
    What is more lies beyond every kernel. If no position is reached, the convolution has one that is cut off.
    """

    size: int
    reached: int
    padding: tuple[int, int]


@lru_cache(maxsize=512, typed=True)
def _transposed_axes(
    x_shape: Sequence[int], kernel: Sequence[int], stride: Any, padding: Any, output_padding: Any, dilation: Any
) -> tuple[_TransposedAxis, ...]:
    paddings = each_axis("conv_transpose", "padding", padding, len(kernel), 0)
    extras = each_axis("conv_transpose", "output_padding", output_padding, len(kernel), 0)
    axes = []
    for axis, size, taps, extra, pad in zip(
        conv_geometry(kernel, stride, paddings, dilation), x_shape[2:], kernel, extras, paddings, strict=True
    ):
        check_output_padding("conv_transpose", extra, axis.stride, axis.dilation)
        whole = (size - 1) * axis.stride - 2 * pad + axis.dilation * (taps - 1) + 1 + extra
        if whole < 1 or size < 1:
            raise ShapeError(
                f"conv_transpose: input of shape {tuple(x_shape)} gives {whole} positions on an axis with kernel "
                f"{taps}, stride {axis.stride} and padding {pad}; expected at least 1: use less padding"
            )
        reached = whole - max(extra - pad - axis.stride + 1, 0)
        before = pad - max(1 - reached, 0)
        axes.append(_TransposedAxis(whole, reached, (before, max(before - extra, 0))))
    return tuple(axes)


def _lengthened(xp: Any, y: Array, shape: tuple[int, ...]) -> Array:
    """``y`` with zeros at the end of the axes that are longer in ``shape``."""
    for axis, (now, wanted) in enumerate(zip(tuple(y.shape), shape, strict=True)):
        if now < wanted:
            zeros = xp.zeros((*y.shape[:axis], wanted - now, *y.shape[axis + 1 :]), dtype=y.dtype, device=device_of(y))
            y = xp.concat([y, zeros], axis=axis)
    return y


def _check_gradient(where: str, dy: Array, y_shape: tuple[int, ...], like: Array) -> None:
    if tuple(dy.shape) != y_shape or dy.dtype != like.dtype:
        raise ShapeError(
            f"pullback of {where}: the gradient is {dy.dtype} {tuple(dy.shape)}, the result was {like.dtype} {y_shape}"
        )


def conv(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    stride: Sizes = 1,
    padding: Any = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    precision: str | None = None,
) -> tuple[Array, Vjp]:
    """Convolution over any number of spatial axes, as in torch without a flip of the kernel. Keeps ``x`` and ``w``.

    x : (n, c, *spatial)    w : (o, c / groups, *kernel)    b : (o,) or None    all real floats of one dtype
    stride, dilation : one number, or one for each axis    groups : blocks of channels that do not mix
    padding : a number, one for each axis, a pair (before, after) for each axis, ``'same'`` or ``'valid'``
    padding_mode : ``'zeros'``, ``'reflect'``, ``'replicate'`` or ``'circular'``
    precision : on a GPU, as in :func:`growarray.contraction.plan`; a CPU multiplies float32 in full
    Returns y (n, o, *positions) and a pullback ``dy -> (dx, dw, db)``; db is None if b is. ``pullback(dy,
    wrt_x=False)`` leaves dx out (None): the first layer of a network need not compute it; ``wrt_w=False`` dw: a frozen
    weight; ``wrt_b=False`` db.

    Raises ShapeError: axes or channels of input, weight and bias do not fit together; PlanError: an option does not
    make sense, or the kernel is larger than the padded input; TypeError: the arrays are not real floats of one dtype,
    library and device.

    >>> import numpy as np
    >>> y, pullback = conv(np.ones((2, 4, 8, 8)), np.ones((6, 2, 3, 3)), stride=2, padding=1, groups=2)
    >>> y.shape, [None if g is None else g.shape for g in pullback(y)]
    ((2, 6, 4, 4), [(2, 4, 8, 8), (6, 2, 3, 3), None])
    """
    xp, x_shape, w_shape = _check_dtypes("conv", x, w, b), tuple(x.shape), tuple(w.shape)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "padding_mode": padding_mode}
    todo = conv_plan(x_shape, w_shape, groups=groups, **options, **plan_target(x, precision))
    _check_bias("conv", b, w_shape[0])
    feature, kernel = _shaped(xp, x, *todo.shapes[0]), _shaped(xp, w, *todo.shapes[1])
    result, back = todo.vjp(feature, kernel)
    y_shape = (x_shape[0], w_shape[0], *result.shape[2 - len(w_shape) :])
    y = _add_bias(xp, _shaped(xp, result, *y_shape), b)

    def vjp(
        dy: Array, *, wrt_x: bool = True, wrt_w: bool = True, wrt_b: bool = True
    ) -> tuple[Array | None, Array | None, Array | None]:
        _check_gradient("conv", dy, y_shape, x)
        d_result = _shaped(xp, dy, *todo.output_shape)
        if wrt_x and wrt_w:
            dx, dw = back(d_result)
        else:
            dx = transpose(todo, d_result, kernel, operand=0) if wrt_x else None
            dw = transpose(todo, d_result, feature, operand=1) if wrt_w else None
        return (
            None if dx is None else _shaped(xp, dx, *x_shape),
            None if dw is None else _shaped(xp, dw, *w_shape),
            _d_bias(xp, dy, b if wrt_b else None),
        )

    return y, vjp


def conv_transpose_plan(
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    *,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
    **options: Any,
) -> Plan:
    """The convolution whose transpose :func:`conv_transpose` runs for these shapes.

    Its feature map has the shape of the transposed convolution's result, without the positions at the end that no
    input reaches. Raises what :func:`conv_transpose` raises.

    >>> conv_transpose_plan((8, 4, 7, 7), (4, 6, 3, 3), stride=2, padding=1, output_padding=1).shapes[0]
    (8, 6, 14, 14)
    """
    _check_shapes("conv_transpose", x_shape, w_shape, groups, "c, o / groups")
    if x_shape[1] != w_shape[0]:
        raise ShapeError(
            f"conv_transpose: input has {x_shape[1]} channels, weight (c, o / groups, *kernel) expects {w_shape[0]}; "
            "the weight of a convolution back from these channels has them first"
        )
    if isinstance(padding, str):
        raise ValueError(
            f"conv_transpose: padding {shown(padding)} is not supported; give one number, or one for each axis"
        )
    axes = _transposed_axes(*frozen((x_shape, w_shape[2:], stride, padding, output_padding, dilation)))
    shape = (x_shape[0], w_shape[1] * groups, *(max(axis.reached, 1) for axis in axes))
    geometry = {"stride": stride, "padding": tuple(axis.padding for axis in axes), "dilation": dilation}
    return conv_plan(shape, w_shape, groups=groups, **geometry, **options)


def conv_transpose(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
    precision: str | None = None,
) -> tuple[Array, Vjp]:
    """Transposed convolution, the adjoint of :func:`conv` by its input, plus a bias. Keeps ``x`` and ``w``.

    x : (n, c, *spatial)    w : (c, o / groups, *kernel)    b : (o,) or None    all real floats of one dtype
    Options are one number, or one for each axis. As in torch an axis of the result has ``(size - 1) stride - 2 padding
    + dilation (kernel - 1) + 1 + output_padding`` positions.
    Returns y (n, o, *positions) and a pullback ``dy -> (dx, dw, db)``, as :func:`conv`.

    Raises ShapeError: axes or channels of input, weight and bias do not fit together, or the result would be empty;
    ValueError: an option does not make sense, such as an output_padding that is below neither stride nor dilation;
    TypeError: the arrays are not real floats of one dtype, library and device.

    >>> import numpy as np
    >>> y, pullback = conv_transpose(np.ones((2, 4, 5)), np.ones((4, 3, 2)), stride=2)
    >>> y.shape, [None if g is None else g.shape for g in pullback(y)]
    ((2, 3, 10), [(2, 4, 5), (4, 3, 2), None])
    """
    xp, x_shape, w_shape = _check_dtypes("conv_transpose", x, w, b), tuple(x.shape), tuple(w.shape)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "output_padding": output_padding}
    todo = conv_transpose_plan(x_shape, w_shape, groups=groups, **options, **plan_target(x, precision))
    out_channels = w_shape[1] * groups
    _check_bias("conv_transpose", b, out_channels)
    result, kernel = _shaped(xp, x, *todo.output_shape), _shaped(xp, w, *todo.shapes[1])
    feature = transpose(todo, result, kernel)
    axes = _transposed_axes(*frozen((x_shape, w_shape[2:], stride, padding, output_padding, dilation)))
    y_shape = (x_shape[0], out_channels, *(axis.size for axis in axes))
    whole = (*y_shape[:2], *feature.shape[2 - len(w_shape) :])
    reached = tuple(slice(0, n) for n in (*y_shape[:2], *(max(axis.reached, 0) for axis in axes)))
    y = _add_bias(xp, _lengthened(xp, _shaped(xp, feature, *whole)[reached], y_shape), b)

    def vjp(dy: Array, *, wrt_x: bool = True, wrt_w: bool = True) -> tuple[Array | None, Array | None, Array | None]:
        _check_gradient("conv_transpose", dy, y_shape, x)
        d_feature = _shaped(xp, _lengthened(xp, dy[reached], whole), *todo.shapes[0])
        dx = _shaped(xp, todo(d_feature, kernel), *x_shape) if wrt_x else None
        dw = _shaped(xp, transpose(todo, result, d_feature, operand=1), *w_shape) if wrt_w else None
        return dx, dw, _d_bias(xp, dy, b)

    return y, vjp
