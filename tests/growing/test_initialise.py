"""Extensions that are drawn, rescaling, pairing, and normalisation of planned changes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from growarray.backend import to_numpy
from growarray.errors import ShapeError
from growarray.growing import GrowthUpdate
from growarray.growing.draw import INITIALISATIONS, initial_values
from growarray.growing.norm import GrowingBatchNorm1d
from growarray.growing.place import take
from growarray.growing.scale import normalisation_scales, rescaling_factors
from growarray.nn import ReLU, Sequential, Tanh
from tests.conftest import Library
from tests.growing.pairs import MergeCase, Pair, layer

SEED = 10
X = np.random.default_rng(SEED).standard_normal((50, 4))


def rng() -> np.random.Generator:
    return np.random.default_rng(SEED)


def parts(pair: Pair) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Incoming weights, outgoing weights, and incoming biases of the new neurons."""
    outer, inner = pair.first.extended_output_layer, pair.second.extended_input_layer
    assert outer is not None
    assert inner is not None
    return outer.weight.data, inner.weight.data, None if outer.bias is None else outer.bias.data


def state(pair: Pair) -> list[Any]:
    arrays = [p.data for module in (pair.first, pair.second) for p in module.parameters()]
    return [*arrays, pair.first.extended_output_layer, pair.second.extended_input_layer]


# Values.

REFERENCE = np.random.default_rng(SEED).standard_normal((30, 40)) * 0.3
DEVIATIONS = {
    "copy_uniform": (float(np.std(REFERENCE, ddof=1)), "uniform"),
    "copy_normal": (float(np.std(REFERENCE, ddof=1)), "normal"),
    "kaiming": (math.sqrt(2 / 8), "uniform"),
    "kaiming_normal": (math.sqrt(2 / 8), "normal"),
    "zeros": (0.0, "none"),
}


def test_every_initialisation_is_tested() -> None:
    assert set(DEVIATIONS) == set(INITIALISATIONS)


@pytest.mark.parametrize("how", DEVIATIONS)
def test_values_have_the_deviation_that_is_wanted(how: str) -> None:
    deviation, kind = DEVIATIONS[how]
    values = initial_values(how, (200, 200), REFERENCE, 8, rng())
    assert values.std() == pytest.approx(deviation, rel=0.02)
    assert abs(values.mean()) <= 0.02 * deviation
    if kind == "uniform":  # fact std_is_unbiased
        assert np.abs(values).max() <= math.sqrt(3) * deviation
        assert np.abs(values).max() > 0.999 * math.sqrt(3) * deviation
    if kind == "normal":
        assert np.abs(values).max() > 3 * deviation


@pytest.mark.parametrize(
    "reference", [np.ones((1, 1)), np.full((3, 4), 0.7), np.ones((0, 4))], ids=["single", "constant", "empty"]
)
def test_nothing_to_copy_falls_back_to_kaiming(reference: np.ndarray) -> None:
    values = initial_values("copy_uniform", (200, 200), reference, 4, rng())
    assert np.abs(values).max() == pytest.approx(math.sqrt(6 / 4), rel=1e-3)


def test_values_have_library_and_dtype_of_the_reference(xp: Library) -> None:
    reference = xp.asarray(REFERENCE.astype(np.float32))
    values = initial_values("copy_normal", (3, 2), reference, 8, rng())
    assert type(values) is type(reference)
    assert to_numpy(values).dtype == np.float32
    host = initial_values("copy_normal", (3, 2), REFERENCE.astype(np.float32), 8, rng())
    np.testing.assert_allclose(to_numpy(values), host, rtol=1e-6)


def test_a_function_may_draw_and_is_asked_for_real_shapes_only() -> None:
    asked = []

    def draw(shape: tuple[int, ...], reference: Any, inputs: int, rng: np.random.Generator) -> np.ndarray:
        asked.append((shape, inputs))
        return np.full(shape, 0.5)

    pair = Pair.of((4, 3, 2))
    pair.second.create_layer_extensions(2, output_extension_init=draw, input_extension_init=draw, rng=rng())
    assert asked == [((2, 2), 5), ((2, 4), 4), ((2,), 4)]
    assert (parts(pair)[0] == 0.5).all()


@pytest.mark.parametrize("bias", [True, False], ids=["biased", "unbiased"])
@pytest.mark.parametrize("how", INITIALISATIONS)
def test_extensions_are_drawn_grown_and_change_the_function_as_foretold(how: str, bias: bool) -> None:
    pair = Pair.of((4, 3, 2), bias=(bias, True))
    pair.second.create_layer_extensions(5, output_extension_init=how, input_extension_init=how, rng=rng())
    alpha, omega, biases = parts(pair)
    assert (alpha.shape, omega.shape) == ((5, 4), (2, 5))
    assert (biases is not None) is bias
    assert alpha.any() == omega.any() == (how != "zeros")
    pair.second.scaling_factor = 1.0
    extended = pair.extended(X)
    pair.second.apply_change(extension_size=5)
    np.testing.assert_allclose(pair.forward(X), extended, atol=1e-12)


def test_one_generator_draws_the_same_twice() -> None:
    pairs = [Pair.of(), Pair.of()]
    for pair in pairs:
        pair.second.create_layer_extensions(3, rng=rng())
    for first, second in zip(parts(pairs[0]), parts(pairs[1]), strict=True):
        np.testing.assert_array_equal(first, second)


# Pairing.


@pytest.mark.parametrize("function", ["relu", "tanh", "sigmoid"])
def test_pairs_without_noise_leave_the_function_as_it_was(function: str, xp: Library) -> None:
    pair = Pair.of(function=function)
    for module in (pair.first, pair.second):
        xp.adopt(module)
    x = xp.asarray(X)
    before = to_numpy(pair.forward(x))
    pair.second.create_layer_extensions(4, neuron_pairing="vv_z_negz", noise_ratio=0.0, rng=rng())
    alpha, omega, biases = (to_numpy(part) for part in parts(pair))
    np.testing.assert_array_equal(alpha[:2], alpha[2:])
    np.testing.assert_array_equal(biases[:2], biases[2:])
    np.testing.assert_array_equal(omega[:, :2], -omega[:, 2:])
    assert omega.all()
    pair.second.apply_change(scaling_factor=1.0)
    np.testing.assert_allclose(to_numpy(pair.forward(x)), before, rtol=0, atol=1e-14)


def test_noise_breaks_the_symmetry_by_its_ratio() -> None:
    """Fact pairing_noise_scale: the sum of a pair has sqrt(2) times the ratio of the deviation."""
    pair = Pair.of((4, 3, 200))
    pair.second.create_layer_extensions(400, neuron_pairing="vv_z_negz", noise_ratio=0.0, rng=rng())
    deviation = parts(pair)[1].std(ddof=1)
    pair.second.apply_neuron_pairing("vv_z_negz", 0.5, rng=rng())
    omega = parts(pair)[1]
    assert (omega[:, :200] + omega[:, 200:]).std() == pytest.approx(math.sqrt(2) * 0.5 * deviation, rel=0.02)


# Rescaling.


@pytest.mark.parametrize("how", ["vt_constraint_old_shape", "vt_constraint_new_shape"])
@pytest.mark.parametrize("added", [1, 5])
def test_rescaling_gives_the_variance_of_the_fan_in(how: str, added: int) -> None:
    pair = Pair.of((40, 30, 20))
    pair.second.apply_rescaling(how, extension_size=added)
    inputs = 30 + (added if how.endswith("new_shape") else 0)
    assert pair.first.weight.data.var(ddof=1) == pytest.approx(1 / 40)
    assert pair.second.weight.data.var(ddof=1) == pytest.approx(1 / inputs)


def test_default_rescaling_keeps_the_variance_of_the_sum() -> None:
    pair = Pair.of((40, 30, 20))
    before = pair.first.weight.data, pair.second.weight.data, pair.second.bias.data
    pair.second.apply_rescaling("default_vt", extension_size=10)
    np.testing.assert_array_equal(pair.first.weight.data, before[0])
    np.testing.assert_allclose(pair.second.weight.data, before[1] * math.sqrt(30 / 40))
    np.testing.assert_allclose(pair.second.bias.data, before[2] * math.sqrt(30 / 40))


def test_a_layer_without_weights_is_not_rescaled() -> None:
    pair = Pair.of((4, 0, 2))
    before = pair.first.weight.data, pair.second.bias.data
    for how in ("default_vt", "vt_constraint_old_shape", "vt_constraint_new_shape"):
        pair.second.apply_rescaling(how, extension_size=3)
    np.testing.assert_array_equal(pair.second.bias.data, before[1])
    assert rescaling_factors("default_vt", np.ones((0, 2)), np.ones((2, 0)), 0) == (1.0, 1.0)


def test_batch_norm_follows_the_rescaling() -> None:
    pair = Pair.of((4, 30, 2))
    norm = GrowingBatchNorm1d(30, dtype=np.float64)
    norm.running_mean, norm.running_var = np.full(30, 2.0), np.full(30, 4.0)
    pair.first.post_layer_function = Sequential(norm, ReLU())
    pair.first.eval()
    before = pair.first(X)
    pair.second.apply_rescaling("vt_constraint_new_shape", extension_size=1)
    np.testing.assert_allclose(pair.first(X), before, rtol=1e-4, atol=1e-4)  # up to eps of the norm


# Normalisation.


def planned(linear: bool = False) -> Pair:
    pair = Pair.of((6, 5, 4))
    target = np.random.default_rng(1).standard_normal((50, 4))
    x = np.random.default_rng(2).standard_normal((50, 6))
    pair.collect(x, lambda y, at: y - target[at])
    pair.second.compute_optimal_updates(max_new=3, ignore_singular_values=linear)
    return pair


def deviations(pair: Pair) -> tuple[float, float, float]:
    """Of the delta, of omega, of alpha."""
    alpha, omega, _ = parts(pair)
    assert pair.second.optimal_delta_layer is not None
    return pair.second.optimal_delta_layer.weight.data.std(ddof=1), omega.std(ddof=1), alpha.std(ddof=1)


@pytest.mark.parametrize("target", [None, 0.25], ids=["own", "given"])
@pytest.mark.parametrize(
    "how",
    [
        "legacy_normalization",
        "weird_normalization",
        "equalize_second_layer",
        "equalize_extensions",
        "match_extending_layer",
    ],
)
def test_each_normalisation_has_its_property(how: str, target: float | None) -> None:
    pair = planned()
    delta, omega, alpha = deviations(pair)
    own, before = pair.second.weight.data.std(ddof=1), pair.first.weight.data.std(ddof=1)
    goal = own if target is None else target
    pair.second.normalize_optimal_updates(target, how)
    expected = {
        "legacy_normalization": (goal, omega, alpha * goal / omega),
        "weird_normalization": (goal, omega, alpha * goal / omega),
        "equalize_second_layer": (goal, goal, alpha * (goal / delta) / (goal / omega)),
        "equalize_extensions": (delta * (goal / omega) * (goal / alpha), goal, goal),
        "match_extending_layer": (own, own, before),
    }[how]
    assert deviations(pair) == pytest.approx(expected)


@pytest.mark.parametrize("linear", [False, True], ids=["squared", "linear"])
@pytest.mark.parametrize("how", ["legacy_normalization", "equalize_second_layer", "match_extending_layer"])
def test_the_promise_follows_the_weights(how: str, linear: bool) -> None:
    """sum(s^2), or sum(s), stays the inner product of the goal and the neurons' product."""
    pair = planned(linear)
    pair.second.normalize_optimal_updates(normalization_type=how)
    alpha, omega, biases = parts(pair)
    assert biases is not None
    product = omega @ np.concatenate([alpha, biases[:, None]], axis=1)
    assert pair.second.new_neurons_fo_improvement == pytest.approx(float(np.sum(product.T * pair.second.tensor_n)))
    delta = pair.second.optimal_delta_layer
    wide = np.concatenate([delta.weight.data, delta.bias.data[:, None]], axis=1)
    assert pair.second.parameter_update_decrease == pytest.approx(float(np.sum(wide.T * pair.second.tensor_m())))


@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("linear", [False, True], ids=["squared", "linear"])
def test_gradmax_gives_new_neurons_the_mean_norm(linear: bool, scale: float) -> None:
    """Fact gradmax_normalization_ignores_linear_regime: there the values follow by the factor, not by its root."""
    pair = planned(linear)
    alpha, omega, _ = parts(pair)
    norms, values = np.linalg.norm(omega, axis=0), pair.second.eigenvalues_extension
    mean = np.linalg.norm(pair.second.weight.data, axis=0).mean()
    pair.second.normalize_optimal_updates(normalization_type="gradmax_normalization", gradmax_scale=scale)
    np.testing.assert_allclose(np.linalg.norm(parts(pair)[1], axis=0), scale * mean)
    np.testing.assert_array_equal(parts(pair)[0], alpha)
    factors = scale * mean / norms
    np.testing.assert_allclose(pair.second.eigenvalues_extension, values * (factors if linear else np.sqrt(factors)))


def test_normalisation_keeps_library_and_dtype(xp: Library) -> None:
    pair, host = planned(), planned()
    for module in (pair.first, pair.second):
        xp.adopt(module)
        for part in (module.optimal_delta_layer, module.extended_input_layer, module.extended_output_layer):
            if part is not None:
                xp.adopt(part)
    pair.second.eigenvalues_extension = xp.asarray(pair.second.eigenvalues_extension)
    for how in ("equalize_extensions", "gradmax_normalization"):
        for one in (pair, host):
            one.second.normalize_optimal_updates(normalization_type=how)
    for ours, theirs in zip(parts(pair), parts(host), strict=True):
        np.testing.assert_allclose(to_numpy(ours), theirs, rtol=1e-12)
    np.testing.assert_allclose(to_numpy(pair.second.eigenvalues_extension), host.second.eigenvalues_extension)


def test_scaling_both_extensions_scales_the_promise_by_their_product() -> None:
    for linear in (False, True):
        pair = planned(linear)
        promised = pair.second.new_neurons_fo_improvement
        pair.second.scale_layer_extension(None, 3.0, 0.5)
        assert pair.second.new_neurons_fo_improvement == pytest.approx(1.5 * promised)
        pair.second.scale_parameter_update(0.5)
        pair.second.scale_layer_extension(2.0)
        assert pair.second.new_neurons_fo_improvement == pytest.approx(6.0 * promised)


# Completion.


@pytest.mark.parametrize("options", [None, {"neuron_pairing": "vv_z_negz"}], ids=["plain", "paired"])
def test_growth_is_completed_to_the_target(options: dict[str, Any] | None) -> None:
    first = layer(4, 3, post_layer_function=Tanh())
    second = layer(3, 2, previous_module=first, target_in_features=7)
    second.complete_growth({**(options or {}), "rng": rng()})
    assert (first.out_features, second.in_features, second.missing_neurons()) == (7, 7, 0)
    assert second.extended_input_layer is first.extended_output_layer is None
    weight = second.weight.data
    second.complete_growth({"rng": rng()})
    assert second.weight.data is weight


def test_completion_does_not_carry_a_planned_delta_out() -> None:
    pair = planned()
    pair.second.target_in_neurons = 8
    weight = pair.second.weight.data.copy()
    pair.second.complete_growth({"rng": rng()})
    np.testing.assert_array_equal(pair.second.weight.data[:, :5], weight)
    assert pair.second.optimal_delta_layer is None


# What is refused, before anything changes.

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "odd": ({"extension_size": 3, "neuron_pairing": "vv_z_negz"}, "needs an even number of neurons, found 3"),
    "odd_outer": (
        {"extension_size": 2, "output_extension_size": 5, "neuron_pairing": "vv_z_negz"},
        "needs an even number of neurons, found 5",
    ),
    "pairing": ({"extension_size": 2, "neuron_pairing": "zz"}, "unknown neuron pairing 'zz'; known: vv_z_negz"),
    "rescaling": ({"extension_size": 2, "rescaling": "vt"}, "unknown rescaling 'vt'; known: default_vt, vt_constr"),
    "input_init": ({"extension_size": 2, "input_extension_init": "he"}, "unknown initialisation 'he'; known: copy_u"),
    "output_init": ({"extension_size": 2, "output_extension_init": "he"}, "unknown initialisation 'he'"),
    "negative": ({"extension_size": -1}, "extension sizes must not be negative, found -1"),
    "no_function": (
        {"extension_size": 2, "input_extension_init": 3},
        "expected a function or one of copy_u.*, found 3",
    ),
    "no_generator": ({"extension_size": 2, "rng": 0}, "second: rng is 0, expected a generator such as"),
    "negative_noise": ({"extension_size": 2, "noise_ratio": -0.1}, "noise_ratio must not be negative, found -0.1"),
    "infinite_noise": ({"extension_size": 2, "noise_ratio": math.inf}, "noise_ratio: expected a finite number"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_refused_extension_changes_nothing(kind: str) -> None:
    options, message = REFUSED[kind]
    pair = Pair.of()
    before = state(pair)
    with pytest.raises((ValueError, TypeError), match=message):
        pair.second.create_layer_extensions(**{"rescaling": "default_vt", **options})
    assert all(now is then for now, then in zip(state(pair), before, strict=True))


def test_a_drawing_of_another_shape_leaves_the_extensions_as_they_were() -> None:
    pair = Pair.of()
    pair.second.create_layer_extensions(2, rng=rng())
    before = [part.copy() for part in parts(pair)]
    draws: dict[str, Any] = {
        "input_extension_init": "kaiming",
        "output_extension_init": lambda shape, reference, inputs, rng: np.ones((3, *shape)),
    }
    with pytest.raises(ShapeError, match=r"expected values of shape \(2, 4\), found \(3, 2, 4\)"):
        pair.second.initialize_extensions(**draws, rng=rng())
    for part, old in zip(parts(pair), before, strict=True):
        np.testing.assert_array_equal(part, old)


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("scale_parameter_update", {"scale": math.nan}, "scale: expected a finite number, found nan"),
        ("scale_layer_extension", {"scale": math.inf}, "scale: expected a finite number, found inf"),
        ("scale_layer_extension", {"scale_output": -1.0, "scale_input": 1.0}, "must have the same sign"),
        ("normalize_optimal_updates", {"std_target": math.nan}, "std_target must be positive and finite, found nan"),
        ("normalize_optimal_updates", {"std_target": math.inf}, "std_target must be positive and finite, found inf"),
        ("sub_select_optimal_added_parameters", {"threshold": math.nan}, "threshold: expected a finite number"),
        ("sub_select_optimal_added_parameters", {"keep_neurons": -1}, "keep_neurons must be at least 0, found -1"),
        ("sub_select_optimal_added_parameters", {"keep_neurons": 1.5}, "must be a whole number, found 1.5"),
        ("apply_rescaling", {"rescaling": "default_vt", "extension_size": -1}, "must not be negative, found -1"),
        ("apply_neuron_pairing", {"neuron_pairing": "vv_z_negz", "noise_ratio": math.nan}, "expected a finite number"),
        ("parameter_step", {"delta_weights": np.ones((5, 4, 5))}, r"a step has shape \(5, 4, 5\), expected \(4, 5\)"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isidentifier() else "",
)
def test_a_number_that_would_spoil_the_plan_is_refused(method: str, arguments: dict[str, Any], message: str) -> None:
    pair = planned()
    before = [*state(pair), *parts(pair), pair.second.eigenvalues_extension]
    with pytest.raises((ValueError, TypeError), match=message):
        getattr(pair.second, method)(**arguments)
    now = [*state(pair), *parts(pair), pair.second.eigenvalues_extension]
    assert all(one is then for one, then in zip(now, before, strict=True))


@pytest.mark.parametrize("keep", [-1, 1.5, math.nan])
def test_a_merge_keeps_a_whole_number_of_neurons(keep: Any) -> None:
    joint = MergeCase.of(bias=(True, False))
    ones = {"input_extension": np.ones((2, 2)), "output_extension": np.ones((2, 8)), "singular_values": np.ones(2)}
    take(joint.merge, GrowthUpdate(**ones))
    with pytest.raises((ValueError, TypeError), match="merge: keep_neurons must be"):
        joint.merge.sub_select_optimal_added_parameters(keep)
    assert joint.merge.new_neurons == joint.branches[0].extended_output_layer.out_features == 2


def test_misuse_is_refused_by_name() -> None:
    pair = Pair.of()
    with pytest.raises(RuntimeError, match="needs the previous module's output extension; allocate it first"):
        pair.second.apply_neuron_pairing("vv_z_negz")
    with pytest.raises(ValueError, match="allocate_layer_extensions needs a growing layer before it, found None"):
        pair.first.create_layer_extensions(2)
    with pytest.raises(ValueError, match="gradmax_normalization needs an input extension"):
        pair.second.normalize_optimal_updates(normalization_type="gradmax_normalization")
    with pytest.raises(ValueError, match="unknown normalisation 'best'; known: equalize_second_layer"):
        pair.second.normalize_optimal_updates(normalization_type="best")
    with pytest.raises(ValueError, match="gradmax_scale must be positive and finite, found -1"):
        planned().second.normalize_optimal_updates(normalization_type="gradmax_normalization", gradmax_scale=-1)
    for how in ("equalize_extensions", "match_extending_layer"):
        with pytest.raises(ValueError, match=f"{how} needs a growing layer before it, found None"):
            pair.first.normalize_optimal_updates(normalization_type=how)
    with pytest.raises(ValueError, match="one of the two extensions is missing"):
        pair.second.scale_layer_extension(2.0)
    with pytest.raises(ValueError, match="pass scale, or both scale_output and scale_input"):
        planned().second.scale_layer_extension(scale_output=2.0)


def test_no_spread_to_aim_at_is_said() -> None:
    with pytest.raises(
        ValueError, match="the weights of the layer have no standard deviation to aim at; pass std_target"
    ):
        normalisation_scales("legacy_normalization", np.ones((2, 0)), np.ones((2, 2)), None, None)
    pair = Pair.of((4, 0, 2))
    pair.second.create_layer_extensions(2, rng=rng())
    with pytest.warns(
        UserWarning, match="the existing weights have no norm for gradmax_normalization; nothing is scaled"
    ):
        pair.second.normalize_optimal_updates(normalization_type="gradmax_normalization")
