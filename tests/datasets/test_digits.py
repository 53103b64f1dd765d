import numpy as np
import pytest

from growarray.datasets import Dataset, load_digits, standardise
from growarray.datasets.dataset import class_values, encode_classes, split_rows


def test_digits_are_all_there_and_scaled():
    data = load_digits(test_fraction=0.0)
    assert data.x_train.shape == (1797, 64)
    assert data.x_test.shape == (0, 64)
    assert data.x_train.dtype == np.float32
    assert data.y_train.dtype == np.int64
    assert set(np.unique(data.x_train * 16)) == set(range(17))
    assert np.bincount(data.y_train).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert float(data.x_train.sum()) * 16 == 561718.0
    assert data.classes == tuple("0123456789")
    assert (data.features, data.outputs) == (64, 10)


def test_split_is_stratified_disjoint_and_shuffled():
    data = load_digits(test_fraction=0.25)
    whole = np.bincount(load_digits(test_fraction=0.0).y_train)
    assert np.all(np.abs(np.bincount(data.y_test) - whole * 0.25) < 1)
    assert len(data.x_train) + len(data.x_test) == 1797
    rows = {row.tobytes() for row in data.x_train}
    assert not any(row.tobytes() in rows for row in data.x_test)  # no two of the 1,797 images are equal
    assert np.any(np.diff(data.y_train[:50]) < 0)
    assert np.any(np.diff(data.y_test[:50]) < 0)


def test_seed_decides_the_split():
    one, again, other = load_digits(seed=1), load_digits(seed=1), load_digits(seed=2)
    assert np.array_equal(one.x_train, again.x_train)
    assert not np.array_equal(one.x_train, other.x_train)


def test_dtype_is_taken_over():
    assert load_digits(dtype=np.float64).x_test.dtype == np.float64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_fraction": 1.0}, r"test_fraction must lie in \[0, 1\), found 1.0"),
        ({"test_fraction": -0.1}, "found -0.1"),
        ({"dtype": np.int32}, "dtype must be a floating one, found int32"),
    ],
    ids=["all_for_testing", "negative", "integer"],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        load_digits(**options)


@pytest.mark.parametrize(
    ("sizes", "fraction", "expected"),
    [
        ([10, 10], 0.2, [2, 2]),
        ([9, 1], 0.5, [5, 0]),
        ([1, 1], 0.5, [0, 0]),
        ([3, 3, 3], 0.1, [1, 0, 0]),
        ([5, 50], 0.9, [4, 46]),
        ([4, 4], 0.0, [0, 0]),
    ],
    ids=["even", "lonely_class_trains", "nothing_to_spare", "at_least_one_tests", "one_row_stays", "none"],
)
def test_split_rows_by_class(sizes, fraction, expected):
    classes = np.repeat(np.arange(len(sizes)), sizes)
    train, test = split_rows(len(classes), fraction, np.random.default_rng(0), classes=classes)
    assert np.bincount(classes[test], minlength=len(sizes)).tolist() == expected
    assert sorted([*train, *test]) == list(range(len(classes)))


def test_split_rows_without_classes():
    train, test = split_rows(7, 0.3, np.random.default_rng(0))
    assert (len(train), len(test)) == (5, 2)
    assert len(split_rows(1, 0.5, np.random.default_rng(0))[1]) == 0


def test_standardise_uses_the_training_part_alone():
    rng = np.random.default_rng(0)
    x = rng.normal(3.0, 2.0, (50, 3)).astype(np.float32)
    x[:, 1] = 0.1
    x_test = x + 1
    y = np.arange(50) % 2
    data = Dataset(x, y, x_test, y, "classification", ("a", "b"))
    before = x.copy()
    new = standardise(data)
    kept = [0, 2]
    assert np.allclose(new.x_train[:, kept].mean(axis=0), 0, atol=1e-6)
    assert np.allclose(new.x_train[:, kept].std(axis=0), 1, atol=1e-6)
    assert np.allclose((new.x_test - new.x_train)[:, kept], 1 / x.std(axis=0)[kept], rtol=1e-5)
    assert not new.x_train[:, 1].any()
    assert not new.x_test[:, 1].any()
    assert new.x_train.dtype == new.x_test.dtype == np.float32
    assert np.array_equal(x, before)
    assert data.x_train is x


def test_standardise_takes_an_empty_test_part():
    assert standardise(load_digits(test_fraction=0.0)).x_test.shape == (0, 64)


def test_dataset_is_frozen_and_says_its_size():
    data = load_digits()
    with pytest.raises(AttributeError):
        data.task = "regression"  # type: ignore[misc]
    assert repr(data) == "Dataset(classification, train=1438, test=359, features=64, outputs=10)"


@pytest.mark.parametrize(
    ("labels", "numbers", "names"),
    [
        (np.array([5, 3, 5]), [1, 0, 1], ("3", "5")),
        (np.array([2.0, -1.0]), [1, 0], ("-1", "2")),
        (np.array(["b", "a", "b"]), [1, 0, 1], ("a", "b")),
        (np.array(["10", "9", "9.0"]), [1, 0, 0], ("9", "10")),
        (np.array([True, False]), [1, 0], ("False", "True")),
    ],
    ids=["integers", "floats", "text", "numbers_as_text", "booleans"],
)
def test_encode_classes(labels, numbers, names):
    assert encode_classes(labels, where=str)[0].tolist() == numbers
    assert encode_classes(labels, where=str)[1] == names


def test_class_values_keeps_text():
    assert class_values(np.array(["1", "x"]), where=str).tolist() == ["1", "x"]
