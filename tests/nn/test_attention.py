"""Self-attention beside torch's: values and gradients of torch 2.13 in ``data/attention.npz``, float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from growarray import load, save
from growarray.checkpoint import from_onnx, to_onnx
from growarray.errors import ShapeError
from growarray.nn import MultiheadAttention
from growarray.testing import assert_close

F64 = np.float64
with np.load(Path(__file__).parent / "data" / "attention.npz") as archive:
    TORCH = dict(archive)


def layer(causal: bool = False) -> MultiheadAttention:
    made = MultiheadAttention(8, 2, causal=causal, dtype=F64)
    report = made.load_state_dict({k.removeprefix("state."): v for k, v in TORCH.items() if k.startswith("state.")})
    assert not report
    return made


@pytest.mark.parametrize("name", ["plain", "causal", "padded"])
def test_same_weights_give_torch_s_numbers_and_gradients(name: str) -> None:
    made = layer(causal=name == "causal")
    mask = np.where(TORCH["hidden"], -np.inf, 0.0)[:, None, None, :] if name == "padded" else None
    y, pullback = made.vjp(TORCH["x"], mask)
    assert_close(y, TORCH[f"{name}.y"], rtol=1e-12)
    assert_close(pullback(TORCH["dy"]), TORCH[f"{name}.dx"], rtol=1e-12)
    for key, parameter in made.named_parameters():
        expected = TORCH[f"{name}.d{key}"]
        assert_close(parameter.grad, expected, rtol=1e-12, what=key)
    assert_close(made(TORCH["x"], mask), y, rtol=0.0)
    assert pullback(TORCH["dy"], wrt_x=False) is None


def test_initial_weights_fill_torch_s_bounds() -> None:
    made = MultiheadAttention(32, 4, rng=np.random.default_rng(0))
    bound = np.sqrt(6 / 128)
    assert 0.99 * bound < np.abs(made.in_proj_weight.data).max() <= bound
    assert not np.any(made.in_proj_bias.data)
    assert not np.any(made.out_proj.bias.data)


@pytest.mark.parametrize("causal", [False, True])
def test_it_goes_through_files(causal: bool, tmp_path: Any) -> None:
    made, x = layer(causal), TORCH["x"]
    save(made, tmp_path / "saved.safetensors")
    assert np.array_equal(load(tmp_path / "saved.safetensors")(x), made(x))
    to_onnx(made, tmp_path / "made.onnx", input_shape=(1, 5, 8), dtype=F64)
    assert_close(from_onnx(tmp_path / "made.onnx")(x), made(x), rtol=1e-13)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ShapeError, match="8 features cannot be split into 3 heads"):
        MultiheadAttention(8, 3)
    with pytest.raises(ShapeError, match=r"input has shape \(5, 8\), expected \(n, positions, 8\)"):
        layer()(TORCH["x"][0])
