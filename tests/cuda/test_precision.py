"""float32 that a GPU multiplies with 10 bits of fraction: only if it is asked for, and said where it shows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from growarray import FactorizedConv, load, nn, save
from growarray.cli import application
from growarray.contraction import Plan, plan
from growarray.errors import PlanError
from growarray.factorized import FactorizedLinear
from tests.cuda.cudnn import Cudnn, cudnn
from tests.cuda.device import Cuda, cuda
from tests.cuda.test_products import DENSE, shapes_of

__all__ = ["cuda", "cudnn"]

SHAPES = shapes_of(DENSE, {"y": 6, "x": 5})
PRODUCT = "i k, k j -> i j"
FULL, FAST = 68, 77


def graphs(cudnn: Cudnn) -> list[bool]:
    """Whether tensor cores may be used, by graph."""
    return ["TENSOR_CORE" not in graph.notes for graph in cudnn.graphs]


def test_only_if_it_is_asked_for(cuda: Cuda, cudnn: Cudnn) -> None:
    arrays = [cuda.array(np.ones(shape, np.float32)) for shape in SHAPES]
    square = [cuda.array(np.ones((4, 4), np.float32))] * 2
    for precision in (None, "tf32"):
        options = {"device": "cuda", "precision": precision}
        y, back = plan(DENSE, *SHAPES, padding=1, training=True, **options).vjp(*arrays)
        back(y)
        plan(PRODUCT, (4, 4), (4, 4), **options)(*square)
    assert graphs(cudnn) == [False] * 3 + [True] * 3
    assert cuda.computes == [FULL, FAST]


def test_a_plan_says_it_and_counts_on_it(cudnn: Cudnn) -> None:
    large = [(64, 64, 56, 56), (64, 64, 3, 3)]
    full, fast = (plan(DENSE, *large, padding=1, device="cuda", precision=p) for p in (None, "tf32"))
    assert "float32, gpu" in str(full)
    assert "float32 by tf32, gpu" in str(fast)
    assert 1.5 < full.seconds / fast.seconds < 2.2
    assert full != fast
    for same in (Plan.from_dict(fast.to_dict()), fast.with_path(fast.path)):
        assert same == fast
        assert same.precision == "tf32"
    assert fast.bind([np.ones(large[1], np.float32)]).plan.precision == "tf32"


def test_what_is_no_float32_on_a_gpu_is_refused() -> None:
    with pytest.raises(
        PlanError, match=r"'tf32' is how a GPU multiplies float32, found float32 for device='cpu'; leave"
    ):
        plan(DENSE, *SHAPES, precision="tf32")
    with pytest.raises(PlanError, match=r"found float64 for device='cuda'"):
        plan(DENSE, *SHAPES, precision="tf32", dtype="float64", device="cuda")
    with pytest.raises(PlanError, match=r"precision: found 'bf16', expected None or 'tf32'"):
        nn.Conv2d(2, 2, 3, precision="bf16")


def test_the_switch_of_cupy_counts(monkeypatch: pytest.MonkeyPatch, cudnn: Cudnn) -> None:
    monkeypatch.setenv("CUPY_TF32", "1")
    assert plan(DENSE, *SHAPES, device="cuda").precision == "tf32"
    assert plan(DENSE, *SHAPES, device="cuda", dtype="float64").precision is None
    assert plan(DENSE, *SHAPES).precision is None
    monkeypatch.setenv("CUPY_TF32", "0")
    assert plan(DENSE, *SHAPES, device="cuda", training=True).precision is None


LAYERS: dict[str, Any] = {
    "conv": lambda **k: nn.Conv2d(3, 4, 3, rng=np.random.default_rng(0), **k),
    "transposed": lambda **k: nn.ConvTranspose2d(3, 4, 3, rng=np.random.default_rng(0), **k),
    "factorized": lambda **k: FactorizedConv(
        3, 4, 3, order=2, rank=2, implementation="factorized", rng=np.random.default_rng(0), **k
    ),
    "linear": lambda **k: FactorizedLinear(
        (2, 3), (2, 2), rank=2, implementation="factorized", rng=np.random.default_rng(0), **k
    ),
}


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_layers_keep_it_and_use_it_on_a_gpu(cuda: Cuda, cudnn: Cudnn, make: Any, tmp_path: Path) -> None:
    layer, plain = make(precision="tf32"), make()
    x = np.random.default_rng(1).standard_normal((2, 6) if "Linear" in type(layer).__name__ else (2, 3, 6, 5))
    x = x.astype(np.float32)
    np.testing.assert_array_equal(layer(x), plain(x))
    save(layer, tmp_path / "layer.npz")
    assert load(tmp_path / "layer.npz").precision == "tf32"
    assert layer.plan(x.shape).precision is None
    for p in layer.parameters():
        p.data = cuda.array(p.data)
    assert layer.plan(x.shape).precision == "tf32"
    layer(cuda.array(x))
    assert all(graphs(cudnn))
    assert set(cuda.computes) <= {FAST}
    assert cudnn.graphs or cuda.computes


def test_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUPY_TF32", raising=False)
    run = CliRunner()
    for command in (["grow"], ["bench", "paths", "--equation", "n i, o i -> n o", "--shapes", "8x4, 3x4"]):
        for more, text in {
            ("--precision", "tf32"): "tf32 is how a GPU multiplies float32, found float32 and --device cpu",
            ("--precision", "bf16"): "expected float32 or tf32, found 'bf16'",
        }.items():
            found = run.invoke(application.app, [*command, *more])
            assert found.exit_code == 2
            assert text in " ".join(found.output.split())


def test_a_plan_says_that_float64_is_slow_on_this_gpu(cuda: Cuda) -> None:
    shapes, options = [(4, 4), (4, 4)], {"device": "cuda", "dtype": "float64"}
    assert "float64, gpu" in str(plan(PRODUCT, *shapes, **options))
    cuda.ratio = 64
    assert "float64, which takes 64 times as long as float32 on this GPU, gpu" in str(plan(PRODUCT, *shapes, **options))
    assert "float32, gpu" in str(plan(PRODUCT, *shapes, device="cuda"))
    assert "cupy" in sys.modules
