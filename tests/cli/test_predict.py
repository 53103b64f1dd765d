"""``growarray predict``: what it reads, shows and writes, and what it refuses."""

import csv
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

import growarray
from growarray.cli.application import app
from growarray.cli.grow.folder import new_folder
from growarray.cli.grow.options import options_from
from growarray.cli.grow.run import Run
from tests.cli.test_extra import ENVIRONMENT


@pytest.fixture
def predict(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    return lambda *arguments: CliRunner().invoke(app, ["predict", *map(str, arguments)])


def grown(folder, **options):
    new_folder(folder)
    run = Run(options_from(options), folder=folder)
    run.train()
    run.finish()
    return run


def flowers(path, header=True):
    """Two kinds that differ in their second column; the label stands first."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((60, 2)) * [1.0, 50.0] + [7.0, 3000.0]
    kinds = np.where(x[:, 1] > 3000.0, "big", "small")
    lines = ["kind,width,length"] if header else []
    path.write_text("\n".join([*lines, *(f"{k},{a},{b}" for k, (a, b) in zip(kinds, x, strict=True))]) + "\n")
    return x, kinds


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flowers")
    flowers(folder / "flowers.csv")
    grown(folder / "run", data=str(folder / "flowers.csv"), label_column="kind", epochs=20, lr=0.05, max_parameters=60)
    return folder / "run"


@pytest.fixture(scope="module")
def regression(tmp_path_factory):
    folder = tmp_path_factory.mktemp("houses")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((80, 3))
    np.savez(folder / "t.npz", x=x, y=5000.0 + 30.0 * x[:, :2])
    grown(folder / "run", data=str(folder / "t.npz"), task="regression", epochs=30, lr=0.02)
    return folder / "run"


def last(result):
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()[-1]


def test_a_table_with_the_training_column_of_labels(classifier, predict, tmp_path):
    x, kinds = flowers(tmp_path / "new.csv")
    result = predict(classifier, tmp_path / "new.csv")
    right = np.mean(growarray.load(classifier).predict(x) == kinds)
    assert right > 0.9
    assert last(result) == f"accuracy {right:.2%} of 60 samples"
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows[0] == ["row", "prediction", "target"]
    assert [row[2] for row in rows[1:11]] == kinds[:10].tolist()
    assert rows[11] == ["50", "more;", "--output", "FILE.csv", "writes", "them", "all"]


def test_data_without_targets_in_every_kind_of_file(classifier, predict, tmp_path):
    x, _ = flowers(tmp_path / "new.csv")
    expected = growarray.load(classifier).predict(x)
    np.savez(tmp_path / "x.npz", x=x)
    np.save(tmp_path / "x.npy", x)
    rows = "\n".join(f"{a},{b}" for a, b in x)
    (tmp_path / "bare.csv").write_text(rows + "\n")
    (tmp_path / "header.csv").write_text(f"width,length\n{rows}\n")
    for name in ("x.npz", "x.npy", "bare.csv", "header.csv"):
        result = predict(classifier, tmp_path / name, "--output", tmp_path / f"{name}.out.npz")
        assert last(result) == f"60 predictions written into {tmp_path / name}.out.npz"
        with np.load(tmp_path / f"{name}.out.npz") as found:
            assert found.files == ["prediction"]
            assert found["prediction"].tolist() == expected.tolist()


def test_targets_of_npz_and_npy_files(classifier, predict, tmp_path):
    x, kinds = flowers(tmp_path / "new.csv")
    np.savez(tmp_path / "t.npz", features=x, labels=kinds)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", kinds)
    figures = {
        last(predict(classifier, tmp_path / "t.npz")),
        last(predict(classifier, tmp_path / "x.npy", "--labels", tmp_path / "y.npy")),
        last(predict(classifier, tmp_path / "new.csv")),
    }
    assert len(figures) == 1


def test_the_csv_that_is_written(classifier, predict, tmp_path):
    x, kinds = flowers(tmp_path / "new.csv")
    path = tmp_path / "out.csv"
    result = predict(classifier, tmp_path / "new.csv", "--probabilities", "--output", path)
    assert last(result).startswith("accuracy ")
    rows = list(csv.DictReader(path.read_text().splitlines()))
    loaded = growarray.load(classifier)
    assert list(rows[0]) == ["prediction", "probability of big", "probability of small", "target"]
    assert [row["prediction"] for row in rows] == loaded.predict(x).tolist()
    assert [row["target"] for row in rows] == kinds.tolist()
    found = np.array([[float(row[f"probability of {name}"]) for name in loaded.classes] for row in rows], np.float32)
    np.testing.assert_array_equal(found, loaded.predict_proba(x))


def test_the_npz_that_is_written(classifier, predict, tmp_path):
    x, kinds = flowers(tmp_path / "new.csv")
    result = predict(classifier, tmp_path / "new.csv", "--probabilities", "--output", tmp_path / "out.npz")
    assert result.exit_code == 0
    with np.load(tmp_path / "out.npz") as found:
        assert set(found.files) == {"prediction", "probabilities", "target", "classes"}
        assert found["classes"].tolist() == ["big", "small"]
        assert found["target"].tolist() == kinds.tolist()
        np.testing.assert_array_equal(found["probabilities"], growarray.load(classifier).predict_proba(x))


def test_a_regression_in_the_units_of_its_targets(regression, predict, tmp_path):
    x = np.random.default_rng(5).standard_normal((40, 3))
    y = 5000.0 + 30.0 * x[:, :2]
    np.savez(tmp_path / "t.npz", x=x, y=y)
    text = last(predict(regression, tmp_path / "t.npz", "--output", tmp_path / "out.csv"))
    values = growarray.load(regression).predict(x)
    r2 = 1.0 - np.sum((values - y) ** 2) / np.sum((y - y.mean(axis=0)) ** 2)
    assert r2 > 0.9
    assert text == f"R2 {r2:.4f} of 40 samples"
    rows = list(csv.reader((tmp_path / "out.csv").read_text().splitlines()))
    assert rows[0] == ["prediction 1", "prediction 2", "target 1", "target 2"]
    np.testing.assert_allclose([[float(v) for v in row[:2]] for row in rows[1:]], values, rtol=1e-6)


def test_the_digits_by_name(predict, tmp_path):
    grown(tmp_path / "run", epochs=3, test_fraction=0.5)
    assert last(predict(tmp_path / "run", "digits")).endswith("% of 1797 samples")
    np.savez(tmp_path / "images.npz", x=np.zeros((2, 8, 8)))
    assert predict(tmp_path / "run", tmp_path / "images.npz").exit_code == 0  # further axes are flattened


REFUSED = {
    "columns": (("wide.csv",), "wide.csv, line 1: columns found: 4, expected the 2 features of the training data, and"),
    "narrow": (("narrow.csv",), "narrow.csv, line 1: columns found: 1, expected the 2 features of the training data"),
    "rows": (("wide.npy",), "wide.npy: found 5 features, expected 2"),
    "class": (("other.npz",), "class 'huge' does not occur in training, which has 'big', 'small'"),
    "kind": (("x.txt",), "x.txt: unknown kind of file '.txt'; expected .npz, .npy or .csv"),
    "missing": (("none.csv",), "none.csv: no such file"),
    "nan": (("nan.npy",), "nan.npy: features[1, 0] is nan, expected a finite number"),
    "digits": (("digits",), "digits: found 64 features and 10 classes, the network has 2 and 2"),
    "labels": (("wide.csv", "--labels", "y.npy"), "--labels belongs to .npy files"),
    "ending": (("x.npy", "--output", "out.txt"), "--output out.txt: expected a .csv or .npz file"),
    "there": (("x.npy", "--output", "wide.csv"), "--output wide.csv exists already; name another file, or add"),
    "folder": (("x.npy", "--output", "no/out.csv"), "--output no/out.csv: there is no folder no; make it first"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(classifier, predict, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wide.csv").write_text("a,b,c,kind\n1,2,3,big\n")
    (tmp_path / "narrow.csv").write_text("a\n1\n")
    (tmp_path / "x.txt").write_text("1,2\n")
    np.save("wide.npy", np.ones((4, 5)))
    np.save("x.npy", np.ones((4, 2)))
    np.save("nan.npy", np.array([[1.0, 2.0], [np.nan, 1.0]]))
    np.savez("other.npz", x=np.ones((1, 2)), y=np.array(["huge"]))
    before = sorted(path.name for path in tmp_path.iterdir())
    result = predict(classifier, *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("growarray predict: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_probabilities_of_a_regression_are_refused(regression, predict, tmp_path):
    np.save(tmp_path / "x.npy", np.ones((2, 3)))
    result = predict(regression, tmp_path / "x.npy", "--probabilities")
    assert (result.exit_code, "--probabilities: a regression has none" in result.stderr) == (2, True)


def test_a_folder_without_a_run(predict, tmp_path):
    result = predict(tmp_path, "digits")
    assert result.exit_code == 2
    assert f"{tmp_path}: expected the folder of a finished run, found no history.json" in result.stderr


def test_the_command_knows_it(classifier):
    done = subprocess.run(
        [sys.executable, "-m", "growarray", "predict", "--help"], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "--probabilities" in done.stdout
