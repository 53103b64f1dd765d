"""The documentation's examples, run as experiments."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"
SEEDS = 20


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
