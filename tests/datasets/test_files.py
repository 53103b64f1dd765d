import re
import tracemalloc

import numpy as np
import pytest

from growarray.datasets import load_table
from growarray.errors import DataError


@pytest.fixture
def table():
    rng = np.random.default_rng(3)
    return rng.standard_normal((20, 3)), np.arange(20) % 4


def rows_of(data):
    """All rows of a data set, features and target side by side, in one fixed order."""
    x, y = np.concatenate([data.x_train, data.x_test]), np.concatenate([data.y_train, data.y_test])
    rows = np.column_stack([x, y])
    return rows[np.lexsort(rows.T)]


def expected_rows(x, y):
    rows = np.column_stack([x, y])
    return rows[np.lexsort(rows.T)]


def write_csv(path, x, y, header=None, separator=","):
    lines = [] if header is None else [separator.join(header)]
    lines += [separator.join([*(repr(float(v)) for v in row), str(label)]) for row, label in zip(x, y, strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("names", [("x", "y"), ("features", "labels")], ids="-".join)
def test_npz_round_trip(tmp_path, table, names):
    x, y = table
    np.savez(tmp_path / "t.npz", **dict(zip(names, (x, y), strict=True)))
    data = load_table(tmp_path / "t.npz", dtype=np.float64, test_fraction=0.25)
    assert np.array_equal(rows_of(data), expected_rows(x, y))
    assert sorted(np.bincount(data.y_test).tolist()) == [1, 1, 1, 2]
    assert data.classes == ("0", "1", "2", "3")
    assert data.task == "classification"


def test_npz_with_a_fixed_test_part(tmp_path, table):
    x, y = table
    names = np.array(["ant", "bee", "cat", "dog"])[y]
    np.savez(tmp_path / "t.NPZ.npz", x=x, y=names, x_test=x[:3] + 1, y_test=names[:3])
    data = load_table(str(tmp_path / "t.NPZ.npz"), dtype=np.float64)
    assert np.array_equal(data.x_test, x[:3] + 1)
    assert data.y_test.tolist() == [0, 1, 2]
    assert np.array_equal(np.sort(data.x_train, axis=0), np.sort(x, axis=0))
    assert data.classes == ("ant", "bee", "cat", "dog")


def test_numbers_as_text_are_the_same_class_in_both_parts(tmp_path):
    x = np.zeros((2, 1))
    np.savez(tmp_path / "t.npz", x=x, y=np.array(["01", "2"]), x_test=x, y_test=np.array([2.0, 1.0]))
    assert load_table(tmp_path / "t.npz").y_test.tolist() == [1, 0]


def test_npz_regression_with_a_fixed_test_part(tmp_path, table):
    x, _ = table
    np.savez(tmp_path / "t.npz", x=x, y=x[:, :2], x_test=x[:1], y_test=x[:1, :2])
    data = load_table(tmp_path / "t.npz", task="regression", dtype=np.float64)
    assert np.array_equal(data.y_train, data.x_train[:, :2])
    assert np.array_equal(data.y_test, x[:1, :2])
    assert (data.classes, data.outputs) == ((), 2)


def test_images_are_flattened(tmp_path):
    images = np.arange(4 * 2 * 3 * 3, dtype=np.uint8).reshape(4, 2, 3, 3)
    np.savez(tmp_path / "t.npz", x=images, y=np.array([[0], [1], [0], [1]]))
    data = load_table(tmp_path / "t.npz", test_fraction=0.0)
    assert data.x_train.shape == (4, 18)
    assert data.x_train.dtype == np.float32


def test_npy_with_the_label_last(tmp_path, table):
    x, y = table
    np.save(tmp_path / "t.npy", np.column_stack([x, y]))
    data = load_table(tmp_path / "t.npy", dtype=np.float64)
    assert np.array_equal(rows_of(data), expected_rows(x, y))
    assert data.y_train.dtype == np.int64


def test_npy_with_labels_in_a_second_file(tmp_path, table):
    x, y = table
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    data = load_table(tmp_path / "x.npy", labels=tmp_path / "y.npy", dtype=np.float64)
    assert np.array_equal(rows_of(data), expected_rows(x, y))


@pytest.mark.parametrize("separator", [",", ";", "\t"], ids=["comma", "semicolon", "tab"])
@pytest.mark.parametrize("header", [None, ["a", "b", "c", "kind"]], ids=["bare", "header"])
def test_csv_round_trip(tmp_path, table, header, separator):
    x, y = table
    data = load_table(write_csv(tmp_path / "t.csv", x, y, header, separator), dtype=np.float64)
    assert np.array_equal(rows_of(data), expected_rows(x, y))


def test_csv_label_by_name_with_text_classes_and_blank_lines(tmp_path):
    (tmp_path / "t.csv").write_text('\ufeffkind,"a, b"\ncat, 1\n\ndog,2\ncat,3\n')
    data = load_table(tmp_path / "t.csv", label_column="kind", test_fraction=0.0)
    assert data.classes == ("cat", "dog")
    assert np.array_equal(rows_of(data), expected_rows([[1], [2], [3]], [0, 1, 0]))


def test_csv_header_whose_names_are_numbers(tmp_path):
    (tmp_path / "t.csv").write_text("2019,2020\n1,0\n2,1\n")
    data = load_table(tmp_path / "t.csv", label_column="2020", test_fraction=0.0)
    assert np.array_equal(rows_of(data), [[1, 0], [2, 1]])


def test_csv_regression(tmp_path):
    (tmp_path / "t.csv").write_text("1,0.5\n2,1.5\n3,-2\n4,3\n")
    data = load_table(tmp_path / "t.csv", task="regression", test_fraction=0.5)
    assert data.y_train.shape == data.y_test.shape == (2, 1)
    assert data.y_train.dtype == np.float32
    assert np.array_equal(rows_of(data), expected_rows([[1], [2], [3], [4]], [0.5, 1.5, -2, 3]))


def test_seed_decides_the_order(tmp_path, table):
    path = write_csv(tmp_path / "t.csv", *table)
    one, again, other = load_table(path, seed=1), load_table(path, seed=1), load_table(path, seed=2)
    assert np.array_equal(one.x_train, again.x_train)
    assert not np.array_equal(one.x_train, other.x_train)


CSV_FAULTS = {
    "empty_file": ("", "t.csv: the file is empty"),
    "blank_file": ("\n \n", "t.csv: the file is empty"),
    "header_alone": ("a,b\n", "found 0 sample(s), expected at least 2"),
    "one_sample": ("1,2\n", "found 1 sample(s), expected at least 2"),
    "one_column": ("1\n2\n", "t.csv, line 1: 1 column found; expected at least one feature and the label"),
    "one_class": ("1,7\n2,7\n", "t.csv, line 1: all 2 labels are '7'; classification needs at least 2 classes"),
    "missing_label": ("a,k\n1,0\n2,\n", "t.csv, line 3, column 2 'k': the label is missing"),
    "na_label": ("1,cat\n2,NA\n3,dog\n", "t.csv, line 2, column 2: the label is missing (NA)"),
    "null_label": ("1,cat\n2, null\n3,dog\n", "t.csv, line 2, column 2: the label is missing (null)"),
    "header_of_numbers": ("0,1,kind\n1,2,0\n3,4,1\n", "t.csv, line 1: the label is 'kind', those of all other lines"),
    "nan_label": ("1,0\n2,NaN\n", "t.csv, line 2, column 2: the label is missing"),
    "empty_cell": ("a,b,k\n1,2,0\n1,,1\n", "t.csv, line 3, column 2 'b': the cell is empty"),
    "text_cell": ("a,b,k\n1,2,0\n\nx1,2,1\n", "t.csv, line 4, column 1 'a': expected a number, found the text 'x1'"),
    "text_in_first_line": ("x1,2,0\n1,2,1\n", "t.csv, line 1, column 1: expected a number, found the text 'x1'"),
    "short_line": ("1,2,0\n1,0\n", "t.csv, line 2: 2 columns found, expected 3"),
    "long_line": ("1,2,0\n1,2,3,0\n", "t.csv, line 2: 4 columns found, expected 3"),
    "nan": ("1,2,0\n1,nan,1\n", "t.csv, line 2, column 2: expected a finite number, found nan"),
    "infinity": ("1,2,0\n-inf,1,1\n", "t.csv, line 2, column 1: expected a finite number, found -inf"),
    "real_labels": ("1,0\n2,0.5\n", "t.csv, line 2: label 0.5 is not a whole number"),
    "too_large": ("1,0\n1e300,1\n", "t.csv, line 2: a value is too large for float32"),
    "open_quote": ('1,0\n"2,1\n', "t.csv: the row that ends in line 2 cannot be read"),
}


@pytest.mark.parametrize("fault", CSV_FAULTS)
def test_csv_faults_are_named(tmp_path, fault):
    text, message = CSV_FAULTS[fault]
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=re.escape(message)):
        load_table(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,cat\n2,dog\n", "t.csv, line 1: target 'cat' is not a number; regression needs real targets"),
        ("1,1\n2,inf\n", "t.csv, line 2: target is not a finite number"),
    ],
    ids=["text", "infinity"],
)
def test_csv_faults_of_regression(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=re.escape(message)):
        load_table(tmp_path / "t.csv", task="regression")


@pytest.mark.parametrize(
    ("header", "count"), [("a,k", 0), ("kind,kind", 2)], ids=["no_such_column", "two_such_columns"]
)
def test_csv_label_column_must_be_one(tmp_path, header, count):
    (tmp_path / "t.csv").write_text(f"{header}\n1,0\n2,1\n")
    with pytest.raises(DataError, match=f"{count} columns are called 'kind', expected 1; the header names"):
        load_table(tmp_path / "t.csv", label_column="kind")


def test_csv_in_another_encoding(tmp_path):
    (tmp_path / "t.csv").write_bytes("größe,k\n1,0\n2,1\n".encode("latin-1"))
    with pytest.raises(DataError, match="not a CSV file in UTF-8"):
        load_table(tmp_path / "t.csv")


X = np.arange(6.0).reshape(3, 2)
Y = np.array([0, 1, 0])
NPZ_FAULTS = {
    "names": (
        {"images": X, "y": Y},
        "expected arrays 'x' and 'y', or 'X' and 'y', or 'features' and 'labels', or 'data' and 'target'; "
        "found 'images'",
    ),
    "half_a_test_part": ({"x": X, "y": Y, "x_test": X}, "found one of 'x_test' and 'y_test'"),
    "lengths": ({"x": X, "y": Y[:2]}, "x has 3 rows, y has 2; they must have the same length"),
    "nan": ({"x": np.where(X == 3, np.nan, X), "y": Y}, "x[1, 1] is nan, expected a finite number"),
    "nan_label": ({"x": X, "y": np.array([0, np.nan, 1])}, "y[1] is nan, expected a finite number"),
    "too_large": ({"x": np.where(X == 4, 1e300, X), "y": Y}, "x[2]: a value is too large for float32"),
    "infinity": ({"x": np.where(X == 4, -np.inf, X), "y": Y}, "x[2, 0] is -inf, expected a finite number"),
    "complex": ({"x": X + 1j, "y": Y}, "x has dtype complex128; expected real numbers"),
    "text": ({"x": X.astype(str), "y": Y}, "x has dtype <U32; expected real numbers"),
    "scalar": ({"x": X, "y": np.array(1)}, "y is a single value; expected one row a sample"),
    "one_sample": ({"x": X[:1], "y": Y[:1]}, "found 1 sample(s), expected at least 2"),
    "one_class": ({"x": X, "y": Y * 0}, "y[0]: all 3 labels are '0'; classification needs at least 2 classes"),
    "no_features": ({"x": X[:, :0], "y": Y}, "x has shape (3, 0), so no features"),
    "one_hot": ({"x": X, "y": np.eye(3)}, "labels have shape (3, 3), expected (3,); turn one-hot rows into numbers"),
    "real_labels": ({"x": X, "y": Y + 0.5}, "y[0]: label 0.5 is not a whole number"),
    "unknown_class": ({"x": X, "y": Y, "x_test": X, "y_test": Y + 1}, "y_test[1]: class '2' does not occur in"),
    "test_width": ({"x": X, "y": Y, "x_test": X[:, :1], "y_test": Y}, "x_test has 1 features, x has 2"),
    "objects": ({"x": X, "y": np.array([0, "a", None], dtype=object)}, "holds Python objects, which are never loaded"),
}


@pytest.mark.parametrize("fault", NPZ_FAULTS)
def test_npz_faults_are_named(tmp_path, fault):
    arrays, message = NPZ_FAULTS[fault]
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        load_table(tmp_path / "t.npz")
    assert "t.npz" in str(caught.value)


def test_regression_targets_of_two_widths(tmp_path):
    np.savez(tmp_path / "t.npz", x=X, y=X, x_test=X, y_test=Y)
    with pytest.raises(DataError, match=r"y_test\[0\]: 1 targets in testing, 2 in training"):
        load_table(tmp_path / "t.npz", task="regression")


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [
        (X[:, 0], {}, r"an array of shape \(3,\) has no label column; expected \(n, d \+ 1\)"),
        (X[:, :1], {}, r"an array of shape \(3, 1\) has no label column"),
        (X, {"labels": "no.npy"}, "no.npy: no such file"),
        (X, {"labels": "y.npz"}, r"y.npz: expected labels in a \.npy file, found '\.npz'"),
        (X, {"labels": "y.csv"}, r"y.csv: expected labels in a \.npy file, found '\.csv'"),
    ],
    ids=["one_axis", "one_column", "no_labels_file", "labels_in_npz", "labels_in_csv"],
)
def test_npy_faults_are_named(tmp_path, array, options, message):
    np.save(tmp_path / "t.npy", array)
    np.savez(tmp_path / "y.npz", y=Y)
    (tmp_path / "y.csv").write_text("0\n1\n0\n")
    options = {key: tmp_path / value for key, value in options.items()}
    with pytest.raises(DataError, match=message):
        load_table(tmp_path / "t.npy", **options)


def test_missing_files_folders_and_unknown_kinds(tmp_path):
    with pytest.raises(DataError, match=r"t.csv: no such file; looked in .*check the spelling"):
        load_table(tmp_path / "t.csv")
    np.save(tmp_path / "t.npy", np.zeros((4, 2)))
    with pytest.raises(DataError, match=r"expected a file, found a folder; name a \.npy file in it"):
        load_table(tmp_path / "t.npy", labels=tmp_path)
    (tmp_path / "t.xlsx").write_text("")
    with pytest.raises(DataError, match=r"t.xlsx: unknown kind of file '\.xlsx'; expected \.npz, \.npy or \.csv"):
        load_table(tmp_path / "t.xlsx")


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_damaged_files(tmp_path, suffix):
    path = tmp_path / f"t{suffix}"
    path.write_text("not an array")
    with pytest.raises(DataError, match=rf"cannot be read as \{suffix}; the file is damaged"):
        load_table(path)


def test_every_cut_of_an_npz_is_refused(tmp_path):
    path = tmp_path / "t.npz"
    np.savez_compressed(path, x=X, y=Y)
    content = path.read_bytes()
    for size in range(0, len(content), 37):
        path.write_bytes(content[:size])
        with pytest.raises(DataError, match="cannot be read"):
            load_table(path)


def test_a_npy_named_npz_and_the_reverse(tmp_path):
    with (tmp_path / "t.npz").open("wb") as stream:
        np.save(stream, X)
    with pytest.raises(DataError, match="expected arrays 'x' and 'y'"):
        load_table(tmp_path / "t.npz")
    with (tmp_path / "t.npy").open("wb") as stream:
        np.savez(stream, x=X, y=Y)
    with pytest.raises(DataError, match=r"holds several arrays; rename it to \.npz"):
        load_table(tmp_path / "t.npy")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": "y.npy"}, r"labels= belongs to \.npy files, found t.npz"),
        ({"label_column": "k"}, r"label_column= belongs to \.csv files, found t.npz"),
        ({"task": "ranking"}, "unknown task 'ranking'; expected 'classification' or 'regression'"),
        ({"test_fraction": 1.5}, "test_fraction must lie in"),
    ],
    ids=["labels", "label_column", "task", "test_fraction"],
)
def test_options_that_do_not_fit_are_refused(tmp_path, options, message):
    np.savez(tmp_path / "t.npz", x=X, y=Y)
    with pytest.raises(ValueError, match=message):
        load_table(tmp_path / "t.npz", **options)


@pytest.mark.parametrize("names", [("X", "y"), ("data", "target")], ids="-".join)
def test_npz_under_the_names_of_scikit_learn(tmp_path, table, names):
    x, y = table
    np.savez(tmp_path / "t.npz", **dict(zip(names, (x, y), strict=True)))
    assert np.array_equal(rows_of(load_table(tmp_path / "t.npz", dtype=np.float64)), expected_rows(x, y))


@pytest.mark.parametrize(
    ("labels", "remedy"),
    [(np.arange(63) // 3 * 7 + np.arange(63) % 2, "numbers to predict need task='regression'"),
     ([f"id{i // 2}" for i in range(63)], "name the column of the classes with label_column=")],
    ids=["numbers", "names"],
)  # fmt: skip
def test_labels_that_hardly_occur_twice_are_no_classes(tmp_path, labels, remedy):
    path = write_csv(tmp_path / "t.csv", np.zeros((63, 1)), labels)
    found = len(set(labels))
    message = (
        f"t.csv, line 1: {found} different labels in 63 samples, expected classes of at least 3 samples on average"
    )
    with pytest.raises(DataError, match=f"{re.escape(message)}; .*{re.escape(remedy)}"):
        load_table(path)


def test_as_many_classes_as_samples_are_refused_before_anything_large_is_made(tmp_path):
    labels = np.arange(20_000)
    np.savez(tmp_path / "t.npz", x=np.zeros((20_000, 1)), y=labels)
    tracemalloc.start()
    with pytest.raises(DataError, match="20000 different labels in 20000 samples"):
        load_table(tmp_path / "t.npz")
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_many_classes_of_three_samples_and_few_of_one_are_classes(tmp_path):
    np.savez(tmp_path / "t.npz", x=np.zeros((63, 1)), y=np.arange(63) // 3)
    assert load_table(tmp_path / "t.npz").outputs == 21
    np.savez(tmp_path / "t.npz", x=np.zeros((20, 1)), y=np.arange(20))
    assert load_table(tmp_path / "t.npz").outputs == 20


HEADERS = {
    "numbers_in_a_row": "2019,2020,kind\n1,2,cat\n3,4,dog\n5,1,cow\n",
    "lone_label": "1.5,3,kind\n" + "1,2,cat\n3,4,dog\n" * 5,
}


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_that_would_become_a_class_is_noticed(tmp_path, header):
    (tmp_path / "t.csv").write_text(HEADERS[header])
    message = (
        "t.csv, line 1: the label is 'kind', which no other line has; if this line is the header, say so with label_"
    )
    with pytest.raises(DataError, match=message):
        load_table(tmp_path / "t.csv")
    assert load_table(tmp_path / "t.csv", label_column="kind").classes[0] in ("cat", "cow")


def test_a_first_sample_of_a_rare_class_is_a_sample(tmp_path):
    (tmp_path / "t.csv").write_text("1.5,3,cow\n" + "1,2,cat\n3,4,dog\n" * 3)
    assert load_table(tmp_path / "t.csv").classes == ("cat", "cow", "dog")
