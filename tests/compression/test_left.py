"""What compression leaves as it is has a name and a reason."""

from __future__ import annotations

import json

import numpy as np

from growarray import nn
from growarray.compression import compress
from growarray.factorized import FactorizedConv
from growarray.networks import GrowingMLP
from tests.compression.test_compress import Twice, conv, network, rng


class Own(nn.Linear):
    """A class of its own."""


def test_what_is_left_as_it_is_has_a_name_and_a_reason() -> None:
    small = FactorizedConv(4, 4, (3, 3), rank=2, padding=1, rng=rng())
    net = nn.Sequential(
        conv(3, 8, padding=1), nn.ConvTranspose2d(8, 4, 3, rng=rng()), small, nn.BatchNorm2d(4), nn.Flatten(),
        GrowingMLP(4 * 13 * 13, 4, hidden_size=[6], rng=rng()), Own(4, 4, rng=rng()), nn.Linear(4, 30, rng=rng()),
    )  # fmt: skip
    found = compress(net, 0.99, input_shape=(1, 3, 11, 11), keep="7")
    assert list(found.reports) == ["0"]
    reasons = {
        "1": "ConvTranspose2d, 292 parameters: transposed convolutions cannot be factorized",
        "2": "FactorizedConv, 30 parameters: it is factorized already",
        "5.layers.0.layer": "Linear, 4,062 parameters: LinearGrowingModule, a growing module, computes with its weight",
        "5.layers.1.layer": "Linear, 28 parameters: LinearGrowingModule, a growing module",
        "6": "Own, 20 parameters: its class is a subclass",
        "7": "Linear, 150 parameters: named in keep",
    }
    assert list(found.left) == list(reasons)
    for name, reason in reasons.items():
        assert found.left[name].startswith(reason)
        assert f"left as it is: {name} ({found.left[name]})" in str(found).splitlines()
    assert json.loads(json.dumps(found.to_dict()))["left"] == found.left
    assert (
        sum(r.parameters.before for r in found.reports.values())
        + sum(int(why.split()[1].replace(",", "")) for why in found.left.values())
        + 8
        == net.number_of_parameters()
    )  # the eight of the norm have no matrix
    assert compress(network(), 0.9).left == {}


def test_layers_that_share_a_weight_are_named() -> None:
    left = compress(Twice(), 0.7, input_shape=(1, 8, 6, 6), formats=["tucker"]).left
    assert list(left) == ["tied.0", "tied.1"]
    assert all(why.endswith("its weight is shared with another layer") for why in left.values())


def test_budgets_may_be_numbers_of_numpy() -> None:
    net = nn.Sequential(conv(8, 8, padding=1))
    assert compress(net, np.float32(0.5)).budget == compress(net, 0.5).budget
    assert compress(net, np.int64(400)).budget == compress(net, 400).budget
