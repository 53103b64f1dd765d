"""Operations on several arrays: values of every library, pullbacks against differences, and what does not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from growarray.backend import kind_of, to_numpy
from growarray.errors import ShapeError
from growarray.nn.operation import Operation
from growarray.nn.resize import Resize
from growarray.testing import assert_close, check_vjp
from tests.conftest import Library

RNG = np.random.default_rng(3)


def draw(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape)


X, PLACES, CHOICE = draw(2, 3, 4), np.array([[2, -1], [0, 2]]), np.array([[True, False, True]])
CASES: dict[str, tuple[str, dict[str, Any], tuple[np.ndarray, ...]]] = {
    "where": ("Where", {}, (CHOICE, draw(2, 1), draw(2, 3))),
    "pow": ("Pow", {}, (np.abs(draw(2, 3)) + 0.5, draw(3))),
    "mod": ("Mod", {"fmod": 0}, (draw(2, 3), np.array([0.7, -0.4, 1.1]))),
    "fmod": ("Mod", {"fmod": 1}, (draw(2, 3), np.array([0.7, -0.4, 1.1]))),
    "gather": ("Gather", {"axis": 1}, (X, PLACES)),
    "gather-last": ("Gather", {"axis": -1}, (X, np.array(-3))),
    "gather-elements": ("GatherElements", {"axis": 1}, (draw(2, 3), PLACES)),
    "gather-nd": ("GatherND", {"batch_dims": 1}, (X, np.array([[[0], [2]], [[1], [1]]]))),
    "gather-tuples": ("GatherND", {}, (X, np.array([[0, 2], [1, -1]]))),
    "scatter": ("ScatterElements", {"axis": 1}, (draw(2, 3), np.array([[2, 0], [-3, 1]]), draw(2, 2))),
    "scatter-add": ("ScatterElements", {"reduction": "add"}, (draw(3, 2), np.array([[1, 1], [1, 0]]), draw(2, 2))),
    "scatter-nd": ("ScatterND", {}, (X, np.array([[1], [0]]), draw(2, 3, 4))),
    "scatter-nd-add": ("ScatterND", {"reduction": "add"}, (draw(4), np.array([[1], [1]]), draw(2))),
    "cumsum": ("CumSum", {"axis": 1, "exclusive": 1, "reverse": 1}, (X,)),
    "cumprod": ("CumProd", {"axis": -1, "exclusive": 1}, (np.array([[2.0, 0.0, 3.0, -1.0]]),)),
    "cumprod-reverse": ("CumProd", {"axis": 0, "reverse": 1}, (draw(4, 2),)),
    "trilu": ("Trilu", {"k": 1, "upper": 0}, (X,)),
    "einsum": ("Einsum", {"equation": "nij,kj->nik"}, (X, draw(5, 4))),
    "rnn": ("Recurrent", {"cell": "RNN"}, (draw(3, 2, 4), draw(1, 2, 4), draw(1, 2, 2), draw(1, 4), draw(1, 2, 2))),
    "lstm": (
        "Recurrent",
        {"cell": "LSTM", "direction": "bidirectional"},
        (draw(3, 2, 2), draw(2, 8, 2), draw(2, 8, 2), draw(2, 16), draw(2, 2, 2), draw(2, 1, 2)),
    ),
    "gru": (
        "Recurrent",
        {"cell": "GRU", "direction": "reverse", "before": 1},
        (draw(3, 2, 2), draw(1, 6, 2), draw(1, 6, 2), draw(1, 12), draw(1, 1, 2)),
    ),
    "gru-after": (
        "Recurrent", {"cell": "GRU"}, (draw(3, 2, 2), draw(1, 6, 2), draw(1, 6, 2), draw(1, 12), draw(1, 2, 2))
    ),
}  # fmt: skip
STEPS: dict[str, tuple[str, dict[str, Any], tuple[np.ndarray, ...], Any]] = {
    "quotient": ("Div", {}, (np.array([-7, 7, 6, -6]), np.array([2, -2, 3, 3])), [-3, -3, 2, -2]),
    "remainder": ("Mod", {"fmod": 0}, (np.array([-7, 7]), np.array([3, -3])), [2, -2]),
    "remainder-of-c": ("Mod", {"fmod": 1}, (np.array([-7, 7]), np.array([3, -3])), [-1, 1]),
    "power": ("Pow", {}, (np.array([2, 3]), np.array([3, 2])), [8, 9]),
    "argmax-last": ("ArgMax", {"axis": 1, "keepdims": 0, "select_last_index": 1}, (np.array([[2, 2, 1]]),), [1]),
    "argmin": ("ArgMin", {"axis": 0}, (np.array([[2.0], [1.0]]),), [[1]]),
    "top": ("TopK", {"k": 2, "axis": 0}, (np.array([1.0, 3.0, 3.0]),), [1, 2]),
    "bottom": ("TopK", {"k": 2, "axis": 0, "largest": 0}, (np.array([3, 1, 2], np.uint8),), [1, 2]),
    "shift": ("BitShift", {"direction": "LEFT"}, (np.array([3], np.uint8), np.array([2], np.uint8)), [12]),
    "infinite": ("IsInf", {"detect_negative": 0}, (np.array([np.inf, -np.inf, 0.0]),), [True, False, False]),
    "nonzero": ("NonZero", {}, (np.array([[0, 5], [6, 0]]),), [[0, 1], [1, 0]]),
    "xor": ("Xor", {}, (np.array([True, False]), np.array([True, True])), [False, True]),
}


def floats(arrays: tuple[np.ndarray, ...]) -> list[int]:
    return [i for i, x in enumerate(arrays) if kind_of(x) == "f"]


@pytest.mark.parametrize("name", CASES)
def test_pullbacks_are_the_derivatives(name: str) -> None:
    kind, options, arrays = CASES[name]
    layer, moved = Operation(kind, **options), floats(arrays)

    def function(*values: Any) -> Any:
        full = list(arrays)
        for i, value in zip(moved, values, strict=True):
            full[i] = value
        y, back = layer.vjp(*full)

        def pullback(dy: Any) -> Any:
            found = back(dy)
            found = found if len(arrays) > 1 else (found,)
            assert [i for i, share in enumerate(found) if share is not None] == moved
            return [found[i] for i in moved]

        return y, pullback

    check_vjp(function, *[arrays[i] for i in moved], rtol=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_every_library_gives_numpy_s_numbers(name: str, xp: Library) -> None:
    kind, options, arrays = CASES[name]
    expected, back = Operation(kind, **options).vjp(*arrays)
    dy = np.asarray(np.random.default_rng(1).standard_normal(expected.shape))
    y, other = Operation(kind, **options).vjp(*[xp.asarray(x) for x in arrays])
    assert_close(to_numpy(y), expected, rtol=1e-12)
    pairs = (other(xp.asarray(dy)), back(dy)) if len(arrays) > 1 else ((other(xp.asarray(dy)),), (back(dy),))
    for found, wanted in zip(*pairs, strict=True):
        assert (found is None) == (wanted is None)
        if wanted is not None:
            assert_close(to_numpy(found), wanted, rtol=1e-12)


@pytest.mark.parametrize("name", STEPS)
def test_operations_without_a_derivative(name: str, xp: Library) -> None:
    kind, options, arrays, expected = STEPS[name]
    y, back = Operation(kind, **options).vjp(*[xp.asarray(x) for x in arrays])
    assert to_numpy(y).tolist() == expected
    if kind not in ("Mod", "Pow"):
        assert back(y) in (None, (None,) * len(arrays))


RESIZES: dict[str, Resize] = {
    "nearest": Resize((1, 2), factors=(2.0, 0.6)),
    "linear": Resize((2,), factors=(1.7,), mode="linear", transform="pytorch_half_pixel"),
    "cubic": Resize((-1,), sizes=(6,), mode="cubic", exclude=True),
    "antialias": Resize((2,), sizes=(2,), mode="linear", antialias=True),
    "crop": Resize((2,), sizes=(3,), mode="linear", transform="tf_crop_and_resize", region=(0.4, 1.4), outside=2.0),
}


@pytest.mark.parametrize("name", RESIZES)
def test_resizing(name: str, xp: Library) -> None:
    check_vjp(RESIZES[name].vjp, X, rtol=1e-7)
    (y, back), (found, other) = RESIZES[name].vjp(X), RESIZES[name].vjp(xp.asarray(X))
    assert_close(to_numpy(found), y, rtol=1e-12)
    assert_close(to_numpy(other(found)), back(y), rtol=1e-12)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="Operation: name is 'Guess', expected one of And, ArgMax"):
        Operation("Guess")
    with pytest.raises(ShapeError, match="Gather: indices go from 0 to 5, expected -3 to 2"):
        Operation("Gather", axis=1)(X, np.array([0, 5]))
    with pytest.raises(ValueError, match="Resize: mode is 'area', expected one of nearest, linear, cubic"):
        Resize((0,), factors=(2.0,), mode="area")
    with pytest.raises(ValueError, match=r"Resize: factors are None and sizes \(2,\), expected 2 of one of them"):
        Resize((0, 1), sizes=(2,))
