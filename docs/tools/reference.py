"""The API pages from the package's sources: a griffe extension that mkdocstrings loads.

Docstrings become Markdown, every class has the signature of its constructor, and what a class has from a private base
is shown as its own.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).parent))  # griffe loads this file by its path, alone

from markup import has_constructor, import_lines, markdown

PAGES = sorted(Path(__file__).parents[1].glob("api/*.md"))
HOMES = [f"growarray.{page.stem}" for page in PAGES if page.stem != "index"]
Classes = dict[str, griffe.Class]


class Reference(griffe.Extension):
    """Prepares the package for its pages once all of it is read."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Classes first, because a link can only go to what a page shows."""
        if pkg.path != "growarray":
            return
        homes = [pkg.modules_collection[home] for home in HOMES]
        public = {f"{home.path}.{name}": _exported(home, str(name)) for home in homes for name in home.exports or []}
        classes = {obj.path: obj for obj in public.values() if obj.is_class}
        changes = [(cls, _from_private_bases(cls, classes), _public_bases(cls, classes)) for cls in classes.values()]
        for cls, members, bases in changes:
            cls.members.update({name: griffe.Alias(name, member, parent=cls) for name, member in members.items()})
            cls.bases = bases
        for identifier, obj in public.items():
            if obj.is_class and has_constructor(identifier):
                _add_constructor(obj)
        pages = _identifiers(public)
        for obj in _objects(pkg):
            if obj.docstring is not None:
                obj.docstring.value = markdown(
                    obj.docstring.value,
                    lambda name, obj=obj: pages.get(_path(name, obj, public)),
                    lambda code, obj=obj: import_lines(code, importlib.import_module(obj.module.path), HOMES),
                )


def _exported(home: griffe.Module, name: str) -> griffe.Object:
    """What a public name stands for; a function hides a submodule that has its name."""
    obj = home.members[name]
    if obj.is_module:
        obj = home.modules_collection[home.imports[name]]
        home.members[f"{name}()"] = griffe.Alias(name, obj, parent=home)  # beside the submodule, which paths go through
    return obj.final_target if obj.is_alias else obj


def _objects(obj: griffe.Object) -> Iterator[griffe.Object]:
    yield obj
    for member in obj.members.values():
        if not member.is_alias:
            yield from _objects(member)


def _from_private_bases(cls: griffe.Class, public: Classes) -> dict[str, griffe.Object]:
    """What only private bases have: that of a public base is shown there."""
    known = set(cls.members)
    for base in cls.mro():
        if base.path in public:
            known |= {*base.members, *_from_private_bases(base, public)} - {"__init__"}
    found: dict[str, griffe.Object] = {}
    for base in cls.mro():
        for name, member in base.members.items():
            if base.path not in public and name not in known and (name == "__init__" or not name.startswith("_")):
                found.setdefault(name, member)
    return found


def _public_bases(cls: griffe.Class, public: Classes) -> list[Any]:
    """The bases, each private one of this package replaced by its own; ``Generic`` is for type checkers."""
    private = {base.path: base for base in cls.mro() if base.path not in public}
    found: dict[str, Any] = {}
    for base in cls.bases:
        path = base if isinstance(base, str) else base.canonical_path
        if path in private:
            found.update({str(inner): inner for inner in _public_bases(private[path], public)})
        elif path != "typing.Generic":
            found[str(base)] = base
    return list(found.values())


def _add_constructor(cls: griffe.Class) -> None:
    """The constructor that Python gives a class without one of its own."""
    if "__init__" in cls.all_members:
        return
    is_tuple = "NamedTuple" in map(str, cls.bases)
    fields = [member for member in cls.members.values() if is_tuple and member.is_attribute and member.annotation]
    kind = griffe.ParameterKind.positional_or_keyword
    parameters = [griffe.Parameter("self", kind=kind)]
    parameters += [griffe.Parameter(f.name, annotation=f.annotation, kind=kind, default=f.value) for f in fields]
    cls.set_member("__init__", griffe.Function("__init__", parameters=griffe.Parameters(*parameters), parent=cls))


def _identifiers(public: dict[str, griffe.Object]) -> dict[str, str]:
    """From the path of every object that a page shows to its identifier there."""
    found = {home: home for home in HOMES}
    for identifier, obj in public.items():
        found[obj.path] = found[identifier] = identifier
        for name, member in obj.members.items() if obj.is_class else []:
            if member.has_docstring and not name.startswith("_"):
                found[f"{obj.path}.{name}"] = f"{identifier}.{name}"
    return found


def _path(name: str, obj: griffe.Object, public: dict[str, griffe.Object]) -> str:
    """The path that a role's target means in the docstring of ``obj``; the target itself where nothing is found."""
    first, *rest = name.split(".")
    scope: griffe.Object | None = obj
    while scope is not None:
        if first in scope.all_members:
            return _member_path(scope, [first, *rest])
        scope = scope.parent
    if first == "growarray":
        return _member_path(obj.package, rest)
    named = [target for path, target in public.items() if path.endswith(f".{first}")]
    return _member_path(named[0], rest) if named else name


def _member_path(scope: griffe.Object, names: list[str]) -> str:
    """The path of a member of a member …, as the class that has it is called."""
    for name in names:
        found = scope.all_members[name]
        if scope.is_class and name in scope.members:
            return f"{scope.path}.{name}"
        scope = found.final_target if found.is_alias else found
    return scope.path
