"""Compressing networks: the budget is met, the errors are those found, and what cannot be done is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from growarray import nn
from growarray.backend import Array, to_numpy
from growarray.compression import compress
from growarray.compression.candidates import Choice, candidates_of, cost_of, weighted_error
from growarray.compression.observe import observe, swapped
from growarray.compression.report import trade_off
from growarray.compression.targets import find_targets
from growarray.decompose import Candidate
from growarray.errors import ShapeError
from growarray.factorized import FactorizedConv, FactorizedLinear
from growarray.networks import GrowingMLP
from growarray.nn.arithmetic import Add
from growarray.nn.graph import Graph, Node
from growarray.nn.module import Module
from tests.conftest import Library


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def conv(inner: int, outer: int, size: Any = 3, seed: int = 0, **options: Any) -> nn.Conv2d:
    """A convolution whose kernel has the falling spectrum of trained ones."""
    layer = nn.Conv2d(inner, outer, size, rng=rng(seed), **options)
    kernel = rng(seed).standard_normal(layer.weight.shape)
    for mode, n in enumerate(kernel.shape):
        turn = np.linalg.qr(rng(seed + mode).standard_normal((n, n)))[0] * (1.0 + np.arange(n)) ** -0.8
        kernel = np.moveaxis(np.tensordot(turn, kernel, (1, mode)), 0, mode)
    layer.weight.data = (kernel / kernel.std() / np.sqrt(9 * inner)).astype(np.float32)
    return layer


def network() -> nn.Sequential:
    return nn.Sequential(
        conv(3, 16, padding=1),
        nn.ReLU(),
        nn.Sequential(conv(16, 24, seed=1, stride=2), nn.BatchNorm2d(24), nn.ReLU()),
        conv(24, 24, seed=2, groups=2),
        nn.Flatten(),
        nn.Linear(24 * 3 * 3, 20, rng=rng(3)),
    )


def data(n: int = 24) -> np.ndarray:
    return rng(7).standard_normal((n, 3, 11, 11)).astype(np.float32)


@pytest.mark.parametrize("budget", [0.15, 0.9, 4000])
def test_the_budget_of_parameters_is_met_and_the_rest_left_alone(budget: float) -> None:
    net = network()
    before = {name: to_numpy(value) for name, value in net.state_dict().items()}
    found = compress(net, budget)
    limit = budget * net.number_of_parameters() if isinstance(budget, float) else budget
    assert found.budget == limit
    assert found.network.number_of_parameters() <= limit
    assert found.parameters == (net.number_of_parameters(), found.network.number_of_parameters())
    assert all(np.array_equal(before[name], value) for name, value in net.state_dict().items())
    assert type(net[0]) is nn.Conv2d
    assert found.network(data(2)).shape == (2, 20)


@pytest.mark.parametrize(("by", "budget"), [("flops", 0.7), ("time", 1.0)])
def test_flops_and_time_are_those_of_the_plans(by: str, budget: float) -> None:
    found = compress(network(), budget, by=by, input_shape=(4, 3, 11, 11), formats=("tucker", "tt"))
    total = found.flops if by == "flops" else found.predicted_time
    assert total is not None
    assert found.cost == total
    assert total.after <= found.budget == pytest.approx(budget * total.before)
    for name, shape in (("0", (4, 3, 11, 11)), ("2.0", (4, 16, 11, 11))):
        layer = dict(all_modules(found.network))[name]
        plan = layer.plan(shape)
        report = found.reports[name]
        assert report.input_shape == shape
        assert (report.flops.after, report.predicted_time.after) == (plan.flops, plan.seconds)


def all_modules(module: Module, prefix: str = "") -> list[tuple[str, Any]]:
    found = [(prefix.removesuffix("."), module)]
    for name, child in module.children():
        found += all_modules(child, f"{prefix}{name}.")
    return found


def test_more_budget_never_makes_the_estimate_worse_and_all_of_it_changes_nothing() -> None:
    net = network()
    errors = [compress(net, share, formats=["tucker", "tt"]).error for share in (0.1, 0.3, 0.6)]
    assert errors == sorted(errors, reverse=True)
    whole = compress(net, 1.0)
    assert whole.error == 0.0
    assert {report.format for report in whole.reports.values()} == {"Dense"}
    assert np.array_equal(whole.network(data(2)), net(data(2)))


def test_errors_are_measured_on_the_calibration_data() -> None:
    net, x = network().eval(), data()
    found = compress(net, 0.5, calibration=x, formats="tucker")
    y, small = net(x), found.network.eval()(x)
    assert found.output_error == pytest.approx(np.linalg.norm(small - y) / np.linalg.norm(y), rel=1e-4)
    first, report = found.network[0], found.reports["0"]
    if report.format != "Dense":
        gap = np.linalg.norm(first(x) - net[0](x)) / np.linalg.norm(net[0](x))
        assert report.output_error == pytest.approx(gap, rel=1e-4)
    assert found.error < 2.0 * found.output_error
    assert found.output_error < 2.0 * found.error
    assert found.input_shape == (1, 3, 11, 11)


def test_calibration_spends_the_budget_where_the_data_are() -> None:
    x = data(64) * np.array([5.0, 1.0, 0.05], dtype=np.float32)[:, None, None]
    for name in ("tucker", "tt"):
        plain = compress(network(), 0.3, formats=[name]).network
        aware = compress(network(), 0.3, formats=[name], calibration=x).network
        y = network().eval()(x)
        gaps = [np.linalg.norm(small.eval()(x) - y) for small in (plain, aware)]
        assert gaps[1] < gaps[0]


@pytest.mark.parametrize("with_data", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("name", ["CP", "Tucker", "TT", "TR"])
def test_estimates_are_near_the_errors_of_the_decompositions(name: str, with_data: bool) -> None:
    layer = conv(12, 16, (3, 2), seed=5)
    (target,) = find_targets(layer)
    if with_data:
        x = (rng(1).standard_normal((8, 12, 9, 9)) * np.geomspace(3.0, 0.1, 12)[:, None, None]).astype(np.float32)
        observe(layer, [target], x[:1], x)
    found = [c for c in candidates_of(target, [name], "parameters") if c.rank.format == name]
    assert len(found) > 8
    mode = 0 if name == "TT" else 1
    options: dict[str, Any] = {"weighted": {mode: target.moment}} if with_data else {}
    options |= {"max_iterations": 40, "correct": False} if name == "CP" else {}
    for candidate in found[::5]:
        made = FactorizedConv.from_conv(layer, candidate.rank.rank, factorization=name, decomposition_kwargs=options)
        assert made.rank == candidate.rank.rank  # no rank that the kernel cannot use
        error = weighted_error(target, made.kernel())
        assert candidate.cost == made.number_of_parameters()
        assert error <= 1.6 * candidate.error + 1e-3
        assert candidate.error <= 2.5 * error + 5e-3


def test_a_linear_layer_becomes_the_best_product_of_two_matrices() -> None:
    layer = nn.Linear(30, 20, rng=rng(), dtype=np.float64)
    (target,) = find_targets(layer)
    found = candidates_of(target, ["CP"], "parameters")
    values = np.linalg.svd(layer.weight.data, compute_uv=False) ** 2
    for candidate in found[1:]:
        assert candidate.error == pytest.approx(values[candidate.rank.rank :].sum() / values.sum(), abs=1e-9)
    small = compress(layer, 0.5)
    assert isinstance(small.network, FactorizedLinear)
    error = np.linalg.norm(small.network.matrix() - layer.weight.data) / np.linalg.norm(layer.weight.data)
    assert small.reports["Linear"].weight_error == pytest.approx(error)
    assert small.error == pytest.approx(error)
    assert small.network.bias is not None
    assert np.array_equal(small.network.bias.data, layer.bias.data)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(12, 16, 5, rng=rng()), (2, 12, 20)),
        (nn.Conv3d(6, 8, 3, rng=rng(), padding=1), (2, 6, 5, 5, 5)),
        (nn.ConvNd(4, 4, 6, 2, rng=rng()), (1, 4, 4, 4, 4, 4)),
        (nn.Conv2d(32, 32, 5, rng=rng(), groups=32), (1, 32, 9, 9)),
        (nn.Conv2d(20, 24, 1, rng=rng(), padding_mode="reflect"), (1, 20, 6, 6)),
        (nn.Conv2d(1, 40, 7, rng=rng(), stride=2, dtype=np.float64), (1, 1, 20, 20)),
    ],
    ids=["one axis", "three", "four", "depthwise", "pointwise", "one channel"],
)
@pytest.mark.parametrize("name", ["cp", "tucker", "tt", "ring"])
def test_convolutions_of_every_kind(layer: Any, shape: tuple[int, ...], name: str) -> None:
    found = compress(layer, 0.8, calibration=rng(1).standard_normal(shape), formats=name, by="parameters")
    assert found.parameters.ratio <= 0.8
    assert isinstance(found.network, FactorizedConv)
    x = np.ones(shape, dtype=layer.weight.data.dtype)
    assert found.network(x).shape == layer(x).shape
    assert found.network.weight.dtype == layer.weight.data.dtype


class Twice(Module):
    """A layer used twice, one held in a dictionary, and two that share a weight."""

    def __init__(self) -> None:
        self.again = conv(8, 8, padding=1)
        self.held = {"a": conv(8, 8, seed=1, padding=1)}
        self.tied = [conv(8, 8, seed=2, padding=1), conv(8, 8, seed=3, padding=1)]
        self.tied[1].weight = self.tied[0].weight

    def forward(self, x: Array) -> Array:
        for layer in (self.again, self.held["a"], self.again, *self.tied):
            x = layer(x)
        return x


def test_layers_are_replaced_wherever_they_are_held() -> None:
    net = Twice()
    found = compress(net, 0.7, input_shape=(1, 8, 6, 6), formats=["tucker"])
    assert list(found.reports) == ["again", "held.a"]
    assert isinstance(found.network.again, FactorizedConv)
    assert type(found.network.tied[0]) is nn.Conv2d
    assert found.network.tied[0].weight is found.network.tied[1].weight
    once, twice = found.reports["held.a"].flops, found.reports["again"].flops
    assert twice.before == 2 * once.before


def test_a_graph_with_named_inputs() -> None:
    nodes = [
        Node("left", conv(4, 8, seed=1), ("a",), "p"),
        Node("right", conv(4, 8, seed=2), ("b",), "q"),
        Node("sum", Add(), ("p", "q"), "y"),
    ]
    graph = Graph(nodes, ["a", "b"], ["y"])
    inputs = {name: rng(i).standard_normal((6, 4, 7, 7)).astype(np.float32) for i, name in enumerate("ab")}
    found = compress(graph, 0.6, by="flops", calibration=inputs, input_shape={"a": (2, 4, 7, 7), "b": (2, 4, 7, 7)})
    assert found.reports["left"].input_shape == (2, 4, 7, 7)
    assert found.output_error is not None
    assert found.network.run(inputs)["y"].shape == (6, 8, 5, 5)
    assert found.cost.after <= found.budget
    json.dumps(found.to_dict())


def test_what_is_inside_a_growing_module_stays() -> None:
    net = nn.Sequential(nn.Linear(20, 20, rng=rng()), GrowingMLP(20, 4, hidden_size=[40], rng=rng()))
    assert list(compress(net, 0.9).reports) == ["0"]
    with pytest.raises(ValueError, match=r"layer that may be replaced; layers\.0\.layer: Linear, 840 param"):
        compress(net[1], 0.9)


def test_kept_layers_stay_and_other_formats_are_not_used() -> None:
    found = compress(network(), 0.6, keep=["0", "5"], formats="tt")
    assert list(found.reports) == ["2.0", "3"]
    assert {report.format for report in found.reports.values()} <= {"TT", "Dense"}
    assert type(found.network[0]) is nn.Conv2d


def test_library_and_dtype_stay(xp: Library) -> None:
    net = nn.Sequential(nn.Conv2d.of(xp.asarray(conv(6, 8).weight.data)), nn.Flatten())
    found = compress(net, 0.5, calibration=data(4)[:, [0, 1, 2, 0, 1, 2]])
    assert {type(p.data) for p in found.network.parameters()} == {type(net[0].weight.data)}
    assert found.parameters.after <= 0.5 * found.parameters.before


def test_the_curve_falls_and_the_table_has_every_layer() -> None:
    found = compress(network(), 0.4, input_shape=(1, 3, 11, 11), measure=True, decomposition={"CP": {"starts": 0}})
    for points in found.curves.values():
        assert [p.cost for p in points] == sorted(p.cost for p in points)
        assert [p.error for p in points] == sorted((p.error for p in points), reverse=True)
    assert set(found.curves) == {"best", "CP", "Tucker", "TT"}
    assert found.curve == found.curves["best"]
    assert found.curve[-1].error == 0.0
    text = str(found)
    assert all(name in text for name in found.reports)
    for name, report in found.reports.items():
        assert (f"measured: {name}, " in text) == (report.measured_time is not None)
        assert (f"SLOWER than dense: {name}, " in text) == bool(report.slower)
    assert text.count(" times its measured time") == len(found.slower)
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["parameters"]["after"] == found.parameters.after
    replaced = [r for r in found.reports.values() if r.format != "Dense"]
    assert all(r.measured_time is not None for r in replaced)
    assert found.measured_time is not None


@pytest.mark.parametrize("given", [{}, {"calibration": data(8)}], ids=["shape", "calibration"])
def test_progress_begins_at_nothing_rises_and_ends_at_all(given: dict[str, Any]) -> None:
    told: list[tuple[int, int]] = []
    given = {"formats": ("tucker", "tt"), "input_shape": (1, 3, 11, 11), **given}
    found = compress(network(), 0.4, progress=lambda *step: told.append(step), **given)
    done, totals = zip(*told, strict=True)
    layers = len(found.reports)
    assert set(totals) == {5 * layers}  # the estimates, and at most four turns of decompositions
    assert list(done[: layers + 1]) == list(range(layers + 1))
    assert list(done) == sorted(done)
    assert done[-1] == 5 * layers
    silent = compress(network(), 0.4, **given)
    assert str(silent) == str(found)


def test_the_table_says_which_error_it_shows() -> None:
    found = compress(network(), 0.4, input_shape=(1, 3, 11, 11), formats="tucker")
    assert str(found).splitlines()[0].endswith("  weights off")
    assert "\nweights off: norm of what a layer's weights differ by, over their own norm\n" in str(found)
    found = compress(network(), 0.4, calibration=data(8), formats="tucker")
    assert str(found).splitlines()[0].endswith("  output off")
    assert f"\nnetwork: output off by {found.output_error:.3g} on the calibration data" in str(found)


def test_the_same_seed_gives_the_same_network() -> None:
    nets = [compress(conv(8, 16), 0.4, calibration=np.ones((2, 8, 9, 9)), rng=rng(5), formats="cp") for _ in range(2)]
    states = [found.network.state_dict() for found in nets]
    assert all(np.array_equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))


def test_dense_cost_counts_the_bias() -> None:
    (target,) = find_targets(conv(3, 4))
    assert cost_of(target, Choice(None), "parameters") == 3 * 4 * 9 + 4


class Plain(Module):
    """No layer that could be replaced."""

    def forward(self, x: Array) -> Array:
        return x


def broken() -> nn.Sequential:
    net = network()
    net[3].weight.data[0, 0, 0, 0] = np.nan
    return net


X = {"calibration": data()}


@pytest.mark.parametrize(
    ("net", "budget", "options", "error", "text"),
    [
        (network(), 1.5, {}, ValueError, "budget=1.5, expected a float in"),
        (network(), 0.0, {}, ValueError, "budget=0.0"),
        (network(), -3, {}, ValueError, "budget=-3"),
        (network(), True, {}, ValueError, "budget=True"),
        (
            network(),
            20,
            {},
            ValueError,
            r"budget of 20 parameters cannot be met; the lowest possible is [\d,]+, [\d.]+% of",
        ),
        (network(), 0.5, {"by": "memory"}, ValueError, "by='memory', expected one of parameters, flops, time"),
        (network(), 0.5, {"by": "flops"}, ValueError, "by='flops' needs an input; pass input_shape="),
        (network(), 0.5, {"measure": True}, ValueError, "measure=True needs an input"),
        (network(), 0.5, {"measure": "no", "input_shape": (1, 3, 11, 11)}, TypeError, "compress: measure='no'"),
        (network(), 0.5, {"formats": ["parafac"]}, ValueError, "unknown factorization 'parafac'; expected one of"),
        (network(), 0.5, {"formats": ["dense"]}, ValueError, "expected some of CP, TR, TT, Tucker"),
        (network(), 0.5, {"formats": []}, ValueError, "expected some of CP, TR, TT, Tucker"),
        (network(), "0.5", {}, ValueError, "budget='0.5'"),
        (network(), np.array([0.5, 0.2]), {}, ValueError, r"budget=ndarray of float64 and shape \(2,\)"),
        (network(), 0.5, {"formats": 3}, ValueError, "unknown factorization 3"),
        (network(), 0.5, {"keep": 3}, TypeError, "keep=3, expected the name of a layer, or a list of names"),
        (network(), 0.5, {"rng": 3}, TypeError, "compress: expected rng as a numpy.random.Generator"),
        (network(), 0.5, {"keep": ["x"]}, ValueError, r"keep names no layer x, expected some of 0, 2\.0, 3, 5"),
        (Plain(), 0.5, {}, ValueError, "the network has no convolution or linear layer"),
        (np.ones(3), 0.5, {}, TypeError, "expected a Module, found ndarray"),
        (broken(), 0.5, {}, ValueError, "weight of layer '3' holds a NaN"),
        (
            network(),
            0.5,
            {"calibration": data()[:, :2]},
            ShapeError,
            r"does not take an input of shape \(1, 2, 11, 11\)",
        ),
        (network(), 0.5, {"calibration": data()[:0]}, ShapeError, "with at least one sample"),
        (network(), 0.5, {"calibration": data() * np.nan}, ValueError, "calibration holds a NaN"),
        (network(), 0.5, {"input_shape": (1, 3, 2, 2)}, ShapeError, r"does not take an input of shape \(1, 3, 2, 2\)"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_refusals(net: Any, budget: Any, options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        compress(net, budget, **options)


def test_the_given_network_is_as_before_in_every_respect() -> None:
    net = network()
    state = {name: to_numpy(value) for name, value in net.state_dict().items()}
    held = [(name, id(layer), layer.training) for name, layer in all_modules(net)]
    compress(net, 0.5, calibration=data(), formats="tt")
    assert held == [(name, id(layer), layer.training) for name, layer in all_modules(net)]
    assert all(np.array_equal(state[name], value) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_the_layers_of_the_result_have_their_reports() -> None:
    found = compress(network(), 0.4, calibration=data(), formats="tt")
    layers = {name: layer for name, layer in all_modules(found.network) if isinstance(layer, FactorizedConv)}
    assert layers
    assert all(layer.report is found.reports[name] for name, layer in layers.items())


def test_an_output_that_is_not_finite_is_refused() -> None:
    net = nn.Sequential(conv(3, 4), nn.Flatten())
    net[0].weight.data *= np.float32(1e20)
    with (
        pytest.raises(ValueError, match="output of the network on the calibration data is not finite"),
        np.errstate(all="ignore"),
    ):
        compress(nn.Sequential(net, nn.Linear(4 * 81, 2), nn.Linear.of(np.full((2, 2), 1e30, np.float32))), 0.5, **X)


def test_the_error_is_what_each_replaced_layer_does_to_the_output() -> None:
    net, x = network().eval(), data(16)
    found = compress(net, 0.3, calibration=x, formats="tucker")
    y, total = net(x), 0.0
    for name, report in found.reports.items():
        if report.format != "Dense":
            old, new = dict(all_modules(net))[name], dict(all_modules(found.network))[name]
            gap = np.linalg.norm(swapped(net, {id(old): new})(x) - y) / np.linalg.norm(y)
            total += float(gap) ** 2
    assert found.error == pytest.approx(total**0.5, rel=1e-4)
    assert total > 0.0


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"decomposition": {"tt": {}}, "formats": "tucker"}, ValueError, "options for TT, formats are Tucker"),
        ({"decomposition": [1]}, TypeError, "expected a mapping from formats to their options"),
        ({"decomposition": {"tt": {"sweeps": 3}}}, TypeError, "unknown option 'sweeps'; it has weighted"),
        ({"decomposition": {"cp": 3}}, TypeError, "decomposition for CP is 3, expected a mapping"),
        ({"input_shape": 5}, TypeError, "input_shape: expected a shape, one whole number"),
        ({"input_shape": (0, 3, 11, 11)}, ShapeError, "with sizes of at least 1, found"),
        ({"calibration": data() + 1j}, TypeError, "calibration holds complex64, expected real numbers"),
        ({"calibration": {"x": data()}}, TypeError, "calibration is a mapping, and Sequential has no named inputs"),
    ],
    ids=[
        "unused options",
        "no mapping",
        "unknown option",
        "no options",
        "no shape",
        "no samples",
        "complex data",
        "named data",
    ],
)
def test_what_cannot_be_meant_is_refused(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        compress(network(), 0.5, **options)


def test_a_bias_that_is_no_number_is_named() -> None:
    net = network()
    net[5].bias.data = net[5].bias.data * np.nan
    with pytest.raises(ValueError, match="bias of layer '5' holds a NaN"):
        compress(net, 0.5)


def test_one_name_to_keep_and_a_budget_above_every_cost() -> None:
    found = compress(network(), 10**400, keep="2.0", formats="tucker")
    assert "2.0" not in found.reports
    assert {report.format for report in found.reports.values()} == {"Dense"}


def test_a_curve_of_one_format_has_no_layers_in_another() -> None:
    """Where a convolution has candidates of CP alone, it is dense on the curve of Tucker."""
    offers = {"0": [Candidate(Choice(None), 10.0, 0.0), Candidate(Choice("CP", 1), 4.0, 0.5)]}
    curves = trade_off(offers, ["CP", "Tucker"], [], 0.0, 10.0)
    assert [point.cost for point in curves["Tucker"]] == [10.0]
    assert [point.cost for point in curves["CP"]] == [4.0, 10.0]
    assert trade_off(offers, ["CP", "Tucker"], ["0"], 0.0, 10.0)["Tucker"] == curves["CP"]


def test_the_curve_of_all_formats_is_never_above_that_of_one() -> None:
    """What lies between two corners of all formats may be the corner of one."""
    cheap, fair, dense = Choice("CP", 1), Choice("TT", 1), Choice(None)
    offers = {"0": [Candidate(cheap, 4.0, 0.9), Candidate(fair, 7.0, 0.55), Candidate(dense, 10.0, 0.0)]}
    curves = trade_off(offers, ["CP", "TT"], [], 0.0, 10.0)
    assert [point.cost for point in curves["TT"]] == [7.0, 10.0]
    assert [point.cost for point in curves["best"]] == [4.0, 7.0, 10.0]
    assert [point.error for point in curves["best"]] == pytest.approx([0.9**0.5, 0.55**0.5, 0.0])


def test_figures_are_those_of_the_whole_batch() -> None:
    """Calibration runs a few samples at a time, the shapes of a batch are found in one run."""
    net = nn.Sequential(nn.Conv2d(8, 16, 3, rng=np.random.default_rng(0)))
    report = compress(net, 0.5, input_shape=(50, 8, 6, 6)).reports["0"]
    assert report.input_shape == (50, 8, 6, 6)
    assert report.predicted_time is not None
    assert report.predicted_time.before == net[0].plan((50, 8, 6, 6)).seconds
