"""row_products: sums of products over rows, as accurate as float64 whatever the data look like."""

from __future__ import annotations

import array_api_strict
import numpy as np
import pytest

from growarray.backend import to_numpy
from growarray.contraction.kernels import Rows, row_products
from growarray.errors import ShapeError
from tests.conftest import Library, frozen

ROWS = [0, 1, 15, 16, 17, 31, 255, 256, 257, 272, 1023, 1024, 1025, 1296, 4095, 4096, 4097, 9001]
RNG = np.random.default_rng(0)


def exact(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The product in float64."""
    return left.astype(np.float64).T @ right.astype(np.float64)


def assert_near(found: np.ndarray, expected: np.ndarray, relative: float) -> None:
    assert found.dtype == np.float64
    assert found.shape == expected.shape
    scale = np.abs(expected).max(initial=0.0)
    assert np.abs(found - expected).max(initial=0.0) <= relative * scale


TOLERANCE = {np.float64: 1e-13, np.float32: 1e-6}


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: dtype.__name__)
def test_products_and_sums_are_those_of_float64(rows: int, dtype: type) -> None:
    arrays = [frozen(RNG.standard_normal((rows, width)).astype(dtype)) for width in (3, 1, 5)]
    pairs = [(0, 0), (0, 1), (2, 0), (2, 2)]
    products, sums = row_products(arrays, pairs, sums=[1, 2])
    assert set(products) == set(pairs)
    assert set(sums) == {1, 2}
    for i, j in pairs:
        sizes = np.abs(arrays[i]).astype(np.float64).T @ np.abs(arrays[j]).astype(np.float64)
        assert np.abs(products[i, j] - exact(arrays[i], arrays[j])).max() <= TOLERANCE[dtype] * sizes.max()
    for i in (1, 2):
        size = np.abs(arrays[i]).astype(np.float64).sum(axis=0).max()
        assert np.abs(sums[i] - arrays[i].astype(np.float64).sum(axis=0)).max() <= TOLERANCE[dtype] * size


@pytest.mark.parametrize(
    ("pairs", "sums"), [([], []), ([(0, 1)], []), ([], [0]), ([(1, 1)], [1])], ids=["none", "pair", "sum", "both"]
)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: dtype.__name__)
def test_only_what_is_asked_for_comes_back(pairs: list[tuple[int, int]], sums: list[int], dtype: type) -> None:
    arrays = [frozen(np.ones((20, 2), dtype)), frozen(np.ones((20, 3), dtype))]
    products, totals = row_products(arrays, pairs, sums)
    assert list(products) == pairs
    assert list(totals) == sums


LAYOUTS = {
    "transposed": lambda a: np.asfortranarray(a),
    "every_second_row": lambda a: np.repeat(a, 2, axis=0)[::2],
    "every_second_column": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    "backwards": lambda a: a[::-1].copy()[::-1],
    "one_value_broadcast": lambda a: np.broadcast_to(a[:1, :1], a.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: dtype.__name__)
def test_any_memory_layout_gives_the_same(layout: str, dtype: type) -> None:
    array = LAYOUTS[layout](RNG.standard_normal((4107, 4)).astype(dtype))
    array.setflags(write=False)
    assert layout == "backwards" or not array.flags.c_contiguous
    products, sums = row_products([array], [(0, 0)], [0])
    assert_near(products[0, 0], exact(array, array), TOLERANCE[dtype])
    assert np.abs(sums[0] - array.astype(np.float64).sum(axis=0)).max() <= TOLERANCE[dtype] * np.abs(array).sum()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: dtype.__name__)
def test_a_square_is_symmetric_to_the_last_bit(dtype: type) -> None:
    array = frozen(RNG.standard_normal((5003, 37)).astype(dtype))
    square = row_products([array], [(0, 0)])[0][0, 0]
    assert np.array_equal(square, square.T)


@pytest.mark.parametrize("rows", [8, 64, 192, 256, 1024, 4032, 4096])
def test_mixed_rows_have_the_same_products_and_end_with_the_mean(rows: int) -> None:
    array = frozen((3.0 + RNG.standard_normal((rows, 5))).astype(np.float32))
    mixed, sums = Rows(array).mixed(0, rows)
    assert mixed.shape == array.shape
    assert_near(exact(mixed, mixed), exact(array, array), 1e-6)
    expected = array.astype(np.float64).sum(axis=0)
    assert np.abs(sums - expected).max() <= 1e-6 * expected.max()
    assert np.abs(mixed[-1] - expected / np.sqrt(rows)).max() <= 1e-6 * mixed[-1].max()
    constant, _ = Rows(np.full((rows, 2), 0.7, np.float32)).mixed(0, rows)
    assert np.abs(constant[:-1]).max() <= 1e-6 * constant[-1].max()  # equal rows leave nothing but their mean


def test_widths_of_zero_are_allowed() -> None:
    for dtype in TOLERANCE:
        products, sums = row_products([np.ones((33, 0), dtype), np.ones((33, 2), dtype)], [(0, 0), (0, 1)], [0])
        assert products[0, 0].shape == (0, 0)
        assert products[0, 1].shape == (0, 2)
        assert sums[0].shape == (0,)


def test_two_dtypes_meet_in_float64() -> None:
    single, double = frozen(RNG.standard_normal((100, 2)).astype(np.float32)), frozen(RNG.standard_normal((100, 3)))
    products, _ = row_products([single, double], [(0, 1)])
    assert_near(products[0, 1], exact(single, double), 1e-14)


@pytest.mark.parametrize("rows", [(10, 20), (20, 10)], ids=["first_shorter", "first_longer"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: dtype.__name__)
def test_different_numbers_of_rows_are_refused(rows: tuple[int, int], dtype: type) -> None:
    with pytest.raises(ShapeError, match=r"arrays have \[10, 20\] rows; they must have equally many"):
        row_products([np.ones((n, 2), dtype) for n in rows], [(0, 1)])


def _scaled_columns(rows: int) -> np.ndarray:
    return RNG.standard_normal((rows, 4)) * np.array([1e-6, 1e-3, 1e3, 1e6])


STRUCTURED = {
    "constant": lambda rows: np.full((rows, 1), 1.0) * np.array([0.1, 0.7, 1.9]),
    "binary": lambda rows: 1.1 * RNG.integers(0, 2, (rows, 3)),
    "offset": lambda rows: 1000.0 + RNG.standard_normal((rows, 3)),
    "in_order": lambda rows: 3.0 + np.linspace(0.0, 1.0, rows)[:, None] * np.array([[1.0, 0.1, 0.7]]),
    "period_of_the_block": lambda rows: (np.arange(rows) % 16 == 3)[:, None] * np.array([[1.1, 0.3]]),
    "tiny_and_huge_columns": _scaled_columns,
}


@pytest.mark.parametrize("rows", [4096, 100_003])
@pytest.mark.parametrize("kind", STRUCTURED)
def test_float32_is_within_a_millionth_whatever_the_data(kind: str, rows: int) -> None:
    array = frozen(STRUCTURED[kind](rows).astype(np.float32))
    products, sums = row_products([array], [(0, 0)], [0])
    assert_near(products[0, 0], exact(array, array), 1e-6)
    expected = array.astype(np.float64).sum(axis=0)
    assert np.abs(sums[0] - expected).max() <= 1e-6 * np.abs(array).astype(np.float64).sum(axis=0).max()


def test_tiny_columns_keep_their_own_accuracy_beside_huge_ones() -> None:
    array = frozen(_scaled_columns(50_000).astype(np.float32))
    found, expected = row_products([array], [(0, 0)])[0][0, 0], exact(array, array)
    sizes = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    assert (np.abs(found - expected) <= 1e-6 * sizes).all()


@pytest.mark.parametrize("kind", STRUCTURED)
def test_fast_and_portable_paths_agree(kind: str) -> None:
    arrays = [
        frozen(STRUCTURED[kind](4097).astype(np.float32)),
        frozen(RNG.standard_normal((4097, 2)).astype(np.float32)),
    ]
    pairs = [(0, 0), (0, 1), (1, 1)]
    fast, fast_sums = row_products(arrays, pairs, [0, 1])
    slow, slow_sums = row_products([array_api_strict.asarray(np.array(a)) for a in arrays], pairs, [0, 1])
    for i, j in pairs:
        size = (np.linalg.norm(arrays[i], axis=0)[:, None] * np.linalg.norm(arrays[j], axis=0)).max()
        assert np.abs(fast[i, j] - to_numpy(slow[i, j])).max() <= 1e-6 * size
    for i in (0, 1):
        assert np.abs(fast_sums[i] - to_numpy(slow_sums[i])).max() <= 1e-6 * np.abs(arrays[i]).sum()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: dtype.__name__)
def test_every_library_computes_the_same(xp: Library, dtype: type) -> None:
    hosts = [RNG.standard_normal((70_001, 3)).astype(dtype), RNG.standard_normal((70_001, 2)).astype(dtype)]
    products, sums = row_products([xp.asarray(host) for host in hosts], [(0, 0), (0, 1)], [1])
    assert type(products[0, 0]) is type(xp.asarray(hosts[0]))
    for i, j in ((0, 0), (0, 1)):
        expected = exact(hosts[i], hosts[j])
        assert np.abs(to_numpy(products[i, j]) - expected).max() <= TOLERANCE[dtype] * 70_001
    assert np.abs(to_numpy(sums[1]) - hosts[1].astype(np.float64).sum(axis=0)).max() <= TOLERANCE[dtype] * 70_001


def test_results_stay_on_the_device_of_the_arrays() -> None:
    device = array_api_strict.Device("device1")
    array = array_api_strict.ones((5, 2), dtype=array_api_strict.float32, device=device)
    products, sums = row_products([array], [(0, 0)], [0])
    assert products[0, 0].device == device
    assert sums[0].device == device
    assert products[0, 0].dtype == array_api_strict.float64
