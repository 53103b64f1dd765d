"""A format owns everything about itself: nothing outside its file asks for its name or class."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import growarray
from growarray.factorized import FactorizedTensor, formats
from growarray.factorized.tensor import kinds

ROOT = Path(growarray.__file__).parent
NAMES = {name.lower() for kind in kinds() for name in (kind.name, *kind.format.aliases)}
CLASSES = {kind.__name__ for kind in kinds()}
FILES = [p for p in sorted(ROOT.rglob("*.py")) if ROOT / "factorized" / "formats" not in p.parents]


def decisions(tree: ast.AST, tables: bool) -> Iterator[str]:
    """Where a comparison, a match, a table or a test of a class names a format."""
    for node in ast.walk(tree):
        named: list[ast.expr] = []
        if isinstance(node, ast.Compare):
            named = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            named = [node.value]
        elif isinstance(node, ast.Dict) and tables:
            named = [key for key in node.keys if key is not None]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in {"isinstance", "issubclass"}:
            found = {n.id for a in node.args[1:] for n in ast.walk(a) if isinstance(n, ast.Name)}
            yield from (f"line {node.lineno}: a test for {name}" for name in sorted(found & CLASSES))
        for value in (v for one in named for v in ast.walk(one)):
            if isinstance(value, ast.Constant) and isinstance(value.value, str) and value.value.lower() in NAMES:
                yield f"line {node.lineno}: {value.value!r}"


def test_no_other_file_names_a_format_to_decide_something() -> None:
    found = [
        f"{path.relative_to(ROOT).as_posix()}, {decision}"
        for path in FILES  # a decomposition has a name of its own
        for decision in decisions(ast.parse(path.read_text(encoding="utf-8")), path.parent.name != "decompose")
    ]
    assert found == []


@pytest.mark.parametrize(
    "code",
    ['x = 1 if kind.name == "CP" else 2', 'y = kind in ("tt", "x")', 'z = {"Tucker": 1}', "isinstance(w, TRTensor)"],
)
def test_such_a_decision_is_found(code: str) -> None:
    assert len(list(decisions(ast.parse(code), True))) == 1


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.name)
def test_a_format_is_found_by_each_of_its_names(kind: type[FactorizedTensor]) -> None:
    assert kind.name in formats()
    for name in (kind.name, *kind.format.aliases):
        assert FactorizedTensor.kind(name) is FactorizedTensor.kind(name.upper()) is kind


@pytest.mark.parametrize("kind", [k for k in kinds() if k.format.takes_integers], ids=lambda kind: kind.name)
def test_ranks_and_sizes_are_two_forms_of_one_thing(kind: type[FactorizedTensor]) -> None:
    shape = (8, 6, 3, 3)
    rank = kind.format.validate_rank(shape, 0.5)
    assert kind.format.rank_of(kind.format.sizes_of(shape, rank)) == rank
    assert len(kind.format.sizes_of(shape, rank)) == len(kind.format.rank_axes(4))
    assert len(kind.format.factor_shapes(shape, rank)) == len(kind.format.terms(["o", "c", "y", "x"]))
    assert kind.format.usable_rank(shape, kind.format.usable_rank(shape, rank)) == kind.format.usable_rank(shape, rank)
