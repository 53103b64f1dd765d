"""A network run by onnxruntime gives what the network gives."""

from __future__ import annotations

import sys
import threading

import numpy as np
import pytest

from growarray import FactorizedConv, GrowingMLP, nn
from growarray.nn import Module

RNG = np.random.default_rng(0)
X = RNG.standard_normal((6, 2, 8, 8)).astype(np.float32)


def network() -> nn.Sequential:
    layers = (nn.Conv2d(2, 4, 3, padding=1, rng=RNG), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5, RNG))
    factorized = FactorizedConv(4, 4, 3, order=2, padding=1, rank=4, rng=RNG)
    return nn.Sequential(*layers, factorized, GrowingMLP((4, 8, 8), 3, hidden_size=4, rng=RNG))


def close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(np.max(np.abs(expected))))


def test_it_gives_what_the_network_gives_for_any_batch_and_size() -> None:
    dense = nn.Sequential(nn.Conv2d(2, 3, 3, rng=RNG), nn.ReLU())
    for made, inputs in ((network(), [X, X[:1], X[:4]]), (dense, [X, X[:2, :, :6, :7]])):
        compiled = made.compile(backend="onnxruntime", threads=1)
        for x in inputs:
            close(compiled(x), made.predict(x))
            close(compiled.predict(x, batch_size=2), made.predict(x))
        assert len(compiled._sessions) == len({x.shape[1:] for x in inputs})
        assert made.training


def test_it_is_the_network_as_it_was() -> None:
    made = network()
    expected, compiled = made.predict(X), made.compile()
    for parameter in made.parameters():
        parameter.data = parameter.data + 1.0
    close(compiled(X), expected)
    assert compiled.parameters() == []


def test_double_precision_and_another_dtype() -> None:
    made = nn.Sequential(nn.Linear(4, 3, dtype=np.float64, rng=RNG), nn.Tanh())
    x = RNG.standard_normal((5, 4))
    np.testing.assert_allclose(made.compile()(x), made(x), rtol=1e-12)
    assert made.compile(dtype="float32")(x).dtype == np.float32


def test_several_inputs_and_outputs() -> None:
    nodes = [nn.Node("sum", nn.Add(), ("a", "b"), "s"), nn.Node("act", nn.ReLU(), ("s",), "y")]
    graph = nn.Graph(nodes, ["a", "b"], ["s", "y"])
    a, b = X[:, 0], X[:1, 1]
    for found, expected in zip(graph.compile()(a, b), graph(a, b), strict=True):
        close(found, expected)


def test_several_threads_may_call() -> None:
    made = network()
    compiled, expected = made.compile(threads=1), made.predict(X)
    found: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: found.append(compiled(X))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for value in found:
        close(value, expected)
    assert len(compiled._sessions) == 1


def test_sessions_are_bounded() -> None:
    compiled = nn.Sequential(nn.ReLU()).compile()
    for size in range(1, 12):
        compiled(np.ones((2, size), np.float32))
    assert len(compiled._sessions) == 8


def test_what_cannot_be_done_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(Module):
        def vjp(self, x: np.ndarray):  # type: ignore[no-untyped-def]
            return x, lambda dy: dy

    made = network()
    with pytest.raises(ValueError, match=r"Sequential\.compile: backend is 'tensorrt', expected 'onnxruntime'"):
        made.compile(backend="tensorrt")
    with pytest.raises(NotImplementedError, match="it runs forwards only"):
        made.compile().vjp(X)
    with pytest.raises(TypeError, match="expected NumPy arrays"):
        made.compile()([[1.0]])
    with pytest.raises(NotImplementedError, match="register_lowering"):
        Own().compile()(X)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r'pip install "growarray\[serve\]"'):
        made.compile()
