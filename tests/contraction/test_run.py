"""Blocks of the batch: any batch size, bits that no number of threads changes, and only the work that was asked for."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from growarray.contraction import Plan, plan, program, run
from growarray.contraction.step import Step
from growarray.errors import ShapeError
from growarray.testing import assert_close
from tests.contraction.reference import Layer, cp, direct, random_arrays, reconstructed, tensor_train, tucker

BATCHES = [1, 2, 7, 8, 9, 33, 83]
GEOMETRY = {"stride": [1, 2], "padding": [(1, 1), (0, 1)], "dilation": [1, 1], "padding_mode": ["zeros", "circular"]}


def layers(batch: int) -> dict[str, Layer]:
    """Feature maps so small that a block holds several images."""
    return {
        "CP": cp(batch, (5, 6), (11, 13), (3, 2), 4),
        "Tucker": tucker(batch, (5, 6), (11, 13), (3, 2), (4, 3, 2, 2)),
        "TT": tensor_train(batch, (5, 6), (11, 13), (3, 2), (4, 3, 4)),
    }


def made_for(layer: Layer, **options: Any) -> Plan:
    return plan(layer.equation, *layer.shapes, dtype="float64", **GEOMETRY, **options)


@pytest.fixture
def blocked(monkeypatch):
    """Small work is cut and shared out as large work is."""
    cached = importlib.import_module("growarray.contraction.plan")._cached
    for module, name in ((run, "_TINY"), (run, "_LIGHT"), (program, "_CACHED")):
        monkeypatch.setattr(module, name, 0)
    cached.cache_clear()
    yield
    cached.cache_clear()


def bits(made: Plan, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """The result alone and with gradients: one array after the other."""
    y, pullback = made.vjp(*arrays)
    dy = np.random.default_rng(9).standard_normal(y.shape).astype(y.dtype)
    return [made(*arrays), y, *(g for g in pullback(dy) if g is not None)]


def assert_same_bits(found: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    assert len(found) == len(wanted)
    for index, (one, other) in enumerate(zip(found, wanted, strict=True)):
        assert np.array_equal(one, other), f"array {index} differs by {np.max(np.abs(one - other))}"


@pytest.mark.parametrize("optimize", ["factorized", "reconstructed", "auto"])
@pytest.mark.parametrize("kind", ["CP", "Tucker", "TT"])
@pytest.mark.parametrize("batch", BATCHES)
def test_any_batch_is_the_loop_and_its_gradients_are_sums_over_images(batch, kind, optimize, blocked):
    layer = layers(batch)[kind]
    made = made_for(layer, optimize=optimize)
    assert 1 < made.block < 10  # several images a block; for 33 a shorter last one, for 83 more blocks than groups
    assert 33 % made.block
    arrays = random_arrays(layer.shapes)
    wanted = direct(layer.dense, [arrays[0], reconstructed(layer, arrays[1:])], GEOMETRY)
    y, pullback = made.vjp(*arrays)
    assert_close(y, wanted, rtol=1e-11)
    assert_close(made(*arrays), wanted, rtol=1e-11)
    dy = np.random.default_rng(3).standard_normal(y.shape)
    gradients = pullback(dy)
    single = plan(layer.equation, (1, *layer.shapes[0][1:]), *layer.shapes[1:], dtype="float64", **GEOMETRY)
    parts = [single.vjp(arrays[0][n : n + 1], *arrays[1:])[1](dy[n : n + 1]) for n in range(batch)]
    assert_close(gradients[0], np.concatenate([p[0] for p in parts]), rtol=1e-11)
    for k in range(1, len(arrays)):
        assert_close(gradients[k], sum(p[k] for p in parts), rtol=1e-11)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["CP", "Tucker", "TT", "plain", "dense"])
@pytest.mark.parametrize("batch", [1, 9, 33, 83])
def test_no_number_of_threads_changes_a_bit(batch, kind, dtype, blocked, monkeypatch):
    if kind == "plain":
        made = plan("ij,jk,kl->il", (40, 60), (60, 700), (700, 30), dtype=dtype)
    elif kind == "dense":
        equation = "n c y x, o c y x -> n o y x | y, x"
        made = plan(equation, (batch, 20, 14, 12), (24, 20, 3, 3), padding=1, dtype=dtype)
    else:
        made = made_for(layers(batch)[kind])
    arrays = random_arrays(made.shapes, dtype=dtype)
    monkeypatch.setenv("GROWARRAY_THREADS", "1")
    wanted = bits(made, arrays)
    for threads in ("1", "2", "5"):
        monkeypatch.setenv("GROWARRAY_THREADS", threads)
        for _ in range(2):
            assert_same_bits(bits(made, arrays), wanted)


@pytest.mark.parametrize(
    ("equation", "named", "shapes"),
    [
        ("c ... x, o c x -> ... o x | x", "c n x, o c x -> n o x | x", ((3, 3, 300), (4, 3, 3))),
        ("c x ..., o c x -> o x ... | x", "c x n, o c x -> o x n | x", ((3, 300, 3), (4, 3, 3))),
        ("... n c x, o c x -> n ... o x | x", "a b n c x, o c x -> n a b o x | x", ((2, 2, 5, 3, 300), (4, 3, 3))),
        ("... c x, ... o c x -> ... o x | x", "a n c x, a m o c x -> a n o x | x", ((2, 5, 3, 300), (2, 1, 4, 3, 3))),
        ("... c x, ... o c x -> ... o x | x", "n c x, m o c x -> n o x | x", ((5, 3, 300), (1, 4, 3, 3))),
        ("c z n x, o c x -> n o x | x", "c z n x, o c x -> n o x | x", ((3, 3, 3, 300), (4, 3, 3))),
    ],
    ids=["after c", "last", "before n", "one axis broadcast", "broadcast", "behind equal sizes"],
)
def test_blocks_are_cut_along_the_right_axis(equation, named, shapes, blocked):
    arrays = random_arrays(shapes)
    made, other = (plan(e, *shapes, dtype="float64") for e in (equation, named))
    assert other.block < shapes[0][named.split(",")[0].split().index("n")]  # so that it is cut
    y, pullback = made.vjp(*arrays)
    wanted, back = other.vjp(*arrays)
    options = {key: values[:1] for key, values in GEOMETRY.items()} | {"stride": [1], "padding": [(0, 0)]}
    assert_close(wanted, direct(named, arrays, options), rtol=1e-12)
    assert_close(y, wanted, rtol=1e-12)
    for one, two in zip(pullback(y), back(y), strict=True):
        assert_close(one, two, rtol=1e-12)


def test_a_diagonal_batch_is_not_cut(blocked):
    x, w = random_arrays([(5, 5, 3, 300), (4, 3, 3)])
    made = plan("n n c x, o c x -> n o x | x", x.shape, w.shape, dtype="float64")
    plain = np.ascontiguousarray(np.einsum("nncx->ncx", x))
    wanted = plan("n c x, o c x -> n o x | x", plain.shape, w.shape, dtype="float64").vjp(plain, w)
    y, pullback = made.vjp(x, w)
    assert_close(y, wanted[0], rtol=1e-12)
    d_x, d_w = pullback(y)
    assert_close(np.einsum("nncx->ncx", d_x), wanted[1](y)[0], rtol=1e-12)
    assert_close(d_w, wanted[1](y)[1], rtol=1e-12)


@pytest.mark.parametrize("kind", ["CP", "Tucker", "TT"])
@pytest.mark.parametrize("optimize", ["auto", "reconstructed"])
def test_a_plan_for_one_batch_size_runs_others(kind, optimize, blocked):
    layer = layers(9)[kind]
    made = made_for(layer, optimize=optimize)
    for batch in (0, 1, 5, 9, 40):
        arrays = random_arrays([(batch, *layer.shapes[0][1:]), *layer.shapes[1:]])
        wanted = direct(layer.dense, [arrays[0], reconstructed(layer, arrays[1:])], GEOMETRY)
        y, pullback = made.vjp(*arrays)
        assert_close(y, wanted, rtol=1e-11)
        assert y.shape[0] == batch
        gradients = pullback(y)
        assert [g.shape for g in gradients] == [a.shape for a in arrays]  # type: ignore[union-attr]
        for array, gradient in zip(arrays, gradients, strict=True):
            assert np.isclose(np.sum(array * gradient), np.sum(y * y), rtol=1e-10)


@pytest.mark.parametrize("kind", ["CP", "Tucker", "TT"])
@pytest.mark.parametrize("optimize", ["factorized", "mobilenet", "reconstructed", "auto"])
def test_an_empty_batch_gives_an_empty_result_and_zero_gradients(xp, kind, optimize):
    layer = layers(0)[kind]
    made = made_for(layer, optimize=optimize)
    arrays = [xp.asarray(a) for a in random_arrays(layer.shapes)]
    y, pullback = made.vjp(*arrays)
    assert tuple(y.shape) == made.output_shape
    assert 0 in y.shape
    for gradient, shape in zip(pullback(y), layer.shapes, strict=True):
        assert_close(gradient, np.zeros(shape), rtol=0)


@pytest.mark.parametrize("threads", ["1", "2"])
@pytest.mark.parametrize("batch", [1, 33])
def test_nothing_is_written_into_what_was_given(batch, threads, blocked, monkeypatch):
    monkeypatch.setenv("GROWARRAY_THREADS", threads)
    layer = layers(batch)["CP"]
    made = made_for(layer)
    arrays = [a.copy() for a in random_arrays(layer.shapes)]
    kept = [a.copy() for a in arrays]
    y, pullback = made.vjp(*arrays)
    dy = np.random.default_rng(3).standard_normal(y.shape)
    first, given = y.copy(), dy.copy()
    one = [g.copy() for g in pullback(dy)]
    made(*(a[::-1] if a.ndim > 3 else a for a in arrays))  # another run in between
    assert_same_bits(list(pullback(dy)), one)
    assert_same_bits([*arrays, dy, y], [*kept, given, first])


def test_what_comes_back_is_the_callers_own():
    layer = layers(5)["TT"]
    made = made_for(layer)
    arrays = random_arrays(layer.shapes)
    y, pullback = made.vjp(*arrays)
    gradients = pullback(y)
    kept = [y.copy(), *(g.copy() for g in gradients)]
    for _ in range(3):
        made.vjp(*(a * 2 for a in arrays))[1](y)
    assert_same_bits([y, *gradients], kept)
    for gradient in gradients:
        gradient += 1  # writeable, and apart from the others
    assert np.array_equal(y, kept[0])


@pytest.mark.parametrize("batch", [1, 9, 33])
def test_operands_that_are_not_contiguous_give_the_same_values(batch, blocked):
    layer = layers(batch)["Tucker"]
    made = made_for(layer)
    arrays = random_arrays(layer.shapes)
    turned = [np.ascontiguousarray(a.T).T for a in arrays]
    spread = [np.repeat(a, 2, axis=0)[::2] for a in arrays]
    flipped = [np.ascontiguousarray(a[..., ::-1])[..., ::-1] for a in arrays]
    wanted = bits(made, arrays)
    for others in (turned, spread, flipped):
        assert any(not a.flags.c_contiguous for a in others)
        for found, value in zip(bits(made, others), wanted, strict=True):
            assert_close(found, value, rtol=1e-12)
    shared = np.broadcast_to(arrays[0][:1], arrays[0].shape)
    assert_close(made(shared, *arrays[1:]), np.repeat(made(arrays[0][:1], *arrays[1:]), batch, axis=0), rtol=1e-12)


@pytest.mark.parametrize("batch", [1, 9, 33])
def test_out_is_filled_and_returned(batch, blocked):
    layer = layers(batch)["CP"]
    made = made_for(layer)
    arrays = random_arrays(layer.shapes)
    wanted = made(*arrays)
    out = np.full(wanted.shape, np.nan)
    assert made(*arrays, out=out) is out
    assert np.array_equal(out, wanted)
    strided = np.full((*wanted.shape[:-1], 2 * wanted.shape[-1]), np.nan)[..., ::2]
    assert made(*arrays, out=strided) is strided
    assert_close(strided, wanted, rtol=1e-12)
    turned = np.full(wanted.shape[::-1], np.nan).T
    assert_close(made(*arrays, out=turned), wanted, rtol=1e-12)


def test_out_of_another_kind_is_refused_and_left_alone():
    made = plan("ij,jk->ik", (2, 3), (3, 4), dtype="float64")
    x, w = np.ones((2, 3)), np.ones((3, 4))
    for out in (np.zeros((4, 2)), np.zeros((2, 4), np.float32), np.broadcast_to(0.0, (2, 4))):
        with pytest.raises(ShapeError, match=r"expected writeable float64 \(2, 4\)"):
            made(x, w, out=out)
        assert not out.any()
    square = np.ones((3, 3))
    with pytest.raises(ShapeError, match="out shares memory with an operand; pass a separate array"):
        plan("ij,jk->ik", (3, 3), (3, 3), dtype="float64")(square, np.ones((3, 3)), out=square.T)
    assert square.all()


@pytest.fixture
def calls(monkeypatch):
    """Which products of the backward pass are run: by feature map, by kernel, on NumPy and elsewhere."""
    found: list[tuple[str, int]] = []
    for name, side in (("by_feature", "f"), ("by_kernel", "k")):
        original = getattr(Step, name).func

        def spied(self: Step, _name: str = name, _side: str = side, _original: Any = original) -> Any:
            found.append((_name, getattr(self, _side)))
            return _original(self)

        monkeypatch.setattr(Step, name, property(spied))
    return found


@pytest.mark.parametrize("wrt", [[], [0], [1], [0, 3], [2, 4], [0, 1, 2, 3, 4]], ids=str)
@pytest.mark.parametrize("optimize", ["factorized", "reconstructed"])
def test_only_what_is_asked_for_is_computed(xp, optimize, wrt, calls):
    layer = cp(3, (2, 3), (6, 5), (3, 2), 2, weights=False)
    made = plan(layer.equation, *layer.shapes, optimize=optimize, dtype="float64")
    arrays = random_arrays(layer.shapes)
    dy = np.random.default_rng(1).standard_normal(made.output_shape)
    every = made.vjp(*arrays)[1](dy)
    calls.clear()
    some = made.vjp(*(xp.asarray(a) for a in arrays), wrt=wrt)[1](xp.asarray(dy))
    assert [g is None for g in some] == [i not in wrt for i in range(5)]
    for i in wrt:
        assert_close(some[i], every[i], rtol=1e-12)
    wanted = sum(1 << i for i in wrt)
    sides, every = {side for _, side in calls}, {half for pair in made.tree for half in pair if half & wanted}
    assert sides <= every if xp.name == "cupy" else sides == every  # nothing else, and all of it; a chain is one there
    if wrt == [0]:
        assert not any("kernel" in name for name, _ in calls)


def test_small_partial_results_make_larger_blocks_of_half_the_batch_at_most():
    def block(batch: int, rank: int, **options: Any) -> int:
        equation, side = "n c y x, c r, r y, r x, o r -> n o y x | y, x", 32  # more positions than a block needs
        shapes = ((batch, 64, side, side), (64, rank), (rank, 3), (rank, 3), (64, rank))
        return plan(equation, *shapes, padding=1, optimize="factorized", **options).block

    assert (block(8, 32), block(32, 32), block(8, 384)) == (4, 8, 1)  # 2^18 elements are 8 results of 32 x 32 x 32
    assert block(8, 16, memory_limit=1 << 30) == 1


@pytest.mark.parametrize(
    ("size", "least", "flops", "count"),
    [(8, 4, 1 << 28, 2), (8, 4, 1 << 30, 4), (8, 8, 1 << 28, 1), (7, 2, 1 << 28, 4), (33, 4, 1 << 28, 8), (1, 1, 0, 1)],
)
def test_light_runs_have_two_blocks_where_heavy_ones_have_four(size, least, flops, count):
    assert run.block_count(size, least, flops) == count
