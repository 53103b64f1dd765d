"""What statistics and streams refuse, with nothing added or lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from growarray.errors import GrowthError, ShapeError
from growarray.growing import JoinedStream, Stream, TensorStatistic, cross_moment
from growarray.growing.checks import declared_shape, sample_count


@pytest.mark.parametrize("samples", [2.5, float("nan"), "3", None, -1, True], ids=repr)
def test_a_number_of_samples_that_is_no_count_adds_nothing(samples: Any) -> None:
    statistic = TensorStatistic().update(np.ones(2), 2)
    with pytest.raises(GrowthError, match="a whole number of at least 0"):
        statistic.update(np.ones(2), samples)
    assert statistic.samples == 2
    np.testing.assert_array_equal(statistic(), [0.5, 0.5])


def test_counts_of_any_library_are_taken() -> None:
    assert sample_count("S", np.int64(3)) == 3
    assert declared_shape("S", (np.int32(2), 3)) == (2, 3)
    assert declared_shape("S", None) is None


@pytest.mark.parametrize("shape", [3, (2.0, 3), "ab"], ids=repr)
def test_a_declared_shape_that_is_none_is_refused(shape: Any) -> None:
    with pytest.raises(TypeError, match=r"the declared shape is .*expected whole numbers such as"):
        TensorStatistic(shape)


def test_complex_values_are_refused_not_cut_to_their_real_part() -> None:
    statistic = TensorStatistic()
    with pytest.raises(TypeError, match="statistic: expected an array of real numbers, found ndarray of complex128"):
        statistic.update(np.ones(2) * 1j, 1)
    assert statistic.samples == 0
    with pytest.raises(TypeError, match="a stream: expected an array of real numbers, found ndarray of complex64"):
        cross_moment(np.ones((2, 2), dtype=np.complex64))


@pytest.mark.parametrize("make", [cross_moment, Stream], ids=["cross_moment", "Stream"])
def test_a_list_is_refused_by_name(make: Any) -> None:
    with pytest.raises(TypeError, match=r"found list; convert it with"):
        make([[1.0, 2.0]])


def test_streams_and_joined_streams_are_taken_as_they_are() -> None:
    stream = Stream(np.arange(6.0).reshape(3, 2))
    np.testing.assert_array_equal(
        cross_moment(JoinedStream((stream, stream)))[:2, 2:], cross_moment(stream.array, stream)
    )


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("samples", "x", "samples of the state is 'x'"),
        ("samples", -3, "samples of the state is -3"),
        ("batches", 1.5, "batches of the state is 1.5"),
        ("sum", np.array([np.nan, 1.0]), "NaN or infinite"),
        ("sum", "abc", "holds a value that is not a number"),
        ("trace", float("inf"), "NaN or infinite"),
        ("square_norm_sum", "x", "holds a value that is not a number"),
    ],
    ids=str,
)
def test_a_broken_state_changes_nothing(key: str, value: Any, message: str) -> None:
    statistic = TensorStatistic(name="S").update(np.array([3.0, 6.0]), 3)
    state = {**statistic.state_dict(), "sum": np.zeros(2), key: value}
    with pytest.raises(GrowthError, match=f"S: .*{message}"):
        statistic.load_state_dict(state)
    assert statistic.samples == 3
    np.testing.assert_array_equal(statistic(), [1.0, 2.0])


def test_a_state_that_is_no_mapping_is_refused() -> None:
    with pytest.raises(GrowthError, match="state has keys NoneType, expected"):
        TensorStatistic().load_state_dict(None)  # type: ignore[arg-type]


def test_a_sum_of_another_shape_is_refused() -> None:
    state = TensorStatistic().update(np.ones((2, 2)), 1).state_dict()
    with pytest.raises(ShapeError, match=r"S: state has shape \(2, 2\), expected \(3, 3\)"):
        TensorStatistic((3, 3), name="S").load_state_dict(state)
