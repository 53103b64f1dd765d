"""Optimizer: the base class, its loop over the gradients, and its state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from growarray.backend import Array, asarray, is_array, is_cupy, load, namespace, to_numpy
from growarray.errors import ShapeError, shown
from growarray.nn import Owner, Parameter

_OWN = "growarray.optim.rules"  # whose updates run on a GPU as one launch


def at_least_zero(where: str, **options: float) -> None:
    """Raise ``TypeError`` for an option that is not a number, ``ValueError`` for a negative one."""
    for name, value in options.items():
        if not hasattr(value, "__float__"):
            raise TypeError(f"{where}: {name} must be a number, found {shown(value)}")
        if not value >= 0.0:
            raise ValueError(f"{where}: {name} must not be negative, found {value}")


class Optimizer:
    """Base class: the parameters, the learning rate, and a loop over the gradients.

    ``parameters`` is an iterable of parameters, or a Module, which is asked at every step, so that parameters
    which growth has added take part. ``lr`` may be set between steps. A frozen parameter is left as it is, by weight
    decay too. A subclass writes :meth:`update`, and names its further options in ``_options``.

    Raises ValueError if there is no parameter or ``lr`` is negative, TypeError for an entry that is not a Parameter.

    >>> import numpy as np
    >>> from growarray.optim import SGD
    >>> p = Parameter(np.ones(2))
    >>> p.accumulate(np.ones(2))
    >>> SGD([p], lr=0.5).step()
    >>> p.data.tolist()
    [0.5, 0.5]
    """

    _options: ClassVar[tuple[str, ...]] = ()

    def __init__(self, parameters: Owner | Iterable[Parameter], lr: float) -> None:
        name = type(self).__name__
        at_least_zero(name, lr=lr)
        if isinstance(parameters, Parameter):
            raise TypeError(
                f"{name}: expected Parameters in a list, or a Module, found one Parameter; write [parameter]"
            )
        self._source = parameters if isinstance(parameters, Owner) else list(parameters)
        for entry in self.parameters:
            if not isinstance(entry, Parameter):
                raise TypeError(f"{name}: expected Parameters or a Module, found {type(entry).__name__}")
        if not self.parameters:
            raise ValueError(f"{name}: there are no parameters to optimise; pass at least one")
        self.lr = lr

    def __repr__(self) -> str:
        options = (f"{name}={getattr(self, name)}" for name in ("lr", *self._options))
        return f"{type(self).__name__}({', '.join(options)}, parameters={len(self.parameters)})"

    def _saved(self) -> dict[str, Any]:
        return {"parameters": self._source} | {name: getattr(self, name) for name in ("lr", *self._options)}

    @property
    def parameters(self) -> list[Parameter]:
        """The parameters, each once."""
        parameters = self._source.parameters() if isinstance(self._source, Owner) else self._source
        return list({id(p): p for p in parameters}.values())

    def step(self) -> None:
        """Update every parameter that has a gradient and is not frozen; a gradient of another type raises first."""
        trained = [(p, p.grad) for p in self.parameters if p.grad is not None and p.requires_grad]
        for parameter, gradient in trained:
            namespace(parameter.data, gradient, where=f"{type(self).__name__}: ")
        if type(self).__module__ == _OWN and any(is_cupy(p.data) for p, _ in trained):  # a subclass may differ
            trained = load("growarray.cuda.update").move_together(trained, *self._rule(float(self.lr)))
        for parameter, gradient in trained:
            parameter.data = self.update(parameter, gradient, float(self.lr))

    def _rule(self, lr: float) -> Any:
        """For one launch on a GPU: a :class:`growarray.cuda.update.Rule`, and its numbers for each parameter."""

    def zero_grad(self) -> None:
        """Forget every gradient."""
        for parameter in self.parameters:
            parameter.grad = None

    def _named(self) -> dict[str, Parameter]:
        """The parameters by their names in the module, or by their positions in the list; a shared one by its first."""
        named = dict(self._source.named_parameters() if isinstance(self._source, Owner) else ())
        named = named or {str(index): p for index, p in enumerate(self._source)}  # type: ignore[arg-type]
        first = {id(p): name for name, p in reversed(named.items())}
        return {name: p for name, p in named.items() if first[id(p)] == name}

    def state_dict(self) -> dict[str, Array]:
        """Copies of the options and slots by name: ``lr``, ``0.weight.exp_avg``, ….

        Numbers are arrays without axes, so that ``save_npz`` and ``save_safetensors`` can write the result as it is.

        >>> from growarray.optim import SGD
        >>> p = Parameter(np.zeros(1))
        >>> p.accumulate(np.ones(1))
        >>> optimizer = SGD([p], lr=1.0, momentum=0.5)
        >>> optimizer.step(), sorted(optimizer.state_dict())
        (None, ['0.momentum_buffer', 'dampening', 'lr', 'momentum', 'nesterov', 'weight_decay'])
        """
        state: dict[str, Array] = {name: np.asarray(getattr(self, name)) for name in ("lr", *self._options)}
        for name, parameter in self._named().items():
            for slot, value in parameter.slots.items():
                xp = namespace(value) if is_array(value) else np
                state[f"{name}.{slot}"] = xp.asarray(value, copy=True)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, on each parameter's device; replaces the present state.

        Raises KeyError: an option is missing, or an entry belongs to no option and no parameter: another kind of
        optimizer, or another network; ShapeError: an entry has another shape than its parameter, which has grown since,
        or will; TypeError: an entry is not a real number or an array of them. If anything raises, nothing has changed.
        """
        where, named, options = f"{type(self).__name__}.load_state_dict", self._named(), ("lr", *self._options)
        missing = [name for name in options if name not in state]
        unknown = [name for name in state if name not in options and name.rpartition(".")[0] not in named]
        if missing or unknown:
            wrong = {"missing": missing, "unknown": unknown}
            parts = "; ".join(f"{what} {', '.join(names[:5])}" for what, names in wrong.items() if names)
            raise KeyError(f"{where}: {parts}; expected the state of a {type(self).__name__} of this network")
        entries = {name: _real(f"{where}: {name}", state[name]) for name in state}
        slots: dict[str, dict[str, Any]] = {name: {} for name in named}
        for name in entries.keys() - options:
            holder, _, slot = name.rpartition(".")
            slots[holder][slot] = _slot(f"{where}: {name}", entries[name], named[holder])
        new_options = {name: _option(f"{where}: {name}", entries[name], getattr(self, name)) for name in options}
        vars(self).update(new_options)
        for name, parameter in named.items():
            parameter.slots = slots[name]

    def update(self, parameter: Parameter, gradient: Array, lr: float) -> Array:
        """The new data; may set ``parameter.slots``."""
        raise NotImplementedError(f"{type(self).__name__} must define update(parameter, gradient, lr)")


def _real(where: str, value: Any) -> np.ndarray:
    """A number or an array as a NumPy array of real numbers; TypeError for anything else."""
    array = to_numpy(value) if is_array(value) else np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{where}: found {type(value).__name__} of dtype {array.dtype}, expected real numbers")
    return array


def _option(where: str, value: np.ndarray, old: Any) -> Any:
    """An option, of the kind of the current one: a number, a flag, or a pair of numbers."""
    if value.shape != np.shape(old):
        raise ShapeError(f"{where}: found shape {value.shape}, expected {np.shape(old)}")
    return tuple(value.tolist()) if isinstance(old, tuple) else type(old)(value.item())


def _slot(where: str, value: np.ndarray, parameter: Parameter) -> Any:
    """A checked slot: a Python number, or an array of the parameter's shape, on its device and in its dtype."""
    if value.ndim == 0:
        return value.item()
    if value.shape != parameter.shape:
        raise ShapeError(f"{where}: found shape {value.shape}, the parameter has shape {parameter.shape}")
    return asarray(value, like=parameter.data, dtype=parameter.data.dtype)
