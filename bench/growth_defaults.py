"""What the defaults of ``growarray grow`` are worth: nine data sets, five seeds, beside a fixed and a linear model.

scikit-learn ships the data or makes them. Every seed splits, draws and shuffles anew; the fixed network has the final
widths of the grown one and is trained in the same way on the same parts, its best epoch kept too; the linear model is
scikit-learn's logistic or ridge regression on the same training part, its penalty chosen on the same validation part.

Grown and fixed network of one seed have the same split, so they are compared seed by seed: the standard error is that
of the mean of the five differences. A data set passes where that mean is at most one standard error below 0. Where two
networks are equally good, about one set in five fails by chance; so one that fails is run with twenty other seeds, and
both rows are shown.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.timing import show, table, use_threads
from growarray.cli.grow.options import DIGITS

__all__ = ["report", "run"]

SEEDS, OTHERS = range(5), range(5, 25)
PENALTIES = np.geomspace(1e-3, 1e3, 13)
COLUMNS = {
    "name": "data",
    "seeds": "seeds:.0f",
    "size": "samples x features",
    "score": "score",
    "grown": "grown:.4f",
    "fixed": "fixed:.4f",
    "linear": "linear:.4f",
    "difference": "grown - fixed:+.4f",
    "error": "standard error:.4f",
    "passes": "passes",
    "parameters": "parameters:.0f",
    "growths": "growths:.1f",
    "refused": "refused:.1f",
    "seconds_grown": "grown s:.1f",
    "seconds_fixed": "fixed s:.1f",
}


def _data() -> dict[str, tuple[str, np.ndarray, np.ndarray]]:
    """Task, features and targets by name."""
    from sklearn import datasets

    shipped = {
        "digits": datasets.load_digits,
        "iris": datasets.load_iris,
        "wine": datasets.load_wine,
        "breast cancer": datasets.load_breast_cancer,
    }
    made: dict[str, tuple[Callable[..., Any], float]] = {
        "friedman1": (datasets.make_friedman1, 1.0),
        "friedman2": (datasets.make_friedman2, 125.0),
        "friedman3": (datasets.make_friedman3, 0.1),
    }
    found = {name: ("classification", *load(return_X_y=True)) for name, load in shipped.items()}
    found["two moons"] = ("classification", *datasets.make_moons(500, noise=0.25, random_state=0))
    found["diabetes"] = ("regression", *datasets.load_diabetes(return_X_y=True))
    for name, (make, noise) in made.items():
        found[name] = ("regression", *make(n_samples=500, noise=noise, random_state=0))
    return found


def _linear(data: Any, task: str) -> float:
    """Test score of the linear model whose penalty does best on the validation part."""
    from sklearn.linear_model import LogisticRegression, Ridge

    (x, y), validation, test = data.train, data.validation, data.test
    y = y if task == "classification" else y[:, 0]
    models = []
    for penalty in PENALTIES:
        model = LogisticRegression(C=1.0 / penalty, max_iter=5000) if task == "classification" else Ridge(penalty)
        models.append(model.fit(x, y))
    return float(max(models, key=lambda model: model.score(*validation)).score(*test))


def _one(path: Path, task: str, seed: int, options: Mapping[str, Any]) -> dict[str, Any]:
    from growarray.cli.grow.options import options_from
    from growarray.cli.grow.run import Run

    run_ = Run(options_from({"data": str(path), "task": task, "seed": seed, "compare": True, **options}))
    run_.train()
    final = run_.finish()
    return {
        "grown": final["test_score"],
        "fixed": final["compare"]["test_score"],
        "linear": _linear(run_.data, task),
        "parameters": final["parameters"],
        "growths": final["growths"],
        "refused": final["refused"],
        "seconds_grown": final["seconds"],
        "seconds_fixed": final["compare"]["seconds"],
    }


def _row(
    name: str, task: str, x: np.ndarray, y: np.ndarray, options: Mapping[str, Any], seeds: range
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.npz"
        np.savez(path, data=x, target=y)
        path = path if name != DIGITS else Path(DIGITS)  # as they come with the command: not standardised
        results = [_one(path, task, seed, options) for seed in seeds]
    row = {key: float(np.mean([result[key] for result in results])) for key in results[0]}
    differences = [result["grown"] - result["fixed"] for result in results]
    difference, error = float(np.mean(differences)), float(np.std(differences, ddof=1)) / math.sqrt(len(results))
    row |= {
        "name": name,
        "seeds": len(results),
        "size": f"{x.shape[0]} x {x.shape[1]}",
        "score": "accuracy" if "class" in task else "R2",
    }
    return row | {"difference": difference, "error": error, "passes": difference >= -error - 1e-9, "runs": results}


def run(
    *, quick: bool = False, progress: Callable[[Any], None] | None = None, options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """All data sets; ``quick`` takes the three smallest and two seeds. ``options`` are of ``growarray grow``."""
    use_threads()
    rows = []
    for name, (task, x, y) in _data().items():
        if quick and name not in ("iris", "wine", "diabetes"):
            continue
        rows.append(_row(name, task, x, y, options or {}, range(2) if quick else SEEDS))
        if not rows[-1]["passes"] and not quick:
            rows.append(_row(name, task, x, y, options or {}, OTHERS))
        show(f"{name:14} grown {rows[-1]['grown']:.4f}, fixed {rows[-1]['fixed']:.4f}")
        if progress is not None:
            progress({"rows": rows})
    return {"rows": rows}


def report(results: Mapping[str, Any]) -> str:
    """The table, and how many data sets pass with the first seeds."""
    rows = [{**row, "passes": "yes" if row["passes"] else "no"} for row in results["rows"]]
    first = [row["passes"] for row in results["rows"] if row["seeds"] <= len(SEEDS)]
    return f"{table(rows, COLUMNS)}\n\n{sum(first)} of {len(first)} data sets pass with the first seeds"
