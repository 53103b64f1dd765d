"""Tables from ``.npz``, ``.npy`` and ``.csv`` files, and images, checked before anything is trained on them."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from growarray.datasets.csv_file import is_number, read_csv
from growarray.datasets.dataset import Dataset, Task, check_options, class_values, encode_classes, split_rows
from growarray.datasets.images import image_sizes, read_images
from growarray.errors import DataError, shown

_NAMES = (("x", "y"), ("X", "y"), ("features", "labels"), ("data", "target"))  # of the arrays of a .npz
_Where = Callable[[int], str]  # a row, as messages name it


class _Part(NamedTuple):
    """Features (n, d) in float64, targets as in the file or None, and how messages name a row."""

    x: np.ndarray
    y: np.ndarray | None
    where: _Where  # its target
    where_x: _Where  # its features
    image: tuple[int, ...] | None = None


class _Wanted(NamedTuple):
    """What a file must hold; the targets are optional if ``features``, the number of feature columns, is given."""

    labels: str | PathLike[str] | None
    label_column: str | None
    features: int | None = None

    @property
    def rows(self) -> int:
        """Least number of samples: to learn, there must be two."""
        return 2 if self.features is None else 1


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
    if the test part is fixed ``x_test`` and ``y_test``. ``.npy``: the last column is the label, or ``labels`` names
    a second ``.npy``. ``.csv``: a header or none; the label is the last column or the one called ``label_column``.
    Features of more than two axes are flattened to (n, d); those of three or four are images, see ``Dataset.image``.
    A folder has images, all of one size, in a subfolder for each class. Classes become numbers 0 to k - 1 and keep
    their names; regression targets are (n, t). Pickled objects are never loaded.

    Raises DataError: the file is missing, damaged or of an unknown kind, or its content cannot be trained on: empty,
    text or non-finite cells, missing labels, different lengths, fewer than 2 samples or classes, or over 20 classes of
    fewer than 3 samples on average, which are real targets, or names of samples, and no classes; ValueError: an option
    is out of its range or does not belong to this kind of file.

    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "pets.csv"
    ...     _ = path.write_text("weight,size,kind\\n4,1,cat\\n20,3,dog\\n5,1,cat\\n25,4,dog\\n")
    ...     data = load_table(path, test_fraction=0.5)
    >>> data, data.classes
    (Dataset(classification, train=2, test=2, features=2, outputs=2), ('cat', 'dog'))
    """
    rng = check_options(task, test_fraction, seed, dtype)
    train, test = _read(Path(path), _Wanted(labels, label_column))
    y, classes = _targets(train, task, dtype)
    x = _cast(train.x, dtype, train.where_x)
    if test is None:
        keep, test_rows = split_rows(len(x), test_fraction, rng, classes=y if task == "classification" else None)
        return Dataset(x[keep], y[keep], x[test_rows], y[test_rows], task, classes, train.image)
    y_test = _known_targets(test, y.shape[1:], classes, task, dtype)
    if test.x.shape[1] != x.shape[1]:
        raise DataError(f"{path}: x_test has {test.x.shape[1]} features, x has {x.shape[1]}; they must agree")
    order = rng.permutation(len(x))
    return Dataset(x[order], y[order], _cast(test.x, dtype, test.where_x), y_test, task, classes, train.image)


def load_samples(
    path: str | PathLike[str],
    features: int,
    *,
    outputs: int = 0,
    classes: tuple[str, ...] = (),
    labels: str | PathLike[str] | None = None,
    label_column: str | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Samples for a network with ``features`` inputs: x (n, features) in float64, and the targets or None.

    The files are those of :func:`load_table`, with targets or without: a table of ``features`` columns has none, one
    of a column more has them in the last or in ``label_column``. Targets are numbers of ``classes``, or real (n,
    outputs) if there are no classes. A fixed test part of a ``.npz`` is not read.

    Raises DataError as :func:`load_table` does, and if the number of features or targets differs; ValueError for an
    option that does not belong to this kind of file.

    >>> import tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "pets.csv"
    ...     _ = path.write_text("4,1,cat\\n20,3,dog\\n")
    ...     x, y = load_samples(path, 2, classes=("cat", "dog"))
    >>> x.tolist(), y.tolist()
    ([[4.0, 1.0], [20.0, 3.0]], [0, 1])
    """
    part, _ = _read(Path(path), _Wanted(labels, label_column, features))
    if part.x.shape[1] != features:
        raise DataError(
            f"{path}: found {part.x.shape[1]} features, expected {features} as in training; "
            "pass the columns of the training data, with or without the target"
        )
    if part.y is None:
        return part.x, None
    task: Task = "classification" if classes else "regression"
    return part.x, _known_targets(part, (outputs,), classes, task, np.float64)


def _read(path: Path, wanted: _Wanted) -> tuple[_Part, _Part | None]:
    """The samples of a file, and its fixed test part if it has one."""
    readers = {".npz": _read_npz, ".npy": _read_npy, ".csv": _read_csv, "folder": _read_folder}
    suffix = "folder" if path.is_dir() else _existing(path).suffix.lower()
    if suffix not in readers:
        raise DataError(f"{path}: unknown kind of file {shown(path.suffix)}; expected .npz, .npy or .csv, or a folder")
    if wanted.labels is not None and suffix != ".npy":
        raise ValueError(f"labels= belongs to .npy files, found {path.name}; put the labels into the file itself")
    if wanted.label_column is not None and suffix != ".csv":
        raise ValueError(f"label_column= belongs to .csv files, found {path.name}; omit it")
    return readers[suffix](path, wanted)


def _read_folder(path: Path, wanted: _Wanted) -> tuple[_Part, None]:
    x, labels, paths = read_images(path)
    if not any(labels) and wanted.features is None:
        raise DataError(f"{path}: expected a subfolder of images for each class, found {paths[0].name}; sort them so")
    _check_rows(path, len(x), wanted.rows)

    def where(row: int) -> str:
        return str(paths[row])

    y = np.array(labels) if any(labels) else None
    return _Part(x.reshape(len(x), -1).astype(np.float64), y, where, where, image_sizes(x.shape)), None


def _existing(path: Path) -> Path:
    if path.is_dir():
        raise DataError(f"{path}: expected a file, found a folder; name a .npy file in it")
    if not path.is_file():
        raise DataError(f"{path}: no such file; looked in {path.absolute().parent}, check the spelling")
    return path


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Arrays of a ``.npz`` by name, or the array of a ``.npy`` under ``''``; pickles are never loaded.

    Raises DataError: there is no such file, or it is not one of these.
    """
    _existing(path)
    try:
        with path.open("rb") as stream:
            content = np.load(stream, allow_pickle=False)
            return {"": content} if isinstance(content, np.ndarray) else {key: content[key] for key in content.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path}: cannot be read as {path.suffix}; the file is damaged, of another format, or holds "
            "Python objects, which are never loaded; save plain arrays with numpy.savez or numpy.save"
        ) from error


def _read_npz(path: Path, wanted: _Wanted) -> tuple[_Part, _Part | None]:
    arrays = load_arrays(path)
    needed = 2 if wanted.features is None else 1  # of the two names
    names = next((names for names in _NAMES if all(name in arrays for name in names[:needed])), None)
    if names is None:
        expected = ", or ".join(" and ".join(map(shown, names[:needed])) for names in _NAMES)
        raise DataError(
            f"{path}: expected arrays {expected}; found {', '.join(map(shown, sorted(arrays))) or 'none'}; "
            f"save them with numpy.savez(path, {', '.join(f'{name}=...' for name in _NAMES[0][:needed])})"
        )
    part = _part(path, arrays, *names, wanted.rows)
    if wanted.features is not None or not {"x_test", "y_test"} & set(arrays):
        return part, None
    if not {"x_test", "y_test"} <= set(arrays):
        raise DataError(f"{path}: found one of 'x_test' and 'y_test', expected both or neither")
    return part, _part(path, arrays, "x_test", "y_test", 1)


def _read_npy(path: Path, wanted: _Wanted) -> tuple[_Part, None]:
    table = load_arrays(path).get("")
    if table is None:
        raise DataError(f"{path}: the file holds several arrays; rename it to .npz")
    arrays = {"features": table}
    if wanted.labels is not None:
        second = _existing(Path(wanted.labels))
        target = load_arrays(second).get("") if second.suffix.lower() == ".npy" else None
        if target is None:
            raise DataError(f"{second}: expected labels in a .npy file, found {shown(second.suffix)}; use numpy.save")
        arrays["labels"] = target
    elif wanted.features is None or (table.ndim == 2 and table.shape[1] == wanted.features + 1):
        if table.ndim != 2 or table.shape[1] < 2:
            raise DataError(
                f"{path}: an array of shape {table.shape} has no label column; expected (n, d + 1) with the label "
                "last, or labels= with a second .npy file"
            )
        arrays = {"features": table[:, :-1], "labels": table[:, -1]}
    return _part(path, arrays, "features", "labels", wanted.rows), None


def _read_csv(path: Path, wanted: _Wanted) -> tuple[_Part, None]:
    table = read_csv(path, label_column=wanted.label_column, features=wanted.features)
    _check_rows(path, len(table.lines), wanted.rows)

    def where(row: int) -> str:
        return f"{path}, line {table.lines[row]}"

    return _Part(table.features, table.labels if len(table.labels) else None, where, where), None


def _part(path: Path, arrays: dict[str, np.ndarray], x_name: str, y_name: str, rows: int) -> _Part:
    """Features and, if present, targets by name, with shapes, kinds and finiteness checked."""
    x, y = arrays[x_name], arrays.get(y_name)
    for name, values, kinds in ((x_name, x, "biuf"), (y_name, y, "biufU")):
        if values is None:
            continue
        if values.dtype.kind not in kinds:
            raise DataError(f"{path}: {name} has dtype {values.dtype}; expected real numbers")
        if values.ndim == 0:
            raise DataError(f"{path}: {name} is a single value; expected one row a sample")
    if y is not None and len(x) != len(y):
        raise DataError(f"{path}: {x_name} has {len(x)} rows, {y_name} has {len(y)}; they must have the same length")
    _check_rows(path, len(x), rows)
    features = x.reshape(len(x), -1).astype(np.float64)
    if features.shape[1] == 0:
        raise DataError(f"{path}: {x_name} has shape {x.shape}, so no features; expected at least one column")
    for name, values in ((x_name, features), (y_name, y)):
        if values is not None and values.dtype.kind == "f" and not np.all(np.isfinite(values)):
            index = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
            raise DataError(
                f"{path}: {name}[{', '.join(map(str, index))}] is {values[index]}, expected a finite number; "
                "fill in or remove that sample"
            )
    where, where_x = (lambda row, name=name: f"{path}, {name}[{row}]" for name in (y_name, x_name))
    return _Part(features, y, where, where_x, image_sizes(x.shape))


def _check_rows(path: Path, rows: int, least: int) -> None:
    if rows < least:
        raise DataError(f"{path}: found {rows} sample(s), expected at least {least}; add rows")


def _targets(part: _Part, task: Task, dtype: Any) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class numbers (n,) and names, or real targets (n, t) and no names."""
    if task == "classification":
        return encode_classes(_column(part), where=part.where)
    y = np.asarray(part.y).reshape(len(part.x), -1)
    try:
        values = y.astype(np.float64)
    except ValueError:
        row, text = next((row, text) for row, line in enumerate(y) for text in line if not is_number(text))
        raise DataError(
            f"{part.where(row)}: target {shown(str(text))} is not a number; "
            "regression needs real targets, text labels need task='classification'"
        ) from None
    broken = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if broken.size:
        raise DataError(f"{part.where(int(broken[0]))}: target is not a finite number; fill it in or remove the sample")
    return _cast(values, dtype, part.where), ()


def _column(part: _Part) -> np.ndarray:
    y = np.asarray(part.y)
    if y.size != len(y):
        raise DataError(
            f"{part.where(0)}: labels have shape {y.shape}, expected ({len(y)},); "
            "turn one-hot rows into numbers with labels.argmax(axis=1)"
        )
    return y.reshape(-1)


def _known_targets(part: _Part, shape: tuple[int, ...], classes: tuple[str, ...], task: Task, dtype: Any) -> np.ndarray:
    """Targets of samples after training: checked for the shape of one target, and classes as numbers."""
    if task == "regression":
        targets, _ = _targets(part, task, dtype)
        if targets.shape[1:] != shape:
            raise DataError(f"{part.where(0)}: {targets.shape[1]} targets in testing, {shape[0]} in training")
        return targets
    number = {name: i for i, name in enumerate(classes)}
    column = _column(part)
    as_in_training = column.dtype.kind == "U" and set(column.tolist()) <= set(number)  # in their spelling already
    names = [str(v) for v in (column if as_in_training else class_values(column, where=part.where))]
    for row, name in enumerate(names):
        if name not in number:
            raise DataError(
                f"{part.where(row)}: class {shown(name)} does not occur in training, which has "
                f"{', '.join(map(shown, classes[:20]))}; remove the sample or move it to training"
            )
    return np.array([number[name] for name in names], dtype=np.int64)


def _cast(values: np.ndarray, dtype: Any, where: _Where) -> np.ndarray:
    with np.errstate(over="ignore"):
        result = values.astype(dtype)
    broken = np.flatnonzero(~np.isfinite(result).all(axis=1))
    if broken.size:
        raise DataError(
            f"{where(int(broken[0]))}: a value is too large for {np.dtype(dtype)}; scale it down or use dtype=float64"
        )
    return result
