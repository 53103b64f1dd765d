"""Tables of comma-separated values: every cell but the label is a finite number."""

from __future__ import annotations

import csv
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from growarray.errors import DataError, shown

_MISSING = ("", "na", "n/a", "nan", "null")
_OFTEN = 5  # where every other label occurs so often, one that occurs in the first line alone is a name


@dataclass(frozen=True)
class CsvTable:
    """Content of a CSV file: ``features`` (n, d), ``labels`` (n,) as text, and the line in the file of each row.

    ``labels`` is empty if the file has none.
    """

    features: np.ndarray
    labels: np.ndarray
    lines: tuple[int, ...]


def read_csv(path: Path, *, label_column: str | None = None, features: int | None = None) -> CsvTable:
    """Numbers and labels of a CSV file; no labels if it has exactly ``features`` columns.

    The label is the column named ``label_column``, else the last one. The first line is a header if
    ``label_column`` is given, or if no cell of it is a number. A label that is empty, or a usual sign for it (NA,
    N/A, NaN, null), is missing. The separator is the one of comma, semicolon and tab that the first line has most of.
    Blank lines are passed over.

    Raises DataError: a cell is empty, text or not finite, a label is missing, a line is of another length, the label
    column does not exist, or the first line looks like a header whose other names are numbers: its label alone is text,
    or occurs never again where others do; the message names file, line and column.
    """
    rows = _rows(path)
    if not rows:
        raise DataError(f"{path}: the file is empty; expected one line a sample, features first and the label last")
    header = rows[0][1] if label_column is not None or not any(map(is_number, rows[0][1])) else None
    names = [f"column {i + 1}" + (f" {shown(name)}" if header else "") for i, name in enumerate(rows[0][1])]
    if features is not None and len(names) not in (features, features + 1):
        raise DataError(
            f"{path}, line {rows[0][0]}: columns found: {len(names)}, expected the {features} features of the training "
            "data, and one more if the target is there"
        )
    bare = len(names) == features and label_column not in rows[0][1]
    if bare:
        label, header = len(names), rows[0][1] if not any(map(is_number, rows[0][1])) else None
    else:
        label = len(names) - 1 if label_column is None else _position(path, rows[0][1], label_column)
    if len(names) < 2 and not bare:
        raise DataError(f"{path}, line {rows[0][0]}: 1 column found; expected at least one feature and the label")
    if not (header or bare):
        _check_first_label(path, rows)
    rows = rows[1:] if header else rows
    table = np.empty((len(rows), len(names) - (not bare)))
    for row, (line, cells) in enumerate(rows):
        where = f"{path}, line {line}"
        if len(cells) != len(names):
            raise DataError(
                f"{where}: {len(cells)} columns found, expected {len(names)} as in the first line; "
                "add the missing cells or quote cells that contain the separator"
            )
        if not bare and cells[label].lower() in _MISSING:
            cell = f" ({cells[label]})" if cells[label] else ""
            raise DataError(f"{where}, {names[label]}: the label is missing{cell}; fill it in or remove the line")
        table[row] = _numbers(cells[:label] + cells[label + 1 :], names[:label] + names[label + 1 :], where)
    labels = np.array([cells[label] for _, cells in rows if not bare], dtype=np.str_)
    return CsvTable(table, labels, tuple(line for line, _ in rows))


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """Line number and stripped cells of every line that is not blank."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            first = stream.readline()
            stream.seek(0)
            reader = csv.reader(stream, delimiter=max(",;\t", key=first.count), strict=True)
            return [(reader.line_num, [c.strip() for c in cells]) for cells in reader if any(map(str.strip, cells))]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a CSV file in UTF-8 ({error}); save the table again as CSV in UTF-8") from error
    except csv.Error as error:
        raise DataError(
            f"{path}: the row that ends in line {reader.line_num} cannot be read ({error}); look for a quotation mark "
            "that is not closed"
        ) from error


def _check_first_label(path: Path, rows: list[tuple[int, list[str]]]) -> None:
    """Refuse a header that looks like a sample: all its names are numbers, and its label occurs nowhere else."""
    (line, first), *others = rows
    counts = Counter(cells[-1] for _, cells in others)
    if not others or is_number(first[-1]) or first[-1] in counts:
        return
    if all(map(is_number, counts)):
        contrast = "those of all other lines are numbers"
    elif min(counts.values()) >= _OFTEN or _are_counted(first[:-1]):
        contrast = "which no other line has"
    else:
        return
    raise DataError(
        f"{path}, line {line}: the label is {shown(first[-1])}, {contrast}; if this line is the header, say so with "
        f"label_column={shown(first[-1])}, else correct the label or remove the line"
    )


def _are_counted(cells: list[str]) -> bool:
    """Whether the cells are consecutive whole numbers, as in a header of column numbers or years."""
    numbers = [int(cell) for cell in cells if cell.isdecimal()]
    return len(numbers) == len(cells) > 1 and numbers == list(range(numbers[0], numbers[0] + len(cells)))


def is_number(cell: str) -> bool:
    """Whether ``float`` reads the text."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _position(path: Path, header: list[str], label_column: str) -> int:
    if header.count(label_column) != 1:
        raise DataError(
            f"{path}, line 1: {header.count(label_column)} columns are called {shown(label_column)}, expected 1; "
            f"the header names {', '.join(map(shown, header[:20]))}{' and more' if len(header) > 20 else ''}"
        )
    return header.index(label_column)


def _numbers(cells: list[str], names: list[str], where: str) -> list[float]:
    try:
        values = [float(cell) for cell in cells]
    except ValueError:
        name, cell = next((n, c) for n, c in zip(names, cells, strict=True) if not is_number(c))
        if cell == "":
            raise DataError(f"{where}, {name}: the cell is empty; fill it in or remove the line") from None
        raise DataError(
            f"{where}, {name}: expected a number, found the text {shown(cell)}; write it as numbers, "
            "or name the label with label_column= if this line is the header or the label is not the last column"
        ) from None
    for name, value in zip(names, values, strict=True):
        if not math.isfinite(value):
            raise DataError(f"{where}, {name}: expected a finite number, found {value}; fill it in or remove the line")
    return values
