"""What a plan prices is what runs: the routines of every step, forward and backward, are those that were asked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from growarray.contraction import Plan, plan
from growarray.contraction.routines.choice import ROUTINES
from growarray.contraction.routines.protocol import D_FEATURE, D_KERNEL, FORWARD
from growarray.contraction.routines.windows import transposed_parts
from tests.contraction.reference import random_arrays

CP = "n c y x, r, o r, c r, y r, x r -> n o y x | y, x"
TUCKER = "n c y x, p q u v, o p, c q, y u, x v -> n o y x | y, x"
TRAIN = "n c y x, c p, p y q, q x r, r o -> n o y x | y, x"
DENSE = "n c y x, o c y x -> n o y x | y, x"
CASES: dict[str, tuple[str, list[tuple[int, ...]], dict[str, Any]]] = {
    "cp": (CP, [(2, 16, 14, 14), (9,), (20, 9), (16, 9), (3, 9), (3, 9)], {"padding": 1}),
    "tucker": (TUCKER, [(2, 16, 14, 14), (6, 5, 3, 3), (20, 6), (16, 5), (3, 3), (3, 3)], {"padding": 1}),
    "tensor train": (TRAIN, [(2, 16, 14, 14), (16, 5), (5, 3, 6), (6, 3, 7), (7, 20)], {"padding": 1}),
    "dense, few channels": (DENSE, [(2, 8, 14, 14), (9, 8, 3, 3)], {"padding": 1}),
    "dense, wide": (DENSE, [(2, 40, 14, 14), (48, 40, 3, 3)], {"padding": 1}),
    "dense, deep": (DENSE, [(1, 300, 4, 4), (320, 300, 3, 3)], {"padding": 1, "stride": 2}),
    "depthwise": ("n c y x, c y x -> n c y x | y, x", [(2, 16, 14, 14), (16, 3, 3)], {"padding": 1}),
    "grouped": ("n g c y x, g o c y x -> n g o y x | y, x", [(2, 2, 8, 9, 9), (2, 6, 8, 3, 3)], {}),
    "volume": ("n c z y x, o c z y x -> n o z y x | z, y, x", [(1, 33, 6, 7, 8), (34, 33, 3, 3, 3)], {"padding": 1}),
    "plain": ("i j, j k, k l -> i l", [(30, 40), (40, 50), (50, 20)], {}),
}
OPTIONS = [{"optimize": name, "stride": s} for name in ("auto", "factorized", "reconstructed") for s in (1, 2)]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, Any]]:
    """(way, name, product) of every routine that runs, one call of NumPy by a program included."""
    found: list[tuple[str, str, Any]] = []
    for routine in ROUTINES:
        made = routine.__init__

        def remembering(self: Any, product: Any, *, _made: Any = made) -> None:
            _made(self, product)
            self.made_for = product

        monkeypatch.setattr(routine, "__init__", remembering)
        for way in routine.ways:
            original = getattr(routine, way)

            def spied(self: Any, *arguments: Any, _way: str = way, _original: Any = original) -> Any:
                found.append((_way, self.name, self.made_for))
                return _original(self, *arguments)

            monkeypatch.setattr(routine, way, spied)
    return found


@pytest.fixture
def priced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, Any]]:
    """(way, name, product) of every routine that is asked for its price."""
    found: list[tuple[str, str, Any]] = []
    for routine in ROUTINES:
        original = routine.seconds

        def spied(product: Any, machine: Any, way: str, _name: str = routine.name, _original: Any = original) -> float:
            found.append((way, _name, product))
            seconds: float = _original(product, machine, way)
            return seconds

        monkeypatch.setattr(routine, "seconds", staticmethod(spied))
    return found


def planned(name: str, options: dict[str, Any], dtype: str) -> Plan:
    equation, shapes, geometry = CASES[name]
    if "|" not in equation:
        options = {"optimize": "auto"}
    # not out of the cache, so that it is priced now, and with nothing that was made before
    return Plan(
        equation, shapes, options["optimize"], "time", None, True, (), dtype, None, options.get("stride", 1),
        geometry.get("padding", 0), 1, "zeros",
    )  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: f"{o['optimize']} {o['stride']}")
@pytest.mark.parametrize("name", CASES)
def test_what_ran_is_what_was_priced(name, options, dtype, ran, priced):
    made = planned(name, options, dtype)
    arrays = random_arrays(made.shapes, dtype=dtype)
    asked = {(way, routine, without_block(product)) for way, routine, product in priced}
    y, pullback = made.vjp(*arrays)
    pullback(y)
    steps = made.execution.program(arrays).steps
    for step, cost in zip(steps, made.steps, strict=True):
        assert step.routines == (cost.routine, cost.d_feature, cost.d_kernel)
    assert ran
    for way, routine, product in ran:
        assert (way, routine, without_block(product)) in asked
    by_way = {way: {routine for w, routine, _ in ran if w == way} for way in (FORWARD, D_FEATURE, D_KERNEL)}
    called = {step.forward.name for step in steps if step.call is None}
    inner = {r for w, r, p in asked if w == FORWARD and r in by_way[FORWARD]}
    assert called <= by_way[FORWARD] <= called | inner
    assert by_way[D_FEATURE] == {cost.d_feature for cost in made.steps}
    assert by_way[D_KERNEL] == {cost.d_kernel for cost in made.steps}


def without_block(product: Any) -> Any:
    """A product without the sizes of axes that are not convolved: of a block, and of the whole batch."""
    axes = tuple(a if not a.is_plain else a.name for a in product.axes)
    return (product.b, product.s, product.n, axes, product.working_set, product.workspace_factor, product.itemsize)


def test_a_plan_for_one_dtype_runs_another_by_the_routines_for_it():
    made = plan(DENSE, (2, 32, 16, 16), (32, 32, 3, 3), padding=1, dtype="float32")
    arrays = {dtype: random_arrays(made.shapes, dtype=dtype) for dtype in ("float32", "float64")}
    names = {dtype: made.execution.program(x).steps[0].routines for dtype, x in arrays.items()}
    assert names == {"float32": ("winograd", "transposed", "winograd"), "float64": ("rows", "transposed", "rows")}


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_the_parts_of_a_gradient_cost_what_the_forward_product_does(stride):
    made = plan(DENSE, (1, 8, 12, 12), (8, 8, 3, 3), stride=stride, padding=1)
    product = made.execution.program(random_arrays(made.shapes, dtype=np.float32)).steps[0].pair.product
    parts = [part for *_, part in transposed_parts(product) if part is not None]
    assert len(parts) == min(stride, 3) ** 2
    assert sum(p.columns * p.taps for p in parts) >= product.columns * product.taps


def test_a_plan_for_a_gpu_is_priced_by_what_runs_there():
    equation, shapes, options = CASES["cp"]
    made = plan(equation, *shapes, optimize="factorized", training=True, device="cuda", **options)
    names = [(step.routine, step.d_feature, step.d_kernel) for step in made.steps]
    assert set(names) == {("matmul",) * 3, ("depthwise",) * 3}
    assert names.count(("depthwise",) * 3) == 3  # a scaling, and one axis after the other
    assert all(step.seconds > 0 and step.backward_seconds > step.seconds for step in made.steps)
