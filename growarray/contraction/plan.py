"""Plans: an equation with shapes, the order of its products, their cost, and how to run it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np

from growarray.backend import Array, is_array, is_numpy, kind_of, namespace
from growarray.contraction.bound import BoundPlan, factors_of
from growarray.contraction.checks import check_arrays, device_kind, is_whole, operands, precision_of
from growarray.contraction.cost import StepCost
from growarray.contraction.equation import parse
from growarray.contraction.execution import Execution, Pullback
from growarray.contraction.geometry import ConvAxis
from growarray.contraction.machine import Machine, machine_for
from growarray.contraction.objective import objective_named
from growarray.contraction.path import searches
from growarray.contraction.problem import Problem
from growarray.contraction.selection import Selection
from growarray.contraction.shapes import checked_shapes
from growarray.contraction.sliced import SlicedExecution
from growarray.contraction.table import plan_blocks
from growarray.contraction.tree import Tree, linear_path
from growarray.display import Block, Displayed, text_of
from growarray.errors import PlanError, shown

_GEOMETRY = ("stride", "padding", "dilation", "padding_mode")


def plan(
    equation: str,
    *shapes: Sequence[int] | Array,
    optimize: Any = "auto",
    minimize: Any = "time",
    memory_limit: int | None = None,
    training: bool = False,
    constants: Sequence[int] = (),
    dtype: Any = None,
    device: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    padding_mode: Any = "zeros",
    slices: Mapping[str, int] | None = None,
    precision: str | None = None,
) -> Plan:
    """Plan an einsum with convolution modes. Plans are cached: asking again for the same one costs microseconds.

    equation : see :func:`growarray.contraction.parse`    shapes : one for each operand, or an array that has it
    optimize : ``'auto'``, True or None (exact up to 8 operands, above as a :class:`Search` says, which may be given in
        its place); False (as they come); a preset (``'factorized'``, ``'mobilenet'``, ``'reconstructed'``); an
        optimizer of opt_einsum by name or instance, or any other with its signature; or a path such as
        ``[(0, 1), (0, 1)]``
    minimize : ``'time'`` (predicted), ``'flops'``, ``'memory'`` (held at once), ``'size'`` (largest partial result),
        ``'write'`` (elements of all results), ``'combo'`` (flops + 64 write; ``'combo-256'`` another weight),
        ``'limit'`` (the larger of flops and 64 write, step by step), or a function of a :class:`StepCost`, added up
    memory_limit : bytes that partial results and the output may hold at once; threads hold a block each, so that the
        path, and with it the last bits of a result, depends on their number
    training : count the backward pass, and that it keeps every partial result; gradients are not counted
    constants : operands that will be bound (:meth:`Plan.bind`): contracting them among themselves costs nothing
    dtype, device : what the predictions are for, by default those of the arrays, else float32 and the CPU; a plan runs
        any real floating dtype and library
    stride, padding, dilation, padding_mode : see :func:`growarray.contraction.conv_axes`
    slices : into how many pieces modes are cut that then run one after the other, such as ``{"r": 4}``; by default as
        few as ``memory_limit`` takes, chosen by cost, and none without it; ``{}`` for none in any case
    precision : ``'tf32'`` lets a GPU multiply float32 with 10 bits of fraction, by cuBLAS and cuDNN: faster, and with
        errors of about 3e-4. By default as in CuPy: float32 in full, unless the environment says CUPY_TF32=1

    Raises PlanError: equation, shapes and options do not fit, or no path meets ``memory_limit`` (the message gives the
    least).

    >>> p = plan("n c x, c r, x r, o r -> n o x | x", (8, 16, 32), (16, 4), (3, 4), (16, 4), padding=1)
    >>> p.output_shape, len(p.path)
    ((8, 16, 32), 3)
    """
    optimize = "auto" if optimize is True or optimize is None else optimize
    options = (
        optimize, minimize, memory_limit, training, constants, dtype, device, stride, padding, dilation, padding_mode,
        slices, precision,
    )  # fmt: skip
    try:
        return _cached(equation, shapes, *options)
    except TypeError:  # a list, a mapping or an array among them
        pass
    sizes, dtype, device = shapes_of(shapes, dtype, device)
    return _cached(*frozen((equation, sizes, *options[:5], dtype, device, *options[7:])))


def frozen(value: Any) -> Any:
    """Lists and mappings as hashable values. Raises PlanError for anything else, such as arrays and sets."""
    if isinstance(value, Mapping):
        return _Mapping({k: frozen(v) for k, v in value.items()})
    if isinstance(value, list | tuple):
        return tuple(frozen(v) for v in value)
    try:
        hash(value)
    except TypeError as error:
        raise PlanError(
            f"plan: found {shown(value)} among the arguments, expected numbers, strings, "
            "tuples, lists or mappings; convert it with tolist() or tuple()"
        ) from error
    return value


def shapes_of(given: Sequence[Any], dtype: Any = None, device: Any = None) -> tuple[list[Any], Any, Any]:
    """Shapes of the arrays among ``given``, and if those are None the dtype and the device that a plan takes."""
    arrays = [x for x in given if is_array(x)]
    if arrays:
        namespace(*arrays, where="plan: ")
        for x in arrays:
            if kind_of(x) != "f":
                raise PlanError(f"plan: expected a shape, or an array of real floats that has it, found {shown(x)}")
        dtype = str(arrays[0].dtype).rpartition(".")[2] if dtype is None else dtype
        device = ("cpu" if all(map(is_numpy, arrays)) else "gpu") if device is None else device
    return [tuple(x.shape) if is_array(x) else x for x in given], dtype, device


class _Mapping(dict[str, Any]):
    """A hashable mapping by mode, never changed."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


@lru_cache(maxsize=512, typed=True)  # else True would be found if 1 is known
def _cached(equation: str, shapes: tuple[Any, ...], *options: Any) -> Plan:
    return Plan(equation, shapes, *options)


class Plan(Displayed):
    """The order in which an equation is contracted, what each step costs, and how to run it. Made by :func:`plan`.

    Immutable, and holds no arrays. A plan runs any size of its block mode (the batch), and any real floating dtype.

    equation, shapes, output_shape    path : opt_einsum's linear format    block : batch that runs at a time on a CPU
    slices : in how many pieces modes are cut    precision : ``'tf32'``, or None for that of the dtype
    flops, seconds : of a forward pass, and of the backward pass too if it is for training
    bytes : read and written by all steps    peak_bytes : what partial results and the output hold at once
    """

    def __init__(
        self, equation: str, shapes: Sequence[Sequence[int]], optimize: Any, minimize: Any, memory_limit: int | None,
        training: bool, constants: Sequence[int], dtype: Any, device: Any,
        stride: Any, padding: Any, dilation: Any, padding_mode: Any, slices: Mapping[str, int] | None = None,
        precision: str | None = None,
    ) -> None:  # fmt: skip
        objective = objective_named(minimize)
        if memory_limit is not None and not (is_whole(memory_limit) and memory_limit >= 0):
            raise PlanError(f"memory_limit: found {shown(memory_limit)}, expected a number of bytes or None")
        if training not in (True, False):
            raise PlanError(f"training: found {shown(training)}, expected True or False")
        self._parsed = parse(equation)
        self.equation, self.shapes = str(self._parsed), checked_shapes(self._parsed, shapes)
        try:
            self.dtype: np.dtype[Any] = np.dtype("float32" if dtype is None else dtype)
        except (TypeError, ValueError) as error:
            raise PlanError(f"dtype: found {shown(dtype)}, expected a real floating one such as float32") from error
        self.training, self.minimize = bool(training), minimize
        self.device = device_kind(device)
        if self.dtype.kind != "f":
            raise PlanError(f"dtype: found {self.dtype}, expected a real floating one such as float32")
        self.precision = precision_of(precision, str(self.dtype), self.device)
        given = zip(_GEOMETRY, (stride, padding, dilation, padding_mode), strict=True)
        self.geometry = MappingProxyType(dict(given))
        self.optimize, self.memory_limit, self._given_slices = optimize, memory_limit, slices
        self.constants = tuple(sorted(set(operands("constants", constants, len(self.shapes)))))
        self._problem = Problem(self._parsed, self.shapes, itemsize=self.dtype.itemsize, **self.geometry)
        self.machine: Machine = machine_for(self.device)
        if self.precision:
            self.machine = self.machine.with_tf32()
        limit = None if memory_limit is None else memory_limit // self.dtype.itemsize
        self._selection = Selection(self._problem, self.machine, self.device, self.training, self.constants)
        self._choice = self._selection.choose(optimize, objective, limit, slices)
        self._tree, self.block = self._choice.tree, self._choice.block
        self.slices: Mapping[str, int] = dict(self._choice.cuts)
        self.path = linear_path(self._problem, self._tree)
        self.steps: tuple[StepCost, ...] = self._selection.steps(self._choice)
        self.output_shape = tuple(self._problem.extent(m, self._problem.everything) for m in self._problem.output)
        parts = (self._parsed, self._problem, self.geometry, self._tree, self.block, self.precision)
        self.execution = SlicedExecution(*parts, self.slices) if self.slices else Execution(*parts)
        self._made = True

    def __setattr__(self, name: str, value: Any) -> None:
        if "_made" in self.__dict__:
            raise AttributeError(f"{name}: a plan cannot be changed; make another one with plan(...)")
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{name}: a plan cannot be changed; make another one with plan(...)")

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "geometry": dict(self.geometry)}  # a mapping proxy can be neither pickled nor copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, geometry=MappingProxyType(state["geometry"]))

    def __eq__(self, other: object) -> bool:
        """Whether the other plan runs the same products on the same shapes, for the same dtype and device."""
        return self is other or (isinstance(other, Plan) and self._key() == other._key())

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[Any, ...]:
        axes = tuple(conv.axis for conv in self._problem.conv.values())
        chosen = (self.minimize, self.training, self.constants, str(self.dtype), self.device, self.precision)
        return (self.equation, self.shapes, self.path, axes, *chosen, tuple(self.slices.items()))

    @property
    def flops(self) -> int:
        """Multiplications and additions of all steps."""
        return sum(step.flops + step.backward_flops for step in self.steps)

    @property
    def bytes(self) -> int:
        """Bytes of the operands and results of all steps."""
        return sum(step.bytes + step.backward_bytes for step in self.steps)

    @property
    def seconds(self) -> float:
        """Predicted time."""
        return sum(step.seconds + step.backward_seconds for step in self.steps)

    @property
    def peak_bytes(self) -> int:
        """Largest number of bytes that partial results and the output hold at once; operands are not counted."""
        return self._selection.peak(self._choice) * int(self.dtype.itemsize)

    def with_path(self, optimize: Any) -> Plan:
        """The plan of the same problem along another path, under the same ``memory_limit`` and with the same slices.

        A search chooses slices again unless the caller gave them. Raises PlanError if the path breaks the limit.
        """
        return plan(
            self.equation, *self.shapes, optimize=optimize, minimize=self.minimize, memory_limit=self.memory_limit,
            training=self.training, constants=self.constants, dtype=self.dtype,
            device=None if self.device == "cpu" else "cuda", precision=self.precision,
            slices=self._given_slices if searches(optimize) or not self.slices else self.slices, **self.geometry,
        )  # fmt: skip

    @property
    def problem(self) -> Problem:
        """The equation bound to its shapes."""
        return self._problem

    @property
    def tree(self) -> Tree:
        """The order of the products as pairs of operand sets (bit masks)."""
        return list(self._tree)

    @property
    def products(self) -> tuple[str, ...]:
        """Each step as a small equation."""
        modes = self._problem.modes
        texts = []
        for left, right in self._tree:
            pair = self._problem.pair(left, right)
            first, second = (left, right) if pair is None else (pair.feature_mask, pair.kernel_mask)
            texts.append(f"{' '.join(modes(first))} , {' '.join(modes(second))} -> {' '.join(modes(left | right))}")
        return tuple(texts)

    def __str__(self) -> str:
        return text_of(self._blocks())

    def _blocks(self) -> list[Block]:
        return plan_blocks(self)

    def __repr__(self) -> str:
        return f"Plan({self.equation!r}, path={self.path}, flops={self.flops}, seconds={self.seconds:.3g})"

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data; :meth:`from_dict` makes the same plan again, with the machine's own predictions.

        Raises PlanError if the objective is a function.
        """
        if not isinstance(self.minimize, str):
            raise PlanError(
                "to_dict: the objective is a function, which is not plain data; plan again with optimize=plan.path"
            )
        return {
            "equation": self.equation,
            "shapes": [list(shape) for shape in self.shapes],
            "path": [list(pair) for pair in self.path],
            "minimize": self.minimize,
            "memory_limit": self.memory_limit,
            "training": self.training,
            "constants": list(self.constants),
            "dtype": str(self.dtype),
            "device": self.device,
            "slices": dict(self.slices),
            "precision": self.precision,
            "geometry": [asdict(conv.axis) for conv in self._problem.conv.values()],
            "flops": self.flops,
            "seconds": self.seconds,
            "peak_bytes": self.peak_bytes,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """A plan from what :meth:`to_dict` gave. Raises PlanError if something is missing or does not fit."""
        try:
            axes = [ConvAxis(**axis) for axis in data["geometry"]]
            return plan(
                data["equation"],
                *(tuple(shape) for shape in data["shapes"]),
                optimize=tuple(tuple(pair) for pair in data["path"]),
                minimize=data["minimize"],
                memory_limit=data.get("memory_limit"),
                training=data["training"],
                constants=tuple(data["constants"]),
                dtype=data["dtype"],
                device=data["device"],
                stride=[a.stride for a in axes],
                padding=[(a.before, a.after) for a in axes],
                dilation=[a.dilation for a in axes],
                padding_mode=[a.padding_mode for a in axes],
                slices=data.get("slices") or None,
                precision=data.get("precision"),
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise PlanError(f"from_dict: not a plan ({type(error).__name__}: {error}); see Plan.to_dict") from error

    def bind(self, factors: Mapping[int, Array] | Sequence[Array]) -> BoundPlan:
        """This plan with operands that stay the same between calls, contracted among themselves once.

        factors : arrays by position, or a sequence of all operands after the first
        A path that was searched is searched again, with products among bound operands free of cost and under the same
        ``memory_limit`` and ``slices``. A plan for training stays one: it counts the backward pass, with the gradients
        of bound operands, though :meth:`BoundPlan.vjp` leaves those out.

        >>> import numpy as np
        >>> bound = plan("n i, r i, o r -> n o", (8, 16), (4, 16), (32, 4)).bind([np.ones((4, 16)), np.ones((32, 4))])
        >>> bound(np.ones((8, 16))).shape
        (8, 32)
        """
        chosen = factors_of(self, factors)
        check_arrays(self.equation, list(chosen.values()))
        constants = tuple(sorted(chosen))
        again = plan(
            self.equation, *self.shapes, optimize=self.optimize if searches(self.optimize) else self.path,
            minimize=self.minimize, memory_limit=self.memory_limit, training=self.training, constants=constants,
            dtype=self.dtype, device=None if self.device == "cpu" else "cuda", precision=self.precision,
            slices=self._given_slices, **self.geometry,
        )  # fmt: skip
        return BoundPlan(again, chosen)

    def __call__(self, *arrays: Array, out: Array | None = None) -> Array:
        """The result for these arrays, in ``out`` if it is given (NumPy).

        Raises ShapeError if a shape is not the plan's (the batch may differ), and TypeError for integer or mixed
        dtypes, or arrays of two libraries or devices.
        """
        return self.execution.value(arrays, out)

    def vjp(self, *arrays: Array, wrt: Sequence[int] | None = None) -> tuple[Array, Pullback]:
        """The result, and the way back: ``pullback(dy)`` gives one gradient for each operand.

        wrt : operands whose gradient is wanted (default: all); the others' is None, and nothing is computed for it
        Keeps the operands and every partial result; the pullback may be called twice.

        >>> import numpy as np
        >>> y, pullback = plan("i j, j k -> i k", (2, 3), (3, 4)).vjp(np.ones((2, 3)), np.ones((3, 4)), wrt=[1])
        >>> [None if g is None else g.shape for g in pullback(y)]
        [None, (3, 4)]
        """
        return self.execution.vjp(arrays, wrt)
