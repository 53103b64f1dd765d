"""Objects of this library as plain data and arrays, and back.

An object is its class, by a name from an exact list, and what its constructor takes. A class says otherwise by
``_saved()``, a dictionary, and ``_restored(**saved)``, which makes and checks the object; by ``_held``, attributes that
are all of it; and by ``_linked``, attributes that may lead in a circle and are set last. Nothing else is looked up,
imported or called, and no array is made but those of the file.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cache
from inspect import Parameter as Argument
from inspect import signature
from typing import Any

import numpy as np

from growarray.backend import Array, is_array
from growarray.errors import GrowArrayError, shown
from growarray.files.errors import Malformed, at, quote
from growarray.nn.graph import Node
from growarray.nn.module import Module, Parameter
from growarray.nn.owner import Owner
from growarray.optim import Optimizer

_HOMES = (
    "nn", "nn.arithmetic", "nn.operation", "nn.resize", "nn.sized", "factorized", "growing", "growing.norm", "networks",
    "networks.part", "networks.scale", "optim",
)  # fmt: skip
_OTHERS = {"nn.Node": Node, "nn.Parameter": Parameter}
_PLAIN_CLASSES = ("History", "TensorDropout")
_GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")
_PLAIN = {"int": int, "float": int | float, "bool": bool, "str": str, "None": type(None)}
_NEEDED = {"class", "saved"}  # entries of an object in a file
_FAULTS = (GrowArrayError, TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError)


@cache
def saved_classes() -> dict[str, type]:
    """Every class that a file may name, by its package and name.

    >>> saved_classes()["nn.Linear"].__name__
    'Linear'
    """
    classes: dict[str, type] = dict(_OTHERS)
    for home in _HOMES:
        module = importlib.import_module(f"growarray.{home}")
        for name, kind in vars(module).items():
            is_public = name in getattr(module, "__all__", ()) or getattr(kind, "__module__", "") == module.__name__
            is_saved = isinstance(kind, type) and (issubclass(kind, Owner | Optimizer) or name in _PLAIN_CLASSES)
            if is_saved and is_public and name[0] != "_":
                classes[f"{home.partition('.')[0]}.{name}"] = kind
    grown = importlib.import_module("growarray.checkpoint.grown")
    return {**classes, "checkpoint.Grown": grown.Grown}


def _arguments(kind: type) -> dict[str, Argument]:
    """Arguments of a constructor that are of interest: not those that are set last."""
    linked = getattr(kind, "_linked", ())
    return {name: argument for name, argument in signature(kind).parameters.items() if name not in linked}


def _saved(value: Any) -> dict[str, Any]:
    """What a file keeps of an object."""
    if hasattr(value, "_saved"):
        return value._saved()  # type: ignore[no-any-return]
    attributes = getattr(value, "_held", None) or _arguments(type(value))
    return {name: getattr(value, name) for name in attributes if hasattr(value, name)}


def _restored(kind: type, saved: dict[str, Any]) -> Any:
    """The object; raises Malformed unless what was kept is complete and of the right kinds."""
    restored = getattr(kind, "_restored", None)
    if restored is not None:
        return restored(**saved)
    attributes = getattr(kind, "_held", None)
    if attributes is None:
        _check_plain(kind, saved)
        return kind(**saved)
    if saved.keys() != set(attributes):
        raise Malformed(f"has {', '.join(map(quote, saved))}; expected {', '.join(attributes)}")
    value: Any = object.__new__(kind)
    vars(value).update(saved)
    value._check_held()
    return value


def _check_plain(kind: type, saved: dict[str, Any]) -> None:
    """Raise Malformed for a number, flag or text in place of another one, by the annotation of the argument."""
    for name, argument in _arguments(kind).items():
        kinds = [_PLAIN.get(part.strip()) for part in str(argument.annotation).split("|")]
        if name in saved and all(kinds) and not isinstance(saved[name], tuple(kinds)):  # type: ignore[arg-type]
            raise Malformed(f"has {name}={quote(saved[name])}; expected {argument.annotation}")


class Writer:
    """Turns values into plain data; the objects and the arrays in them are collected, each once.

    names : what arrays are called in the file, by their ``id``; others are named after their place
    slots : whether what optimizers keep for a parameter is kept too
    """

    def __init__(self, names: Mapping[int, str], *, slots: bool) -> None:
        self.objects: list[dict[str, Any]] = []
        self.arrays: dict[str, Array] = {}
        self._names, self._slots = dict(names), slots
        self._places: dict[int, int] = {}
        self._classes = {kind: name for name, kind in saved_classes().items()}
        self._unlinked: list[tuple[dict[str, Any], str, Any, str]] = []

    def document(self, value: Any) -> dict[str, Any]:
        """The value with all objects that belong to it, as JSON has them."""
        root = self.plain(value)
        while self._unlinked:  # no recursion: a network may be deeper than Python's stack
            entry, name, linked, place = self._unlinked.pop()
            entry.setdefault("linked", {})[name] = self.plain(linked, f"{place}.{name}")
        return {"objects": self.objects, "value": root}

    def plain(self, value: Any, place: str = "value") -> Any:
        """The value as JSON has it. Raises TypeError for what no file keeps, and names its place."""
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, bool | str):
            return value
        if isinstance(value, int):
            return value if abs(value) < 2**53 else {"int": str(value)}
        if isinstance(value, float):
            return value if np.isfinite(value) else {"float": str(value)}
        if isinstance(value, list):
            return [self.plain(item, f"{place}.{i}") for i, item in enumerate(value)]
        if isinstance(value, tuple):
            return {"tuple": self.plain(list(value), place)}
        if isinstance(value, dict):
            pairs = [[self.plain(key, place), self.plain(item, f"{place}.{key}")] for key, item in value.items()]
            return {"dict": pairs}
        if is_array(value):
            return {"array": self._array(value, place)}
        if isinstance(value, type) and value in self._classes:
            return {"class": self._classes[value]}
        if isinstance(value, np.random.Generator):
            return {"generator": self.plain(value.bit_generator.state, place)}
        return {"object": self._object(value, place)}

    def _array(self, value: Array, place: str) -> str:
        wanted = self._names.get(id(value), place)
        name, count = wanted, 1
        while self.arrays.setdefault(name, value) is not value:
            name, count = f"{wanted}_{count}", count + 1
        self._names[id(value)] = name
        return name

    def _object(self, value: Any, place: str) -> int:
        if id(value) in self._places:
            return self._places[id(value)]
        name = self._classes.get(type(value))
        if name is None:
            raise TypeError(
                f"save: {place} is {shown(value)} of the class {type(value).__module__}.{type(value).__qualname__}, "
                "which no file keeps; save its weights with save_safetensors(network.state_dict(), path)"
            )
        saved = _saved(value) if name != "nn.Parameter" else self._parameter(value)
        entry: dict[str, Any] = {"class": name, "saved": {k: self.plain(v, f"{place}.{k}") for k, v in saved.items()}}
        if getattr(value, "training", True) is False:
            entry["training"] = False
        index = self._places[id(value)] = len(self.objects)
        self.objects.append(entry)
        self._unlinked += [(entry, name, getattr(value, name), place) for name in getattr(value, "_linked", ())]
        return index

    def _parameter(self, value: Parameter) -> dict[str, Any]:
        slots = {"slots": value.slots} if self._slots and value.slots else {}
        return {"data": value.data, "requires_grad": value.requires_grad, **slots}


class Reader:
    """Makes the values again that :class:`Writer` made plain. Raises Malformed for anything else.

    arrays : by name, read when they are asked for, each once
    """

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self._arrays, self._read = arrays, dict[str, Array]()
        self._objects: list[Any] = []

    def value(self, document: Mapping[str, Any]) -> Any:
        """The value of a document, and all objects that belong to it."""
        entries = document.get("objects")
        if type(entries) is not list:
            raise Malformed(f"has the objects {quote(entries)}; expected a list")
        for index, entry in enumerate(entries):
            with at(f"object {index}"):
                self._objects.append(self._made(entry))
        for index, (entry, restored) in enumerate(zip(entries, self._objects, strict=True)):
            with at(f"object {index}"):
                self._link(restored, entry.get("linked", {}))
        with at("value"):
            result = self._of(document.get("value"))
        unused = next((name for name in self._arrays if name not in self._read), None)
        if unused is not None:
            raise Malformed(f"array {quote(unused)} belongs to no object")
        return result

    def _made(self, entry: Any) -> Any:
        if type(entry) is not dict or not _NEEDED <= entry.keys() <= _NEEDED | {"linked", "training"}:
            raise Malformed(f"is {quote(entry)}; expected class, saved, and if there are some linked and training")
        name, saved = entry["class"], entry["saved"]
        kind = saved_classes().get(name) if type(name) is str else None
        if kind is None or type(saved) is not dict:
            raise Malformed(f"is of the class {quote(name)}, which is none that a file may name")
        with at(name):
            values = {key: self._of(value) for key, value in saved.items()}
            try:
                restored: Any = _parameter(**values) if kind is Parameter else _restored(kind, values)
            except _FAULTS as fault:
                raise Malformed(f"cannot be made: {' '.join(str(fault).split())[:400]}") from None
        if "training" in entry:
            restored.training = entry["training"] is True
        return restored

    def _link(self, restored: Any, linked: Any) -> None:
        names = getattr(restored, "_linked", ())
        if type(linked) is not dict or linked.keys() != set(names):
            raise Malformed(f"is linked by {quote(linked)}; expected {', '.join(names) or 'nothing'}")
        for name, plain in linked.items():
            value = self._of(plain)
            if not all(v is None or isinstance(v, Module | int) for v in (value if type(value) is list else [value])):
                raise Malformed(f"has {name}={quote(value)}; expected a layer")
            setattr(restored, name, value)

    def _of(self, plain: Any) -> Any:
        if type(plain) is list:
            return [self._of(item) for item in plain]
        if type(plain) is not dict:
            return plain
        if len(plain) != 1:
            raise Malformed(f"has {quote(plain)} in place of a value")
        ((kind, inner),) = plain.items()
        make = getattr(self, f"_{kind}_of", None) if kind in _TAGS else None
        if make is None:
            raise Malformed(f"has a value of the kind {quote(kind)}; expected {', '.join(_TAGS)}")
        try:
            return make(inner)
        except _FAULTS as fault:
            raise Malformed(f"has a value that is no {kind}: {' '.join(str(fault).split())[:200]}") from None

    def _int_of(self, text: str) -> int:
        return int(text) if len(text) <= 200 else int("digits")

    def _float_of(self, text: str) -> float:
        return {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}[text]

    def _tuple_of(self, items: list[Any]) -> tuple[Any, ...]:
        return tuple(self._of(item) for item in items)

    def _dict_of(self, pairs: list[Any]) -> dict[Any, Any]:
        return {self._of(key): self._of(item) for key, item in pairs}

    def _array_of(self, name: str) -> Array:
        if name not in self._read:
            self._read[name] = self._arrays[name]
        return self._read[name]

    def _object_of(self, index: int) -> Any:
        if type(index) is not int or not 0 <= index < len(self._objects):
            raise Malformed(f"needs object {quote(index)}, which is not among the {len(self._objects)} before it")
        return self._objects[index]

    def _class_of(self, name: str) -> type:
        return saved_classes()[name]

    def _generator_of(self, state: Any) -> np.random.Generator:
        plain = self._of(state)
        if plain["bit_generator"] not in _GENERATORS:
            raise Malformed(f"has the generator {quote(plain['bit_generator'])}; expected {', '.join(_GENERATORS)}")
        generator = np.random.Generator(getattr(np.random, plain["bit_generator"])(0))
        generator.bit_generator.state = plain
        return generator


_TAGS = ("int", "float", "tuple", "dict", "array", "object", "class", "generator")


def _parameter(data: Array, requires_grad: bool, slots: dict[str, Any] | None = None) -> Parameter:
    parameter = Parameter(data)
    parameter.requires_grad = requires_grad is True
    for name, value in (slots or {}).items():
        if is_array(value) and value.shape not in ((), parameter.shape):
            raise Malformed(f"slot {quote(name)} has shape {value.shape}; expected {parameter.shape}")
        parameter.slots[name] = value
    return parameter
