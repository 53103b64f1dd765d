"""Networks of any kind with a growing part: the loop trains and grows them whole."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from growarray.errors import GrowthError
from growarray.growing import LinearGrowingModule
from growarray.networks import GrowingMLP, GrowingResidualMLP, Growth, GrowthSettings, history
from growarray.networks.history import line_of
from growarray.networks.part import PartlyGrowing, as_growing
from growarray.networks.picture import figure_of
from growarray.nn import (
    BatchNorm2d,
    Conv2d,
    Flatten,
    Graph,
    Linear,
    MaxPool2d,
    Module,
    Node,
    ReLU,
    Sequential,
    Tanh,
)
from growarray.optim import Adam
from tests.networks.checks import check_all_gradients
from tests.networks.runs import KINDS, LABELS, X, assert_same, loop, network, weights

IMAGES = np.random.default_rng(7).standard_normal((150, 1, 6, 6))
KIND = (IMAGES[:, 0, :3].sum(axis=(1, 2)) > IMAGES[:, 0, 3:].sum(axis=(1, 2))).astype(np.int64)


def head(kind: str, features: int, outputs: int = 2) -> Any:
    options: dict[str, Any] = {"activation": Tanh(), "dtype": np.float64, "rng": np.random.default_rng(1)}
    if kind == "mlp":
        return GrowingMLP(features, outputs, (2, 2), **options)
    return GrowingResidualMLP(features, outputs, 2, 2, 1, **options)


def convolutional(kind: str = "mlp") -> Sequential:
    rng = np.random.default_rng(2)
    stem = (
        Conv2d(1, 3, 3, rng=rng, dtype=np.float64),
        BatchNorm2d(3, dtype=np.float64),
        ReLU(),
        MaxPool2d(2),
        Flatten(),
    )
    return Sequential(Sequential(*stem), head(kind, 12, 3), Tanh(), Linear(3, 2, rng=rng, dtype=np.float64))


class Own(Module):
    """A class of a user: two growing layers by hand, behind a layer that does not grow."""

    def __init__(self) -> None:
        kind: dict[str, Any] = {"dtype": np.float64, "rng": np.random.default_rng(3)}
        self.embed = Linear(4, 5, **kind)
        self.first = LinearGrowingModule(5, 2, post_layer_function=Tanh(), name="first", **kind)
        self.second = LinearGrowingModule(2, 2, previous_module=self.first, name="second", **kind)
        self.first.next_module = self.second

    def vjp(self, x: Any) -> Any:
        y, back = self.embed.vjp(x)
        h, back_first = self.first.vjp(y)
        z, back_second = self.second.vjp(h)
        return z, lambda dy: back(back_first(back_second(dy)))


def in_a_graph() -> Graph:
    nodes = [
        Node("embed", Linear(4, 5, dtype=np.float64, rng=np.random.default_rng(3)), ("x",), "h"),
        Node("head", head("mlp", 5), ("h",), "y"),
    ]
    return Graph(nodes, ["x"], ["y"])


MODULES: dict[str, tuple[Any, Any, Any]] = {
    "convolutions": (convolutional, IMAGES, KIND),
    "convolutions_residual": (lambda: convolutional("residual"), IMAGES, KIND),
    "own_class": (Own, X, LABELS),
    "graph": (in_a_graph, X, LABELS),
}
each_module = pytest.mark.parametrize(("make", "x", "labels"), MODULES.values(), ids=MODULES)


def run_of(module: Module, x: Any, labels: Any, **settings: Any) -> Growth:
    options = {"epochs": 4, "every": 1, "first": 1, "neurons": 2, "batch_size": 50, **settings}
    rng = np.random.default_rng(0)
    return Growth(module, Adam(module, lr=1e-2), (x, labels), settings=GrowthSettings(**options), rng=rng)


@pytest.mark.filterwarnings("ignore:optimal_delta. S is singular")
@each_module
def test_every_kind_grows_and_says_what_came_of_it(make: Any, x: Any, labels: Any) -> None:
    module = make()
    run = run_of(module, x, labels)
    names, parameters, widths = list(module.state_dict()), module.number_of_parameters(), list(run.network.widths)
    for _ in range(2):
        run.train_epoch()
        before, old = run.evaluate(run.data)[0], list(run.network.widths)
        entry = run.grow()
        after = run.evaluate(run.data)[0]
        assert after == pytest.approx(entry["train_loss"])
        assert after < before
        assert entry["train_change"] == pytest.approx(entry["train_loss"] - before)
        assert run.network.widths[entry["layer_index"]] == old[entry["layer_index"]] + entry["added"]
    assert entry["parameters"] == module.number_of_parameters() > parameters  # the user's module itself grew
    assert list(module.state_dict()) == names == list(run.network.state_dict())
    assert sum(run.network.widths) > sum(widths)


@each_module
def test_the_planned_change_is_what_is_carried_out(make: Any, x: Any, labels: Any) -> None:
    module = make()
    run = run_of(module, x, labels)
    run.network.eval()
    run.planner.collect(run.data)
    run.network.compute_optimal_updates(max_new=2)
    place, plain, before = run.network.growing_layers[0], module(x), weights(module)
    place.scaling_factor = 0.5
    planned = run.network.extended_forward(x)
    assert_same(weights(module), before)  # nothing has changed yet
    np.testing.assert_array_equal(module(x), plain)
    assert np.abs(planned - plain).max() > 1e-3
    run.network.select_update(0)
    run.network.apply_change(0.5)
    np.testing.assert_allclose(module(x), planned, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_in_a_sequential_grows_as_it_does_alone(kind: str) -> None:
    alone, inside = network(kind), network(kind)
    wrapped = Sequential(inside)
    first, second = loop(kind, network=alone), loop(kind, network=wrapped, optimizer=Adam(wrapped, lr=1e-2))
    first.run()
    second.run()
    assert [s["train_loss"] for s in first.history.of("train")] == pytest.approx(
        [s["train_loss"] for s in second.history.of("train")], rel=1e-9
    )
    for ours, theirs in zip(inside.parameters(), alone.parameters(), strict=True):
        np.testing.assert_allclose(ours.data, theirs.data, rtol=1e-6, atol=1e-9)


@each_module
def test_gradients_of_the_whole(make: Any, x: Any, labels: Any) -> None:
    module = make().eval()
    check_all_gradients(PartlyGrowing(module), x[:3])


def test_a_growing_network_stays_what_it_is() -> None:
    grown = network()
    assert as_growing(grown) is grown
    assert loop(network=grown).network is grown


@pytest.mark.parametrize("module", [Sequential(Linear(4, 2)), Sequential(LinearGrowingModule(4, 2)), np.tanh])
def test_where_nothing_can_grow_it_is_said(module: Any) -> None:
    with pytest.raises(TypeError, match=r"expected a GrowingNetwork such as GrowingMLP, or a module with one inside"):
        Growth(module, Adam(network()), (X, LABELS))


def test_flops_of_kernels_are_refused() -> None:
    run = run_of(convolutional(), IMAGES, KIND, max_flops=10_000)
    with pytest.raises(GrowthError, match=r"'0\.0\.weight' depend on the size of the samples.*use max_parameters="):
        run.run()


# Frozen parts.


def test_a_frozen_stem_stays_while_the_head_grows() -> None:
    module = convolutional()
    module[0].requires_grad_(False).eval()
    before = module[0].state_dict()
    run = run_of(module, IMAGES, KIND)
    run.run()
    assert run.growths > 0
    for name, value in module[0].state_dict().items():
        if not name.startswith("1.running") and not name.endswith("tracked"):  # statistics are no parameters
            np.testing.assert_array_equal(value, before[name])
    assert all(p.grad is None and not p.slots for p in module[0].parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_growth_leaves_places_alone_whose_layers_are_frozen(kind: str) -> None:
    run = loop(kind, epochs=3)
    places = run.network.growing_layers
    frozen = [run.network.layers[2]] if kind == "mlp" else [run.network.blocks[1].second, run.network.blocks[1].first]
    for layer in frozen:
        layer.requires_grad_(False)
    before = [weights(layer) for layer in frozen]
    run.run()
    assert run.growths > 0
    for layer, values in zip(frozen, before, strict=True):
        assert_same(weights(layer), values)
    assert {entry["layer_index"] for entry in run.history.of("growth") if "layer_index" in entry} == {0}
    assert len(places) > 1


def test_a_network_that_is_frozen_whole_says_so() -> None:
    run = loop(epochs=2)
    run.train_epoch()
    run.network.requires_grad_(False)
    assert run.grow()["refused"] == "every layer is frozen"


# Progress, and the picture.


def test_progress_is_a_line_for_each_entry() -> None:
    run, lines = loop(epochs=3), []
    run.run(progress=lines.append)
    assert lines == [line_of(entry, 3, "accuracy") for entry in run.history.steps]
    assert lines[0].startswith("epoch 1/3  loss 0.")
    assert any("grew by 2  training loss 0." in line for line in lines)
    assert run.callbacks == []


def test_progress_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    run = loop(task="regression", network=network(), epochs=2)
    run.run(progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == len(run.history.steps)
    assert ", R2 " in captured.err
    run.run()
    assert capsys.readouterr().err == ""


def test_progress_of_another_kind_is_refused() -> None:
    wrong: Any = "yes"
    with pytest.raises(TypeError, match=r"Growth.run: progress is 'yes', expected True, False, or a function"):
        loop().run(progress=wrong)


def test_a_history_draws_itself(tmp_path: Any) -> None:
    run = loop(epochs=3)
    run.run()
    figure = run.history.plot(tmp_path / "run.svg")
    assert (tmp_path / "run.svg").read_text().startswith("<?xml")
    loss, score, width = figure.axes
    assert loss.lines[0].get_ydata().tolist() == [e["train_loss"] for e in run.history.of("train")]
    assert score.lines[0].get_ydata().tolist() == [e["validation_score"] for e in run.history.of("train")]
    assert score.get_ylabel() == "score"  # of the task, which a history of the loop does not name
    assert width.lines[0].get_ydata()[-1] == run.network.widths[0]


def test_a_legend_of_many_widths_covers_no_line() -> None:
    entry = {"event": "train", "train_loss": 2.0, "validation_loss": 2.1, "validation_score": 0.3, "widths": [2] * 9}
    steps = [{**entry, "epoch": epoch} for epoch in (1, 2)]
    width = figure_of(steps, {"compare": {"steps": steps}}).axes[2]
    width.figure.draw_without_rendering()
    legend = width.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == [*(f"width {i}" for i in range(9)), "fixed"]
    assert legend.get_window_extent().x0 >= width.get_window_extent().x1
    assert legend.get_window_extent().x1 <= width.figure.bbox.x1


def test_nothing_to_draw_is_said() -> None:
    with pytest.raises(ValueError, match=r"History.plot: the history holds no epoch"):
        history.History().plot()


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "growarray.networks.picture", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'History.plot: .*; install it with: pip install "growarray\[cli\]"'):
        history.History().plot()
