"""Contractions that ``growarray bench`` measures: an equation with shapes, or an instance as cotengra writes it."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import opt_einsum

from growarray.contraction import Plan, parse, plan
from growarray.contraction.problem import Problem
from growarray.errors import PlanError, shown

DTYPES = ("float32", "float64")
LARGEST = 1 << 28
"""Elements of one array: what is larger is a slip of the pen."""

_GEOMETRY = ("stride", "padding", "dilation", "padding_mode")
_PLAIN = ("inputs", "output", "size_dict")  # as cotengra and einsum_benchmark write a contraction
EQUATION_KEYS = ("name", "equation", "shapes", *_PLAIN, *_GEOMETRY, "dtype", "best")
"""What a file of an equation may have; ``best`` is the least cost that is known, of an instance."""
_ORDER = ("path", "ssa_path", "sliced_inds")  # of an exported tree

_NAME = re.compile(r"[^\W\d]\w*")


class Contraction:
    """An equation with shapes, along any of its paths."""

    if TYPE_CHECKING:  # a dataclass would take a property for the default of its field

        @property
        def equation(self) -> str: ...  # noqa: D102
        @property
        def shapes(self) -> tuple[tuple[int, ...], ...]: ...  # noqa: D102
        @property
        def geometry(self) -> Mapping[str, Any]: ...  # noqa: D102
        @property
        def dtype(self) -> str: ...  # noqa: D102

    def plan(
        self, optimize: Any = "auto", *, training: bool = False, minimize: Any = "time", device: Any = None
    ) -> Plan:
        """The plan along one path."""
        return plan(
            self.equation, *self.shapes, optimize=optimize, minimize=minimize, training=training, dtype=self.dtype,
            device=device, **self.geometry,
        )  # fmt: skip

    @property
    def problem(self) -> Problem:
        """The equation bound to its shapes."""
        return Problem(parse(self.equation), self.shapes, **self.geometry)

    def arrays(self, seed: int) -> list[np.ndarray]:
        """Operands, scaled so that the output has entries of about one."""
        rng, problem = np.random.default_rng(seed), self.problem
        summed = math.prod(size for mode, size in problem.size.items() if mode not in problem.output)
        summed *= math.prod(conv.taps for conv in problem.conv.values())
        scale = np.dtype(self.dtype).type(float(max(summed, 1)) ** (-0.5 / len(self.shapes)))
        return [rng.standard_normal(shape, np.dtype(self.dtype)) * scale for shape in self.shapes]

    def to_dict(self) -> dict[str, Any]:
        """As plain data, in the words of a file."""
        shapes = [list(shape) for shape in self.shapes]
        return {"equation": self.equation, "shapes": shapes, **self.geometry, "dtype": self.dtype}


@dataclass(frozen=True)
class Equation(Contraction):
    """An equation that the user gives; ``best`` has the least cost that is known for each objective."""

    equation: str
    shapes: tuple[tuple[int, ...], ...]
    geometry: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    name: str = ""
    best: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        sizes = ", ".join("x".join(map(str, shape)) or "()" for shape in self.shapes)
        geometry = "".join(f", {option} {value}" for option, value in self.geometry.items())
        return f"{self.name or self.equation}, {len(self.shapes)} operands {sizes}{geometry}, {self.dtype}"


def read_options(path: Path, known: Sequence[str]) -> dict[str, Any]:
    """The options in a JSON or TOML file: ``known`` ones of a layer, or those of an equation.

    Of an exported tree it is the contraction, without the order: all orders are compared.

    ``ValueError`` if it cannot be read as one.
    """
    try:
        text = path.read_text(encoding="utf-8")
        found = tomllib.loads(text) if path.suffix.lower() == ".toml" else json.loads(text)
    except (OSError, RecursionError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ValueError(
            f"{path}: cannot be read as a layer or an equation ({reason}); expected JSON or TOML"
        ) from error
    if not isinstance(found, dict):
        raise ValueError(
            f"{path}: expected an object with keys such as format, in and out, or equation and shapes, found "
            f"{type(found).__name__}"
        )
    if "ssa_path" in found:
        told_by_equation = (*_PLAIN, "convolutions", "steps") if "equation" in found else ()
        found = {key: value for key, value in found.items() if key not in (*_ORDER, *told_by_equation)}
    keys = EQUATION_KEYS if {"equation", "inputs"} & set(found) else known
    unknown = sorted(set(found) - set(keys))
    if unknown:
        raise ValueError(f"{path}: unknown key(s) {', '.join(unknown)}; known are {', '.join(keys)}")
    return found


def equation_from(given: Mapping[str, Any]) -> Equation:
    """A contraction from an equation with shapes, or from inputs, output and sizes as cotengra writes them.

    ``ValueError`` names what cannot be used.

    >>> equation_from({"inputs": [["a", "b"], ["b", "c"]], "output": ["a", "c"], "size_dict": {"a": 2, "b": 3, "c": 4}})
    Equation(equation='a b, b c -> a c', shapes=((2, 3), (3, 4)), geometry={}, dtype='float32', name='', best={})
    """
    if not set(given) <= set(EQUATION_KEYS):
        unknown = sorted(set(given) - set(EQUATION_KEYS))
        raise ValueError(f"{', '.join(unknown)}: an option of a layer; with an equation leave it out")
    if ("equation" in given) == ("inputs" in given):
        raise ValueError(
            f"expected either an equation with shapes, or inputs, output and size_dict, found {', '.join(given)}"
        )
    text, shapes = _named(given) if "inputs" in given else (given["equation"], _shapes(given.get("shapes")))
    geometry = {}
    for option in _GEOMETRY:
        value = given.get(option)
        if value is not None:
            geometry[option] = _each(option, value)
    dtype = given.get("dtype", "float32")
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected {' or '.join(DTYPES)}, found {shown(dtype)}")
    equation = Equation(text, shapes, geometry, dtype, str(given.get("name", "")), _best(given.get("best") or {}))
    try:
        size = max([math.prod(shape) for shape in shapes] + [equation.problem.elements(equation.problem.everything)])
    except PlanError as error:
        reason = str(error).splitlines()[0]  # in one line nothing can point at a character
        raise ValueError(f"this equation cannot be contracted: {reason}") from error
    if size > LARGEST:
        raise ValueError(f"an array of this equation has more than {LARGEST} elements; make sizes smaller")
    return equation


def _whole(value: Any) -> int:
    """A number, or its digits. ``ValueError`` for what int would round or take for one."""
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError(f"{value} is no whole number")
    return int(value)


def _best(value: Any) -> Mapping[str, int]:
    """The least costs that are known, by what they count."""
    if isinstance(value, Mapping) and all(type(least) is int and least >= 0 for least in value.values()):
        return value
    raise ValueError(f'best: expected whole numbers of at least 0 such as {{"flops": 1008}}, found {shown(value)}')


def _shapes(value: Any) -> tuple[tuple[int, ...], ...]:
    """``"8x64, 64x3, ()"`` or a list of lists as shapes."""
    if value is None:
        raise ValueError("shapes: none given; an equation needs one for each operand, such as 8x64, 64x3")
    parts = value.split(",") if isinstance(value, str) else value
    try:
        if isinstance(value, str):
            parts = [[] if part.strip() == "()" else part.strip().lower().split("x") for part in parts]
        return tuple(tuple(_whole(size) for size in part) for part in parts)
    except (TypeError, ValueError):
        raise ValueError(f"shapes: expected one for each operand such as 8x64, 64x3, found {shown(value)}") from None


def _named(given: Mapping[str, Any]) -> tuple[str, tuple[tuple[int, ...], ...]]:
    """Equation and shapes from inputs, output and sizes, in which anything may be the name of a mode."""
    absent = [key for key in _PLAIN if key not in given]
    if absent:
        raise ValueError(f"{', '.join(absent)}: none given; a contraction has {', '.join(_PLAIN)}")
    if not isinstance(given["inputs"], list):
        raise ValueError(f"inputs: expected a list with the modes of each operand, found {shown(given['inputs'])}")
    try:
        terms = [[str(mode) for mode in term] for term in given["inputs"]]
        output, sizes = (
            [str(mode) for mode in given["output"]],
            {str(m): _whole(n) for m, n in given["size_dict"].items()},
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"inputs, output, size_dict: expected lists of modes and a size for each ({type(error).__name__}: {error})"
        ) from error
    every = list(dict.fromkeys(mode for term in [*terms, output] for mode in term))
    missing = [mode for mode in every if mode not in sizes]
    if missing:
        raise ValueError(f"size_dict: no size for mode(s) {', '.join(missing[:8])}")
    named = all(map(_NAME.fullmatch, every)) and any(len(term) > 1 for term in terms)
    symbol = {mode: mode if named else opt_einsum.get_symbol(i) for i, mode in enumerate(every)}
    text = ", ".join(" ".join(symbol[mode] for mode in term) for term in terms)
    return f"{text} -> {' '.join(symbol[m] for m in output)}", tuple(tuple(sizes[m] for m in term) for term in terms)


def _each(option: str, value: Any) -> Any:
    """``2`` or ``"2x1"`` as numbers; anything else is left to the plan."""
    if not isinstance(value, int) and not (isinstance(value, str) and value[:1].isdigit()):
        return value
    sizes = numbers(option, value, int(option != "padding"))
    return sizes if len(sizes) > 1 else sizes[0]


def numbers(name: str, value: Any, least: int = 1) -> tuple[int, ...]:
    """``56``, ``"56x48"``, ``"56,48"`` or ``[56, 48]`` as numbers."""
    parts = value.lower().replace(",", "x").split("x") if isinstance(value, str) else value
    try:
        values = [int(str(part)) for part in (parts if isinstance(parts, list | tuple) else [parts])]
    except ValueError:
        raise ValueError(
            f"--{name}: expected a number, or one for each axis such as 3x3, found {shown(value)}"
        ) from None
    if not values or min(values) < least:
        raise ValueError(f"--{name}: expected whole numbers of at least {least}, found {shown(value)}")
    return tuple(values)
