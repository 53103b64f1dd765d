"""Checks for hand-written backward passes: public, because users write layers of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from growarray.backend import Array, asarray, namespace, to_numpy

__all__ = ["assert_close", "check_vjp", "tolerance"]


def tolerance(dtype: Any, *, factor: float = 1.0) -> float:
    """Relative tolerance that a dtype can promise: ``factor / 16`` times the square root of its machine epsilon.

    >>> import numpy as np
    >>> tolerance(np.float64) < 1e-9 < tolerance(np.float32) < 1e-4
    True
    """
    name = str(dtype).rsplit(".", maxsplit=1)[-1].strip("'>")
    return factor * float(np.sqrt(np.finfo(name).eps)) / 16


def assert_close(actual: Any, expected: Any, *, rtol: float | None = None, what: str = "array") -> None:
    """Raise unless shapes agree and ``|actual - expected| <= rtol * max(1, |expected|.max())``.

    ``rtol`` defaults to :func:`tolerance` of the dtype of ``actual``. The message names the largest difference.
    """
    a, e = to_numpy(actual), to_numpy(expected)
    if a.shape != e.shape:
        raise AssertionError(f"{what}: shape {a.shape}, expected {e.shape}")
    if a.size == 0:
        return
    bound = tolerance(a.dtype if a.dtype.kind == "f" else np.float64) if rtol is None else rtol
    scale = max(1.0, float(np.max(np.abs(e))))
    difference = float(np.max(np.abs(a - e)))
    if not difference <= bound * scale:
        raise AssertionError(
            f"{what}: largest difference {difference:.3e} above {bound:.1e} * {scale:.3g} "
            f"at index {tuple(int(i) for i in np.unravel_index(np.argmax(np.abs(a - e)), a.shape))}"
        )


def _as_tuple(x: Any) -> tuple[Any, ...]:
    return tuple(x) if isinstance(x, tuple | list) else (x,)


def check_vjp(
    function: Callable[..., tuple[Array, Callable[[Array], Any]]],
    *arrays: Array,
    wrt: Sequence[int] | None = None,
    step: float = 1e-6,
    rtol: float | None = None,
    rng: np.random.Generator | None = None,
) -> None:
    """Compare the pullback of ``function(*arrays) -> (y, pullback)`` with central finite differences.

    Every entry of every input named in ``wrt`` (default: all) is moved by ``step``; the change of
    ``sum(y * dy)`` for a random ``dy`` must agree with the pullback. The inputs must be float64.
    The pullback is called twice and must return the same both times.

    Raises AssertionError: a gradient is missing, has a wrong shape, or differs; the message says which input and where;
    TypeError: an input is not float64, and finite differences in less prove nothing.

    >>> import numpy as np
    >>> check_vjp(lambda x: (x * x, lambda dy: 2 * x * dy), np.linspace(-1.0, 1.0, 5))
    """
    rng = np.random.default_rng(0) if rng is None else rng
    hosts = [np.array(to_numpy(x)) for x in arrays]
    if any(h.dtype != np.float64 for h in hosts):
        raise TypeError(f"check_vjp needs float64 inputs, found {[str(h.dtype) for h in hosts]}")
    y, pullback = function(*arrays)
    dy_host = rng.standard_normal(to_numpy(y).shape)
    dy = asarray(dy_host, like=y)
    namespace(y, *arrays)
    gradients = _as_tuple(pullback(dy))
    again = _as_tuple(pullback(dy))
    for index in range(len(arrays)) if wrt is None else wrt:
        if index >= len(gradients) or gradients[index] is None:
            raise AssertionError(f"input {index}: the pullback returned no gradient")
        assert_close(again[index], gradients[index], what=f"input {index}, second call of the pullback")
        expected = np.zeros_like(hosts[index])
        for place in np.ndindex(hosts[index].shape):
            values = []
            for sign in (1.0, -1.0):
                moved = [h.copy() for h in hosts]
                moved[index][place] += sign * step
                value, _ = function(*[asarray(m, like=x) for m, x in zip(moved, arrays, strict=True)])
                values.append(float(np.sum(to_numpy(value) * dy_host)))
            expected[place] = (values[0] - values[1]) / (2 * step)
        assert_close(gradients[index], expected, rtol=1e-7 if rtol is None else rtol, what=f"gradient of input {index}")
