"""The docstrings of the package as Markdown: examples, argument lists and roles become what they mean."""

from __future__ import annotations

import ast
import builtins
import doctest
import importlib
import inspect
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

NAME = r"[`*]*[A-Za-z_][\w.`]*"
NAMES = rf"{NAME}(?:, {NAME})*"
FIELD = re.compile(rf"{NAMES} : \S")
ROLE = re.compile(r":(?:class|meth|func|mod|attr|data|exc|obj):`(~?)([^`]+)`")
CODE = re.compile(r"(``.+?``|`[^`]+`)", re.DOTALL)
STAR = re.compile(r"(?<![\w*\\])\*(?=\w+[,)\] ])")  # (n, *spatial), not *emphasis*
WITHOUT_CONSTRUCTOR = frozenset(  # bases to derive from, and a protocol: nobody makes one
    {
        "growarray.factorized.FactorizedTensor",
        "growarray.growing.Neighbour",
        "growarray.growing.Rule",
        "growarray.networks.GrowingNetwork",
        "growarray.nn.Module",
    }
)

Link = Callable[[str], str | None]


def markdown(docstring: str, link: Link, imports: Callable[[str], list[str]]) -> str:
    """A docstring as Markdown.

    link : the identifier that the target of a role has on the pages, or None where it has none
    imports : the import statements that the code of an example needs
    """
    lines, out, at = docstring.split("\n"), list[str](), 0
    while at < len(lines):
        line = lines[at]
        if line.startswith(">>>"):
            at, found = _until_blank(lines, at)
            out += ["", *_example(found, imports), ""]
        elif line.endswith("::"):
            at, found = _indented(lines, at + 1)
            out += [_prose(line[:-1], link), "", "```python", *found, "```", ""]
        elif _is_fields(line):
            at, found = _fields(lines, at)
            out += ["", *(_prose(entry, link) for entry in found), ""]
        else:
            end = at + 1
            while end < len(lines) and not _special(lines[end]):
                end += 1
            out.append(_prose("\n".join(lines[at:end]), link))
            at = end
    return re.sub(r"\n{3,}", "\n\n", "\n".join(out)).strip()


def has_constructor(identifier: str) -> bool:
    """Whether a page shows how a class is made: not of exceptions, and not of what only serves as a base."""
    return identifier not in WITHOUT_CONSTRUCTOR and not identifier.startswith("growarray.errors.")


def _special(line: str) -> bool:
    return line.startswith(">>>") or line.endswith("::") or _is_fields(line)


def _until_blank(lines: list[str], at: int) -> tuple[int, list[str]]:
    end = at
    while end < len(lines) and lines[end].strip():
        end += 1
    return end, lines[at:end]


def _indented(lines: list[str], at: int) -> tuple[int, list[str]]:
    end = at
    while end < len(lines) and (not lines[end] or lines[end].startswith("    ")):
        end += 1
    return end, "\n".join(line[4:] for line in lines[at:end]).strip("\n").split("\n")


def _example(lines: list[str], imports: Callable[[str], list[str]]) -> list[str]:
    code = "".join(example.source for example in doctest.DocTestParser().get_examples("\n".join(lines)))
    shown = [re.sub(r"\s*# doctest:.*$", "", line) for line in lines]
    shown = ["" if line == "<BLANKLINE>" else line for line in shown]
    own = next((at for at, line in enumerate(shown) if not line.startswith((">>> import ", ">>> from "))), 0)
    return ["```pycon", *shown[:own], *(f">>> {line}" for line in imports(code)), *shown[own:], "```"]


def _is_fields(line: str) -> bool:
    return any(FIELD.match(piece) for piece in _pieces(line))


def _pieces(line: str) -> list[str]:
    return re.split(r";? {2,}", line)


def _fields(lines: list[str], at: int) -> tuple[int, list[str]]:
    """``name : text`` lines, several to a line where blanks part them, each with its continuation, as list entries."""
    found: list[str] = []
    while at < len(lines) and lines[at]:
        line = lines[at]
        if _is_fields(line):
            found += [_field(piece) for piece in _pieces(line)]
        elif line.startswith(" ") or line[0].islower():
            found[-1] += " " + line.strip()
        else:
            break
        at += 1
    return at, found


def _field(piece: str) -> str:
    names, _, text = piece.partition(" : ")
    if not re.fullmatch(NAMES, names):
        return f"- {piece}"  # a remark about all of them
    shown = ", ".join(f"`{name.strip('`')}`" for name in names.split(", "))
    return f"- {shown}: {text}" if text else f"- {shown}"


def _prose(text: str, link: Link) -> str:
    parts = CODE.split(ROLE.sub(lambda found: _role(found, link), text))
    return "".join(part if CODE.fullmatch(part) else STAR.sub(r"\\*", part) for part in parts)


def _role(found: re.Match[str], link: Link) -> str:
    target = found[2]
    shown = target.rpartition(".")[2] if found[1] else target.removeprefix("growarray.")
    identifier = link(target)
    return f"[`{shown}`][{identifier}]" if identifier else f"`{shown}`"


def import_lines(code: str, module: ModuleType, homes: list[str]) -> list[str]:
    """The imports that ``code``, an example of a docstring in ``module``, needs to run alone.

    A name is imported from the first of ``homes``, names of public modules, that has it.
    Raises NameError for a name that the module has not.
    """
    nodes = list(ast.walk(ast.parse(code)))
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    bound |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    bound |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.ExceptHandler)}
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
    used = {node.id for node in nodes if isinstance(node, ast.Name)} - bound - set(dir(builtins)) - {"__name__"}
    plain, by_home = [], dict[str, list[str]]()
    for name in sorted(used):
        if name not in vars(module):
            raise NameError(f"{module.__name__}: an example uses {name}, which the module does not have:\n{code}")
        value = vars(module)[name]
        if inspect.ismodule(value):
            plain.append(_import_module(name, value.__name__))
        else:
            by_home.setdefault(_home(name, value, module, homes), []).append(name)
    return plain + [f"from {home} import {', '.join(names)}" for home, names in sorted(by_home.items())]


def _import_module(name: str, path: str) -> str:
    parent, _, last = path.rpartition(".")
    if name == path:
        return f"import {path}"
    return f"from {parent} import {name}" if name == last else f"import {path} as {name}"


def _home(name: str, value: Any, module: ModuleType, homes: list[str]) -> str:
    own = [home for home in homes if module.__name__.startswith(home)]
    for home in own + homes:
        public = importlib.import_module(home)
        if name in public.__all__ and getattr(public, name) is value:
            return home
    return module.__name__
