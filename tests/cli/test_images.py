"""``growarray grow`` and ``predict`` on images: of a .npz, whatever their shape, and in a folder."""

from __future__ import annotations

import numpy as np
import pytest
from typer.testing import CliRunner

import growarray
from growarray.cli.application import app
from tests.datasets.test_images import folder_of

FEW = ("--epochs", "2", "--first", "1", "--every", "1", "--neurons", "2", "--quiet")


def stripes(samples: int = 40, shape: tuple[int, ...] = (6, 5)) -> tuple[np.ndarray, np.ndarray]:
    """Images of lying and of standing stripes."""
    labels = np.arange(samples) % 2
    patterns = np.broadcast_to(np.indices(shape[-2:])[:, None] % 2, (2, *((1,) * (3 - len(shape))), *shape)[:4])
    images = 200 * patterns[labels].reshape(samples, *shape)
    return (images + np.random.default_rng(0).integers(0, 50, images.shape)).astype(np.uint8), labels


def test_images_that_are_not_square_come_back_from_their_folder(grow, tmp_path):
    x, y = stripes(shape=(2, 6, 5))
    np.savez(tmp_path / "images.npz", x=x, y=y)
    result = grow("--data", tmp_path / "images.npz", "--network", "cnn", *FEW, "--output", tmp_path / "run")
    assert result.exit_code == 0, result.output
    grown = growarray.load(str(tmp_path / "run"))
    assert grown.network.image == (2, 6, 5)
    assert grown.predict(x).shape == (40,)


def test_a_folder_of_images_is_grown_on_and_predicted(grow, tmp_path):
    x, y = stripes()
    path = folder_of(tmp_path / "images", lying=list(x[y == 0]), standing=list(x[y == 1]))
    result = grow("--data", path, "--network", "cnn", *FEW, "--output", tmp_path / "run")
    assert result.exit_code == 0, result.output
    found = CliRunner().invoke(app, ["predict", str(tmp_path / "run"), str(path)])
    assert "of 40 samples" in found.output


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"x": np.zeros((8, 28, 28, 3)), "y": np.arange(8) % 2}, "their channels seem to be last: save"),
        ({"x": np.zeros((8, 10)), "y": np.arange(8) % 2}, "10 features are no square image"),
        ({"x": np.zeros((8, 5, 5)), "y": np.arange(7) % 2}, "x has 8 rows, y has 7"),
        ({"images": np.zeros((8, 5, 5))}, "found 'images'"),
    ],
    ids=["channels last", "no image", "lengths", "names"],
)
def test_images_that_cannot_be_are_refused_before_a_folder_is_made(grow, tmp_path, arrays, text):
    np.savez(tmp_path / "images.npz", **arrays)
    result = grow("--data", tmp_path / "images.npz", "--network", "cnn", *FEW)
    assert result.exit_code == 2
    assert text in " ".join(result.output.split())
