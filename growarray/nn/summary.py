"""What a network is made of for inputs of given shapes: layers, shapes, parameters, operations, predicted time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from growarray.backend import asarray
from growarray.contraction import plan
from growarray.contraction.checks import is_ordered, is_whole
from growarray.contraction.table import quantity, seconds
from growarray.display import Block, Displayed, Table, text_of
from growarray.errors import ShapeError, shown
from growarray.nn.inference import evaluating
from growarray.nn.parameter import Parameter

Shape = tuple[int, ...]
_one_at_a_time = threading.RLock()


@dataclass(frozen=True)
class LayerSummary:
    """One use of a layer: its name and class, the shapes that it takes and gives, and what it costs.

    parameters : its scalars, 0 if the layer is used again
    flops, seconds : of its products, multiplications and additions, forwards; None if it has none
    """

    name: str
    kind: str
    inputs: tuple[Shape, ...]
    output: Any
    parameters: int
    flops: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Summary(Displayed):
    """The result of :meth:`Module.summary`, a table when it is printed or shown in a notebook.

    title : class of the network    layers : in the order in which they ran
    parameters, trained : scalars of the network, and those of them that are not frozen
    """

    title: str
    layers: tuple[LayerSummary, ...]
    parameters: int
    trained: int

    @property
    def flops(self) -> int:
        """Of all products."""
        return sum(layer.flops or 0 for layer in self.layers)

    @property
    def seconds(self) -> float:
        """Predicted for all products, forwards; what is between them takes time too."""
        return sum(layer.seconds or 0.0 for layer in self.layers)

    def _blocks(self) -> list[Block]:
        rows = [["layer", "class", "output", "parameters", "FLOPs", "time"]]
        rows += [
            [
                layer.name,
                layer.kind,
                str(layer.output),
                f"{layer.parameters:,}",
                "" if layer.flops is None else quantity(layer.flops),
                "" if layer.seconds is None else seconds(layer.seconds),
            ]
            for layer in self.layers
        ]
        rows.append(["sum", "", "", f"{self.parameters:,}", quantity(self.flops), seconds(self.seconds)])
        frozen = self.parameters - self.trained
        return [self.title, Table(rows, left=3), f"{self.trained:,} parameters are trained, {frozen:,} are frozen"]

    def __str__(self) -> str:
        return text_of(self._blocks())

    __repr__ = __str__


def summary_of(network: Any, input_shape: Sequence[Any], dtype: Any = None) -> Summary:
    """Run ``network`` on zeros in evaluation mode, and note every layer that computes by itself."""
    shapes = _shapes(network, input_shape)
    like = next((p.data for p in network.parameters()), np.zeros((), np.float32))
    uses: list[tuple[str, Any, tuple[Shape, ...], Any]] = []
    with _one_at_a_time, _watched(network, uses), evaluating(network):
        network(*(asarray(np.zeros(s, dtype), like=like, dtype=like.dtype if dtype is None else None) for s in shapes))
    counted: set[int] = set()
    layers = []
    for name, module, inputs, output in uses:
        new = {id(p): p.size for p in module.parameters() if id(p) not in counted}
        counted.update(new)
        flops, time = _cost(module, inputs)
        layers.append(LayerSummary(name, type(module).__name__, inputs, output, sum(new.values()), flops, time))
    parameters = network.parameters()
    trained = sum(p.size for p in parameters if p.requires_grad)
    return Summary(type(network).__name__, tuple(layers), sum(p.size for p in parameters), trained)


def _shapes(network: Any, input_shape: Any) -> list[Shape]:
    """The shape of each input, the batch with it."""
    listed = list(input_shape) if is_ordered(input_shape) else []
    several = bool(listed) and all(map(is_ordered, listed))
    shapes = [tuple(shape) for shape in (listed if several else [listed])]
    if not listed or not all(is_whole(n) and n > 0 for shape in shapes for n in shape):
        raise ShapeError(
            f"{type(network).__name__}.summary: input_shape is {shown(input_shape)}, expected whole numbers such as "
            "(1, 3, 32, 32), the batch first, or a list of shapes for several inputs"
        )
    return shapes


@contextmanager
def _watched(network: Any, uses: list[Any]) -> Iterator[None]:
    """While inside, each run of a module of this thread is noted, unless a module inside it runs too."""
    me, running = threading.get_ident(), list[list[Any]]()

    def watching(name: str, module: Any, run: Callable[..., Any], *, pair: bool) -> Callable[..., Any]:
        def watch(*inputs: Any, **options: Any) -> Any:
            if threading.get_ident() != me or (running and running[-1][0] is module):
                return run(*inputs, **options)
            running.append([module, True])
            before = len(uses)
            try:
                result = run(*inputs, **options)
            finally:
                _, is_leaf = running.pop()
            if is_leaf or _computes(module, uses[before:]):
                del uses[before:]
                shapes = tuple(tuple(x.shape) for x in inputs if hasattr(x, "shape"))
                uses.append((name, module, shapes, _shape_of(result[0] if pair else result)))
            if running:
                running[-1][1] = False
            return result

        return watch

    modules = [(name, module) for name, module in network.named_modules() if callable(module)]  # no factorized tensor
    try:
        for name, module in modules:
            for method in ("forward", "vjp"):
                run = getattr(module, method)
                vars(module)[method] = watching(name, module, run, pair=method == "vjp")
        yield
    finally:
        for _, module in modules:
            for method in ("forward", "vjp"):
                vars(module).pop(method, None)


def _computes(module: Any, inside: Sequence[Any]) -> bool:
    """Whether a module has a weight that none of the modules that ran inside it has: growing layers compute so."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Parameter) and not any(weight is p for use in inside for p in use[1].parameters())


def _shape_of(value: Any) -> Any:
    return tuple(map(_shape_of, value)) if isinstance(value, tuple) else tuple(value.shape)


def _cost(module: Any, inputs: tuple[Shape, ...]) -> tuple[int | None, float | None]:
    """FLOPs and predicted seconds of the products of a layer."""
    layer = module if hasattr(module, "plan") else getattr(module, "layer", module)
    if hasattr(layer, "plan"):
        cost = layer.plan(inputs[0])
    elif {"weight", "in_features", "out_features"} <= set(dir(layer)) and inputs:
        rows = int(np.prod(inputs[0][:-1], dtype=np.int64))
        cost = plan("n i, o i -> n o", (rows, layer.in_features), layer.weight.shape)
    else:
        return None, None
    return int(cost.flops), float(cost.seconds)
