"""Stride, padding and dilation of one convolution mode, and how users may write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from growarray.contraction.checks import is_whole
from growarray.errors import PlanError, shown

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


@dataclass(frozen=True, slots=True)
class ConvAxis:
    """One convolution mode: output position ``q`` and kernel position ``t`` read ``q stride + t dilation - before``.

    Raises PlanError if a number is out of range, or there is no such padding mode.

    >>> ConvAxis(stride=2, before=1, after=1).output_size(56, 3)
    28
    """

    stride: int = 1
    before: int = 0
    after: int = 0
    dilation: int = 1
    padding_mode: str = "zeros"

    def __post_init__(self) -> None:
        for option, least in (("stride", 1), ("before", 0), ("after", 0), ("dilation", 1)):
            value = getattr(self, option)
            if not is_whole(value) or value < least:
                raise PlanError(f"{option}: found {shown(value)}, expected a whole number of at least {least}")
        if self.padding_mode not in PADDING_MODES:
            raise PlanError(
                f"padding_mode: found {shown(self.padding_mode)}, expected one of {', '.join(PADDING_MODES)}"
            )

    def output_size(self, size: int, kernel: int, name: str = "x") -> int:
        """Positions of the output for ``size`` positions of the feature map and ``kernel`` of the kernel.

        Raises PlanError if the kernel does not fit, or the padding mode needs more positions than there are.
        """
        if kernel < 1:
            raise PlanError(f"convolution mode {shown(name)}: the kernel has {kernel} positions, expected at least 1")
        padded, reach = size + self.before + self.after, self.dilation * (kernel - 1) + 1
        if reach > padded:
            raise PlanError(
                f"convolution mode {shown(name)}: a kernel of {kernel} with dilation {self.dilation} spans {reach} "
                f"positions, the padded input has {padded}; add padding of {reach - padded}, or shrink the kernel"
            )
        pad = max(self.before, self.after)
        most = {"reflect": size - 1, "circular": size, "zeros": pad}.get(self.padding_mode, pad if size else 0)
        if pad > most:
            raise PlanError(
                f"convolution mode {shown(name)}: {self.padding_mode} padding of {pad} needs more than the {size} "
                f"positions there are; pad at most {max(most, 0)}"
            )
        return (padded - reach) // self.stride + 1


def conv_axes(
    names: Sequence[str],
    kernels: Sequence[int],
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    padding_mode: Any = "zeros",
) -> tuple[ConvAxis, ...]:
    """One :class:`ConvAxis` for each convolution mode.

    Each option is one value for all modes, a sequence with one for each, or a mapping from mode to value. A padding is
    a number, a pair (before, after), ``'valid'`` (none) or ``'same'`` (the output has the size of the input; stride 1).

    Raises PlanError: a value is of the wrong kind or out of range, or there are more or fewer than convolution modes.

    >>> [a.before for a in conv_axes(["y", "x"], [3, 5], padding="same")]
    [1, 2]
    """
    if len(kernels) != len(names) or not all(map(is_whole, kernels)):
        found, named = shown(list(kernels)), shown(list(names))
        raise PlanError(f"kernels: found {found}, expected one whole number for each of {named}")
    strides = _each("stride", stride, names, 1)
    dilations = _each("dilation", dilation, names, 1)
    modes = _each("padding_mode", padding_mode, names, "zeros")
    if len(names) == 1 and isinstance(padding, tuple | list) and len(padding) == 2:
        padding = (padding,)
    paddings = _each("padding", padding, names, 0)
    axes = []
    for name, k, s, p, d, mode in zip(names, kernels, strides, paddings, dilations, modes, strict=True):
        _positive("stride", name, s)
        _positive("dilation", name, d)
        if mode not in PADDING_MODES:
            raise PlanError(
                f"padding_mode of {shown(name)}: found {shown(mode)}, expected one of {', '.join(PADDING_MODES)}"
            )
        before, after = _padding(name, p, k, s, d)
        axes.append(ConvAxis(int(s), before, after, int(d), mode))
    return tuple(axes)


def _each(option: str, value: Any, names: Sequence[str], default: Any) -> list[Any]:
    if isinstance(value, Mapping):
        for name in value:
            if name not in names:
                raise PlanError(
                    f"{option}: {shown(name)} is not a convolution mode of this equation; known are {list(names)}"
                )
        return [value.get(name, default) for name in names]
    if isinstance(value, tuple | list):
        if len(value) != len(names):
            raise PlanError(
                f"{option}: {len(value)} values for {len(names)} convolution modes {list(names)}; "
                "give one number, or one for each"
            )
        return list(value)
    if not names and (isinstance(value, bool) or value != default):
        raise PlanError(
            f"{option}: found {shown(value)} for an equation without convolution modes; name them after '|'"
        )
    return [value] * len(names)


def _positive(option: str, name: str, value: Any) -> None:
    if not is_whole(value) or value < 1:
        raise PlanError(f"{option} of {shown(name)}: found {shown(value)}, expected a whole number of at least 1")


def _padding(name: str, value: Any, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    if isinstance(value, str) and value == "valid":
        return 0, 0
    if isinstance(value, str) and value == "same":
        if stride != 1:
            raise PlanError(
                f"padding of {shown(name)}: 'same' needs stride 1, found {stride}; give numbers such as {kernel // 2}"
            )
        total = dilation * (kernel - 1)
        return total // 2, total - total // 2
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2 or not all(is_whole(p) and p >= 0 for p in pair):
        raise PlanError(
            f"padding of {shown(name)}: found {shown(value)}, expected a number of at least 0, a pair, 'same' or "
            "'valid'"
        )
    return int(pair[0]), int(pair[1])
