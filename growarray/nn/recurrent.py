"""Recurrent layers over a sequence, as functions of their weights, with gates in the order of ONNX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from growarray.backend import Array
from growarray.nn.module import Pullback
from growarray.nn.several import sum_to
from growarray.ops.activation import sigmoid

# n batch · t steps · d directions · f features · h width · g gates
State = tuple[Array, ...]
# From gradients of the new state: of the gates' input, the state before, the recurrent weight and its bias.
Back = Callable[..., tuple[Array, State, Array, Array]]
Step = Callable[..., tuple[State, Back]]


def _parts(x: Array, count: int) -> list[Array]:
    width = x.shape[-1] // count
    return [x[:, i * width : (i + 1) * width] for i in range(count)]


def _logistic(x: Array) -> Array:
    return sigmoid(x)[0]


def _plain(xp: Any, z: Array, state: State, r: Array, bias: Array, before: int) -> tuple[State, Back]:
    (h,) = state
    y = xp.tanh(z + xp.matmul(h, r.T) + bias)

    def back(dh: Array) -> tuple[Array, State, Array, Array]:
        dz = dh * (1.0 - y * y)
        return dz, (xp.matmul(dz, r),), xp.matmul(dz.T, h), xp.sum(dz, axis=0)

    return (y,), back


def _lstm(xp: Any, z: Array, state: State, r: Array, bias: Array, before: int) -> tuple[State, Back]:
    """Gates i, o, f and the candidate g: ``c' = f c + i g``, ``h' = o tanh(c')``. Source: Hochreiter 1997."""
    h, c = state
    *gates, g = _parts(z + xp.matmul(h, r.T) + bias, 4)
    i, o, f = (_logistic(gate) for gate in gates)
    g = xp.tanh(g)
    cell = f * c + i * g
    bent = xp.tanh(cell)

    def back(dh: Array, dc: Array) -> tuple[Array, State, Array, Array]:
        dc = dc + dh * o * (1.0 - bent * bent)
        shares = [dc * g * i * (1.0 - i), dh * bent * o * (1.0 - o), dc * c * f * (1.0 - f), dc * i * (1.0 - g * g)]
        dz = xp.concat(shares, axis=1)
        return dz, (xp.matmul(dz, r), dc * f), xp.matmul(dz.T, h), xp.sum(dz, axis=0)

    return (o * bent, cell), back


def _gru(xp: Any, z: Array, state: State, r: Array, bias: Array, before: int) -> tuple[State, Back]:
    """Gates u and q: ``h' = (1 - u) n + u h``; q scales h, or with ``before`` its product. Source: Cho et al. 2014."""
    (h,) = state
    width = h.shape[1]
    outer, inner, shift = r[: 2 * width, :], r[2 * width :, :], bias[2 * width :]
    gates = z[:, : 2 * width] + xp.matmul(h, outer.T) + bias[: 2 * width]
    u, q = (_logistic(gate) for gate in _parts(gates, 2))
    from_state = xp.matmul(h if before else q * h, inner.T) + shift
    n = xp.tanh(z[:, 2 * width :] + (q * from_state if before else from_state))

    def back(dh: Array) -> tuple[Array, State, Array, Array]:
        dn = dh * (1.0 - u) * (1.0 - n * n)
        dtaken = dn * q if before else dn
        through = xp.matmul(dtaken, inner)
        dq = (dn * from_state if before else through * h) * q * (1.0 - q)
        dgates = xp.concat([dh * (h - n) * u * (1.0 - u), dq], axis=1)
        dr = xp.concat([xp.matmul(dgates.T, h), xp.matmul(dtaken.T, h if before else q * h)], axis=0)
        dbias = xp.concat([xp.sum(dgates, axis=0), xp.sum(dtaken, axis=0)])
        previous = dh * u + xp.matmul(dgates, outer) + (through if before else through * q)
        return xp.concat([dgates, dn], axis=1), (previous,), dr, dbias

    return ((1.0 - u) * n + u * h,), back


_CELLS: dict[str, Step] = {"GRU": _gru, "LSTM": _lstm, "RNN": _plain}


def _direction(
    xp: Any, step: Step, inputs: tuple[Array, ...], start: State, order: range, before: int
) -> tuple[list[Array], Callable[[list[Array]], tuple[Any, ...]]]:
    """The states of all steps, h and what else there is side by side, and the way back."""
    x, w, r, bias = inputs
    gates = w.shape[0]
    state, states, backs = start, {}, {}
    for t in order:
        z = xp.matmul(x[t, :, :], w.T) + bias[:gates]
        state, backs[t] = step(xp, z, state, r, bias[gates:], before)
        states[t] = xp.concat(list(state), axis=1) if len(state) > 1 else state[0]

    def pullback(dy: list[Array]) -> tuple[Any, ...]:
        dstate: State = tuple(xp.zeros_like(part) for part in state)
        dx, dw, dr = {}, xp.zeros_like(w), xp.zeros_like(r)
        of_input, of_state = xp.zeros_like(bias[:gates]), xp.zeros_like(bias[gates:])
        for t in reversed(order):
            shares = _parts(dy[t], len(state))
            dz, dstate, more, shift = backs[t](*(a + b for a, b in zip(dstate, shares, strict=True)))
            dx[t], dr, of_state = xp.matmul(dz, w), dr + more, of_state + shift
            dw, of_input = dw + xp.matmul(dz.T, x[t, :, :]), of_input + xp.sum(dz, axis=0)
        return xp.stack([dx[t] for t in sorted(dx)]), dw, dr, xp.concat([of_input, of_state]), dstate

    return [states[t] for t in sorted(states)], pullback


def recurrent(
    xp: Any,
    x: Array,
    w: Array,
    r: Array,
    b: Array,
    *start: Array,
    cell: str,
    direction: str = "forward",
    before: int = 0,
) -> tuple[Array, Pullback]:
    """The states of every step, (t, d, n, h), for an LSTM h and c side by side.

    x : (t, n, f)    w : (d, g h, f)    r : (d, g h, h)    b : (d, 2 g h)    start : (d, n or 1, h) each
    cell : ``'RNN'``, ``'LSTM'`` or ``'GRU'``    before : a GRU's reset gate comes after its product
    """
    count, shape = x.shape[0], (x.shape[1], r.shape[2])
    runs = []
    for d in range(w.shape[0]):
        backwards = direction == "reverse" or d == 1
        first = tuple(xp.broadcast_to(s[d, :, :], shape) for s in start)
        order = range(count)[::-1] if backwards else range(count)
        runs.append(_direction(xp, _CELLS[cell], (x, w[d, :, :], r[d, :, :], b[d, :]), first, order, before))
    y = xp.stack([xp.stack(list(states)) for states in zip(*(states for states, _ in runs), strict=True)])

    def pullback(dy: Array) -> tuple[Any, ...]:
        directions = (back([dy[t, d, :, :] for t in range(count)]) for d, (_, back) in enumerate(runs))
        dx, dw, dr, db, d_states = zip(*directions, strict=True)
        by_state = zip(start, zip(*d_states, strict=True), strict=True)
        d_start = (sum_to(xp.stack(parts), tuple(s.shape)) for s, parts in by_state)
        return sum(dx[1:], start=dx[0]), xp.stack(dw), xp.stack(dr), xp.stack(db), *d_start

    return y, pullback
