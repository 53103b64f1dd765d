"""``growarray predict``: predictions of a grown network, as a short table, a file, and a score if there are targets."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.markup import escape
from rich.table import Table

from growarray.checkpoint import Grown
from growarray.checkpoint.grown import load_folder
from growarray.cli.grow.data import as_options
from growarray.cli.grow.options import DIGITS
from growarray.cli.options import option, switch
from growarray.cli.terminal import Screen, plain_table, show_line, show_table
from growarray.datasets import load_digits, load_samples
from growarray.errors import DataError
from growarray.networks import task_named, write_atomically

_SHOWN = 10  # rows of the table


def predict(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="what growarray grow --output DIR wrote")],
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="'digits', a .npz, .npy or .csv file, or a folder of images")
    ],
    labels: Annotated[Path | None, option("FILE", "second .npy file, with the targets", "--labels")] = None,
    label_column: Annotated[
        str | None, option("NAME", "CSV column with the targets; default as in training", "--label-column")
    ] = None,
    probabilities: Annotated[
        bool, switch("--probabilities", "show the probability of the class, and write those of all")
    ] = False,
    output: Annotated[Path | None, option("FILE", ".csv or .npz file to write into", "--output")] = None,
    force: Annotated[bool, switch("--force", "replace that file if it exists")] = False,
) -> None:
    """Load, predict, write if asked to, and show."""
    if output is not None:
        _check_output(output, force)
    grown = load_folder(folder)
    if probabilities and grown.task != "classification":
        raise ValueError("--probabilities: a regression has none; leave the option out")
    x, targets = _samples(grown, data, labels, label_column)
    columns = predictions_of(grown, x, targets, probabilities=probabilities)
    if output is not None:
        write_atomically(output, _content(output, grown, columns))
    console = Screen()
    show_table(console, _table(grown, columns))
    for line in _lines(grown, columns, output):
        show_line(console, line)


def predictions_of(
    grown: Grown, x: np.ndarray, targets: np.ndarray | None, *, probabilities: bool = False
) -> dict[str, np.ndarray]:
    """What is written, by name: ``prediction``, ``probabilities`` if asked for, ``target`` if there are some.

    targets : numbers of classes (n,), or values (n, t)
    """
    columns: dict[str, np.ndarray] = {"prediction": grown.predict(x)}
    if probabilities:
        columns["probabilities"] = grown.predict_proba(x)
    if targets is not None:
        values = targets[:, 0] if targets.ndim == 2 and targets.shape[1] == 1 else targets
        columns["target"] = grown.labels[targets] if grown.task == "classification" else values
    return columns


def figure(grown: Grown, columns: dict[str, np.ndarray]) -> str:
    """The accuracy of the predictions, or their R2.

    >>> from growarray.networks import GrowingMLP
    >>> grown = Grown(GrowingMLP(2, 2, hidden_size=1), "classification", ("no", "yes"))
    >>> figure(grown, {"prediction": np.array(["no", "no"]), "target": np.array(["no", "yes"])})
    'accuracy 50.00% of 2 samples'
    """
    prediction, target = columns["prediction"], columns["target"]
    count = f"of {len(target)} sample{'s' if len(target) > 1 else ''}"
    if grown.task == "classification":
        return f"accuracy {float(np.mean(prediction == target)):.2%} {count}"
    rows = prediction.reshape(len(target), -1).astype(np.float64), target.reshape(len(target), -1)
    return f"R2 {task_named('regression').score(*rows):.4f} {count}"


def _samples(
    grown: Grown, data: str, labels: Path | None, label_column: str | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Features and targets from a file, or the digits; the CSV column of the targets is by default that of the run."""
    if data == DIGITS:
        digits = load_digits(test_fraction=0.0)
        if (grown.features, grown.classes) != (digits.features, digits.classes):
            raise DataError(
                f"digits: found {digits.features} features and {digits.outputs} classes, the network has "
                f"{grown.features} and {len(grown.classes)}; name a file with the columns of its training data"
            )
        return digits.x_train, digits.y_train
    if label_column is None and Path(data).suffix.lower() == ".csv":
        column = grown.history.final["options"].get("label_column") if grown.history.final else None
        label_column = column if isinstance(column, str) else None
    try:
        return load_samples(
            data, grown.features, outputs=grown.outputs, classes=grown.classes, labels=labels, label_column=label_column
        )
    except (DataError, ValueError) as error:
        raise type(error)(as_options(data, str(error))) from error


def _check_output(path: Path, force: bool) -> None:
    """Raise before anything is computed if the file is of another kind, or exists already."""
    if path.suffix.lower() not in (".csv", ".npz"):
        raise ValueError(f"--output {path}: expected a .csv or .npz file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--output {path}: there is no folder {path.parent}; make it first")
    if path.is_dir() or (path.exists() and not force):
        raise FileExistsError(f"--output {path} exists already; name another file, or add --force to replace it")


def _named_columns(grown: Grown, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Columns of one number or text a row, as a table has them."""
    named: dict[str, np.ndarray] = {}
    for name, values in columns.items():
        if values.ndim == 1:
            named[name] = values
            continue
        ends = grown.classes if name == "probabilities" else [str(i + 1) for i in range(values.shape[1])]
        start = "probability of" if name == "probabilities" else name
        named |= {f"{start} {end}": values[:, i] for i, end in enumerate(ends)}
    return named


def _content(path: Path, grown: Grown, columns: dict[str, np.ndarray]) -> bytes:
    """The bytes of the file to write: a table, or arrays by name."""
    if path.suffix.lower() == ".npz":
        stream = io.BytesIO()
        classes = {"classes": grown.labels} if "probabilities" in columns else {}
        np.savez(stream, **columns, **classes)  # type: ignore[arg-type]
        return stream.getvalue()
    table, text = _named_columns(grown, columns), io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table)
    writer.writerows(zip(*(map(str, values) for values in table.values()), strict=True))
    return text.getvalue().encode()


def _table(grown: Grown, columns: dict[str, np.ndarray]) -> Table:
    """The first rows; of the probabilities that of the class."""
    shown = {name: values for name, values in columns.items() if name != "probabilities"}
    if "probabilities" in columns:
        best = columns["probabilities"].max(axis=1)
        shown = {"prediction": shown.pop("prediction"), "probability": best, **shown}
    shown = _named_columns(grown, shown)
    table = plain_table()
    for name in ("row", *shown):
        table.add_column(name, justify="right", overflow="fold")
    for row in range(min(len(columns["prediction"]), _SHOWN)):
        table.add_row(str(row + 1), *(_cell(name, values[row]) for name, values in shown.items()))
    return table


def _lines(grown: Grown, columns: dict[str, np.ndarray], output: Path | None) -> list[str]:
    """What follows the table: how many rows more there are, the file, and the figure last."""
    count, lines = len(columns["prediction"]), []
    if count > _SHOWN:
        lines.append(f"{count - _SHOWN} more{'' if output is not None else '; --output FILE.csv writes them all'}")
    if output is not None:
        lines.append(f"{count} predictions written into {output}")
    return [*lines, figure(grown, columns)] if "target" in columns else lines


def _cell(name: str, value: Any) -> str:
    if name == "probability":
        return f"{value:.2%}"
    return f"{value:.6g}" if isinstance(value, np.floating) else escape(str(value))
