"""A sample of weight w counts in every statistic as if it had come w times."""

import numpy as np
import pytest

from growarray.backend import to_numpy
from growarray.growing import Conv2dGrowingModule, LinearGrowingModule, LinearMergeGrowingModule, TensorStatistic
from growarray.networks.build import build_network, hidden_activation, number_of_places
from growarray.networks.graph import GrowingDAG
from growarray.networks.network import GrowingNetwork
from growarray.nn import SELU
from tests.conftest import LIBRARIES

WEIGHTS = np.array([2.0, 0.0, 1.0, 3.0, 1.0, 0.0, 2.0, 1.0, 1.0, 4.0])


class Branches(GrowingNetwork):
    """Two layers that read one input and meet in a merge that grows, and two layers that read it."""

    def __init__(self, rng):
        options = {"rng": rng, "dtype": np.float64}
        self.branches = [LinearGrowingModule(4, 3, name=f"branch {i}", use_bias=i == 0, **options) for i in range(2)]
        self.merge = LinearMergeGrowingModule(SELU(), self.branches, allow_growing=True, in_features=3, name="merge")
        self.readers = [LinearGrowingModule(3, 2, previous_module=self.merge, name=f"reader {i}", use_bias=i == 0,
                                            **options) for i in range(2)]  # fmt: skip
        self.merge.set_next_modules(self.readers)

    @property
    def growing_layers(self):
        return [self.merge]

    def collectors(self):
        yield from (self.merge, *self.readers)

    def vjp(self, x):
        (a, back_a), (b, back_b) = (branch.vjp(x) for branch in self.branches)
        h, back_merge = self.merge.vjp(a + b)
        (y, back_y), (z, back_z) = (reader.vjp(h) for reader in self.readers)

        def pullback(dy, *, wrt_x=True):
            dh = back_merge(back_y(dy) + back_z(2.0 * dy))
            return back_a(dh) + back_b(dh)

        return y + 2.0 * z, pullback


def network_of(kind, rng):
    if kind == "branches":
        return Branches(rng)
    if kind == "graph":
        dag = GrowingDAG(4, 2, sampled=0, dtype=np.float64, rng=rng)
        dag.add_node_with_two_edges("start@", "1@", "end@", {"size": 3})
        return dag
    widths = [3] * number_of_places(kind, 2)
    options = {"function": hidden_activation("selu"), "dtype": "float64", "device": "cpu", "rng": rng}
    return build_network(kind, 4, 2, widths, **options).eval()


def collected(network, x, target, weights=None, *, xp):
    """Sums of every statistic, and of every gradient of a weight, in one batch."""
    network.init_computation()
    x, target = xp.asarray(x), xp.asarray(target)
    weights = None if weights is None else xp.asarray(weights)
    network.weigh(weights)
    y, pullback = network.vjp(x)
    difference = y - target
    pullback(difference if weights is None else difference * weights[:, None])
    network.update_computation()
    held = [s for m in network.modules() if hasattr(m, "statistics") for s in vars(m.statistics).values()]
    held = [s for s in held if isinstance(s, TensorStatistic) and s.samples]
    sums = {s.name: to_numpy(s() * s.samples) for s in held}
    sums |= {name: np.array(to_numpy(p.grad)) for name, p in network.named_parameters() if p.grad is not None}
    network.reset_computation()
    network.zero_grad()
    return sums


@pytest.mark.parametrize("library", ["numpy", "array_api_strict"])
@pytest.mark.parametrize("kind", ["mlp", "residual", "branches", "graph"])
def test_statistics_of_weighted_samples_are_those_of_repeated_ones(kind, library):
    xp, rng = LIBRARIES[library], np.random.default_rng(0)
    network = xp.adopt(network_of(kind, rng))
    x, target = rng.standard_normal((10, 4)), rng.standard_normal((10, 2))
    times = WEIGHTS.astype(int)
    repeated = collected(network, np.repeat(x, times, 0), np.repeat(target, times, 0), xp=xp)
    weighted = collected(network, x, target, WEIGHTS, xp=xp)
    assert repeated.keys() == weighted.keys()
    assert (
        len(repeated.keys() - dict(network.named_parameters()).keys())
        >= {"mlp": 9, "residual": 18, "branches": 8, "graph": 3}[kind]
    )
    for name, expected in repeated.items():
        np.testing.assert_allclose(weighted[name], expected, rtol=1e-12, atol=1e-12, err_msg=name)


def test_weights_end_with_the_collection():
    rng = np.random.default_rng(0)
    network = network_of("mlp", rng)
    x, target = rng.standard_normal((10, 4)), rng.standard_normal((10, 2))
    xp = LIBRARIES["numpy"]
    before = collected(network, x, target, xp=xp)
    collected(network, x, target, WEIGHTS, xp=xp)
    after = collected(network, x, target, xp=xp)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_convolutions_refuse_weights():
    layer = Conv2dGrowingModule(1, 2, 3, name="conv", rng=np.random.default_rng(0))
    layer.init_computation()
    layer.recorder.roots = np.ones(2)
    y, pullback = layer.vjp(np.ones((2, 1, 5, 5), np.float32))
    with pytest.raises(NotImplementedError, match="conv: sample weights are not supported for convolutions"):
        pullback(y)
