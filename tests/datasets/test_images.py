"""Images: their shape in arrays, and folders of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from growarray.datasets import load_samples, load_table
from growarray.errors import DataError

Image = pytest.importorskip("PIL.Image")


def folder_of(path: Path, **classes: list[np.ndarray]) -> Path:
    for name, arrays in classes.items():
        (path / name).mkdir(parents=True)
        for index, array in enumerate(arrays):
            Image.fromarray(array).save(path / name / f"{index}.png")
    return path


def pictures(seed: int, *shape: int) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (3, *shape), dtype=np.uint8))


@pytest.mark.parametrize(("shape", "image"), [((6, 5), (1, 6, 5)), ((2, 6, 5), (2, 6, 5)), ((30,), None)])
def test_arrays_of_three_or_four_axes_are_images(tmp_path, shape, image):
    x = np.arange(8 * int(np.prod(shape))).reshape(8, *shape)
    np.savez(tmp_path / "t.npz", x=x, y=np.arange(8) % 2)
    data = load_table(tmp_path / "t.npz", test_fraction=0.25)
    assert (data.image, data.x_train.shape, len(data.x_test)) == (image, (6, x[0].size), 2)


def test_a_folder_has_a_subfolder_for_each_class(tmp_path):
    grey, colours = pictures(0, 4, 5), pictures(1, 4, 5, 3)
    path = folder_of(tmp_path / "a", cat=grey, dog=grey[::-1])
    (path / "cat" / ".DS_Store").write_text("")
    data = load_table(path, test_fraction=0.0)
    assert (data.classes, data.image, data.features) == (("cat", "dog"), (1, 4, 5), 20)
    np.testing.assert_array_equal(
        np.sort(data.x_train, axis=0), np.sort(np.reshape([*grey, *grey], (6, 20)).astype(np.float32), axis=0)
    )
    mixed = folder_of(tmp_path / "b", cat=grey, dog=colours)
    x, labels = load_samples(mixed, 60, classes=("cat", "dog"))
    np.testing.assert_array_equal(labels, [0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(x[0].reshape(3, 4, 5), [grey[0]] * 3)
    np.testing.assert_array_equal(x[3].reshape(3, 4, 5), np.moveaxis(colours[0], -1, 0))
    assert load_samples(mixed / "dog", 60, classes=("cat", "dog"))[1] is None


def test_what_is_wrong_with_a_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="expected a subfolder of images for each class, found no images"):
        load_table(tmp_path)
    path = folder_of(tmp_path / "a", cat=pictures(0, 4, 5), dog=[np.zeros((5, 4), np.uint8)])
    with pytest.raises(DataError, match=r"dog.0\.png: the image has 5x4 pixels, expected 4x5 as '0\.png' has; bring"):
        load_table(path)
    (path / "dog" / "0.png").write_bytes((path / "cat" / "0.png").read_bytes()[:-40])
    with pytest.raises(DataError, match=r"dog.0\.png: cannot be read as an image \(.*\); mend it or take it away"):
        load_table(path)
    (path / "dog" / "0.png").write_text("no image")
    with pytest.raises(DataError, match=r"dog.0\.png: cannot be read as an image"):
        load_table(path)
    (path / "0.png").write_bytes((path / "cat" / "0.png").read_bytes())
    with pytest.raises(DataError, match=r"found .*a.0\.png beside subfolders"):
        load_table(path)
    with pytest.raises(DataError, match=r"expected a subfolder of images for each class, found 0\.png; sort them so"):
        load_table(path / "cat")
