"""The folder of a run opened for use: the same predictions as in the run, as ONNX too, and nothing in it executed."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import growarray
from growarray.checkpoint.grown import Grown, load_folder
from growarray.cli.grow.folder import MODEL, new_folder
from growarray.cli.grow.options import options_from
from growarray.cli.grow.run import Run
from growarray.datasets import load_digits
from growarray.errors import CheckpointError, DataError, ShapeError
from growarray.networks import History
from growarray.nn.activation import _KNOWN
from tests.cli.test_extra import ENVIRONMENT

RNG = np.random.default_rng(0)
X = RNG.standard_normal((90, 3)) * [1.0, 1000.0, 1e-3] + [0.0, 5e4, 1.0]  # far from 0 and of three scales
KIND = np.where(X[:, 1] > 5e4, "high", "low")
Y = 7000.0 + 20.0 * X[:, [0]] + 3.0 * (X[:, [1]] - 5e4)


def grown(folder: Path, data: Any = None, **options: Any) -> Run:
    if data is not None:
        np.savez(folder / "data.npz", **data)
        options["data"] = str(folder / "data.npz")
    new_folder(folder / "run")
    run = Run(options_from({"epochs": 4, "first": 1, "neurons": 2, **options}), folder=folder / "run")
    run.train()
    run.finish()
    return run


RUNS: dict[str, dict[str, Any]] = {
    "digits": {"test_fraction": 0.5},
    "scaled": {"data": {"x": X, "y": KIND}},
    "residual": {"data": {"x": X, "y": KIND}, "network": "residual", "hidden_layers": 2, "activation": "tanh"},
    "cnn": {"test_fraction": 0.8, "network": "cnn"},
    "resnet": {"test_fraction": 0.8, "network": "resnet", "hidden_layers": 2},
    "double": {"data": {"x": X, "y": KIND}, "dtype": "float64", "hidden_layers": 2},
    "double_selu": {"data": {"x": X, "y": KIND}, "dtype": "float64", "activation": "selu"},
    "not_scaled": {"data": {"x": X[:, [0, 2]], "y": KIND}, "standardise": False},
    "regression": {"data": {"x": X, "y": Y}, "task": "regression"},
    "dag": {"data": {"x": X, "y": KIND}, "network": "dag", "activation": "tanh"},
    "two_targets": {"data": {"x": X, "y": np.hstack([Y, -Y])}, "task": "regression", "network": "residual"},
}


def features_of(run: Run) -> np.ndarray:
    """The features of the test part as they were in the data."""
    assert run.data.test is not None
    x, scaling = run.data.test[0], run.data.scaling
    return x if scaling is None else x / np.array(scaling["feature_factor"]) + np.array(scaling["feature_offset"])


@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
def test_it_predicts_what_the_run_tested_in_python_and_in_onnx(options: dict[str, Any], tmp_path: Path) -> None:
    run = grown(tmp_path, **options)
    found, final = growarray.load(tmp_path / "run"), run.loop.history.final
    assert final is not None
    assert run.data.test is not None
    assert (found.task, found.features, found.outputs) == (run.options.task, run.data.features, run.data.outputs)
    assert found.history.steps == run.loop.history.steps
    x, target = features_of(run), run.data.test[1]
    if found.task == "classification":
        outputs = found.predict_proba(x)
        assert found.classes == run.data.classes
        assert np.mean(found.predict(x) == found.labels[target]) == final["test_accuracy"]
        np.testing.assert_allclose(outputs.sum(axis=1), 1.0, rtol=1e-6)
    else:
        outputs = found.predict(x).reshape(len(x), -1)
        real = target / np.array(run.data.scaling["target_factor"]) + np.array(run.data.scaling["target_offset"])
        r2 = 1.0 - np.sum((outputs - real) ** 2) / np.sum((real - real.mean(axis=0)) ** 2)
        assert r2 == pytest.approx(final["test_score"], abs=1e-4)
    session = onnxruntime.InferenceSession(tmp_path / "run" / MODEL)
    (port,) = session.get_inputs()
    double = options.get("dtype") == "float64" and "activation" not in options  # onnxruntime has no Selu in it
    assert port.type == ("tensor(double)" if double else "tensor(float)")
    (result,) = session.run(None, {"features": x.astype(np.float64 if double else np.float32)})
    single = options.get("dtype") == "float64" and not double
    np.testing.assert_allclose(result, outputs, rtol=1e-4 if single else 2e-5, atol=1e-4 if single else 1e-6)
    np.testing.assert_array_equal(result.argmax(axis=1), outputs.argmax(axis=1))
    metadata = session.get_modelmeta().custom_metadata_map
    assert (metadata["task"], tuple(json.loads(metadata["classes"]))) == (found.task, found.classes)
    assert [o.name for o in session.get_outputs()] == ["probabilities" if found.classes else "values"]


@pytest.mark.parametrize("name", [n for n in _KNOWN if n not in ("softmax", "log_softmax")])
def test_every_activation_of_the_command_is_written(name: str, tmp_path: Path) -> None:
    data = {"x": X, "y": KIND}
    run = grown(tmp_path, data, activation=name, epochs=1)
    found = load_folder(tmp_path / "run")
    session = onnxruntime.InferenceSession(tmp_path / "run" / MODEL)
    (result,) = session.run(None, {"features": X.astype(np.float32)})
    np.testing.assert_allclose(result, found.predict_proba(X), rtol=1e-5, atol=1e-6)
    assert run.options.activation == name


def test_classes_that_are_numbers_are_given_as_numbers() -> None:
    network = growarray.GrowingMLP(2, 3, hidden_size=1)
    assert Grown(network, "classification", ("0", "1", "-5")).labels.tolist() == [0, 1, -5]
    assert Grown(network, "classification", ("0", "01", "1")).labels.tolist() == ["0", "01", "1"]
    assert Grown(network, "classification", ("a", "1", "2")).predict(np.ones((2, 2))).dtype.kind == "U"


def test_it_is_a_frozen_value_in_evaluation_mode(tmp_path: Path) -> None:
    grown(tmp_path, epochs=1)
    found = load_folder(tmp_path / "run")
    assert not any(module.training for module in found.network.modules())
    with pytest.raises(FrozenInstanceError):
        found.task = "regression"  # type: ignore[misc]
    assert repr(found) == "Grown(classification, 64 features -> 10 classes, widths 2)"
    twin = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(twin.predict(load_digits().x_test), found.predict(load_digits().x_test))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("grown")
    grown(path, {"x": X, "y": KIND})
    return path / "run"


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.ones((4, 5)), ShapeError, r"features have shape \(4, 5\), expected \(n, 3\), the columns"),
        (np.ones(3), ShapeError, r"put one sample into a list: predict\(\[x\]\)"),
        (np.array([["a", "b", "c"]]), TypeError, "features are <U1, expected real numbers"),
        (np.ones((1, 3), complex), TypeError, "features are complex128, expected real numbers"),
        (np.array([[1.0, 2.0, 3.0], [1.0, np.nan, 3.0]]), DataError, "feature 1 of sample 1 is nan, expected a finite"),
        (np.array([[1e300, 2.0, 3.0]]), DataError, r"feature 0 of sample 0 is 1e\+300, expected .* within float32"),
    ],
    ids=["columns", "one", "text", "complex", "nan", "large"],
)
def test_features_that_are_none_are_refused(folder: Path, x: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"Grown.predict: .*{message}"):
        load_folder(folder).predict(x)


def test_no_samples_and_further_axes(folder: Path) -> None:
    found = load_folder(folder)
    assert found.predict(np.ones((0, 3))).shape == (0,)
    assert found.predict_proba(np.ones((0, 3))).shape == (0, 2)
    np.testing.assert_array_equal(found.predict(X.reshape(-1, 3, 1)), found.predict(X.tolist()))


def test_a_regression_has_no_probabilities() -> None:
    with pytest.raises(ValueError, match="a regression has no probabilities; call predict"):
        Grown(growarray.GrowingMLP(2, 1, hidden_size=1), "regression").predict_proba(np.ones((1, 2)))


def test_a_service_needs_none_of_the_command_s_libraries(folder: Path) -> None:
    program = (
        "import sys\n"
        "for name in ('typer', 'rich', 'matplotlib', 'onnx', 'safetensors'): sys.modules[name] = None\n"
        "import growarray, numpy\n"
        f"print(len(growarray.load({str(folder)!r}).predict(numpy.ones((2, 3)))))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr


def test_weights_of_npz_are_read_too(folder: Path, tmp_path: Path) -> None:
    expected = load_folder(folder).predict_proba(X)
    shutil.copytree(folder, tmp_path / "run")
    weights = growarray.load_checkpoint(folder / "weights.safetensors", mmap=False)
    growarray.checkpoint.save_npz(weights, tmp_path / "run" / "weights.npz")
    (tmp_path / "run" / "weights.safetensors").unlink()
    np.testing.assert_array_equal(load_folder(tmp_path / "run").predict_proba(X), expected)


# What is not a finished run.


def test_a_folder_that_holds_no_run_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"found no history.json; growarray grow --output .* makes one"):
        load_folder(tmp_path)
    run = Run(options_from({"epochs": 2}), folder=tmp_path)
    run.train(until=1)
    with pytest.raises(CheckpointError, match=r"found a run that is not finished; .* --resume finishes it"):
        load_folder(tmp_path)


def edited(folder: Path, **changes: Any) -> None:
    history = History.load(folder / "history.json")
    assert history.final is not None
    replace_options = changes.pop("options", {})
    history.final |= changes
    history.final["options"] |= replace_options
    history.save(folder / "history.json")


def pickled(path: Path) -> None:
    class Executed:
        def __reduce__(self) -> Any:
            return exec, ("raise SystemExit('executed')",)

    path.write_bytes(pickle.dumps(Executed()))


DAMAGE: dict[str, tuple[Any, str]] = {
    "no_json": (lambda f: (f / "history.json").write_text("{"), "not JSON"),
    "no_final": (lambda f: History(load_folder(f).history.steps).save(f / "history.json"), "has no dict 'options'"),
    "widths": (lambda f: edited(f, widths=[10**12]), "do not match the weights"),
    "no_widths": (lambda f: edited(f, widths=[]), "do not fit a network"),
    "text_widths": (lambda f: edited(f, widths=["a"]), "has the widths"),
    "classes": (lambda f: edited(f, classes=["a", "b", "c"]), "3 classes for 2 outputs"),
    "scaling": (lambda f: edited(f, scaling={"feature_offset": [1.0], "feature_factor": [1.0]}), "another size"),
    "half_scaling": (lambda f: edited(f, scaling={"feature_offset": [1.0, 2.0, 3.0]}), "another size"),
    "text_scaling": (lambda f: edited(f, scaling={"feature_offset": "abc"}), "not lists of finite numbers"),
    "task": (lambda f: edited(f, options={"task": "ranking"}), "the task is 'ranking'"),
    "no graph": (lambda f: edited(f, options={"network": "dag"}), "do not form a graph from start to end"),
    "network": (lambda f: edited(f, options={"network": "tree"}), "network is 'tree', expected one of mlp, residual"),
    "activation": (lambda f: edited(f, options={"activation": "os.system"}), "unknown activation 'os.system'"),
    "dtype": (lambda f: edited(f, options={"dtype": "object"}), "has the dtype 'object'"),
    "cut": (lambda f: (f / "weights.safetensors").write_bytes(b"\0" * 40), "weights.safetensors"),
    "pickle": (lambda f: pickled(f / "weights.safetensors"), "weights.safetensors"),
    "no_weights": (lambda f: (f / "weights.safetensors").unlink(), "neither weights.safetensors nor weights.npz"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_folder_is_refused(folder: Path, tmp_path: Path, damage: Any, message: str) -> None:
    shutil.copytree(folder, tmp_path / "run")
    damage(tmp_path / "run")
    with pytest.raises(CheckpointError, match="expected ") as caught:
        load_folder(tmp_path / "run")
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "run"))
    assert "\n" not in str(caught.value)


def test_it_can_be_put_together_by_hand(folder: Path, tmp_path: Path) -> None:
    found = load_folder(folder)
    bare = replace(found, scaling=None)
    scaling = found.scaling
    assert scaling is not None
    scaled = (X - np.array(scaling["feature_offset"])) * np.array(scaling["feature_factor"])
    np.testing.assert_allclose(bare.predict_proba(scaled), found.predict_proba(X), rtol=1e-4)
    found.to_onnx(tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == (folder / MODEL).read_bytes()


@pytest.mark.parametrize("network", ["cnn", "resnet"])
def test_images_are_rebuilt_only_as_the_weights_say(network: str, tmp_path: Path) -> None:
    grown(tmp_path, network=network, test_fraction=0.9, epochs=1, growths=0)
    for features in (None, 63, 3 * 64, 64 * 10**8) if network == "cnn" else (None, 63, 3 * 64):
        edited(tmp_path / "run", features=features)
        with pytest.raises(CheckpointError, match=r"do not match the weights|do not have"):
            growarray.load(tmp_path / "run")
    edited(tmp_path / "run", features=64, widths=[2] * 60)
    with pytest.raises(CheckpointError, match="weight"):
        growarray.load(tmp_path / "run")
