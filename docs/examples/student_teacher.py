"""GradMax against random growth: the student-teacher experiment of Evci et al. 2022, section 4.1.

A student of 5 hidden neurons learns what a teacher of 10 does: 1000 samples of 10 features, 10 outputs, no biases,
a ReLU capped at 1. Every 200 steps it gains a neuron, five times. Neither way of adding it changes the function:
GradMax gives the neuron zero incoming weights and the outgoing direction in which the gradient will be largest;
random growth gives it random incoming weights of the same norm and no outgoing ones. What is measured is how much
the norm of the gradient by all weights rises at the growth: the more, the faster the loss can fall.

Run it to draw the picture: python docs/examples/student_teacher.py FILE.png
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from growarray.growing import GRADMAX
from growarray.networks import GrowingMLP
from growarray.nn import Module
from growarray.nn.module import Pullback
from growarray.ops import mse
from growarray.optim import SGD

SAMPLES, FEATURES, STUDENT, TEACHER, GROWTHS, STEPS, RATE = 1000, 10, 5, 10, 5, 200, 0.1


class CappedReLU(Module):
    """``min(max(x, 0), 1)``, with derivative 1 at zero, so that a neuron without incoming weights can start."""

    slope_at_zero = 1.0

    def vjp(self, x: Any) -> tuple[Any, Pullback]:
        """Value and pullback."""
        return np.clip(x, 0.0, 1.0), lambda dy: dy * ((x >= 0.0) & (x < 1.0))


def network(hidden: int, rng: np.random.Generator) -> GrowingMLP:
    """One hidden layer, no biases, weights with variance 1 / fan-in."""
    result = GrowingMLP(FEATURES, FEATURES, hidden, activation=CappedReLU(), use_bias=False, dtype=np.float64, rng=rng)
    for layer in result.layers:
        layer.layer.weight.data = rng.standard_normal(layer.weight.shape) / np.sqrt(layer.in_features)
    return result


def gradient(student: GrowingMLP, x: np.ndarray, target: np.ndarray) -> float:
    """Leave the gradient of the mean squared error in the parameters; return its norm over all weights."""
    student.zero_grad()
    y, pullback = student.vjp(x)
    pullback(mse(y, target)[1](float(FEATURES)))  # summed over outputs, averaged over samples
    return float(np.sqrt(sum((p.grad**2).sum() for p in student.parameters())))


def add_neuron(student: GrowingMLP, method: str, x: np.ndarray, target: np.ndarray, rng: np.random.Generator) -> None:
    """One neuron more, by GradMax or at random; its one non-zero side has norm 1."""
    first, second = student.layers
    if method == "gradmax":
        student.init_computation()
        gradient(student, x, target)
        student.update_computation()
        student.compute_optimal_updates(GRADMAX, max_new=1)  # singular values ignored: outgoing norm 1
        student.reset_computation()
    else:
        incoming = rng.standard_normal((1, FEATURES))
        first.set_output_extension(incoming / np.linalg.norm(incoming))
        second.plan_input_extension(np.zeros((FEATURES, 1)))
    second.apply_change(scaling_factor=1.0)
    second.delete_update()


def gains(method: str, seed: int) -> list[float]:
    """Rise of the gradient's norm at each of the growths, of one student."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((SAMPLES, FEATURES))
    target = network(TEACHER, rng)(x)
    student = network(STUDENT, rng)
    optimizer, result = SGD(student, lr=RATE), []
    for _ in range(GROWTHS):
        for _ in range(STEPS):
            gradient(student, x, target)
            optimizer.step()
        before = gradient(student, x, target)
        add_neuron(student, method, x, target, rng)
        result.append(gradient(student, x, target) - before)
    return result


def draw(path: str, seeds: int = 20) -> None:
    """Mean and standard error of the gains over ``seeds`` students, both methods, as a picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    for method, label, colour in (("gradmax", "GradMax", "#0b6e4f"), ("random", "random", "#c8553d")):
        values = np.array([gains(method, seed) for seed in range(seeds)])
        error = values.std(axis=0, ddof=1) / np.sqrt(seeds)
        axes.errorbar(
            range(1, GROWTHS + 1), values.mean(axis=0), error, label=label, color=colour, marker="o", capsize=3
        )
        print(f"{label:>8}: " + "  ".join(f"{v:.3f}" for v in values.mean(axis=0)))
    axes.set(xlabel="growth", ylabel="rise of the gradient's norm", ylim=(0, None), xticks=range(1, GROWTHS + 1))
    axes.set_title(
        f"Student growing from {STUDENT} to {STUDENT + GROWTHS} neurons, {seeds} seeds", loc="left", fontsize=10
    )
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    draw(sys.argv[1] if len(sys.argv) > 1 else "student_teacher.png")
