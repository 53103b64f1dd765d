"""Parameter and Module: growth with slots, names, loading, moving, default hooks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from growarray import nn
from growarray.backend import device_of, to_device, to_numpy
from growarray.errors import DeviceError, ShapeError
from growarray.nn.module import Module, Parameter
from growarray.testing import assert_close
from tests.conftest import Library


def parameter(xp: Library) -> Parameter:
    p = Parameter(xp.asarray(np.arange(6.0).reshape(2, 3)))
    p.accumulate(xp.asarray(np.full((2, 3), 2.0)))
    p.slots = {"exp_avg": xp.asarray(np.full((2, 3), 3.0)), "step": 5}
    return p


@pytest.mark.parametrize(("axis", "block"), [(0, (1, 3)), (1, (2, 2)), (-1, (2, 1))], ids=str)
def test_extend_grows_data_gradient_and_slots_together(axis: int, block: tuple[int, ...], xp: Library) -> None:
    p = parameter(xp)
    p.extend(axis, xp.asarray(np.full(block, 9.0)))
    old = (slice(0, 2), slice(0, 3))
    for value, inside, outside in [
        (p.data, np.arange(6.0).reshape(2, 3), 9.0),
        (p.grad, 2.0, 0.0),
        (p.slots["exp_avg"], 3.0, 0.0),
        (p.slots["step"], 5.0, 0.0),
    ]:
        host = to_numpy(value).copy()
        assert host.shape == p.shape
        assert device_of(value) == device_of(p.data)
        assert (host[old] == inside).all()
        host[old] = outside
        assert (host == outside).all()


def test_extend_takes_over_the_dtype_of_the_data() -> None:
    p = Parameter(np.ones(2, np.float32))
    p.extend(0, np.ones(1))
    assert p.data.dtype == np.float32


def test_a_refused_extension_changes_nothing(xp: Library) -> None:
    p = parameter(xp)
    data, gradient, slots = p.data, p.grad, dict(p.slots)
    with pytest.raises(ShapeError, match=r"extension along axis 1 has shape \(3, 1\), parameter \(2, 3\)"):
        p.extend(1, xp.asarray(np.ones((3, 1))))
    assert p.data is data
    assert p.grad is gradient
    assert p.slots == slots


def test_accumulate_adds_and_keeps_no_array_of_the_caller() -> None:
    p, gradient = Parameter(np.zeros(2, np.float32)), np.ones(2)
    p.accumulate(gradient)
    p.accumulate(gradient)
    gradient[:] = 7.0
    assert p.grad.tolist() == [2.0, 2.0]
    assert p.grad.dtype == np.float32
    with pytest.raises(ShapeError, match=r"gradient has shape \(3,\), parameter \(2,\)"):
        p.accumulate(np.ones(3))


class Tree(Module):
    """Owns a list, a dictionary and a child; links to a neighbour."""

    _links = ("neighbour",)

    def __init__(self) -> None:
        self.blocks: Any = [nn.Linear(2, 2), nn.Linear(2, 1, bias=False)]
        self.heads = {"a": nn.Linear(1, 1, bias=False)}
        self.scale = Parameter(np.ones(1))
        self.neighbour = nn.Linear(50, 50)


def test_names_follow_ownership_and_skip_links() -> None:
    names = [name for name, _ in Tree().named_parameters()]
    assert names == ["blocks.0.weight", "blocks.0.bias", "blocks.1.weight", "heads.a.weight", "scale"]
    assert Tree().number_of_parameters() == 4 + 2 + 2 + 1 + 1


def test_a_shared_parameter_counts_once() -> None:
    tree = Tree()
    tree.blocks = [tree.blocks[0], tree.blocks[0]]
    assert tree.number_of_parameters() == 4 + 2 + 1 + 1


def test_train_and_eval_reach_every_module() -> None:
    tree = Tree().eval()
    assert [m.training for m in tree.modules()] == [False] * 4
    assert tree.neighbour.training  # type: ignore[attr-defined]
    assert all(m.training for m in tree.train().modules())


def test_the_default_slope_is_numeric_and_leaves_gradients_alone() -> None:
    layer = nn.Linear.of(np.array([[3.0]]), np.array([1.0]))
    assert layer.slope_at_zero == 3.0
    assert layer.weight.grad is None

    class Square(Module):
        def vjp(self, x: Any) -> Any:
            return x * x, lambda dy: 2.0 * x * dy

    assert Square().slope_at_zero == pytest.approx(2e-5)


def test_default_hooks_apply_the_layer_and_change_nothing() -> None:
    layer = nn.Linear.of(np.eye(2))
    y, y_ext = layer.extended_forward(np.ones((1, 2)), np.zeros((3, 2)))
    assert y is not None
    assert y_ext is not None
    assert y_ext.shape == (3, 2)
    _, pullback = layer.extended_vjp(np.ones((1, 2)), np.ones((3, 2)))
    dx, dx_ext = pullback(np.ones((1, 2)), np.ones((3, 2)))
    assert dx.shape == (1, 2)
    assert dx_ext.shape == (3, 2)
    assert_close(layer.weight.grad, np.full((2, 2), 4.0))
    layer.extend(3)
    layer.rescale(2.0)
    assert_close(layer.weight.data, np.eye(2))


def test_to_moves_to_another_device_of_the_library() -> None:
    strict = pytest.importorskip("array_api_strict")
    one = strict.Device("device1")
    layer = nn.BatchNorm1d(2)
    for p in layer.parameters():
        p.data = strict.asarray(p.data)
    for name in layer._buffers:
        setattr(layer, name, strict.asarray(getattr(layer, name)))
    layer.to(one)
    assert {device_of(v) for v in layer.state_dict().values()} == {one}
    assert layer.device == one


def test_an_unknown_or_missing_device_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown device 'tpu'"):
        nn.Linear(1, 1).to("tpu")
    with pytest.raises((DeviceError, ValueError), match=r"cuda:999|CuPy"):
        nn.Linear(1, 1).to("cuda:999")


@pytest.mark.gpu
def test_a_layer_trains_on_the_gpu() -> None:
    layer = nn.Sequential(nn.Linear(3, 4, rng=np.random.default_rng(0)), nn.BatchNorm1d(4), nn.GELU())
    x = np.random.default_rng(1).standard_normal((5, 3)).astype(np.float32)
    expected, _ = layer.vjp(x)
    layer.to("cuda")
    moved = to_device(x, "cuda")
    y, pullback = layer.vjp(moved)
    assert type(pullback(y)) is type(moved)
    assert_close(y, expected, rtol=1e-5)


def test_a_module_without_vjp_says_so() -> None:
    with pytest.raises(NotImplementedError, match=r"Module must define vjp\(x\)"):
        Module()(np.ones(1))


def test_modules_have_the_names_of_their_parameters() -> None:
    tree = Tree()
    named = dict(tree.named_modules())
    assert list(named) == ["", "blocks.0", "blocks.1", "heads.a"]
    assert named[""] is tree
    assert named["heads.a"] is tree.heads["a"]
    for name, parameter in tree.named_parameters():
        holder, _, attribute = name.rpartition(".")
        assert getattr(named[holder], attribute) is parameter
    assert [id(module) for module in tree.modules()] == [id(module) for module in named.values()]


def test_a_shared_module_is_named_once() -> None:
    layer = nn.Linear(2, 2)
    net = nn.Sequential(layer, nn.ReLU(), nn.Sequential(layer))
    assert [name for name, _ in net.named_modules()] == ["", "0", "1", "2"]


def test_predict_runs_in_evaluation_mode_in_batches_and_puts_modes_back() -> None:
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2, rng=np.random.default_rng(0)))
    net[2].eval()
    x = np.random.default_rng(1).standard_normal((10, 3)).astype(np.float32)
    before, modes = net.state_dict(), [module.training for module in net.modules()]
    y = net.predict(x, batch_size=4)
    assert [module.training for module in net.modules()] == modes
    assert all(np.array_equal(value, before[name]) for name, value in net.state_dict().items())
    assert_close(y, net.eval()(x), rtol=1e-6)


def test_predict_of_a_graph_of_several_inputs_and_outputs() -> None:
    nodes = [nn.Node("sum", nn.Add(), ("a", "b"), "s"), nn.Node("act", nn.ReLU(), ("s",), "r")]
    a, b = np.ones((5, 2)), -2.0 * np.ones((5, 2))
    total, active = nn.Graph(nodes, ["a", "b"], ["s", "r"]).predict(a, b, batch_size=2)
    assert total.tolist() == (a + b).tolist()
    assert active.tolist() == np.zeros((5, 2)).tolist()


@pytest.mark.parametrize(("shape", "size"), [((0, 3), 4), ((5, 3), 0)], ids=["no_samples", "no_batch"])
def test_predict_of_nothing_is_refused(shape: tuple[int, ...], size: int) -> None:
    net = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=f"Linear.predict: found {shape[0]} samples and batch_size={size}"):
        net.predict(np.ones(shape, np.float32), batch_size=size)
    assert net.training
