"""What owns parameters and buffers: found by walking its attributes, saved, loaded, moved and printed.

There is no registration: a :class:`Parameter`, an :class:`Owner`, and lists or dictionaries of them are owned;
attributes named in ``_links`` (a neighbour in the network) are not; arrays named in ``_buffers`` are saved but not
trained.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

from growarray.backend import Array, device_of, is_array, library, namespace, to_device
from growarray.display import Block, Displayed, Table
from growarray.errors import shown
from growarray.nn.load_report import LoadReport
from growarray.nn.load_state import Rename, check_strictly, match_state, values_for
from growarray.nn.parameter import Parameter

_WIDTH = 100  # characters of a line, above which a module prints on several


def describe(kind: str, options: str, inner: Sequence[tuple[str, str]], *, a_line_each: bool = False) -> str:
    """``kind(options, name=text, …)``; if that is long, or a text has several lines, each on its own line.

    A module without a name is its text alone.

    >>> print(describe("Sequential", "", [("0", "Linear(2, 3)"), ("1", "ReLU()")], a_line_each=True))
    Sequential(
      (0): Linear(2, 3)
      (1): ReLU()
    )
    """
    head = [options] if options else []
    line = f"{kind}({', '.join([*head, *(f'{name}={text}' if name else text for name, text in inner)])})"
    if not inner or not (a_line_each or "\n" in line or len(line) > _WIDTH):
        return line
    rows = [*head, *(f"({name}): {text}" if name else text for name, text in inner)]
    return "\n".join([f"{kind}(", *(textwrap.indent(row, "  ") for row in rows), ")"])


def below(prefix: str, name: str) -> str:
    """The prefix of the names of a child's arrays: its name and a dot are added, unless it has no name.

    >>> below("blocks.", "0"), below("blocks.", "")
    ('blocks.0.', 'blocks.')
    """
    return f"{prefix}{name}." if name else prefix


class Owner(Displayed):
    """Base of layers and of factorized tensors: parameters by name, training mode, device, state dict."""

    _links: ClassVar[tuple[str, ...]] = ()
    _buffers: ClassVar[tuple[str, ...]] = ()
    _since: ClassVar[Mapping[str, int]] = {}  # buffers that state dicts lacked before this version of their module
    _shown: ClassVar[str] = ""  # the options as ``repr`` shows them, with ``{self.…}`` for each
    _a_line_each: ClassVar[bool] = False  # whether repr gives each module inside its own line, however short
    training: bool = True

    def children(self) -> Iterator[tuple[str, Owner]]:
        """Name and module of each directly owned module, in the order in which they were assigned."""
        for name, value in self._fields():
            if isinstance(value, Owner):
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

    def named_modules(self) -> Iterator[tuple[str, Owner]]:
        """Name and module of this module, called ``''``, and of every module it owns, each once.

        >>> from growarray.nn import Linear, ReLU, Sequential
        >>> [name for name, _ in Sequential(Linear(2, 2), Sequential(ReLU())).named_modules()]
        ['', '0', '1', '1.0']
        """
        waiting: list[tuple[str, Owner]] = [("", self)]
        seen: set[int] = set()
        while waiting:
            name, module = waiting.pop()
            if id(module) in seen:
                continue
            seen.add(id(module))
            yield name, module
            dot = f"{name}." if name else ""
            waiting += [(dot + inner, child) for inner, child in [*module.children()][::-1]]

    def modules(self) -> Iterator[Owner]:
        """This module and every module it owns, each once."""
        for _, module in self.named_modules():
            yield module

    def named_parameters(self, prefix: str = "") -> Iterator[tuple[str, Parameter]]:
        """Name and parameter, with the names that torch's state dict would have."""
        for name, value in self._fields():
            if isinstance(value, Parameter):
                yield prefix + name, value
            elif isinstance(value, Owner):
                yield from value.named_parameters(below(prefix, name))

    def parameters(self) -> list[Parameter]:
        """Every owned parameter, each once."""
        by_id: dict[int, Parameter] = {}
        self._find_parameters(by_id)
        return list(by_id.values())

    def _find_parameters(self, by_id: dict[int, Parameter]) -> None:
        """The walk of :meth:`named_parameters` without the names: optimizers take it at every step."""
        for name, value in vars(self).items():
            items: Iterable[Any] = (value,)
            if isinstance(value, list | tuple):
                items = value
            elif isinstance(value, dict):
                items = value.values()
            for item in items:
                if isinstance(item, Parameter):
                    by_id[id(item)] = item
                elif isinstance(item, Owner) and name not in self._links:
                    item._find_parameters(by_id)

    def number_of_parameters(self) -> int:
        """Number of trained scalars."""
        return sum(p.size for p in self.parameters())

    def zero_grad(self) -> None:
        """Forget every gradient."""
        for p in self.parameters():
            p.grad = None

    def requires_grad_(self, requires_grad: bool = True) -> Self:
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
    def _records(self) -> bool:
        """Whether the module keeps parts of what passes in a pullback."""
        return False

    def train(self, mode: bool = True) -> Self:
        """Set training mode here and below; matters for dropout and normalisation only."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Set evaluation mode here and below."""
        return self.train(False)

    def _named_arrays(self, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
        """Full name, holder and attribute of every saved array; a holder's attribute can be set."""
        for name, value in self._fields():
            if isinstance(value, Parameter):
                yield prefix + name, value, "data"
            elif name in self._buffers and value is not None:
                yield prefix + name, self, name
            elif isinstance(value, Owner):
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
        what fits is loaded. Every value is read before the first is set, so if anything raises, nothing has changed.

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
            if isinstance(holder, Owner) and attribute in holder._since
        }
        report, entries = match_state(arrays, state, rename, since)
        if strict:
            check_strictly(report, f"{type(self).__name__}.load_state_dict")
        values = values_for(arrays, state, entries)
        report = report.with_values(values.rounded, values.beyond)
        if strict:
            check_strictly(report, f"{type(self).__name__}.load_state_dict")
        for name, value in values.arrays.items():
            setattr(*targets[name], value)
        return report

    def to(self, device: Any) -> Self:
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

    def _blocks(self) -> list[Block]:
        leaves = [(name, m) for name, m in self.named_modules() if not any(True for _ in m.children())]
        rows = [[name, repr(m), f"{m.number_of_parameters():,}"] for name, m in leaves]
        total = f"{self.number_of_parameters():,} parameters"
        return [type(self).__name__, Table([["layer", "options", "parameters"], *rows]), total]

    def __repr__(self) -> str:
        inner = [(name, repr(child)) for name, child in self.children()]
        return describe(type(self).__name__, self.extra_repr(), inner, a_line_each=self._a_line_each)

    def extra_repr(self) -> str:
        """Options of the layer, for ``repr``."""
        return self._shown.format(self=self)
