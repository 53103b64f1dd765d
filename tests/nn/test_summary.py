"""What a network is made of: each use of a layer with its shapes, parameters, operations and predicted time."""

from __future__ import annotations

import numpy as np
import pytest

from growarray import FactorizedConv, GrowingMLP, nn
from growarray.errors import ShapeError
from growarray.factorized import FactorizedEmbedding
from growarray.networks import GrowingResidualMLP, History

RNG = np.random.default_rng(0)


def network() -> nn.Sequential:
    conv = nn.Conv2d(1, 4, 3, padding=1, rng=RNG)
    factorized = FactorizedConv(4, 8, 3, order=2, padding=1, rank=4, rng=RNG)
    return nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU(), factorized, GrowingMLP((8, 8, 8), 10, 3, rng=RNG))


def test_layers_shapes_parameters_and_operations() -> None:
    made = network()
    found = made.summary((2, 1, 8, 8))
    assert [(layer.name, layer.kind, layer.output) for layer in found.layers] == [
        ("0", "Conv2d", (2, 4, 8, 8)),
        ("1", "BatchNorm2d", (2, 4, 8, 8)),
        ("2", "ReLU", (2, 4, 8, 8)),
        ("3", "FactorizedConv", (2, 8, 8, 8)),
        ("4.layers.0", "LinearGrowingModule", (2, 3)),
        ("4.layers.1", "LinearGrowingModule", (2, 10)),
    ]
    assert [layer.parameters for layer in found.layers] == [40, 8, 0, 76, 512 * 3 + 3, 40]
    assert (found.parameters, found.trained) == (made.number_of_parameters(),) * 2
    first, *_, hidden, last = found.layers
    assert first.flops == made[0].plan((2, 1, 8, 8)).flops == 2 * 2 * 64 * 4 * 9
    assert first.seconds == made[0].plan((2, 1, 8, 8)).seconds
    assert (hidden.flops, last.flops) == (2 * 2 * 512 * 3, 2 * 2 * 3 * 10)
    assert found.flops == sum(layer.flops or 0 for layer in found.layers)
    assert found.layers[1].flops is None


def test_it_leaves_the_network_as_it_was() -> None:
    made = network()
    before, attributes = made.state_dict(), [set(vars(m)) for m in made.modules()]
    made.summary((2, 1, 8, 8))
    for name, value in made.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    assert [set(vars(m)) - a for m, a in zip(made.modules(), attributes, strict=True)] == [{"training"}] * len(
        attributes
    )
    assert made.training


def test_a_layer_that_runs_twice_is_counted_once() -> None:
    layer = nn.Linear(3, 3, rng=RNG)
    found = nn.Sequential(layer, nn.Tanh(), layer).requires_grad_(False).summary((5, 3))
    assert [layer.parameters for layer in found.layers] == [12, 0, 0]
    assert (found.parameters, found.trained) == (12, 0)
    assert "0 parameters are trained, 12 are frozen" in str(found)


def test_several_inputs_and_merges() -> None:
    graph = nn.Graph([nn.Node("sum", nn.Add(), ("a", "b"), "y")], ["a", "b"], ["y"])
    (layer,) = graph.summary([(2, 3), (1, 3)]).layers
    assert (layer.inputs, layer.output) == (((2, 3), (1, 3)), (2, 3))
    residual = GrowingResidualMLP(4, 3, 2, 2, rng=RNG)
    assert sum(layer.parameters for layer in residual.summary((1, 4)).layers) == residual.number_of_parameters()


def test_it_prints_as_a_table() -> None:
    lines = str(nn.Sequential(nn.Linear(3, 4, rng=RNG), nn.ReLU()).summary((2, 3))).splitlines()
    assert lines[0] == "Sequential"
    assert lines[1].split() == ["layer", "class", "output", "parameters", "FLOPs", "time"]
    assert lines[2].split()[:6] == ["0", "Linear", "(2,", "4)", "16", "48"]
    assert lines[-2].split()[:3] == ["sum", "16", "48"]


@pytest.mark.parametrize("shape", [(0, 3), (-1, 3), "ab", (2, 3.5), 3, [(2, "a")]])
def test_shapes_that_are_none_are_refused(shape: object) -> None:
    with pytest.raises(ShapeError, match="summary: input_shape is"):
        nn.Linear(3, 2).summary(shape)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "table", [nn.Embedding(8, 4, rng=RNG), FactorizedEmbedding(8, 4, rank=2, rng=RNG)], ids=["table", "factorized"]
)
def test_whole_numbers_come_in_if_they_are_asked_for(table: nn.Module) -> None:
    found = nn.Sequential(table, nn.Linear(4, 2, rng=RNG)).summary((3, 5), dtype="int64")
    assert [(layer.output, layer.parameters) for layer in found.layers] == [
        ((3, 5, 4), sum(p.size for p in table.parameters())),
        ((3, 5, 2), 10),
    ]


def test_an_error_of_the_network_leaves_nothing_behind() -> None:
    made = nn.Sequential(nn.Linear(3, 2, rng=RNG))
    with pytest.raises(ShapeError):
        made.summary((2, 4))
    assert not {"forward", "vjp"} & {name for module in made.modules() for name in vars(module)}


def test_notebooks_show_everything_escaped() -> None:
    history = History()
    history.add("growth", epoch=1, where="<b>layer</b>", train_loss=0.5)
    conv = nn.Conv2d(2, 3, 3, rng=RNG)
    conv.padding_mode = "<i>"
    graph = nn.Graph([nn.Node("<script>", nn.ReLU(), ("x",), "y")], ["x"], ["y"])
    assert "<b>" not in history._repr_html_()
    assert '<td style="text-align:right">0.5000</td>' in history._repr_html_()
    assert "&lt;b&gt;layer" in history._repr_html_()
    assert "<script>" not in graph._repr_html_()
    assert "&lt;script&gt;" in graph._repr_html_()
    assert "&lt;i&gt;" in nn.Sequential(conv)._repr_html_()
    plan = nn.Conv2d(2, 3, 3, rng=RNG).plan((1, 2, 8, 8))._repr_html_()
    assert "-&gt;" in plan
    assert plan.count("<table>") >= 1
    report = nn.Linear(2, 2).load_state_dict({"<w>": np.ones(2)}, strict=False)
    assert "&lt;w&gt;" in report._repr_html_()
