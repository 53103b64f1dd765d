"""Embedding: rows by number, gradients added up, in every library; refusals; files."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from growarray import load, save
from growarray.backend import to_numpy
from growarray.checkpoint import from_onnx, to_onnx
from growarray.errors import ShapeError
from growarray.nn import Embedding, Graph, Node
from tests.conftest import Library

TOKENS = np.array([[1, 4, 1], [0, 4, 4]])


def layer() -> Embedding:
    return Embedding(6, 2, rng=np.random.default_rng(0), dtype=np.float64)


def test_rows_and_their_gradients(xp: Library) -> None:
    made = xp.adopt(layer())
    y, pullback = made.vjp(xp.asarray(TOKENS))
    weight = to_numpy(made.weight.data)
    assert np.array_equal(to_numpy(y), weight[TOKENS])
    dy = np.arange(12.0).reshape(2, 3, 2)
    assert pullback(xp.asarray(dy)) is None
    pullback(xp.asarray(dy))
    expected = np.zeros((6, 2))
    np.add.at(expected, TOKENS, 2 * dy)
    assert np.array_equal(to_numpy(made.weight.grad), expected)
    assert [name for name, _ in made.named_parameters()] == ["weight"]


def test_it_goes_through_files(tmp_path: Any) -> None:
    made = layer()
    save(made, tmp_path / "saved.safetensors")
    assert np.array_equal(load(tmp_path / "saved.safetensors")(TOKENS), made(TOKENS))
    graph = Graph([Node("words", made, ("tokens",), "y")], ["tokens"], ["y"], types={"tokens": "int64"})
    to_onnx(graph, tmp_path / "made.onnx", input_shape=(1, 3), dtype=np.float64)
    assert np.array_equal(from_onnx(tmp_path / "made.onnx")(TOKENS), made(TOKENS))


def test_what_is_no_entry_is_refused() -> None:
    with pytest.raises(TypeError, match=r"found ndarray of float64.*expected whole numbers"):
        layer()(np.ones(2))
    for tokens in ([6], [-1]):
        with pytest.raises(ShapeError, match=f"found numbers from {tokens[0]} to {tokens[0]}, expected 0 to 5"):
            layer()(np.array(tokens))
    with pytest.raises(ValueError, match="num_embeddings must be at least 0"):
        Embedding(-1, 2)
