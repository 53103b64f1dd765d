"""Stride, padding and dilation: every way to write them, sizes of outputs, and what is refused."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from growarray.contraction.geometry import PADDING_MODES, ConvAxis, conv_axes
from growarray.errors import PlanError

YX = ["y", "x"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [ConvAxis(), ConvAxis()]),
        ({"stride": 2}, [ConvAxis(2), ConvAxis(2)]),
        ({"stride": (2, 1)}, [ConvAxis(2), ConvAxis(1)]),
        ({"stride": [2, 1]}, [ConvAxis(2), ConvAxis(1)]),
        ({"stride": {"x": 3}}, [ConvAxis(), ConvAxis(3)]),
        ({"stride": np.int64(2)}, [ConvAxis(2), ConvAxis(2)]),
        ({"padding": 1}, [ConvAxis(1, 1, 1), ConvAxis(1, 1, 1)]),
        ({"padding": (1, 2)}, [ConvAxis(1, 1, 1), ConvAxis(1, 2, 2)]),
        ({"padding": ((1, 2), 3)}, [ConvAxis(1, 1, 2), ConvAxis(1, 3, 3)]),
        ({"padding": {"y": (0, 2)}}, [ConvAxis(1, 0, 2), ConvAxis()]),
        ({"padding": "valid"}, [ConvAxis(), ConvAxis()]),
        ({"padding": "same"}, [ConvAxis(1, 1, 1), ConvAxis(1, 1, 2)]),
        ({"padding": ("same", "valid")}, [ConvAxis(1, 1, 1), ConvAxis()]),
        ({"padding": "same", "dilation": (2, 3)}, [ConvAxis(1, 2, 2, 2), ConvAxis(1, 4, 5, 3)]),
        ({"dilation": {"y": 2}}, [ConvAxis(dilation=2), ConvAxis()]),
        ({"padding_mode": "reflect"}, [ConvAxis(padding_mode="reflect")] * 2),
        ({"padding_mode": {"x": "circular"}}, [ConvAxis(), ConvAxis(padding_mode="circular")]),
    ],
    ids=str,
)
def test_options_of_two_modes_with_kernels_of_three_and_four(options, expected):
    assert conv_axes(YX, [3, 4], **options) == tuple(expected)


def test_a_pair_pads_a_single_mode_unevenly():
    assert conv_axes(["x"], [3], padding=(1, 2)) == conv_axes(["x"], [3], padding=[[1, 2]]) == (ConvAxis(1, 1, 2),)
    assert conv_axes([], []) == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 0}, "stride of 'y': found 0, expected a whole number of at least 1"),
        ({"stride": (1, -2)}, "stride of 'x': found -2, expected a whole number of at least 1"),
        ({"stride": 1.0}, "stride of 'y': found 1.0, expected a whole number"),
        ({"stride": True}, "stride of 'y': found True, expected a whole number"),
        ({"stride": "2"}, "stride of 'y': found '2', expected a whole number"),
        ({"dilation": 0}, "dilation of 'y': found 0, expected a whole number of at least 1"),
        (
            {"stride": (1, 2, 3)},
            "stride: 3 values for 2 convolution modes ['y', 'x']; give one number, or one for each",
        ),
        ({"dilation": [1]}, "dilation: 1 values for 2 convolution modes"),
        ({"padding": (1,)}, "padding: 1 values for 2 convolution modes"),
        ({"padding_mode": ["zeros"]}, "padding_mode: 1 values for 2 convolution modes"),
        ({"stride": {"z": 1}}, "stride: 'z' is not a convolution mode of this equation; known are ['y', 'x']"),
        ({"padding": -1}, "padding of 'y': found -1, expected a number of at least 0, a pair, 'same' or 'valid'"),
        ({"padding": ((1, 2, 3), 0)}, "padding of 'y': found (1, 2, 3), expected a number"),
        ({"padding": (0, (0, 1.5))}, "padding of 'x': found (0, 1.5), expected a number"),
        ({"padding": "full"}, "padding of 'y': found 'full', expected a number"),
        ({"padding": None}, "padding of 'y': found None, expected a number"),
        (
            {"padding": "same", "stride": (1, 2)},
            "padding of 'x': 'same' needs stride 1, found 2; give numbers such as 2",
        ),
        (
            {"padding_mode": "wrap"},
            "padding_mode of 'y': found 'wrap', expected one of zeros, reflect, replicate, circular",
        ),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(PlanError, match=re.escape(message)):
        conv_axes(YX, [3, 4], **options)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.integers(1, 12), st.integers(1, 5), st.integers(1, 4), st.integers(0, 4), st.integers(0, 4), st.integers(1, 3)
)
def test_the_output_has_as_many_positions_as_windows_fit(size, kernel, stride, before, after, dilation):
    axis = ConvAxis(stride, before, after, dilation)
    last = size + before + after - 1
    starts = [q for q in range(0, last + 1, stride) if q + (kernel - 1) * dilation <= last]
    if starts:
        assert axis.output_size(size, kernel) == len(starts)
    else:
        with pytest.raises(PlanError, match=f"the padded input has {last + 1}; add padding of"):
            axis.output_size(size, kernel)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 3))
def test_same_keeps_the_size(size, kernel, dilation):
    assert conv_axes(["x"], [kernel], padding="same", dilation=dilation)[0].output_size(size, kernel) == size


@pytest.mark.parametrize(
    ("axis", "size", "kernel", "message"),
    [
        (ConvAxis(), 2, 3, "'x': a kernel of 3 with dilation 1 spans 3 positions, the padded input has 2; add"),
        (
            ConvAxis(dilation=3, before=1),
            5,
            3,
            "3 with dilation 3 spans 7 positions, the padded input has 6; add padding of 1",
        ),
        (ConvAxis(), 4, 0, "convolution mode 'x': the kernel has 0 positions, expected at least 1"),
        (
            ConvAxis(before=3, padding_mode="reflect"),
            3,
            2,
            "3 needs more than the 3 positions there are; pad at most 2",
        ),
        (ConvAxis(after=4, padding_mode="circular"), 3, 2, "circular padding of 4 needs more than the 3"),
        (ConvAxis(after=1, padding_mode="reflect"), 0, 1, "reflect padding of 1 needs more than the 0"),
    ],
    ids=["kernel too large", "dilated too large", "no kernel", "reflect", "circular", "empty"],
)
def test_kernels_and_paddings_that_do_not_fit_are_refused(axis, size, kernel, message):
    with pytest.raises(PlanError, match=re.escape(message)):
        axis.output_size(size, kernel)


def test_the_largest_paddings_that_fit_are_taken():
    assert ConvAxis(before=2, after=2, padding_mode="reflect").output_size(3, 1) == 7
    assert ConvAxis(before=3, after=3, padding_mode="circular").output_size(3, 1) == 9
    assert ConvAxis(before=9, after=9, padding_mode="replicate").output_size(1, 1) == 19
    assert PADDING_MODES == ("zeros", "reflect", "replicate", "circular")


@pytest.mark.parametrize(
    ("option", "value"), [("stride", 0), ("stride", True), ("before", -1), ("after", None), ("dilation", 1.5)], ids=str
)
def test_an_axis_that_makes_no_sense_is_not_made(option, value):
    with pytest.raises(PlanError, match=f"{option}: found {value}, expected a whole number of at least"):
        ConvAxis(**{option: value})
    with pytest.raises(PlanError, match="padding_mode: found 'wrap', expected one of zeros, reflect"):
        ConvAxis(padding_mode="wrap")


def test_options_are_refused_where_there_is_no_convolution_mode():
    assert conv_axes([], [], stride=1, padding=[], padding_mode="zeros") == ()
    with pytest.raises(PlanError, match="dilation: found 2 for an equation without convolution modes"):
        conv_axes([], [], dilation=2)
