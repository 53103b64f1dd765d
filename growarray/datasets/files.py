"""Tables from ``.npz``, ``.npy`` and ``.csv`` files, checked before anything is trained on them."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Collection
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from growarray.datasets.csv_file import read_csv
from growarray.datasets.dataset import Dataset, Task, check_options, class_values, encode_classes, split_rows
from growarray.errors import DataError

__all__ = ["load_samples", "load_table"]

_NAMES = (("x", "y"), ("X", "y"), ("features", "labels"), ("data", "target"))  # of the arrays of a .npz


class _Part(NamedTuple):
    """Features (n, d) in float64, targets as they came, and the names of the places of a row for messages."""

    x: np.ndarray
    y: np.ndarray
    where: Callable[[int], str]  # its target
    where_x: Callable[[int], str]  # its features


def load_table(
    path: str | PathLike[str],
    *,
    labels: str | PathLike[str] | None = None,
    label_column: str | None = None,
    task: Task = "classification",
    test_fraction: float = 0.2,
    seed: int = 0,
    dtype: Any = np.float32,
) -> Dataset:
    """Data set from a file, split and shuffled with ``numpy.random.default_rng(seed)``.

    ``.npz``: arrays ``x`` and ``y`` (or ``X`` and ``y``, ``features`` and ``labels``, ``data`` and ``target``), and
    where the test part is fixed ``x_test`` and ``y_test``. ``.npy``: the last column is the label, or ``labels`` names
    a second ``.npy``. ``.csv``: a header or none; the label is the last column or the one called ``label_column``.
    Features of more than two axes are flattened to (n, d). Classes become numbers 0 to k - 1 and keep their names;
    regression targets are (n, t).
    Pickled objects are never loaded.

    Raises
    ------
    DataError
        The file is missing, damaged or of an unknown kind, or its content cannot be trained on: empty, text or
        non-finite cells, missing labels, different lengths, fewer than 2 samples or classes, or over 20 classes of
        fewer than 3 samples on average, which are real targets, or names of samples, and no classes.
    ValueError
        An option is out of its range or does not belong to this kind of file.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "pets.csv"
    ...     _ = path.write_text("weight,size,kind\\n4,1,cat\\n20,3,dog\\n5,1,cat\\n25,4,dog\\n")
    ...     data = load_table(path, test_fraction=0.5)
    >>> data, data.classes
    (Dataset(classification, train=2, test=2, features=2, outputs=2), ('cat', 'dog'))
    """
    check_options(task, test_fraction, dtype)
    path = Path(path)
    readers: dict[str, Callable[..., tuple[_Part, _Part | None]]] = {
        ".npz": _read_npz,
        ".npy": _read_npy,
        ".csv": _read_csv,
    }
    suffix = _existing(path).suffix.lower()
    _check_kind(path, suffix, readers, labels, label_column)
    train, test = readers[suffix](path, labels, label_column)
    y, classes = _targets(train, task, dtype)
    x = _cast(train.x, dtype, train.where_x)
    if test is None:
        keep, held = split_rows(
            len(x), test_fraction, np.random.default_rng(seed), classes=y if task == "classification" else None
        )
        return Dataset(x[keep], y[keep], x[held], y[held], task, classes)
    y_test = _test_targets(test, y, classes, task, dtype)
    if test.x.shape[1] != x.shape[1]:
        raise DataError(f"{path}: x_test has {test.x.shape[1]} features, x has {x.shape[1]}; they must agree")
    order = np.random.default_rng(seed).permutation(len(x))
    return Dataset(x[order], y[order], _cast(test.x, dtype, test.where_x), y_test, task, classes)


def load_samples(
    path: str | PathLike[str],
    features: int,
    *,
    outputs: int = 0,
    classes: tuple[str, ...] = (),
    labels: str | PathLike[str] | None = None,
    label_column: str | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Samples for a network of so many features: x (n, features) in float64, and the targets or None.

    The files are those of :func:`load_table`, with targets or without: a table of ``features`` columns has none, one
    of a column more has them in the last or in ``label_column``. Targets are numbers of ``classes``, or real (n,
    outputs) where there are no classes. A fixed test part of a ``.npz`` is not read.

    Raises DataError as :func:`load_table` does, and where the number of features or targets differs; ValueError for an
    option that does not belong to this kind of file.

    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "pets.csv"
    ...     _ = path.write_text("4,1,cat\\n20,3,dog\\n")
    ...     x, y = load_samples(path, 2, classes=("cat", "dog"))
    >>> x.tolist(), y.tolist()
    ([[4.0, 1.0], [20.0, 3.0]], [0, 1])
    """
    path = Path(path)
    readers = {".npz": _npz_samples, ".npy": _npy_samples, ".csv": _csv_samples}
    suffix = _existing(path).suffix.lower()
    _check_kind(path, suffix, readers, labels, label_column)
    part, has_targets = readers[suffix](path, features, labels, label_column)
    if part.x.shape[1] != features:
        raise DataError(
            f"{path}: found {part.x.shape[1]} features, expected {features}, as many as the network was trained on; "
            "bring the columns of its training data, without or with the target"
        )
    if not has_targets:
        return part.x, None
    task: Task = "classification" if classes else "regression"
    return part.x, _test_targets(part, np.empty((0, outputs)), classes, task, np.float64)


def _npz_samples(path: Path, _features: int, _labels: object, _label_column: object) -> tuple[_Part, bool]:
    arrays = _load(path)
    x_name, y_name = next((names for names in _NAMES if names[0] in arrays), _NAMES[0])
    if x_name not in arrays:
        raise DataError(
            f"{path}: expected an array {' or '.join(repr(x) for x, _ in _NAMES)}; found "
            f"{', '.join(sorted(map(repr, arrays))) or 'none'}; save it with numpy.savez(path, x=...)"
        )
    if y_name in arrays:
        return _part(path, arrays, x_name, y_name, least=1), True
    return _bare(path, x_name, arrays[x_name]), False


def _npy_samples(
    path: Path, features: int, labels: str | PathLike[str] | None, label_column: object
) -> tuple[_Part, bool]:
    table = _load(path).get("")
    if labels is None and table is not None and (table.ndim != 2 or table.shape[1] != features + 1):
        return _bare(path, "features", table), False
    return _read_npy(path, labels, label_column, least=1)[0], True


def _csv_samples(path: Path, features: int, _labels: object, label_column: str | None) -> tuple[_Part, bool]:
    table = read_csv(path, label_column=label_column, features=features)

    def where(row: int) -> str:
        return f"{path}, line {table.lines[row]}"

    _at_least(path, len(table.lines), 1)
    return _Part(table.features, table.labels, where, where), bool(len(table.labels))


def _bare(path: Path, name: str, x: np.ndarray) -> _Part:
    """Features without targets, checked as those with."""
    return _part(path, {name: x, "": np.zeros(x.shape[:1])}, name, "", least=1)


def _check_kind(path: Path, suffix: str, known: Collection[str], labels: Any, label_column: Any) -> None:
    """Raise where the kind of file is unknown, or an option does not belong to it."""
    if suffix not in known:
        raise DataError(f"{path}: unknown kind of file {path.suffix!r}; expected .npz, .npy or .csv")
    if labels is not None and suffix != ".npy":
        raise ValueError(f"labels= belongs to .npy files, found {path.name}; put the labels into the file itself")
    if label_column is not None and suffix != ".csv":
        raise ValueError(f"label_column= belongs to .csv files, found {path.name}; leave it out")


def _existing(path: Path) -> Path:
    if path.is_dir():
        raise DataError(f"{path}: expected a file, found a folder; name a .npz, .npy or .csv file in it")
    if not path.is_file():
        raise DataError(f"{path}: no such file; looked in {path.absolute().parent}, check the spelling")
    return path


def _load(path: Path) -> dict[str, np.ndarray]:
    """Arrays of a ``.npz`` by name, or the one of a ``.npy`` under ``''``; never a pickle."""
    try:
        with path.open("rb") as stream:
            content = np.load(stream, allow_pickle=False)
            return {"": content} if isinstance(content, np.ndarray) else {key: content[key] for key in content.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path}: cannot be read as {path.suffix}; the file is damaged, of another format, or holds "
            "Python objects, which are never loaded; save plain arrays with numpy.savez or numpy.save"
        ) from error


def _read_npz(path: Path, _labels: object, _label_column: object) -> tuple[_Part, _Part | None]:
    arrays = _load(path)
    for names in _NAMES:
        if all(name in arrays for name in names):
            break
    else:
        raise DataError(
            f"{path}: expected arrays 'x' and 'y', 'features' and 'labels', or 'data' and 'target'; found "
            f"{', '.join(sorted(map(repr, arrays))) or 'none'}; save them with numpy.savez(path, x=..., y=...)"
        )
    if ("x_test" in arrays) != ("y_test" in arrays):
        raise DataError(f"{path}: found one of 'x_test' and 'y_test', expected both or neither")
    train = _part(path, arrays, *names)
    return train, _part(path, arrays, "x_test", "y_test", least=1) if "x_test" in arrays else None


def _read_npy(
    path: Path, labels: str | PathLike[str] | None, _label_column: object, *, least: int = 2
) -> tuple[_Part, None]:
    table = _load(path).get("")
    if table is None:
        raise DataError(f"{path}: the file holds several arrays; rename it to .npz")
    if labels is not None:
        second = _existing(Path(labels))
        target = _load(second).get("")
        if target is None or second.suffix.lower() != ".npy":
            raise DataError(f"{second}: expected labels in a .npy file, found {second.suffix!r}; use numpy.save")
        return _part(path, {"features": table, "labels": target}, "features", "labels", least=least), None
    if table.ndim != 2 or table.shape[1] < 2:
        raise DataError(
            f"{path}: an array of shape {table.shape} has no label column; expected (n, d + 1) with the label last, "
            "or labels= with a second .npy file"
        )
    return _part(path, {"features": table[:, :-1], "labels": table[:, -1]}, "features", "labels", least=least), None


def _read_csv(path: Path, _labels: object, label_column: str | None) -> tuple[_Part, None]:
    table = read_csv(path, label_column=label_column)
    _at_least(path, len(table.lines), 2)

    def where(row: int) -> str:
        return f"{path}, line {table.lines[row]}"

    return _Part(table.features, table.labels, where, where), None


def _part(path: Path, arrays: dict[str, np.ndarray], x_name: str, y_name: str, *, least: int = 2) -> _Part:
    """Features and targets by name, with shapes, kinds and finiteness checked."""
    x, y = arrays[x_name], arrays[y_name]
    for name, values, kinds in ((x_name, x, "biuf"), (y_name, y, "biufU")):
        if values.dtype.kind not in kinds:
            raise DataError(f"{path}: {name} has dtype {values.dtype}; expected real numbers")
        if values.ndim == 0:
            raise DataError(f"{path}: {name} is a single value; expected one row a sample")
    if len(x) != len(y):
        raise DataError(f"{path}: {x_name} has {len(x)} rows, {y_name} has {len(y)}; they must be of one length")
    _at_least(path, len(x), least)
    features = x.reshape(len(x), -1).astype(np.float64)
    if features.shape[1] == 0:
        raise DataError(f"{path}: {x_name} has shape {x.shape}, no features; expected at least one column")
    for name, values in ((x_name, features), (y_name, y)):
        if values.dtype.kind == "f" and not np.all(np.isfinite(values)):
            place = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
            raise DataError(
                f"{path}: {name}[{', '.join(map(str, place))}] is {values[place]}, expected a finite number; "
                "fill in or remove that sample"
            )
    return _Part(features, y, lambda row: f"{path}, {y_name}[{row}]", lambda row: f"{path}, {x_name}[{row}]")


def _at_least(path: Path, rows: int, least: int) -> None:
    if rows < least:
        raise DataError(f"{path}: found {rows} sample(s), expected at least {least}; add rows")


def _targets(part: _Part, task: Task, dtype: Any) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class numbers (n,) and names, or real targets (n, t) and no names."""
    y = part.y
    if task == "classification":
        return encode_classes(_column(part), where=part.where)
    try:
        values = y.astype(np.float64)
    except ValueError:
        row = next(i for i, text in enumerate(y.reshape(-1)) if not _is_real(text)) // max(1, y[0].size)
        raise DataError(
            f"{part.where(row)}: target {str(y.reshape(len(y), -1)[row, 0])!r} is not a number; "
            "regression needs real targets, text labels need task='classification'"
        ) from None
    broken = np.flatnonzero(~np.isfinite(values.reshape(len(y), -1)).all(axis=1))
    if broken.size:
        raise DataError(f"{part.where(int(broken[0]))}: target is not a finite number; fill it in or remove the sample")
    return _cast(values.reshape(len(y), -1), dtype, part.where), ()


def _column(part: _Part) -> np.ndarray:
    if part.y.size != len(part.y):
        raise DataError(
            f"{part.where(0)}: labels have shape {part.y.shape}, expected ({len(part.y)},); "
            "turn one-hot rows into numbers with labels.argmax(axis=1)"
        )
    return part.y.reshape(-1)


def _is_real(text: Any) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _test_targets(test: _Part, y: np.ndarray, classes: tuple[str, ...], task: Task, dtype: Any) -> np.ndarray:
    """Targets of a fixed test part, in the numbers of the training classes."""
    if task == "regression":
        targets, _ = _targets(test, task, dtype)
        if targets.shape[1] != y.shape[1]:
            raise DataError(f"{test.where(0)}: {targets.shape[1]} targets in testing, {y.shape[1]} in training")
        return targets
    number = {name: i for i, name in enumerate(classes)}
    column = _column(test)
    known = column.dtype.kind == "U" and set(column.tolist()) <= set(number)  # in the spelling of the classes already
    names = [str(v) for v in (column if known else class_values(column, where=test.where))]
    for row, name in enumerate(names):
        if name not in number:
            raise DataError(
                f"{test.where(row)}: class {name!r} does not occur in training, which has "
                f"{', '.join(map(repr, classes[:20]))}; remove the sample or move it to training"
            )
    return np.array([number[name] for name in names], dtype=np.int64)


def _cast(values: np.ndarray, dtype: Any, where: Callable[[int], str]) -> np.ndarray:
    with np.errstate(over="ignore"):
        result = values.astype(dtype)
    broken = np.flatnonzero(~np.isfinite(result).all(axis=1))
    if broken.size:
        raise DataError(
            f"{where(int(broken[0]))}: a value is too large for {np.dtype(dtype)}; scale it down or use dtype=float64"
        )
    return result
