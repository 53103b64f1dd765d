"""Preparing an array before the first product, and its gradient after the last: diagonals, sums, padding."""

from __future__ import annotations

from typing import Any

from growarray.backend import Array, assign
from growarray.contraction.geometry import ConvAxis
from growarray.contraction.shapes import Operand


def prepare(xp: Any, x: Array, operand: Operand) -> Array:
    """The operand with every mode once, and only those that another operand or the output needs."""
    if operand.is_plain:
        return x
    x = xp.reshape(x, tuple(d for axis, d in enumerate(x.shape) if axis not in operand.dropped))
    for first, second in operand.diagonals:
        size, order = x.shape[first], _pair_last(x.ndim, first, second)
        x = xp.permute_dims(x, order)
        x = xp.reshape(x, (*x.shape[:-2], size * size))[..., :: size + 1]
        x = xp.moveaxis(x, -1, first)
    return xp.sum(x, axis=operand.summed) if operand.summed else x


def _pair_last(ndim: int, first: int, second: int) -> tuple[int, ...]:
    return (*(axis for axis in range(ndim) if axis not in (first, second)), first, second)


def unprepare(xp: Any, dx: Array, operand: Operand, shape: tuple[int, ...]) -> Array:
    """The gradient by the operand from the gradient by what :func:`prepare` made of it."""
    if operand.is_plain:
        return dx
    shapes = [tuple(d for axis, d in enumerate(shape) if axis not in operand.dropped)]
    for _, second in operand.diagonals:
        shapes.append((*shapes[-1][:second], *shapes[-1][second + 1 :]))
    if operand.summed:
        for axis in sorted(operand.summed):
            dx = xp.expand_dims(dx, axis=axis)
        dx = xp.asarray(xp.broadcast_to(dx, shapes[-1]), copy=True)  # its own memory: callers may add to it
    for (first, second), before in zip(reversed(operand.diagonals), reversed(shapes[:-1]), strict=True):
        size, order = before[first], _pair_last(len(before), first, second)
        dx = xp.moveaxis(dx, first, -1)
        spread = xp.zeros((*dx.shape[:-1], size * size), dtype=dx.dtype, device=dx.device)
        spread = assign(spread, (..., slice(None, None, size + 1)), dx)
        dx = xp.permute_dims(xp.reshape(spread, (*dx.shape[:-1], size, size)), inverse(order))
    return xp.reshape(dx, shape)


def inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    """The order that takes axes back."""
    return tuple(sorted(range(len(order)), key=lambda axis: order[axis]))


def _at(axis: int, piece: slice) -> tuple[slice, ...]:
    return (*(slice(None) for _ in range(axis)), piece)


def pad(xp: Any, x: Array, axis: int, by: ConvAxis) -> Array:
    """One axis padded by reflection, repetition of the edge, or circularly."""
    size, before, after = x.shape[axis], by.before, by.after
    rest = (Ellipsis,)

    def part(start: int, stop: int) -> Array:
        return x[(*_at(axis, slice(start, stop)), *rest)]

    if by.padding_mode == "reflect":
        front, back = xp.flip(part(1, before + 1), axis=axis), xp.flip(part(size - 1 - after, size - 1), axis=axis)
    elif by.padding_mode == "circular":
        front, back = part(size - before, size), part(0, after)
    else:
        front = xp.broadcast_to(part(0, 1), (*x.shape[:axis], before, *x.shape[axis + 1 :]))
        back = xp.broadcast_to(part(size - 1, size), (*x.shape[:axis], after, *x.shape[axis + 1 :]))
    return xp.concat([front, x, back], axis=axis)


def unpad(xp: Any, dx: Array, axis: int, by: ConvAxis) -> Array:
    """The gradient by what :func:`pad` was given: what was copied into the padding is added back where it came from."""
    before, after = by.before, by.after
    size = dx.shape[axis] - before - after
    rest = (Ellipsis,)

    def part(start: int, stop: int) -> Array:
        return dx[(*_at(axis, slice(start, stop)), *rest)]

    result = xp.asarray(part(before, before + size), copy=True)

    def add(start: int, count: int, piece: Array) -> None:
        nonlocal result
        result = assign(result, (*_at(axis, slice(start, start + count)), *rest), piece, add=True)

    front, back = part(0, before), part(before + size, before + size + after)
    if by.padding_mode == "reflect":
        add(1, before, xp.flip(front, axis=axis))
        add(size - 1 - after, after, xp.flip(back, axis=axis))
    elif by.padding_mode == "circular":
        add(size - before, before, front)
        add(0, after, back)
    else:
        add(0, 1, xp.sum(front, axis=axis, keepdims=True))
        add(size - 1, 1, xp.sum(back, axis=axis, keepdims=True))
    return result
