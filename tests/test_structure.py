"""What the package promises about its own source: sizes, names, imports and docstrings."""

import ast
import importlib
import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import growarray

ROOT = Path(growarray.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
PEERS = {"torch", "gromo", "tltorch", "tensorly"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def trees() -> dict[Path, ast.Module]:
    """Read when a test asks: of the processes that collect the tests, one runs these."""
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def within(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def length(function: Function) -> int:
    """Lines of a function without its docstring and its decorators."""
    first = function.body[0]
    lines = (function.end_lineno or 0) - function.lineno + 1
    if ast.get_docstring(function) is not None:
        lines -= (first.end_lineno or 0) - first.lineno + 1
    return lines


def is_type_alias(name: str, value: ast.expr | None) -> bool:
    """``Array = Any``, ``Pullback = Callable[…]``: names for readers and type checkers, not for users."""
    if not (name[:1].isupper() and not name.isupper()):
        return False
    return (
        isinstance(value, ast.Subscript)
        or (isinstance(value, ast.Name) and value.id == "Any")
        or (isinstance(value, ast.BinOp) and isinstance(value.op, ast.BitOr))
    )


def public_definitions(tree: ast.Module) -> tuple[set[str], set[str]]:
    """Public names that a module defines itself at its top level, and the type aliases among them."""
    names, aliases = set(), set()
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            flat = [t for target in targets for t in (target.elts if isinstance(target, ast.Tuple) else [target])]
            found = {t.id for t in flat if isinstance(t, ast.Name)}
            names |= found
            aliases |= {name for name in found if is_type_alias(name, node.value)}
    return {name for name in names if not name.startswith("_")}, aliases


def exported(tree: ast.Module) -> list[str]:
    """The list ``__all__`` of a module, empty if there is none."""
    if tree is trees()[ROOT / "__init__.py"]:
        return list(growarray.__all__)  # the one that is computed
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(t, ast.Name) and t.id == "__all__" for t in targets):
            value = ast.literal_eval(node.value)  # type: ignore[attr-defined]
            return list(value)
    return []


def imported(tree: ast.Module) -> Iterator[str]:
    """Dotted names in import statements and in calls that import by text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module or ''}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called in {"import_module", "__import__", "find_spec", "load"}:
                yield from (
                    inner.value
                    for argument in node.args
                    for inner in ast.walk(argument)
                    if isinstance(inner, ast.Constant) and isinstance(inner.value, str)
                )


def public_objects(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Public functions and classes at the top level, and public methods of public classes."""
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                for inner in node.body:
                    if isinstance(inner, Function) and not inner.name.startswith("_") and not is_setter(inner):
                        yield f"{node.name}.{inner.name}", inner


def is_setter(function: Function) -> bool:
    return any(isinstance(d, ast.Attribute) and d.attr in {"setter", "deleter"} for d in function.decorator_list)


def test_no_file_is_over_400_lines():
    lines = {within(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: count for name, count in lines.items() if count > 400} == {}


def test_no_function_is_over_60_lines():
    functions = {
        f"{within(path)}: {node.name}": length(node)
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, Function)
    }
    assert {name: lines for name, lines in functions.items() if lines > 60} == {}


def test_all_is_what_the_module_defines():
    for path, tree in trees().items():
        names = exported(tree)
        if not names and path.name != "__init__.py":
            continue  # a module that users do not import by name: an underscore tells what is its own
        assert len(names) == len(set(names)), within(path)
        defined, aliases = public_definitions(tree)
        # a type alias may be listed, everything else must be
        assert defined - aliases <= set(names), within(path)
        if path.name != "__init__.py":
            assert set(names) <= defined, within(path)


@pytest.mark.parametrize("path", [p for p in FILES if p.name == "__init__.py"], ids=module_name)
def test_every_exported_name_resolves(path):
    module = importlib.import_module(module_name(path))
    assert [name for name in exported(trees()[path]) if not hasattr(module, name)] == []


def test_names_for_type_checkers_are_those_at_run_time():
    (block,) = (node for node in trees()[ROOT / "__init__.py"].body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    homes = {}
    for node in block.body:
        for alias in node.names:  # type: ignore[attr-defined]
            assert alias.asname == alias.name  # else a strict type checker does not see it as exported
            homes[alias.name] = node.module  # type: ignore[attr-defined]
    assert homes.keys() | {"__version__"} == set(growarray.__all__)
    for name, home in homes.items():
        assert getattr(growarray, name) is getattr(importlib.import_module(home), name)


def test_unknown_names_are_refused_with_the_public_ones():
    with pytest.raises(AttributeError, match="no attribute 'grow'; public names: Checkpoint, FISHER"):
        growarray.grow  # noqa: B018


def dependencies() -> dict[str, set[str]]:
    """For each module those that it names in an import: at its top, for type checkers, or within a function."""
    names = {module_name(path) for path in FILES}
    found = {}
    for path, tree in trees().items():
        mentioned = set(imported(tree))
        homes = {name if name in names else name.rpartition(".")[0] for name in mentioned}
        found[module_name(path)] = (homes & names) - {module_name(path)}
    del found["growarray"]  # its imports are for type checkers and lazy: it may name everything
    return found


def test_imports_run_in_no_circle():
    needed = dependencies()
    while leaves := [name for name, others in needed.items() if not others & needed.keys()]:
        for name in leaves:
            del needed[name]
    way = [min(needed)] if needed else []  # every module that is left needs another one: walk until one comes again
    while needed and (following := min(needed[way[-1]] & needed.keys())) not in way:
        way.append(following)
    assert way == [], f"a circle of imports: {' -> '.join([*way[way.index(following) :], following])}"


def importers(roots: set[str], depth: int | None = None) -> set[str]:
    """The files that import a name with one of ``roots`` in it, among its first ``depth`` parts."""
    return {
        within(path)
        for path, tree in trees().items()
        if any(roots & set(name.split(".")[:depth]) for name in imported(tree) if not name.startswith("growarray."))
    }


def test_no_peer_is_imported():
    assert importers(PEERS, 1) == set()


def test_array_libraries_are_named_in_two_files_only():
    assert importers({"cupy", "cupyx"}) <= {"backend.py", "cuda/device.py"}


def test_every_public_name_has_a_docstring():
    missing = [
        f"{within(path)}: {name}"
        for path, tree in trees().items()
        for name, node in [("the module", tree), *public_objects(tree)]
        if not ast.get_docstring(node)  # type: ignore[arg-type]
    ]
    assert missing == []


GROMO = "the interface of GroMo's growing modules and containers, on top of nn.Module's 29 names"
TENSORLY = "the interface of TensorLy-Torch's factorized convolutions, on top of nn.Module's 29 names"
MANY_NAMES = {  # classes above 40 public names, and those derived from them, each with the reason
    "GrowingModule": GROMO,
    "MergeGrowingModule": GROMO,
    "LayerNames": GROMO,
    "GrowingNetwork": GROMO,
    "FactorizedKernel": TENSORLY,
    "FactorizedConv": TENSORLY,
    "PickleMachine": "one method for each opcode of the pickle protocol",
}


def public_names(cls: type) -> set[str]:
    """Public names of a class with what it inherits from the package: attributes, methods, declared fields."""
    own = [base for base in cls.__mro__ if base.__module__.split(".")[0] == "growarray"]
    return {name for base in own for name in (*vars(base), *inspect.get_annotations(base)) if name[0] != "_"}


def test_no_class_has_more_than_40_public_names():
    counts, excused = {}, set()
    for path in FILES:
        if path.name == "__main__.py":
            continue
        module = importlib.import_module(module_name(path))
        for cls in vars(module).values():
            if isinstance(cls, type) and cls.__module__ == module.__name__:
                counts[cls.__qualname__] = len(public_names(cls))
                if {base.__name__ for base in cls.__mro__} & set(MANY_NAMES):
                    excused.add(cls.__qualname__)
    assert {name: count for name, count in counts.items() if count > 40 and name not in excused} == {}
    assert [name for name in MANY_NAMES if counts[name] <= 40] == []  # and no exception that nobody needs


def test_data_files_come_with_the_package():
    assert (ROOT / "py.typed").is_file()
    assert 0 < (ROOT / "datasets" / "digits.npz").stat().st_size < 100_000
    assert (ROOT / "datasets" / "LICENSE-digits.md").is_file()
