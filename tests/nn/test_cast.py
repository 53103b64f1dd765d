"""Casts: what does not fit is refused with its name, and what was rounded is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from growarray.backend import namespace, to_numpy
from growarray.nn.cast import RangeError, cast, dtype_name, largest_rounding, rounded
from tests import doubles
from tests.checkpoint.files import rows
from tests.conftest import Library


@pytest.mark.parametrize(
    ("values", "dtype", "message"),
    rows(
        {
            "double to half": (
                [[0.0, 65520.0]],
                "float16",
                r"w: 65520\.0 at \(0, 1\) is beyond the range of float16; take",
            ),
            "double to single": ([1.0, -1e39], "float32", r"w: -1e\+39 at \(1,\) is beyond the range of float32"),
            "scalar": (3.5e38, "float32", r"w: 3\.5e\+38 is beyond the range of float32"),
            "integer": (np.array([7, 10**6]), "float16", r"w: 1000000 at \(1,\) is beyond the range of float16"),
            "imaginary part": (np.array([1 + 1e39j]), "complex64", r"at \(0,\) is beyond the range of complex64"),
            "after an infinity": ([np.inf, np.nan, 1e39], "float32", r"w: 1e\+39 at \(2,\)"),
        }
    ),
)
def test_values_beyond_the_range_are_refused(values: Any, dtype: str, message: str) -> None:
    with pytest.raises(RangeError, match=message):
        cast(np.asarray(values), np.dtype(dtype), "w")


@pytest.mark.parametrize(
    ("values", "dtype"),
    rows(
        {
            "infinities and NaN": ([np.inf, -np.inf, np.nan], "float16"),
            "the largest, and what rounds to it": ([65504.0, 65519.0, -65519.0], "float16"),
            "subnormal": ([1e-7, 1e-40, 5e-324], "float32"),
            "small integers": (np.array([3, -4]), "float16"),
            "bool": (np.array([True]), "float32"),
            "nothing": ([], "float16"),
        }
    ),
)
def test_what_fits_is_rounded_as_numpy_does(values: Any, dtype: str) -> None:
    values = np.asarray(values)
    found = cast(values, np.dtype(dtype), "w")
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(found, values.astype(dtype), strict=True)


def test_a_number_must_not_become_zero_where_that_is_asked_for() -> None:
    assert cast(np.array([1e-9, 0.0]), np.float16, "w").tolist() == [0.0, 0.0]
    with pytest.raises(RangeError, match=r"eps: 1e-09 is beyond the range of float16"):
        cast(np.array(1e-9), np.float16, "eps", nonzero=True)
    assert cast(np.array(0.0), np.float16, "eps", nonzero=True) == 0.0


def test_every_library_refuses_and_rounds(xp: Library) -> None:
    lib = namespace(xp.asarray(np.ones(1)))
    values = xp.asarray(np.array([[1.0, 0.1], [np.inf, -3.0]]))
    found = cast(values, lib.float32, "w")
    assert namespace(found) is lib
    assert to_numpy(found).tolist() == [[1.0, float(np.float32(0.1))], [np.inf, -3.0]]
    assert largest_rounding(values, found) == abs(float(np.float32(0.1)) - 0.1) / 0.1
    with pytest.raises(RangeError, match=r"w: 1e\+39 at \(0, 1\) is beyond the range of float32"):
        cast(xp.asarray(np.array([[1.0, 1e39]])), lib.float32, "w")


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    rows(
        {
            "exact": ([0.5, -3.0, np.inf, np.nan], "float32", 0.0),
            "half a digit": ([1.0, 1.0 + 2.0**-24], "float32", 2.0**-24 / (1.0 + 2.0**-24)),
            "to zero": ([1.0, 1e-60], "float32", 1.0),
            "many blocks": (np.append(np.ones(2**17), 1.0 + 2.0**-11), "float16", 2.0**-11 / (1.0 + 2.0**-11)),
            "large integer": (np.array([5, 2**53 + 1]), "float64", 1 / (2**53 + 1)),
            "largest integer": (np.array([2**63 - 1]), "float32", 1 / (2**63 - 1)),
            "even integer": (np.array([2**60]), "float32", 0.0),
            "complex": (np.array([3.0 + 4.0j, 1.0]), "complex64", 0.0),
            "real to complex": (np.array([1.0 + 2.0**-24]), "complex64", 2.0**-24 / (1.0 + 2.0**-24)),
            "wider": (np.float16([0.1]), "float32", 0.0),
            "nothing": ([], "float32", 0.0),
        }
    ),
)
def test_the_largest_rounding(values: Any, dtype: str, expected: float) -> None:
    values = np.asarray(values)
    assert largest_rounding(values, values.astype(dtype)) == expected


@pytest.mark.parametrize(("name", "digits"), [("float16", 11), ("bfloat16", 8)])
def test_every_library_rounds_to_few_digits(xp: Library, name: str, digits: int) -> None:
    unit = 2.0 ** (1 - digits)  # of the last digit of 1
    largest = float(np.finfo(np.float16).max) if name == "float16" else (2.0 - unit) * 2.0**127
    smallest = 2.0**-24 if name == "float16" else 2.0**-133
    pairs = [
        (1.0 + 0.5 * unit, 1.0),  # a tie goes to the even digit
        (1.0 + 1.5 * unit, 1.0 + 2.0 * unit),
        (1.0 + 0.5001 * unit, 1.0 + unit),
        (largest * (1.0 + 0.24 * unit), largest),
        (largest * (1.0 + 0.26 * unit), np.inf),
        (-largest * 2.0, -np.inf),
        (0.5 * smallest, 0.0),
        (1.5 * smallest, 2.0 * smallest),
        (-np.inf, -np.inf),
        (-0.0, -0.0),
    ]
    values, expected = np.array(pairs).T
    for array, wanted in ((values, expected), (np.append(values, np.nan)[None], np.append(expected, np.nan)[None])):
        found = rounded(xp.asarray(array), name)
        np.testing.assert_array_equal(to_numpy(found), wanted, strict=True)
        assert np.array_equal(np.signbit(to_numpy(found)), np.signbit(wanted))
    assert dtype_name(rounded(xp.asarray(np.float32([0.1])), name).dtype) == "float32"


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_all_values_between_two_of_few_digits_are_rounded_as_ml_dtypes_does(name: str) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    kind = np.dtype(np.float16 if name == "float16" else ml_dtypes.bfloat16)
    codes = np.arange(2**16, dtype=np.uint16).view(kind).astype(np.float32)
    with np.errstate(all="ignore"):
        values = np.concatenate([codes, (codes[:-1].astype(float) + codes[1:].astype(float)) / 2]).astype(np.float32)
        values = np.concatenate([values, np.nextafter(values, np.float32(np.inf)), np.nextafter(values, np.float32(0))])
        expected = values.astype(kind).astype(np.float32)
    for found in (rounded(values, name), to_numpy(rounded(doubles.xp.asarray(values), name))):
        np.testing.assert_array_equal(found, expected, strict=True)


def test_names_of_dtypes() -> None:
    found = [dtype_name(dtype) for dtype in (np.float32, np.dtype(">f8"), "torch.bfloat16", "float16")]
    assert found == ["float32", "float64", "bfloat16", "float16"]
