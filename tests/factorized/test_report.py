"""The report on a conversion: what it says agrees with the layers."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from growarray import nn
from growarray.decompose import channel_moment
from growarray.errors import PlanError, ShapeError
from growarray.factorized import FactorizedConv, TensorLasso
from growarray.factorized.report import Change, ConversionReport
from growarray.growing import RankStatistics
from tests.conftest import Library
from tests.factorized.kernels import FACTORED, FORMATS, rng

each_format = pytest.mark.parametrize("name", FORMATS)


def dense_layer(**options: Any) -> nn.Conv2d:
    return nn.Conv2d(6, 8, (3, 2), rng=rng(0), dtype=np.float64, **options)


def data(*shape: int) -> np.ndarray:
    return rng(1).standard_normal(shape or (40, 6, 9, 8))


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"groups": 2}, {"bias": False}], ids=str)
@each_format
def test_figures_are_those_of_the_layers(name: str, options: dict[str, Any]) -> None:
    dense, x = dense_layer(**options), data()
    made = FactorizedConv.from_conv(dense, rank=0.4, factorization=name, calibration=x)
    report = made.report
    assert report is not None
    kernel = dense.weight.data
    assert (report.format, report.rank, report.kernel_shape) == (name, made.rank, kernel.shape)
    assert report.parameters == (dense.number_of_parameters(), made.number_of_parameters())
    error = np.linalg.norm(made.kernel() - kernel) / np.linalg.norm(kernel)
    assert report.weight_error == pytest.approx(error, rel=1e-6, abs=1e-12)
    gap = np.linalg.norm(made(x) - dense(x)) / np.linalg.norm(dense(x))
    assert report.output_error == pytest.approx(gap, rel=1e-9, abs=1e-12)
    before, after = dense.plan(x.shape), made.plan(x.shape)
    assert report.input_shape == x.shape
    assert report.flops == (before.flops, after.flops)
    assert report.predicted_time == (before.seconds, after.seconds)
    assert report.peak_memory == (before.peak_bytes, after.peak_bytes)
    assert report.slower == (after.seconds > before.seconds)
    assert (report.degeneracy is not None) == (name == "CP")
    assert (report.reason is not None) == (name != "Dense")


@each_format
def test_without_an_input_only_the_decomposition_is_known(name: str) -> None:
    report = FactorizedConv.from_conv(dense_layer(), rank=0.4, factorization=name).report
    assert report is not None
    unknown = (report.flops, report.predicted_time, report.measured_time, report.peak_memory, report.output_error)
    assert unknown == (None,) * 5
    assert report.slower is None
    assert report.weight_error is not None
    assert "pass input_shape= or calibration=" in str(report)
    assert "pass calibration=" in str(report)


def test_a_shape_gives_cost_and_calibration_the_error() -> None:
    report = FactorizedConv.from_conv(
        dense_layer(), rank=0.4, factorization="tt", calibration=data(), input_shape=[1, 6, 20, 20]
    ).report
    assert report is not None
    assert report.input_shape == (1, 6, 20, 20)
    assert report.flops is not None
    assert report.flops.before == dense_layer().plan((1, 6, 20, 20)).flops
    assert report.output_error is not None


def test_other_layers_have_no_report_and_random_kernels_no_error() -> None:
    assert FactorizedConv(2, 3, (3, 3), rank=2).report is None
    drawn = FactorizedConv.from_conv(dense_layer(), decompose_weights=False, input_shape=(1, 6, 9, 9)).report
    assert drawn is not None
    assert (drawn.weight_error, drawn.reason) == (None, None)
    assert drawn.flops is not None
    assert "the weights are random" in str(drawn)


def test_a_weighted_decomposition_reports_the_plain_error() -> None:
    dense, x = dense_layer(padding=1), data(64, 6, 9, 9) * np.array([9.0, 3, 1, 1, 0.1, 0.1])[:, None, None]
    windows = np.moveaxis(x, 1, -1).reshape(-1, 6)
    moment = channel_moment(windows.T @ windows, 6)
    options = {"rank": (4, 3, 3, 2), "factorization": "tucker", "calibration": x}
    plain = FactorizedConv.from_conv(dense, **options).report
    made = FactorizedConv.from_conv(dense, **options, decomposition_kwargs={"weighted": {1: moment}})
    assert plain is not None
    assert made.report is not None
    error = np.linalg.norm(made.kernel() - dense.weight.data) / np.linalg.norm(dense.weight.data)
    assert made.report.weight_error == pytest.approx(error)
    assert made.report.weight_error > plain.weight_error
    assert made.report.output_error < plain.output_error


@pytest.mark.parametrize("name", FACTORED)
def test_joint_layers_are_summed(name: str) -> None:
    dense = [dense_layer(padding=1), dense_layer(stride=2)]
    inputs = [data(3, 6, 9, 9), data(5, 6, 7, 8)]
    joint = FactorizedConv.from_conv_list(dense, rank=0.4, factorization=name, calibration=inputs)
    report = joint.report
    assert report is not None
    assert report.layers == 2
    assert report.parameters == (sum(d.number_of_parameters() for d in dense), joint.number_of_parameters())
    assert report.flops is not None
    assert report.flops.before == sum(d.plan(x.shape).flops for d, x in zip(dense, inputs, strict=True))
    outputs = [(joint[i](x), d(x)) for i, (d, x) in enumerate(zip(dense, inputs, strict=True))]
    gap = sum(np.sum((a - b) ** 2) for a, b in outputs) / sum(np.sum(b**2) for _, b in outputs)
    assert report.output_error == pytest.approx(np.sqrt(gap))
    same = FactorizedConv.from_conv_list(dense, rank=0.4, factorization=name, input_shape=(1, 6, 9, 9)).report
    assert same is not None
    assert same.flops is not None
    assert same.flops.before == sum(d.plan((1, 6, 9, 9)).flops for d in dense)
    assert "2 kernels" in str(same)


def test_a_conversion_that_is_slower_says_so() -> None:
    dense = nn.Conv2d(4, 4, 1, rng=rng(0))
    made = FactorizedConv.from_conv(dense, rank=(4, 4, 1, 1), factorization="tucker", input_shape=(1, 4, 6, 6))
    report = made.report
    assert report is not None
    assert report.slower is True
    ratio = report.predicted_time.ratio
    assert f"SLOWER than the dense layer: {ratio:.3g} times its predicted time" in str(report)


def test_measured_time_decides_where_it_is_known() -> None:
    report = FactorizedConv.from_conv(
        dense_layer(), rank=0.4, factorization="tucker", input_shape=(2, 6, 9, 9), measure=True
    ).report
    assert report is not None
    assert report.measured_time is not None
    assert min(report.measured_time) > 0.0
    assert report.slower == (report.measured_time.after > report.measured_time.before)
    faster = ConversionReport("CP", 1, (1, 1, 1), Change(2, 1), predicted_time=Change(1, 2), measured_time=Change(2, 1))
    assert faster.slower is False
    assert "SLOWER" not in str(faster)


def test_the_report_is_plain_data() -> None:
    report = FactorizedConv.from_conv(dense_layer(), rank=3, calibration=data()).report
    assert report is not None
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["rank"] == 3
    assert plain["kernel_shape"] == [8, 6, 3, 2]
    assert plain["parameters"]["after"] == report.parameters.after
    assert plain["degeneracy"]["severe"] == report.degeneracy.severe
    assert plain["slower"] == report.slower


def test_library_and_dtype_are_those_of_the_layer(xp: Library) -> None:
    kernel = xp.asarray(rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32))
    made = FactorizedConv.from_conv(nn.Conv2d.of(kernel), rank=2, factorization="tt", calibration=data(2, 3, 6, 6))
    assert made.report is not None
    assert made.report.output_error is not None
    assert 0.0 < made.report.output_error < 2.0


def test_a_conversion_to_another_dtype_is_judged_too() -> None:
    made = FactorizedConv.from_conv(
        dense_layer(), rank=0.4, factorization="tt", dtype="float32", calibration=data(), measure=True
    )
    wide = FactorizedConv.from_conv(dense_layer(), rank=0.4, factorization="tt", calibration=data())
    assert made.weight.dtype == np.float32
    assert made.report is not None
    assert wide.report is not None
    assert made.report.output_error == pytest.approx(wide.report.output_error, rel=1e-4)
    assert made.report.measured_time is not None


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"calibration": np.ones((2, 5, 9, 9))}, ShapeError, r"calibration has shape \(2, 5, 9, 9\), expected \(n, 6,"),
        (
            {"calibration": np.ones((6, 9, 9))},
            ShapeError,
            r"has shape \(6, 9, 9\), expected \(n, 6, \*spat",
        ),
        ({"calibration": np.ones((0, 6, 9, 9))}, ShapeError, "each of at least 1"),
        ({"calibration": np.full((1, 6, 9, 9), np.nan)}, ValueError, "calibration data hold a NaN"),
        ({"input_shape": (1, 6, 9)}, ShapeError, r"input_shape has shape \(1, 6, 9\)"),
        ({"input_shape": (1, 6, 1, 1)}, PlanError, "spans 3 positions"),
        ({"input_shape": [(1, 6, 9, 9)] * 2}, ShapeError, "input_shape has 2 entries for 1 layers"),
        ({"measure": True}, ValueError, r"measure=True needs an input; pass input_shape="),
        (
            {"factorization": "PARAFAC"},
            ValueError,
            "unknown factorization 'PARAFAC'; expected one of .*CP, Dense",
        ),
    ],
    ids=lambda value: "" if isinstance(value, type | dict) else value[:30],
)
def test_refusals(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        FactorizedConv.from_conv(dense_layer(), **options)


def test_a_lowered_rank_is_warned_of_where_from_conv_is_called() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        FactorizedConv.from_conv(nn.Conv2d(2, 2, 1), rank=50)
    assert [Path(w.filename).name for w in caught] == [Path(__file__).name]


def grown() -> FactorizedConv:
    made = FactorizedConv.from_conv(dense_layer(), rank=2)
    statistics = RankStatistics(made).update(data(), rng(2).standard_normal(made(data()).shape))
    made.grow_rank(statistics)
    return made


def pruned() -> FactorizedConv:
    lasso = TensorLasso()
    made = lasso.apply(FactorizedConv.from_conv(dense_layer(), rank=2))
    made.weight.lasso_weights[0].data = np.asarray([1.0, 0.0])
    lasso.prune(made)
    return made


@pytest.mark.parametrize(
    "changed",
    [grown, pruned, lambda: FactorizedConv.from_conv(dense_layer(), rank=2).transduct(3)],
    ids=["grow_rank", "prune", "transduct"],
)
def test_a_report_does_not_outlive_the_rank_and_the_shape_that_it_is_on(changed: Any) -> None:
    assert FactorizedConv.from_conv(dense_layer(), rank=2).report is not None
    assert changed().report is None


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"input_shape": 5}, TypeError, "input_shape: expected a shape, one whole number for each mode, found 5"),
        ({"input_shape": "1,6"}, TypeError, "input_shape: expected a shape, one whole number"),
        ({"input_shape": (1, 6, 9.0, 9)}, TypeError, "input_shape: expected a shape of whole numbers"),
        ({"calibration": "x"}, TypeError, "calibration holds <U1, expected real numbers"),
        ({"calibration": data() + 1j}, TypeError, "calibration holds complex128, expected real numbers"),
    ],
    ids=["a number", "text", "a float", "text as data", "complex data"],
)
def test_what_is_no_shape_or_no_data_is_refused(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        FactorizedConv.from_conv(dense_layer(), rank=2, **options)


def test_every_layer_of_a_list_needs_its_data() -> None:
    with pytest.raises(ValueError, match="has None for a layer"):
        FactorizedConv.from_conv_list([dense_layer(), dense_layer()], rank=2, calibration=[data(), None])
