"""The reconstructions that a torch checkpoint may ask for: an exact list, each of them written here."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any

from growarray.checkpoint.torch import values as plain_values
from growarray.checkpoint.torch.allowlist import Global, OrderedTree, name_of
from growarray.files.dtypes import BY_NAME, DType
from growarray.files.errors import Malformed, quote
from growarray.files.limits import Limits
from growarray.files.source import Region
from growarray.files.tensor import StoredTensor, check_geometry

_MOST_NOTES = 100
_UNTYPED = DType("untyped", "|u1", "|u1", 8)

_STORAGES = {
    "Float": "float32",
    "Double": "float64",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
    "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
}

_DTYPE_ALIASES = {
    "float": "float32",
    "double": "float64",
    "half": "float16",
    "long": "int64",
    "int": "int32",
    "short": "int16",
    "cfloat": "complex64",
    "cdouble": "complex128",
}


@dataclass(eq=False, slots=True)
class Storage:
    """A stretch of elements of one type: ``first`` and ``numel`` count elements of the region."""

    key: str
    dtype: DType
    numel: int
    region: Region
    first: int = 0


def check_storage_id(pid: Any, length: int) -> tuple[str, DType, int]:
    """Key, element type and number of elements of a persistent id ``('storage', class, key, location, numel, …)``."""
    if type(pid) is not tuple or len(pid) != length or pid[0] != "storage":
        kind = pid[0] if type(pid) is tuple and pid and type(pid[0]) is str else pid
        if kind == "module":
            raise Malformed("a whole module was pickled (persistent id 'module'), which is code; save its state_dict()")
        raise Malformed(f"persistent id is {quote(kind)}; expected ('storage', …) of {length} items")
    _, kind, key, location, numel = pid[:5]
    if type(kind) is not Global or not kind.storage or kind.dtype is None:
        raise Malformed(f"storage class is {name_of(kind)}; expected one of torch's")
    if type(key) is not str or type(location) is not str:
        raise Malformed(f"storage key and location are {quote(key)} and {quote(location)}; expected two strings")
    if type(numel) is not int or not 0 <= numel < 2**63:
        raise Malformed(f"storage {quote(key)} has {quote(numel)} elements; expected an integer from 0 to 2**63 - 1")
    return key, kind.dtype, numel


class Rebuild:
    """Counts the tensors of one file and their bytes; :meth:`table` is the allow-list of its pickle."""

    def __init__(self, limits: Limits, file_size: int) -> None:
        self.limits = limits
        self.tensors = 0
        self.allowance = limits.expanded + limits.sharing * file_size
        self.expanded = limits.expanded
        self.notes: list[str] = []

    def table(self) -> dict[tuple[str, str], Global]:
        """Every global that the pickle may name."""
        table = dict(plain_values.TABLE)
        for name, dtype in _STORAGES.items():
            for module in ("torch", "torch.cuda"):
                table[module, f"{name}Storage"] = Global(f"{module}.{name}Storage", dtype=BY_NAME[dtype], storage=True)
        table["torch.storage", "UntypedStorage"] = Global("torch.storage.UntypedStorage", dtype=_UNTYPED, storage=True)
        names = {name: name for name in BY_NAME if not name.startswith(("int2", "int4", "uint2", "uint4", "float4"))}
        for name, dtype in (names | _DTYPE_ALIASES).items():
            table["torch", name] = Global(f"torch.{dtype}", dtype=BY_NAME[dtype])
        for module, name in (("torch", "Tensor"), ("torch.nn.parameter", "Parameter")):
            table[module, name] = Global(f"{module}.{name}")
        for module, name, build in (
            ("torch._utils", "_rebuild_tensor", self.tensor),
            ("torch._utils", "_rebuild_tensor_v2", self.tensor_v2),
            ("torch._utils", "_rebuild_tensor_v3", self.tensor_v3),
            ("torch._utils", "_rebuild_parameter", self.parameter),
            ("torch._utils", "_rebuild_parameter_with_state", self.parameter_with_state),
            ("torch._tensor", "_rebuild_from_type_v2", self.from_type),
        ):
            table[module, name] = Global(f"{module}.{name}", build=build)
        return table

    def tensor(self, machine: Any, arguments: tuple[Any, ...]) -> StoredTensor:
        """``_rebuild_tensor(storage, offset, size, stride)``, of torch before 0.4."""
        storage, offset, size, stride = plain_values.unpack(arguments, 4)
        return self._view(machine, storage, None, (offset, size, stride), None)

    def tensor_v2(self, machine: Any, arguments: tuple[Any, ...]) -> StoredTensor:
        """``_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks[, metadata])``."""
        storage, offset, size, stride, grad, hooks, *rest = plain_values.unpack(arguments, 6, 7)
        _check_extras(grad, hooks)
        return self._view(machine, storage, None, (offset, size, stride), rest[0] if rest else None)

    def tensor_v3(self, machine: Any, arguments: tuple[Any, ...]) -> StoredTensor:
        """``_rebuild_tensor_v3(storage, offset, size, stride, requires_grad, hooks, dtype[, metadata])``."""
        storage, offset, size, stride, grad, hooks, dtype, *rest = plain_values.unpack(arguments, 7, 8)
        _check_extras(grad, hooks)
        if type(dtype) is not Global or dtype.dtype is None or dtype.storage:
            raise Malformed(f"dtype is {name_of(dtype)}; expected a dtype of torch")
        return self._view(machine, storage, dtype.dtype, (offset, size, stride), rest[0] if rest else None)

    def parameter(self, machine: Any, arguments: tuple[Any, ...]) -> StoredTensor:
        """``_rebuild_parameter(tensor, requires_grad, hooks)``: the tensor."""
        tensor, grad, hooks = plain_values.unpack(arguments, 3)
        _check_extras(grad, hooks)
        return _checked_tensor(tensor)

    def parameter_with_state(self, machine: Any, arguments: tuple[Any, ...]) -> StoredTensor:
        """``_rebuild_parameter_with_state(tensor, requires_grad, hooks, state)``: the tensor, its attributes noted."""
        *first, state = plain_values.unpack(arguments, 4)
        self._note_attributes(state)
        return self.parameter(machine, tuple(first))

    def from_type(self, machine: Any, arguments: tuple[Any, ...]) -> StoredTensor:
        """``_rebuild_from_type_v2(function, type, arguments, state)``: the tensor, its attributes noted."""
        function, kind, inner, state = plain_values.unpack(arguments, 4)
        if type(kind) is not Global or kind.name not in ("torch.Tensor", "torch.nn.parameter.Parameter"):
            raise Malformed(f"type is {name_of(kind)}; expected Tensor or Parameter")
        if type(function) is not Global or function.build is None or type(inner) is not tuple:
            raise Malformed("expected a function of torch and its arguments")
        self._note_attributes(state)
        return _checked_tensor(function.build(machine, inner))

    def _note_attributes(self, state: Any) -> None:
        """Attributes of a tensor are Python objects of its owner; they are left out, and that is reported."""
        if len(self.notes) >= _MOST_NOTES:
            return
        if type(state) is tuple:
            state = next((part for part in state[:2] if type(part) is dict), {})  # (attributes, slots)
        names = ", ".join(quote(name) for name in islice(state, 5)) if type(state) is dict else quote(state)
        if names:
            self.notes.append(f"attributes of a tensor were left out: {names}")

    def _view(
        self, machine: Any, storage: Any, dtype: DType | None, geometry: tuple[Any, Any, Any], metadata: Any
    ) -> StoredTensor:
        """The tensor of a storage and a geometry, every element of which lies inside."""
        if type(storage) is not Storage:
            raise Malformed(f"storage is {quote(storage)}; expected one that the file holds")
        try:
            return self._place(machine, storage, dtype, geometry, metadata)
        except Malformed as fault:
            raise Malformed(f"storage {quote(storage.key)}: {fault}") from None

    def _place(
        self, machine: Any, storage: Storage, dtype: DType | None, geometry: tuple[Any, Any, Any], metadata: Any
    ) -> StoredTensor:
        offset, size, stride = geometry
        numel, first = storage.numel, storage.first
        if dtype is None:
            if storage.dtype is _UNTYPED:
                raise Malformed("is untyped, and no dtype is given")
            dtype = storage.dtype
        elif storage.dtype is not _UNTYPED or numel % dtype.itemsize:
            raise Malformed(f"of {numel} {storage.dtype.name} bytes cannot be viewed as {dtype.name}")
        else:
            numel //= dtype.itemsize
        count = check_geometry(numel, offset, size, stride, dtype.itemsize)
        self._count(machine, count, numel, len(size), dtype)
        conj, neg = _flags(metadata)
        start = first * storage.dtype.itemsize + offset * dtype.itemsize
        return StoredTensor(storage.region, dtype, size, stride, start=start, conj=conj, neg=neg)

    def _count(self, machine: Any, count: int, numel: int, axes: int, dtype: DType) -> None:
        """Bound what all views come to: far more than the file holds would be a bomb."""
        machine.charge(300)
        machine.steps -= axes
        self.tensors += 1
        if self.tensors > self.limits.tensors:
            raise Malformed(f"more than {self.limits.tensors} tensors (Limits.tensors)")
        nbytes = count * dtype.wide_size
        self.allowance -= nbytes
        if count > numel:
            self.expanded -= nbytes
        if self.expanded < 0:
            raise Malformed(
                f"view of {count} elements over {numel} expands beyond {self.limits.expanded} bytes (Limits.expanded)"
            )
        if self.allowance < 0:
            raise Malformed(f"tensors come to more than {self.limits.sharing} times the file's size (Limits.sharing)")


def _checked_tensor(value: Any) -> StoredTensor:
    if type(value) is not StoredTensor:
        raise Malformed(f"gets {quote(value)}; expected a tensor")
    return value


def _check_extras(grad: Any, hooks: Any) -> None:
    if type(grad) is not bool:
        raise Malformed(f"requires_grad is {quote(grad)}; expected a bool")
    if hooks is not None and (type(hooks) is not OrderedTree or hooks):
        raise Malformed(f"hooks are {quote(hooks)}; expected none, because they would be code")


def _flags(metadata: Any) -> tuple[bool, bool]:
    """Whether the values are conjugated and negated when they are read."""
    if metadata is None:
        return False, False
    if type(metadata) not in (dict, OrderedTree):
        raise Malformed(f"metadata is {quote(metadata)}; expected a dictionary")
    for key, value in metadata.items():
        if key not in ("conj", "neg") or type(value) is not bool:
            raise Malformed(f"metadata holds {quote(key)}: {quote(value)}; expected the bools 'conj' and 'neg'")
    return metadata.get("conj", False), metadata.get("neg", False)
