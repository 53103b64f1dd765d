"""The estimators in the hands of scikit-learn: its own checks, its tools, its frames."""

import pickle
import re

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_digits, load_iris
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator
from threadpoolctl import threadpool_limits

from growarray import load, save
from growarray.growing import TINY
from growarray.sklearn import FactorizedConvClassifier, GrowingClassifier, GrowingRegressor

IRIS = load_iris(return_X_y=True)
DIABETES = load_diabetes(return_X_y=True)
BOTH = [
    pytest.param(GrowingClassifier, IRIS, id="classifier"),
    pytest.param(GrowingRegressor, DIABETES, id="regressor"),
]


@pytest.fixture(autouse=True)
def one_thread():
    """These matrices are small: threads that wait for each other cost more than they bring."""
    with threadpool_limits(1):
        yield


FEW_EPOCHS = [  # there are some 60 checks, and most fit
    GrowingClassifier(max_iter=6),
    GrowingRegressor(max_iter=14),
    FactorizedConvClassifier(channels=(4,), max_iter=4),
]


@pytest.mark.parametrize("model", FEW_EPOCHS, ids=lambda m: type(m).__name__)
@pytest.mark.filterwarnings("ignore")  # the checks warn of what they do on purpose
def test_scikit_learn_has_nothing_to_object(model):
    results = check_estimator(model, on_skip=None)
    assert len(results) >= 58
    others = {result["check_name"] for result in results if result["status"] != "passed"}
    assert others <= {"check_array_api_input"}  # it needs SCIPY_ARRAY_API=1 before SciPy is imported


@pytest.mark.parametrize(("kind", "data"), BOTH)
def test_a_seed_gives_the_same_model_again(kind, data):
    x, y = data
    model = kind(max_iter=6, random_state=3)
    first, second = model.fit(x, y).predict(x), clone(model).fit(x, y).predict(x)
    other = clone(model).set_params(random_state=4).fit(x, y)
    assert np.array_equal(first, second)
    assert not np.array_equal(model._outputs(x), other._outputs(x))


@pytest.mark.parametrize(("kind", "data"), BOTH)
def test_a_fitted_model_has_grown_and_says_how(kind, data):
    x, y = data
    model = kind(max_iter=6, start_width=1, neurons=3, random_state=0).fit(x, y)
    growths = [entry for entry in model.history_.of("growth") if entry["added"]]
    assert model._grown.widths == [1 + sum(entry["added"] for entry in growths)]
    assert model._grown.widths[0] > 1
    assert model.n_iter_ == len(model.history_.of("train")) == 6
    assert model.n_features_in_ == x.shape[1]
    assert model.network_(x).shape == (len(x), 3 if kind is GrowingClassifier else 1)


def test_probabilities_are_those_of_the_classes():
    x, y = IRIS
    names = np.array(["setosa", "versicolor", "virginica"])
    model = GrowingClassifier(max_iter=20, random_state=0).fit(x, names[y])
    assert model.classes_.tolist() == names.tolist()
    p = model.predict_proba(x)
    np.testing.assert_allclose(p.sum(axis=1), 1.0, rtol=1e-12)
    assert np.array_equal(model.predict(x), names[np.argmax(p, axis=1)])
    assert model.score(x, names[y]) > 0.95


def test_a_graph_grows_from_one_edge():
    x, y = IRIS
    model = GrowingClassifier(network="dag", max_iter=8, random_state=0).fit(x, y)
    assert len(model._grown.widths) > 0
    assert model.score(x, y) > 0.9
    assert np.array_equal(pickle.loads(pickle.dumps(model)).predict_proba(x), model.predict_proba(x))


def test_several_targets_are_learnt_together():
    x, y = DIABETES
    both = np.stack([y, -3.0 * y + 7.0], axis=1)
    model = GrowingRegressor(max_iter=20, random_state=0).fit(x, both)
    predicted = model.predict(x)
    assert predicted.shape == both.shape
    assert model.score(x, both) > 0.4
    assert np.corrcoef(predicted.T)[0, 1] < -0.9


def test_budgets_bound_the_network():
    x, y = IRIS
    model = GrowingClassifier(max_iter=10, start_width=1, max_parameters=40, random_state=0).fit(x, y)
    assert 4 + 1 + 2 * 3 < model._grown.number_of_parameters() <= 40
    first = clone(model).set_params(max_parameters=None, rule=TINY, neurons=2, grow_every=5).fit(x, y)
    assert [entry["epoch"] for entry in first.history_.of("growth")] == [5]


@pytest.mark.parametrize(("kind", "data"), BOTH)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_data_choose_the_precision(kind, data, dtype):
    x, y = data
    model = kind(max_iter=3, random_state=0).fit(x.astype(dtype), y)
    assert {parameter.data.dtype for parameter in model._grown.parameters()} == {np.dtype(dtype)}


@pytest.mark.parametrize(("kind", "data"), BOTH)
def test_early_stopping_keeps_the_best_network(kind, data):
    x, y = data
    model = kind(early_stopping=True, validation_fraction=0.2, n_iter_no_change=3, tol=0.0, random_state=0).fit(x, y)
    trained = model.history_.of("train")
    best = min(range(len(trained)), key=lambda i: trained[i]["validation_loss"])
    assert len(trained) < 100
    assert trained[-1]["epoch"] - trained[best]["epoch"] <= 3
    assert all(entry["judged_by"] == "validation" for entry in trained)
    judged = [e for e in model.history_.steps if e.get("validation_loss") is not None]
    kept = min(judged, key=lambda e: e["validation_loss"])
    assert model._grown.number_of_parameters() == kept["parameters"]


def test_a_fit_ends_at_the_loss_that_is_asked_for():
    x, y = IRIS
    model = GrowingClassifier(tol=0.3, random_state=0).fit(x, y)
    last = [entry["validation_loss"] for entry in model.history_.steps if entry["epoch"] == model.n_iter_]
    before = [entry["validation_loss"] for entry in model.history_.of("train")[:-1]]
    assert last[-1] <= 0.3 < min(before)
    assert model.n_iter_ < 20


@pytest.mark.parametrize(("kind", "data"), BOTH)
def test_a_warm_start_goes_on(kind, data):
    x, y = data
    model = kind(max_iter=5, warm_start=True, random_state=0).fit(x, y)
    network, widths = model.network_, model._grown.widths[0]
    model.fit(x, y)
    assert model.network_ is network
    assert model._grown.widths[0] >= widths
    model.set_params(warm_start=False).fit(x, y)
    assert model.network_ is not network


def test_parts_are_learnt_from_in_turn():
    x, y = IRIS
    rng = np.random.default_rng(0)
    model = GrowingClassifier(random_state=0)
    with pytest.raises(ValueError, match="classes must be passed on the first call to partial_fit"):
        model.partial_fit(x, y)
    model.partial_fit(x[:60], y[:60], classes=[0, 1, 2])  # the third class comes later
    for _ in range(40):
        rows = rng.permutation(150)[:75]
        model.partial_fit(x[rows], y[rows])
    assert model.n_iter_ == len(model.history_.of("train")) == 41
    assert model._grown.widths[0] > 2
    assert model.score(x, y) > 0.9


def test_weights_of_classes_move_the_border():
    x, y = IRIS
    x = x[50:, :1]  # versicolor and virginica overlap here
    model = GrowingClassifier(max_iter=20, random_state=0)
    shares = [clone(model).set_params(class_weight=w).fit(x, y[50:]).predict(x).mean() for w in ({1: 9}, {2: 9})]
    assert shares[0] < 1.3
    assert shares[1] > 1.6
    rare = np.r_[0:50, 50:55]
    balanced = clone(model).set_params(class_weight="balanced").fit(x[rare], y[50:][rare]).predict(x).mean()
    assert balanced > clone(model).fit(x[rare], y[50:][rare]).predict(x).mean()


@pytest.mark.parametrize("rule", ["tiny", "gradmax", "fisher"])
@pytest.mark.parametrize("network", ["mlp", "residual"])
def test_weights_are_repetitions(network, rule):
    x, y = DIABETES
    x, y = x[:60], y[:60]
    times = np.random.default_rng(0).integers(0, 4, 60)
    model = GrowingRegressor(network=network, rule=rule, max_iter=6, start_width=3, random_state=0)
    repeated = clone(model).fit(x.repeat(times, 0), y.repeat(times))
    weighted = clone(model).fit(x, y, sample_weight=times)
    assert [e["added"] for e in repeated.history_.of("growth")] == [e["added"] for e in weighted.history_.of("growth")]
    assert any(e["added"] for e in repeated.history_.of("growth"))
    np.testing.assert_allclose(weighted.predict(x), repeated.predict(x), rtol=1e-7)


def test_a_search_over_processes_finds_what_one_process_finds():
    x, y = IRIS
    model = make_pipeline(StandardScaler(), GrowingClassifier(max_iter=4, random_state=0))
    grid = {"growingclassifier__neurons": [1, 4]}
    alone, two = (GridSearchCV(model, grid, cv=2, n_jobs=jobs).fit(x, y) for jobs in (None, 2))
    assert two.best_params_ == alone.best_params_
    assert np.array_equal(two.cv_results_["mean_test_score"], alone.cv_results_["mean_test_score"])
    scores = cross_val_score(model, x, y, cv=3)
    assert scores.shape == (3,)
    assert scores.min() > 0.7


@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame])
def test_frames_are_taken_with_their_names(frame):
    x, y = IRIS
    names = ["a", "b", "c", "d"]
    table = frame(dict(zip(names, x.T, strict=True)))
    pipeline = make_pipeline(StandardScaler(), GrowingClassifier(max_iter=4, random_state=0))
    pipeline.set_output(transform="pandas" if frame is pd.DataFrame else "polars").fit(table, y)
    model = pipeline[-1]
    assert model.feature_names_in_.tolist() == names
    plain = make_pipeline(StandardScaler(), GrowingClassifier(max_iter=4, random_state=0)).fit(x, y)
    np.testing.assert_allclose(pipeline.predict_proba(table), plain.predict_proba(x), rtol=1e-10)
    other = frame(dict(zip(["a", "b", "c", "e"], x.T, strict=True)))
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(other)


@pytest.mark.parametrize(("kind", "data"), BOTH)
def test_a_pickled_model_predicts_the_same_and_goes_on_the_same(kind, data):
    x, y = data
    model = kind(max_iter=4, random_state=0, warm_start=True).fit(x, y)
    copy = pickle.loads(pickle.dumps(model))
    assert np.array_equal(copy.predict(x), model.predict(x))
    assert np.array_equal(copy.fit(x, y)._outputs(x), model.fit(x, y)._outputs(x))


def test_verbose_draws_a_bar(capsys):
    x, y = IRIS
    GrowingClassifier(max_iter=4, verbose=True, random_state=0).fit(x, y)
    lines = capsys.readouterr().err.rstrip("\n").split("\r")
    assert len(lines) == 5
    assert re.match(r"\[#{12} {12}\] epoch 2/4  loss \d\.\d{4}  \d+ parameters", lines[2])
    GrowingClassifier(max_iter=1, random_state=0).fit(x, y)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "cnn"}, "network: expected one of mlp, residual, dag, found 'cnn'"),
        ({"rule": "best"}, "rule: expected one of tiny, gradmax, fisher or a GrowthRule, found 'best'"),
        ({"activation": "softmax"}, "activation: expected a function of each neuron alone, found 'softmax'"),
        ({"neurons": 0}, "GrowingClassifier: neurons must be at least 1, found 0"),
        ({"batch_size": 0}, "GrowingClassifier: batch_size must be at least 1, found 0"),
        ({"max_parameters": -1}, "GrowingClassifier: max_parameters must be at least 1, found -1"),
        ({"validation_fraction": 1.5}, "validation_fraction: expected a share between 0 and 1, found 1.5"),
        ({"validation_fraction": "x"}, "validation_fraction: expected a number, at least 0, found 'x'"),
        ({"tol": float("nan")}, "tol: expected a number, found nan"),
        ({"learning_rate": -1.0}, "learning_rate: expected a number, at least 0, found -1.0"),
        ({"early_stopping": "yes"}, "early_stopping: expected True or False, found 'yes'"),
        ({"random_state": "x"}, "'x' cannot be used to seed"),
        ({"class_weight": {3: 1.0}}, "are not in class_weight"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_option_that_is_wrong_is_named_and_the_model_stays(options, message):
    x, y = IRIS
    model = GrowingClassifier(max_iter=2, random_state=0).fit(x, y)
    before = model.predict_proba(x)
    with pytest.raises(ValueError, match=re.escape(message)):
        model.set_params(**options).fit(x[:, :3], np.array(["a", "b", "c"])[y])
    assert np.array_equal(model.predict_proba(x), before)
    assert np.array_equal(model.classes_, [0, 1, 2])


def test_data_that_are_wrong_are_refused():
    x, y = IRIS
    model = GrowingClassifier(max_iter=2, random_state=0)
    with pytest.raises(NotFittedError):
        model.predict(x)
    gap = pd.DataFrame(x)
    gap.iloc[3, 1] = np.nan
    with pytest.raises(ValueError, match="contains NaN"):
        model.fit(gap, y)
    with pytest.raises(ValueError, match="could not convert string to float"):
        model.fit(pd.DataFrame({"a": ["x"] * 150}), y)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        model.fit(x, y[:-1])
    with pytest.raises(ValueError, match=r"every weight is 0|at least one non-zero"):
        model.fit(x, y, sample_weight=np.zeros(150))
    with pytest.raises(ValueError, match="n_samples = 1 leaves none to train on"):
        model.set_params(early_stopping=True).fit(x[:1], y[:1])
    fitted = GrowingClassifier(max_iter=2, warm_start=True, random_state=0).fit(x, y)
    with pytest.raises(ValueError, match=re.escape("y: found classes [")):
        fitted.fit(x, y + 1)
    regressor = GrowingRegressor(max_iter=2, warm_start=True, random_state=0).fit(x, y)
    with pytest.raises(ValueError, match=re.escape("y: has shape (150, 2), expected (n,) as in the first fit")):
        regressor.fit(x, np.stack([y, y], axis=1))


def test_images_are_rows_or_images(tmp_path):
    x, y = load_digits(return_X_y=True)
    rows = np.random.default_rng(0).permutation(len(x))[:600]
    x, y = x[rows] / 16, y[rows]
    model = FactorizedConvClassifier(image_shape=(8, 8), channels=(8,), max_iter=8, batch_size=50, random_state=0)
    model.fit(x[:400], y[:400])
    assert model.score(x[400:], y[400:]) > 0.85
    images = x.reshape(-1, 1, 8, 8)
    other = clone(model).set_params(image_shape=None).fit(images[:400], y[:400])
    assert np.array_equal(other.predict_proba(images), model.predict_proba(x))
    assert np.array_equal(pickle.loads(pickle.dumps(model)).predict_proba(x), model.predict_proba(x))
    assert model._grown.widths[0] > 16
    # pixels of a channel share their scale
    offset = model._scales[0].offset
    np.testing.assert_allclose(offset, np.full(64, x[:400].mean()), rtol=1e-12)
    save(model.network_, tmp_path / "images.safetensors")
    assert np.array_equal(load(tmp_path / "images.safetensors").eval()(x), model.network_.eval()(x))
    for options, message in (
        ({"image_shape": (8, 9)}, "image_shape: (8, 9) are 72 numbers, X has 64 features"),
        ({"image_shape": (64,)}, "image_shape: expected (channels, h, w) or (h, w), found (64,)"),
        ({"network": "dag"}, "network: expected one of mlp, residual, found 'dag'"),
        ({"factorization": "svd"}, "unknown factorization 'svd'"),
        ({"channels": (0,)}, "FactorizedConv: out_channels must be at least 1, found 0"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            clone(model).set_params(**options).fit(x, y)
    with pytest.raises(ValueError, match=re.escape("X: has images (2, 4, 8), image_shape is (8, 8)")):
        model.fit(x.reshape(-1, 2, 4, 8), y)


def test_a_search_over_convolutions():
    x, y = load_digits(n_class=3, return_X_y=True)
    model = make_pipeline(StandardScaler(), FactorizedConvClassifier(channels=(4,), max_iter=3, random_state=0))
    grid = {"factorizedconvclassifier__factorization": ["cp", "tt"]}
    found = GridSearchCV(model, grid, cv=2, n_jobs=2).fit(x[:200], y[:200])
    assert found.cv_results_["mean_test_score"].shape == (2,)
    assert found.best_score_ > 0.5
