"""RunningSum: squares that are added in place are those of all rows, whatever stands in them how often."""

from __future__ import annotations

import signal

import array_api_strict
import numpy as np
import pytest

from growarray.contraction import workspace
from growarray.contraction.kernels import Rows
from growarray.contraction.sums import RunningSum
from tests.conftest import frozen

RNG = np.random.default_rng(0)
TOLERANCE = {np.float64: 1e-13, np.float32: 1e-6}
LAYOUTS = {
    "in_order": lambda a, b: np.arange(a + b + 1),
    "without_ones": lambda a, b: np.arange(a + b),
    "ones_between": lambda a, b: np.array([*range(a), a + b, *range(a, a + b), a + b]),
    "twice": lambda a, b: np.array([*range(a), *range(a, a + b), *range(a)]),
    "turned": lambda a, b: np.arange(a + b)[::-1].copy(),
}


def stacked(arrays: list[np.ndarray], columns: np.ndarray) -> np.ndarray:
    """B in float64."""
    return np.concatenate([*arrays, np.ones((len(arrays[0]), 1))], axis=1)[:, columns]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: dtype.__name__)
def test_squares_of_any_number_of_rows_are_added(layout: str, dtype: type) -> None:
    total, columns, exact, size = RunningSum(), LAYOUTS[layout](300, 7), 0.0, 0
    for rows in (300, 0, 1, 63, 64, 4200):  # one block, and more than one
        arrays = [frozen(RNG.standard_normal((rows, width)).astype(dtype)) for width in (300, 7)]
        assert total.add_square([Rows(a) for a in arrays], columns)
        assert total.shape == (len(columns),) * 2
        b = stacked(arrays, columns)
        exact, size = exact + b.T @ b, size + rows
    found = total.array
    assert np.array_equal(found, found.T)
    assert np.abs(found - exact).max() <= TOLERANCE[dtype] * size
    assert total.array is found  # read again: not computed again, not added again


def test_a_sum_goes_on_after_it_was_read_in_another_layout_and_with_whole_values() -> None:
    x, y = (frozen(RNG.standard_normal((50, 3))) for _ in range(2))
    apart, same = np.array([0, 1, 2, 3, 4, 5]), np.array([0, 1, 2, 0, 1, 2])
    total, (b, c) = RunningSum(), (stacked([x, y], apart), stacked([x], same))
    assert total.add_square([Rows(x), Rows(y)], apart)
    assert np.allclose(total.array, b.T @ b, rtol=1e-13)
    assert total.add_square([Rows(x)], same)
    assert total.add_square([Rows(x), Rows(y)], apart)
    total.add(np.ones((6, 6)))
    assert np.allclose(total.array, 2 * b.T @ b + c.T @ c + 1.0, rtol=1e-13)


def _holding(value: float) -> np.ndarray:
    array = RNG.standard_normal((200, 80)).astype(np.float32)
    array[17, 3] = value
    return array


REFUSED = {
    "nan": [_holding(1.0), _holding(np.nan)],
    "infinite": [_holding(1.0), _holding(np.inf)],
    "square_overflows": [_holding(1.0), _holding(1e25)],
    "float64_square_overflows": [_holding(1.0), _holding(1e20).astype(np.float64)],
    "bad_in_the_last_rows": [np.concatenate([_holding(1.0)[:130], np.full((1, 80), np.inf, np.float32)])],
    "bad_in_the_second_block": [np.concatenate([np.ones((5000, 2)), np.full((1, 2), np.nan)]).astype(np.float32)],
    "other_rows": [_holding(1.0), _holding(1.0)[:100]],
    "another_library": [array_api_strict.ones((5, 2))],
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow")
def test_nothing_is_added_where_it_cannot_all_be(kind: str) -> None:
    arrays = [Rows(array) for array in REFUSED[kind]]
    total = RunningSum(np.zeros((2, 2)))
    assert not total.add_square(arrays, np.arange(2))
    assert not total.array.any()


def test_a_square_of_another_shape_is_refused() -> None:
    total = RunningSum()
    assert total.add_square([Rows(np.ones((4, 2)))], np.arange(2))
    assert not total.add_square([Rows(np.ones((4, 2)))], np.arange(3))
    assert total.array.tolist() == [[4.0, 4.0], [4.0, 4.0]]


def test_a_sum_of_another_library_takes_whole_values_alone() -> None:
    total = RunningSum(array_api_strict.zeros((2, 2), dtype=array_api_strict.float64))
    assert not total.add_square([Rows(np.ones((4, 2)))], np.arange(2))
    total.add(array_api_strict.ones((2, 2), dtype=array_api_strict.float64))
    assert float(total.array[1, 0]) == 1.0


def test_a_signal_handler_that_adds_squares_spoils_none(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = (frozen(RNG.standard_normal((64, 5))) for _ in range(2))
    total, other, inner = RunningSum(), RunningSum(), np.matmul

    def interrupted(*args: object, **options: object) -> np.ndarray:
        product = inner(*args, **options)
        signal.raise_signal(signal.SIGUSR1)
        return product

    def handler(*_: object) -> None:
        monkeypatch.setattr(np, "matmul", inner)
        assert other.add_square([Rows(y), Rows(x)], np.arange(10))

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        monkeypatch.setattr(np, "matmul", interrupted)
        assert total.add_square([Rows(x), Rows(y)], np.arange(10))
    finally:
        signal.signal(signal.SIGUSR1, before)
    b, c = np.concatenate([x, y], axis=1), np.concatenate([y, x], axis=1)
    assert np.allclose(total.array, b.T @ b, rtol=1e-13)
    assert np.allclose(other.array, c.T @ c, rtol=1e-13)


def test_scratch_memory_is_that_of_the_thread_again_after_an_exception() -> None:
    before = workspace.here.arrays
    with pytest.raises(ZeroDivisionError):
        workspace.lent(lambda _: 1 / 0)
    assert workspace.here.arrays is before
