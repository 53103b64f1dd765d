"""The documentation's examples, run as experiments."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from growarray.contraction.machine import machine_for

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"
SEEDS = 5  # the picture has 20; the gap of each growth is six standard errors with as few


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_gradmax_raises_the_gradient_more_than_random_growth_at_every_growth() -> None:
    example = load("student_teacher")
    means = {
        method: np.mean([example.gains(method, seed) for seed in range(SEEDS)], axis=0)
        for method in ("gradmax", "random")
    }
    assert means["gradmax"].shape == (example.GROWTHS,) == (5,)
    assert np.all(means["random"] > 0)  # the growth changes no output, and any new direction adds to the gradient
    assert np.all(means["gradmax"] > means["random"]), means


def test_neither_method_changes_the_function() -> None:
    example = load("student_teacher")
    for method in ("gradmax", "random"):
        rng = np.random.default_rng(0)
        x = rng.standard_normal((50, example.FEATURES))
        target, student = example.network(example.TEACHER, rng)(x), example.network(example.STUDENT, rng)
        before = student(x)
        example.add_neuron(student, method, x, target, rng)
        assert student.widths == [example.STUDENT + 1]
        np.testing.assert_allclose(student(x), before, rtol=0, atol=1e-14)


def test_a_network_is_compressed_and_trained_on_and_another_grows_from_rank_one() -> None:
    example = load("compress_digits")
    images = example.Images.load()
    images = images._replace(x=images.x[:600], y=images.y[:600])
    net = example.dense(images, seed=0, epochs=6)
    whole = example.measure(net, images)
    assert whole.accuracy > 0.85
    before = net.state_dict()
    for name in example.FORMATS:
        small = example.measure(example.tuned(net, 0.25, name, images, epochs=2), images)
        assert small.parameters < 0.55 * whole.parameters  # the first convolution and the last layer stay
        assert small.accuracy > whole.accuracy - 0.15, name
    assert all(np.array_equal(value, before[key]) for key, value in net.state_dict().items())
    for name in example.FORMATS:
        points = [example.measure(n, images) for n in example.grown(name, images, seed=0, stages=1, epochs=2)]
        assert [p.parameters for p in points] == sorted({p.parameters for p in points})
        assert points[-1].accuracy > points[0].accuracy + 0.1, name


def test_growth_of_the_rank_lowers_the_loss() -> None:
    example = load("compress_digits")
    images, rng = example.Images.load(), np.random.default_rng(0)
    x, y = images.x[:96], images.y[:96]
    images = images._replace(x=images.x[:200], y=images.y[:200])
    for name in example.FORMATS:
        net = example.rank_one(name, rng)
        example.train(net, images, 1, example.Adam(net), rng)
        before = example.loss(net, x, y)
        found = example.grow(net, x, y)
        assert found.factor > 0
        assert example.loss(net, x, y) == found.loss < before


def test_widening_an_imported_network_changes_no_output() -> None:
    example = load("imported_cnn")
    rng = np.random.default_rng(0)
    net = example.from_onnx(example.FILE, dtype="float64")
    x = rng.standard_normal((20, *example.SHAPE[1:]))
    before, wide = net(x), example.widened(net, 3, rng)
    assert wide["layer2.0.conv2"].weight.shape == (24, 24, 3, 3)
    np.testing.assert_allclose(wide(x), before, rtol=0, atol=1e-14 * np.abs(before).max())
    assert net["layer2.0.conv2"].weight.shape == (8, 8, 3, 3)
    for node in wide.nodes:
        if isinstance(node.module, example.nn.Conv2d):  # the new channels are of use, not of zeros
            assert np.all(np.any(node.module.weight.data, axis=(1, 2, 3))), node.name


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Times as the default model predicts them for two cores, whatever this machine is."""
    monkeypatch.setenv("GROWARRAY_THREADS", "2")
    monkeypatch.setenv("GROWARRAY_CACHE", str(tmp_path))
    machine_for.cache_clear()
    yield
    machine_for.cache_clear()


@pytest.mark.usefixtures("two_cores")
def test_an_imported_network_is_compressed_to_a_time_and_exported() -> None:
    example = load("imported_cnn")
    images = example.Images.load()
    images = images._replace(x=images.x[:1000], y=images.y[:1000])
    story = example.main(epochs=3, tuning=1, rounds=1, images=images)
    assert "cannot be met" in story.refusal
    assert story.compression.predicted_time.ratio <= example.BUDGET
    assert story.compression.network["layer2.0.conv2"].number_of_parameters() < 64 * 64 * 9
    points = story.points
    assert points["trained on"].parameters == points["compressed"].parameters < 0.5 * points["widened"].parameters
    assert points["widened"].accuracy > 0.93
    assert points["trained on"].accuracy > max(0.9, points["compressed"].accuracy - 0.03)
    assert story.agreement < 1e-5


@pytest.mark.usefixtures("two_cores")
def test_of_all_orders_of_a_contraction_the_automatic_one_is_near_the_fastest() -> None:
    example = load("landing")
    times = example.every_order()
    assert len(times) == 945  # 9 * 7 * 5 * 3: ways to join six operands two by two
    assert times[0] <= example.seconds("auto") <= 1.05 * times[0]
    assert times[0] < example.seconds("optimal") < example.seconds("reconstructed") < times[-1]
