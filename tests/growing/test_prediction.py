"""What a planned change promises to first order, and what it does: the sign and the scale of every update.

With everything scaled by g the loss changes by ``-g^2 (d + sigma'(0+) <N', omega alpha>)``, N' = -M_prev. Where the
delta is not planned, or the features of the layer are linear in those of the layer before, that is
``-g^2 first_order_improvement``: without curvature the residual that neurons serve is orthogonal to the delta.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from growarray.growing import FISHER, GRADMAX, TINY, GrowthRule
from tests.growing.pairs import MergeCase, Pair, linear_loss, square_loss
from tests.pairs import pairs

SCALINGS = (1e-2, 1e-3)
KINKED, SMOOTH = ("relu", "leaky_relu", "selu"), ("gelu", "silu", "tanh", "identity")
RULES = {
    "tiny": TINY,
    "fisher": FISHER,
    "no_projection": GrowthRule(compute_delta=False, use_projection=False),
    "identity_s": GrowthRule(use_covariance=False),
    "no_singular_values": GrowthRule(ignore_singular_values=True),
    "one_neuron": GrowthRule(max_new=1),
}
BIASES = {"biased": (True, True), "first": (True, False), "second": (False, True), "none": (False, False)}
RNG = np.random.default_rng(5)
START = RNG.bit_generator.state


@pytest.fixture(autouse=True)
def _same_data_whatever_ran_before() -> None:
    RNG.bit_generator.state = START


def measured(pair: Pair, x: np.ndarray, loss: Any, factor: float) -> float:
    """Decrease of the loss over g^2."""
    pair.second.scaling_factor = factor
    return (loss(pair.forward(x)) - loss(pair.extended(x))) / factor**2


def bilinear(pair: Pair) -> float:
    """The exact decrease to first order, from M_prev and the planned weights alone."""
    assert pair.first.extended_output_layer is not None
    assert pair.second.extended_input_layer is not None
    extension = pair.first.extended_output_layer
    alpha = extension.weight.data
    if extension.bias is not None:
        alpha = np.concatenate([alpha, extension.bias.data[:, None]], axis=1)
    product = pair.second.extended_input_layer.weight.data @ alpha
    delta = pair.second.parameter_update_decrease or 0.0
    return delta - pair.second.activation_gradient * float(np.sum(product.T * pair.second.tensor_m_prev()))


@pytest.mark.parametrize("tokens", [False, True], ids=["samples", "tokens"])
@pytest.mark.parametrize(("rule", "function", "bias"), pairs(RULES, SMOOTH, list(BIASES)))
def test_smooth_pairs_change_as_their_weights_say(rule: str, function: str, bias: str, tokens: bool) -> None:
    shape = (20, 3) if tokens else (60,)
    x, target = RNG.standard_normal((*shape, 4)), RNG.standard_normal((*shape, 2))
    pair = Pair.of((4, 3, 2), function, BIASES[bias])
    loss, gradient = square_loss(target)
    pair.collect(x, gradient, batches=3).second.compute_optimal_updates(RULES[rule])
    assert pair.second.predicted_decrease == pytest.approx(bilinear(pair), rel=1e-9)
    for factor in SCALINGS:
        assert measured(pair, x, loss, factor) == pytest.approx(bilinear(pair), rel=1e-2)


PROMISES_KEPT = {
    "linear_tiny": ("identity", "tiny", 3),
    "linear_one": ("identity", "one_neuron", 3),
    "linear_identity_s": ("identity", "no_projection", 3),
    **{f"{name}_no_projection": (name, "no_projection", 3) for name in SMOOTH},
    **{f"{name}_from_nothing_{rule}": (name, rule, 0) for name in SMOOTH for rule in ("tiny", "one_neuron")},
    "tanh_singular_values": ("tanh", "no_singular_values", 0),
}


@pytest.mark.parametrize("tokens", [False, True], ids=["samples", "tokens"])
@pytest.mark.parametrize("kind", PROMISES_KEPT)
def test_the_promised_improvement_is_kept(kind: str, tokens: bool) -> None:
    function, rule, hidden = PROMISES_KEPT[kind]
    shape = (20, 3) if tokens else (60,)
    x, target = RNG.standard_normal((*shape, 4)), RNG.standard_normal((*shape, 2))
    pair = Pair.of((4, hidden, 2), function)
    loss, gradient = square_loss(target)
    pair.collect(x, gradient).second.compute_optimal_updates(RULES[rule])
    assert pair.second.first_order_improvement > 0
    for factor in SCALINGS:
        assert measured(pair, x, loss, factor) == pytest.approx(pair.second.first_order_improvement, rel=1e-2)


@pytest.mark.parametrize("hidden", [0, 2])
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("function", KINKED)
def test_kinked_activations_keep_the_promise_above_zero(function: str, bias: str, hidden: int) -> None:
    """Positive features and a wanted change that is positive in them: the new neuron is above zero everywhere."""
    x = RNG.uniform(0.5, 1.5, (60, 4))
    slope = -(x @ np.array([1.0, 0.5, 2.0, 1.5]))[:, None] * np.array([[1.0, 0.4]])
    pair = Pair.of((4, hidden, 2), function, BIASES[bias])
    loss, gradient = linear_loss(slope)
    pair.collect(x, gradient).second.compute_optimal_updates(RULES["no_projection"])
    assert pair.second.new_neurons == 1
    for factor in SCALINGS:
        assert measured(pair, x, loss, factor) == pytest.approx(pair.second.first_order_improvement, rel=1e-9)


@pytest.mark.parametrize("rule", ["tiny", "no_projection"])
def test_a_sigmoid_keeps_the_promise_where_its_half_does_not_matter(rule: str) -> None:
    x, slope = RNG.standard_normal((60, 4)), RNG.standard_normal((60, 2))
    slope -= slope.mean(axis=0)  # sigmoid(0) = 1/2 adds a constant of order g, which a centred gradient does not see
    pair = Pair.of((4, 0, 2), "sigmoid")
    loss, gradient = linear_loss(slope)
    pair.collect(x, gradient).second.compute_optimal_updates(RULES[rule])
    for factor in SCALINGS:
        assert measured(pair, x, loss, factor) == pytest.approx(pair.second.first_order_improvement, rel=1e-2)


def test_gradmax_changes_nothing_at_first_and_promises_the_gradient_of_its_neurons() -> None:
    x, target = RNG.standard_normal((60, 4)), RNG.standard_normal((60, 2))
    pair = Pair.of((4, 3, 2), "tanh")
    loss, gradient = square_loss(target)
    pair.collect(x, gradient).second.compute_optimal_updates(GRADMAX)
    assert pair.second.parameter_update_decrease == 0.0
    assert measured(pair, x, loss, 1.0) == 0.0
    before = pair.second.eigenvalues_extension
    pair.second.apply_change(scaling_factor=1.0)
    pair.back(x, lambda y: (y - target) / 60)
    grown = np.concatenate([pair.first.layer.weight.grad[3:], pair.first.layer.bias.grad[3:, None]], axis=1)
    np.testing.assert_allclose(np.linalg.norm(grown, axis=1), before, rtol=1e-9)  # unit omega: |dalpha| = s


@pytest.mark.parametrize("function", [*SMOOTH, *KINKED, "sigmoid"])
@pytest.mark.parametrize("rule", RULES)
def test_extended_forward_is_forward_after_the_change(function: str, rule: str) -> None:
    x, target = RNG.standard_normal((60, 4)), RNG.standard_normal((60, 2))
    pair = Pair.of((4, 3, 2), function)
    loss, gradient = square_loss(target)
    pair.collect(x, gradient).second.compute_optimal_updates(RULES[rule])
    before = pair.forward(x)
    pair.second.scaling_factor = 0.0
    np.testing.assert_allclose(pair.extended(x), before, rtol=0, atol=0)
    pair.second.optimal_delta_scaling, pair.second.input_extension_scaling = 0.3, -0.4
    pair.first.output_extension_scaling = 0.7
    extended = pair.extended(x)
    assert np.abs(extended - before).max() > 1e-3
    pair.second.apply_change()
    np.testing.assert_allclose(pair.forward(x), extended, rtol=0, atol=1e-12)
    assert loss(extended) == pytest.approx(loss(pair.forward(x)))


# Through a merge.

MERGES: dict[str, dict[str, Any]] = {
    "two_one": {"inputs": (4, 3), "outputs": (2,)},
    "two_two": {"inputs": (4, 3), "outputs": (2, 3)},
    "three_two": {"inputs": (4, 3, 5), "outputs": (2, 1)},
    "one_one": {"inputs": (4,), "outputs": (2,)},
    "no_bias": {"inputs": (4, 3), "outputs": (2, 3), "bias": False, "next_bias": False},
    "next_bias": {"inputs": (4, 3), "outputs": (2, 3), "bias": False},
    "one_bias": {"inputs": (4, 3), "outputs": (2, 3), "bias": (True, False), "next_bias": False},
    "shared_input": {"inputs": (4, 4), "outputs": (2, 1), "sources": (0, 0), "bias": (True, False)},
}


def merge_case(kind: str, rule: str, function: str) -> tuple[MergeCase, list[Any], Any]:
    options = dict(MERGES[kind])
    merge_case = MergeCase.of(**options, function=function)
    inputs = [options["inputs"][i] for i in dict.fromkeys(merge_case.sources)]
    xs = [RNG.standard_normal((80, d)) for d in inputs]
    targets = [RNG.standard_normal((80, o)) for o in options["outputs"]]
    losses = [square_loss(t) for t in targets]
    merge_case.collect(xs, lambda ys: [gradient(y) for (_, gradient), y in zip(losses, ys, strict=True)])
    merge_case.merge.compute_optimal_updates(RULES[rule], force_pseudo_inverse=True)
    return merge_case, xs, lambda ys: sum(loss(y) for (loss, _), y in zip(losses, ys, strict=True))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", MERGES)
def test_growth_through_a_merge_changes_the_loss_as_its_weights_say(kind: str, rule: str) -> None:
    joint, xs, loss = merge_case(kind, rule, "tanh")
    parts = []
    for branch in joint.branches:
        parts += [branch.extended_output_layer.weight.data]
        parts += [branch.extended_output_layer.bias.data[:, None]] if branch.use_bias else []
    alpha = np.concatenate(parts, axis=1)
    omega = np.concatenate([reader.extended_input_layer.weight.data for reader in joint.readers])
    expected = sum(reader.parameter_update_decrease for reader in joint.readers)
    expected -= float(np.sum((omega @ alpha).T * joint.merge.tensor_m_prev()))
    assert joint.merge.predicted_decrease == pytest.approx(expected, rel=1e-9)
    before = loss(joint.forward(xs))
    for factor in SCALINGS:
        joint.merge.scaling_factor = factor
        found = (before - loss(joint.extended(xs))) / factor**2
        assert found == pytest.approx(expected, rel=1e-2)
    if rule == "no_projection":
        assert expected == pytest.approx(joint.merge.first_order_improvement)


@pytest.mark.parametrize("kind", ["two_one", "two_two", "three_two", "one_one", "one_bias", "shared_input", "no_bias"])
def test_a_linear_merge_keeps_the_promise_of_tiny(kind: str) -> None:
    joint, xs, loss = merge_case(kind, "tiny", "identity")
    assert joint.merge.predicted_decrease == pytest.approx(joint.merge.first_order_improvement, rel=1e-9)
    before = loss(joint.forward(xs))
    for factor in SCALINGS:
        joint.merge.scaling_factor = factor
        found = (before - loss(joint.extended(xs))) / factor**2
        assert found == pytest.approx(joint.merge.first_order_improvement, rel=1e-2)


@pytest.mark.parametrize("function", ["relu", "tanh", "sigmoid"])
@pytest.mark.parametrize("kind", MERGES)
def test_the_extended_forward_of_a_merge_is_its_forward_after_the_change(kind: str, function: str) -> None:
    joint, xs, _ = merge_case(kind, "tiny", function)
    before = joint.forward(xs)
    joint.merge.scaling_factor = 0.0
    for y, kept in zip(joint.extended(xs), before, strict=True):
        np.testing.assert_allclose(y, kept, rtol=0, atol=0)
    joint.merge.scaling_factor = 0.7
    extended, added = joint.extended(xs), joint.merge.new_neurons
    joint.merge.apply_change()
    for y, expected, old in zip(joint.forward(xs), extended, before, strict=True):
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12)
        assert np.abs(y - old).max() > 1e-4
    assert joint.merge.in_features == 3 + added
    assert {m.out_features for m in joint.branches} == {m.in_features for m in joint.readers} == {3 + added}


def test_one_merge_of_one_layer_grows_as_a_pair_of_layers_does() -> None:
    x, target = RNG.standard_normal((60, 4)), RNG.standard_normal((60, 2))
    pair = Pair.of((4, 3, 2), "tanh")
    joint = MergeCase.of((4,), (2,), function="tanh")
    joint.branches[0].layer.load_state_dict(pair.first.layer.state_dict())
    joint.readers[0].layer.load_state_dict(pair.second.layer.state_dict())
    _, gradient = square_loss(target)
    pair.collect(x, gradient)
    joint.collect([x], lambda ys: [gradient(ys[0])])
    for rule in RULES.values():
        pair.second.compute_optimal_updates(rule)
        joint.merge.compute_optimal_updates(rule)
        assert joint.merge.first_order_improvement == pytest.approx(pair.second.first_order_improvement)
        extensions = [(joint.branches[0].extended_output_layer, pair.first.extended_output_layer)]
        extensions += [(joint.readers[0].extended_input_layer, pair.second.extended_input_layer)]
        if rule.compute_delta:
            extensions += [(joint.readers[0].optimal_delta_layer, pair.second.optimal_delta_layer)]
        for ours, theirs in extensions:
            np.testing.assert_allclose(ours.weight.data, theirs.weight.data, atol=1e-9)
