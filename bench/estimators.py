"""The estimators beside scikit-learn's own networks, all with their default options, on the data that it ships.

Every seed splits anew, three quarters to train on; all of one seed see the same parts. MLPClassifier and MLPRegressor
stand behind a StandardScaler, as their documentation advises, since the growing ones scale inside.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bench.timing import clock, show, table, use_threads

__all__ = ["report", "run"]

COLUMNS = {
    "data": "data",
    "size": "samples x features",
    "model": "model",
    "score": "test accuracy (R2):.3f",
    "error": "standard error:.3f",
    "parameters": "parameters:.0f",
    "epochs": "epochs:.0f",
    "seconds": "s:.2f",
}


def _models() -> dict[str, tuple[Any, Any]]:
    """A classifier and a regressor by name."""
    from sklearn.neural_network import MLPClassifier, MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from growarray.sklearn import GrowingClassifier, GrowingRegressor

    found = {}
    for name, options in {"": {}, ", early stopping": {"early_stopping": True}}.items():
        found[f"growing{name}"] = GrowingClassifier(**options), GrowingRegressor(**options)
        plain = MLPClassifier(**options), MLPRegressor(**options)
        found[f"MLP{name}"] = tuple(make_pipeline(StandardScaler(), model) for model in plain)
    return found  # type: ignore[return-value]


def _one(model: Any, parts: Any, seed: int) -> tuple[float, int, int, float]:
    """Score on the test part, parameters, epochs and seconds of one fit."""
    from sklearn.base import clone

    model = clone(model)
    last = model[-1] if hasattr(model, "steps") else model
    last.set_params(random_state=seed)
    x, test_x, y, test_y = parts
    start = clock()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 200 epochs are too few, says MLPClassifier
        model.fit(x, y)
    seconds = clock() - start
    size = last.network_[1].number_of_parameters() if hasattr(last, "network_") else 0
    size = size or sum(array.size for array in (*last.coefs_, *last.intercepts_))
    return model.score(test_x, test_y), size, last.n_iter_, seconds


def run(*, quick: bool = False, progress: Callable[[Any], None] | None = None) -> dict[str, Any]:
    """Digits, breast cancer, wine, diabetes; ten seeds, two with ``quick``."""
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    use_threads(1)
    rows: list[dict[str, Any]] = []
    for name in ("digits", "breast_cancer", "wine", "diabetes"):
        x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
        regression = name == "diabetes"
        if regression:  # MLPRegressor needs targets of this size; R2 is the same
            y = (y - y.mean()) / y.std()
        for model, kinds in _models().items():
            figures = []
            for seed in range(2 if quick else 10):
                parts = train_test_split(x, y, test_size=0.25, random_state=seed, stratify=None if regression else y)
                figures.append(_one(kinds[int(regression)], parts, seed))
            score, parameters, epochs, seconds = np.mean(figures, axis=0).tolist()
            error = float(np.std([figure[0] for figure in figures], ddof=1)) / len(figures) ** 0.5
            rows.append({"data": name.replace("_", " "), "size": f"{x.shape[0]} x {x.shape[1]}", "model": model,
                         "score": score, "error": error, "parameters": parameters, "epochs": epochs,
                         "seconds": seconds})  # fmt: skip
            show(f"{name:14} {model:24} {score:.4f}, {parameters:.0f} parameters, {seconds:.2f} s")
        if progress is not None:
            progress({"rows": rows})
    return {"rows": rows}


def report(results: Mapping[str, Any]) -> str:
    """The table: means over the seeds, seconds of the processor on one thread."""
    return table(results["rows"], COLUMNS)
