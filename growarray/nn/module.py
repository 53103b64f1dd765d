"""Module: the contract that every layer fulfils.

A module is found by walking its attributes, without registration: a :class:`Parameter`, a
:class:`Module`, and lists or dictionaries of them are owned; attributes named in ``_links``
(a neighbour in the network) are not; arrays named in ``_buffers`` are saved but not trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from growarray.backend import Array, device_of, is_array, library, namespace, to_device
from growarray.display import Block, Displayed, Table
from growarray.errors import shown
from growarray.nn.describe import describe
from growarray.nn.inference import in_batches
from growarray.nn.load_report import LoadReport
from growarray.nn.load_state import Rename, check_strictly, match_state, values_for
from growarray.nn.parameter import Parameter as Parameter

if TYPE_CHECKING:
    from growarray.nn.summary import Summary

__all__ = ["Module", "below"]

Pullback = Callable[..., Any]
ExtendedPullback = Callable[[Array | None, Array | None], tuple[Array | None, Array | None]]


def below(prefix: str, name: str) -> str:
    """What stands before the names of a child's arrays: its name and a dot, nothing more for a child without a name.

    >>> below("blocks.", "0"), below("blocks.", "")
    ('blocks.0.', 'blocks.')
    """
    return f"{prefix}{name}." if name else prefix


class Module(Displayed):
    """Base of all layers. ``y, pullback = layer.vjp(x)``; ``dx = pullback(dy)`` adds to parameter gradients.

    A subclass writes :meth:`vjp`, and also :meth:`forward` if that is cheaper. Nothing is kept between
    calls, so one layer may be used many times; a pullback may be called more than once.
    """

    _links: ClassVar[tuple[str, ...]] = ()
    _buffers: ClassVar[tuple[str, ...]] = ()
    _since: ClassVar[Mapping[str, int]] = {}  # buffers that state dicts lacked before this version of their module
    _shown: ClassVar[str] = ""  # the options as ``repr`` shows them, with ``{self.…}`` for each
    _a_line_each: ClassVar[bool] = False  # whether repr gives each module inside its own line, however short
    training: bool = True
    is_identity: bool = False  # whether it hands its input on unchanged

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """Value of the layer and the way back."""
        raise NotImplementedError(f"{type(self).__name__} must define vjp(x) -> (y, pullback)")

    def forward(self, x: Array) -> Array:
        """Value of the layer alone."""
        return self.vjp(x)[0]

    def __call__(self, x: Array) -> Array:
        """:meth:`forward`."""
        return self.forward(x)

    def children(self) -> Iterator[tuple[str, Module]]:
        """Name and module of each directly owned module, in the order in which they were assigned."""
        for name, value in self._fields():
            if isinstance(value, Module):
                yield name, value

    def _fields(self) -> Iterator[tuple[str, Any]]:
        for name, value in vars(self).items():
            if name in self._links:
                continue
            if isinstance(value, list | tuple):
                yield from ((f"{name}.{i}", item) for i, item in enumerate(value))
            elif isinstance(value, dict):
                yield from ((f"{name}.{key}", item) for key, item in value.items())
            else:
                yield name, value

    def named_modules(self) -> Iterator[tuple[str, Module]]:
        """Name and module of this module, called ``''``, and of every module it owns, each once.

        >>> from growarray.nn import Linear, ReLU, Sequential
        >>> [name for name, _ in Sequential(Linear(2, 2), Sequential(ReLU())).named_modules()]
        ['', '0', '1', '1.0']
        """
        waiting, seen = [("", self)], set[int]()
        while waiting:
            name, module = waiting.pop()
            if id(module) in seen:
                continue
            seen.add(id(module))
            yield name, module
            dot = f"{name}." if name else ""
            waiting += [(dot + inner, child) for inner, child in [*module.children()][::-1]]

    def modules(self) -> Iterator[Module]:
        """This module and every module it owns, each once."""
        for _, module in self.named_modules():
            yield module

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """Name and parameter, with the names that torch's state dict would have."""
        for name, value in self._fields():
            if isinstance(value, Parameter):
                yield prefix + name, value
            elif isinstance(value, Module):
                yield from value.named_parameters(below(prefix, name))

    def parameters(self) -> list[Parameter]:
        """Every owned parameter, each once."""
        found: dict[int, Parameter] = {}
        self._find_parameters(found)
        return list(found.values())

    def _find_parameters(self, found: dict[int, Parameter]) -> None:
        """The walk of :meth:`named_parameters` without the names: optimizers take it at every step."""
        for name, value in vars(self).items():
            items: Iterable[Any] = (value,)
            if isinstance(value, list | tuple):
                items = value
            elif isinstance(value, dict):
                items = value.values()
            for item in items:
                if isinstance(item, Parameter):
                    found[id(item)] = item
                elif isinstance(item, Module) and name not in self._links:
                    item._find_parameters(found)

    def number_of_parameters(self) -> int:
        """Number of trained scalars."""
        return sum(p.size for p in self.parameters())

    @property
    def slope_at_zero(self) -> float:
        """Derivative of the layer at zero from above, by which growth scales what passes through it.

        The default is numeric, the original's behaviour: the pullback of a one-element float64 NumPy array
        ``[1e-5]``. Layers that know the number override this. Gradients of parameters stay as they were.
        """
        gradients = [(p, p.grad) for p in self.parameters()]
        y, pullback = self.vjp(np.asarray([1e-5]))
        slope = float(np.sum(pullback(np.ones_like(y))))
        for parameter, gradient in gradients:
            parameter.grad = gradient
        return slope

    def extended_forward(self, x: Array | None, x_ext: Array | None = None) -> tuple[Array | None, Array | None]:
        """Values for the present features and for the features that growth may add; None stays None."""
        return None if x is None else self.forward(x), None if x_ext is None else self.forward(x_ext)

    def extended_vjp(
        self, x: Array | None, x_ext: Array | None = None
    ) -> tuple[tuple[Array | None, Array | None], ExtendedPullback]:
        """:meth:`extended_forward` and the way back, ``(dy, dy_ext) -> (dx, dx_ext)``; None stays None."""
        y, back = (None, None) if x is None else self.vjp(x)
        y_ext, back_ext = (None, None) if x_ext is None else self.vjp(x_ext)

        def pullback(dy: Array | None, dy_ext: Array | None = None) -> tuple[Array | None, Array | None]:
            return (
                None if back is None or dy is None else back(dy),
                None if back_ext is None or dy_ext is None else back_ext(dy_ext),
            )

        return (y, y_ext), pullback

    def check_extend(self, by: int) -> None:
        """Raise what ``extend(by)`` would raise, without changing anything."""

    @property
    def starts_at_zero(self) -> bool:
        """Whether a gradient passes if the input is exactly zero; in torch's ReLU it does not."""
        return True

    @property
    def parameters_per_feature(self) -> int:
        """Trained scalars that one more feature costs."""
        return 0

    def extend(self, by: int) -> None:
        """Take ``by`` more features of the input; nothing to do unless the layer keeps a value for each."""

    def rescale(self, scale: float) -> None:
        """The input will be ``scale`` times what it was; nothing to do unless the layer remembers its input."""

    def zero_grad(self) -> None:
        """Forget every gradient."""
        for p in self.parameters():
            p.grad = None

    def requires_grad_(self, requires_grad: bool = True) -> Module:
        """Freeze every parameter here and below with False, train them again with True; returns self, as in torch.

        A frozen parameter loses its gradient and takes no other, and no optimizer step or weight decay moves it.
        Running statistics of normalisation are not parameters: :meth:`eval` freezes those. Changes asked for by
        name, such as ``load_state_dict`` and ``apply_change`` of a growing layer, are carried out.

        >>> from growarray.nn import Linear
        >>> [p.requires_grad for p in Linear(2, 2).requires_grad_(False).parameters()]
        [False, False]
        """
        if not isinstance(requires_grad, bool):
            raise TypeError(
                f"{type(self).__name__}.requires_grad_: expected True or False, found {shown(requires_grad)}"
            )
        for p in self.parameters():
            p.requires_grad, p.grad = requires_grad, p.grad if requires_grad else None
        return self

    @property
    def _needs_pullback(self) -> bool:
        """Whether a pullback has something to do here or below, other than to give the input's gradient."""
        return any(p.requires_grad for p in self.parameters()) or any(m._records for m in self.modules())

    @property
    def _records(self) -> bool:
        """Whether the module keeps parts of what passes in a pullback."""
        return False

    def predict(self, *inputs: Array, batch_size: int = 4096) -> Any:
        """Value in evaluation mode, in batches along the first axis; every module's own mode is put back afterwards.

        Raises ValueError if ``batch_size`` is not positive, or there are no samples.

        >>> import numpy as np
        >>> from growarray.nn import Dropout
        >>> Dropout(0.5).predict(np.ones((3, 1)), batch_size=2).tolist()
        [[1.0], [1.0], [1.0]]
        """
        return in_batches(self, inputs, batch_size)

    def summary(self, input_shape: Sequence[Any]) -> Summary:
        """Layers, shapes, parameters, FLOPs and predicted time for an input; the result prints as a table.

        input_shape : of the input, the batch first; a list of shapes for a network of several inputs
        The network runs once, in evaluation mode, on zeros. FLOPs and time are those of products.

        Raises ShapeError if the shape is none, and what the network raises for it.

        >>> import numpy as np
        >>> from growarray.nn import Linear, ReLU, Sequential
        >>> found = Sequential(Linear(3, 4), ReLU()).summary((2, 3))
        >>> [(layer.name, layer.kind, layer.output, layer.parameters, layer.flops) for layer in found.layers]
        [('0', 'Linear', (2, 4), 16, 48), ('1', 'ReLU', (2, 4), 0, None)]
        """
        from growarray.nn.summary import summary_of  # what prices products is needed here alone

        return summary_of(self, input_shape)

    def _blocks(self) -> list[Block]:
        leaves = [(name, m) for name, m in self.named_modules() if not any(True for _ in m.children())]
        rows = [[name, repr(m), f"{m.number_of_parameters():,}"] for name, m in leaves]
        total = f"{self.number_of_parameters():,} parameters"
        return [type(self).__name__, Table([["layer", "options", "parameters"], *rows]), total]

    def train(self, mode: bool = True) -> Module:
        """Set training mode here and below; matters for dropout and normalisation only."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Module:
        """Set evaluation mode here and below."""
        return self.train(False)

    def _named_arrays(self, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
        """Full name, holder and attribute of every saved array; a holder's attribute can be set."""
        for name, value in self._fields():
            if isinstance(value, Parameter):
                yield prefix + name, value, "data"
            elif name in self._buffers and value is not None:
                yield prefix + name, self, name
            elif isinstance(value, Module):
                yield from value._named_arrays(below(prefix, name))

    def state_dict(self) -> dict[str, Array]:
        """Copies of every parameter and buffer under torch's names."""
        state = {}
        for name, holder, attribute in self._named_arrays():
            value = getattr(holder, attribute)
            state[name] = namespace(value).asarray(value, copy=True)
        return state

    def load_state_dict(
        self, state: Mapping[str, Any], *, strict: bool = True, rename: Rename | None = None
    ) -> LoadReport:
        """Take over the arrays of ``state``, on this module's device and in its dtypes.

        state : a mapping of names to arrays, or a checkpoint: of that one only what the module needs is read, once.
        rename : new names for those of ``state``, a mapping or a function, see :func:`renamed`.

        Returns a :class:`LoadReport`, a table when it is printed. With ``strict`` anything that does not fit raises
        ``KeyError`` (names missing or unexpected), :class:`~growarray.errors.ShapeError` (shapes), ``TypeError``
        (casts that would lose more than precision) or ``ValueError`` (a value beyond the range of the dtype); without,
        what fits is loaded. Every value is read before the
        first is set, so if anything raises, nothing has changed.

        >>> from growarray.nn import Linear
        >>> report = Linear(3, 2).load_state_dict(Linear(3, 2).state_dict())
        >>> print(report)
        2 matched: every name and shape agrees
        """
        targets = {name: (holder, attribute) for name, holder, attribute in self._named_arrays()}
        arrays = {name: getattr(*target) for name, target in targets.items()}
        since = {
            name: holder._since[attribute]
            for name, (holder, attribute) in targets.items()
            if isinstance(holder, Module) and attribute in holder._since
        }
        report, found = match_state(arrays, state, rename, since)
        if strict:
            check_strictly(report, f"{type(self).__name__}.load_state_dict")
        values = values_for(arrays, state, found)
        report = report.with_values(values.rounded, values.beyond)
        if strict:
            check_strictly(report, f"{type(self).__name__}.load_state_dict")
        for name, value in values.arrays.items():
            setattr(*targets[name], value)
        return report

    def to(self, device: Any) -> Module:
        """Move every parameter, gradient, slot and buffer to ``device``; returns self.

        device : ``'cpu'``, ``'cuda'``, …, or an array, to whose library and device they move
        """
        if isinstance(device, str):
            library(device)
        for module in self.modules():
            for p in (v for _, v in module._fields() if isinstance(v, Parameter)):
                p.data = to_device(p.data, device)
                p.grad = None if p.grad is None else to_device(p.grad, device)
                p.slots = {k: to_device(v, device) if is_array(v) else v for k, v in p.slots.items()}
            for name in module._buffers:
                if getattr(module, name, None) is not None:
                    setattr(module, name, to_device(getattr(module, name), device))
        return self

    @property
    def device(self) -> Any:
        """Device of the first parameter, ``'cpu'`` if there is none."""
        first = next(iter(self.parameters()), None)
        return "cpu" if first is None else device_of(first.data)

    def __repr__(self) -> str:
        inner = [(name, repr(child)) for name, child in self.children()]
        return describe(type(self).__name__, self.extra_repr(), inner, a_line_each=self._a_line_each)

    def extra_repr(self) -> str:
        """Options of the layer, for ``repr``."""
        return self._shown.format(self=self)
