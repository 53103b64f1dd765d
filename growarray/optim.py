"""Optimizers with torch's definitions. Their state lives in ``Parameter.slots`` and grows with the parameter.

Data is replaced, never changed in place. Learning-rate schedules are callables, step -> lr::

    schedule = warm_up(cosine(1e-3, steps=1000), steps=50)
    for step in range(1050):
        optimizer.lr = schedule(step)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from growarray.backend import Array, accurate_dtype, asarray, is_array, is_cupy, load, namespace, to_numpy
from growarray.errors import ShapeError, shown
from growarray.nn import Owner, Parameter

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "clip_gradients", "constant", "cosine", "warm_up"]

Schedule = Callable[[int], float]


def _at_least_zero(where: str, **options: float) -> None:
    for name, value in options.items():
        if not hasattr(value, "__float__"):
            raise TypeError(f"{where}: {name} must be a number, found {shown(value)}")
        if not value >= 0.0:
            raise ValueError(f"{where}: {name} must not be negative, found {value}")


class Optimizer:
    """Base: the parameters, the learning rate, and a loop over the gradients that there are.

    ``parameters`` is an iterable of parameters, or a Module, which is asked at every step, so that parameters
    which growth has added take part. ``lr`` may be set between steps. A frozen parameter is left as it is, by weight
    decay too. A subclass writes :meth:`update`, and names its further options in ``_options``.

    Raises ValueError if there is no parameter or ``lr`` is negative, TypeError for an entry that is not a Parameter.

    >>> import numpy as np
    >>> p = Parameter(np.ones(2))
    >>> p.accumulate(np.ones(2))
    >>> SGD([p], lr=0.5).step()
    >>> p.data.tolist()
    [0.5, 0.5]
    """

    _options: ClassVar[tuple[str, ...]] = ()

    def __init__(self, parameters: Owner | Iterable[Parameter], lr: float) -> None:
        name = type(self).__name__
        _at_least_zero(name, lr=lr)
        if isinstance(parameters, Parameter):
            raise TypeError(
                f"{name}: expected Parameters in a list, or a Module, found one Parameter; write [parameter]"
            )
        self._source = parameters if isinstance(parameters, Owner) else list(parameters)
        for entry in self.parameters:
            if not isinstance(entry, Parameter):
                raise TypeError(f"{name}: expected Parameters or a Module, found {type(entry).__name__}")
        if not self.parameters:
            raise ValueError(f"{name}: there is no parameter to optimise")
        self.lr = lr

    def _saved(self) -> dict[str, Any]:
        return {"parameters": self._source} | {name: getattr(self, name) for name in ("lr", *self._options)}

    @property
    def parameters(self) -> list[Parameter]:
        """The parameters, each once."""
        found = self._source.parameters() if isinstance(self._source, Owner) else self._source
        return list({id(p): p for p in found}.values())

    def step(self) -> None:
        """Update every parameter that has a gradient and is not frozen; if a gradient is not an array, none."""
        moved = [(p, p.grad) for p in self.parameters if p.grad is not None and p.requires_grad]
        for parameter, gradient in moved:
            namespace(parameter.data, gradient, where=f"{type(self).__name__}: ")
        if type(self).__module__ == __name__ and any(is_cupy(p.data) for p, _ in moved):  # a subclass may differ
            moved = load("growarray.cuda.update").move_together(moved, *self._rule(float(self.lr)))
        for parameter, gradient in moved:
            parameter.data = self.update(parameter, gradient, float(self.lr))

    def _rule(self, lr: float) -> Any:
        """For one launch for all: a :class:`growarray.cuda.update.Rule`, and what it needs to know of a parameter."""

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
        """The options and what is kept for each parameter, as copies by name: ``lr``, ``0.weight.exp_avg``, ….

        Numbers are arrays without axes, so that ``save_npz`` and ``save_safetensors`` write it as it is.

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
        """Take over what :meth:`state_dict` gave, on each parameter's device; what is kept now is forgotten.

        Raises
        ------
        KeyError
            An option is missing, or an entry belongs to no option and no parameter: another kind of optimizer, or
            another network.
        ShapeError
            An entry has another shape than its parameter, which has grown since, or will.
        TypeError
            An entry is not a real number or an array of them. If anything raises, nothing has changed.
        """
        where, named, options = f"{type(self).__name__}.load_state_dict", self._named(), ("lr", *self._options)
        missing = [name for name in options if name not in state]
        unknown = [name for name in state if name not in options and name.rpartition(".")[0] not in named]
        if missing or unknown:
            wrong = {"missing": missing, "unknown": unknown}
            parts = "; ".join(f"{what} {', '.join(names[:5])}" for what, names in wrong.items() if names)
            raise KeyError(f"{where}: {parts}; expected the state of a {type(self).__name__} of this network")
        found = {name: _real(f"{where}: {name}", state[name]) for name in state}
        slots: dict[str, dict[str, Any]] = {name: {} for name in named}
        for name in found.keys() - options:
            holder, _, slot = name.rpartition(".")
            slots[holder][slot] = _slot(f"{where}: {name}", found[name], named[holder])
        taken = {name: _option(f"{where}: {name}", found[name], getattr(self, name)) for name in options}
        vars(self).update(taken)
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
    """An option in the kind of the present one: a number, a flag, or a pair of numbers."""
    if value.shape != np.shape(old):
        raise ShapeError(f"{where}: found shape {value.shape}, expected {np.shape(old)}")
    return tuple(value.tolist()) if isinstance(old, tuple) else type(old)(value.item())


def _slot(where: str, value: np.ndarray, parameter: Parameter) -> Any:
    """What a parameter keeps: a Python number, or an array of its shape, on its device and in its dtype."""
    if value.ndim == 0:
        return value.item()
    if value.shape != parameter.shape:
        raise ShapeError(f"{where}: found shape {value.shape}, the parameter has shape {parameter.shape}")
    return asarray(value, like=parameter.data, dtype=parameter.data.dtype)


class SGD(Optimizer):
    """``b = momentum b + (1 - dampening) g``, ``p = p - lr b``; with nesterov ``p = p - lr (g + momentum b)``.

    ``weight_decay`` is added to the gradient, times p. The first b is g. Slot: momentum_buffer.
    Raises ValueError for a negative option, or nesterov without momentum or with dampening.

    >>> import numpy as np
    >>> p = Parameter(np.zeros(1))
    >>> p.accumulate(np.ones(1))
    >>> optimizer = SGD([p], lr=1.0, momentum=0.5)
    >>> optimizer.step(), optimizer.step(), p.data.tolist()
    (None, None, [-2.5])
    """

    _options = ("momentum", "dampening", "weight_decay", "nesterov")

    def __init__(
        self,
        parameters: Owner | Iterable[Parameter],
        lr: float,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(parameters, lr)
        _at_least_zero("SGD", momentum=momentum, weight_decay=weight_decay)
        if nesterov and (momentum == 0.0 or dampening != 0.0):
            raise ValueError(f"SGD: nesterov needs momentum > 0 and no dampening, found {momentum} and {dampening}")
        self.momentum, self.dampening, self.weight_decay = float(momentum), float(dampening), float(weight_decay)
        self.nesterov = nesterov

    def _rule(self, lr: float) -> Any:
        options = (lr, self.momentum, self.dampening, self.weight_decay)
        rule = load("growarray.cuda.update").sgd(options, self.nesterov)
        return rule, lambda p: tuple(float(name not in p.slots) for name in rule.slots)

    def update(self, parameter: Parameter, gradient: Array, lr: float) -> Array:
        """One step of one parameter."""
        if self.weight_decay:
            gradient = gradient + self.weight_decay * parameter.data
        if self.momentum:
            old = parameter.slots.get("momentum_buffer")
            # + 0.0 copies: the buffer must not be the gradient itself
            new = gradient + 0.0 if old is None else self.momentum * old + (1.0 - self.dampening) * gradient
            parameter.slots["momentum_buffer"] = new
            gradient = gradient + self.momentum * new if self.nesterov else new
        return parameter.data - lr * gradient


def _bias_correction(beta: float, step: Any) -> Any:
    """1 - beta^step, for a number or an array of steps (in the form that float32 keeps exact)."""
    if beta == 0.0:
        return 1.0
    if is_array(step):
        return -namespace(step).expm1(step * math.log(beta))
    return 1.0 - beta**step


class Adam(Optimizer):
    """``m = b1 m + (1 - b1) g``, ``v = b2 v + (1 - b2) g^2``, ``p = p - lr m^ / (sqrt(v^) + eps)``.

    m^ and v^ are divided by ``1 - b^step``. ``weight_decay`` is added to the gradient, times p. ``amsgrad`` takes
    the largest v so far. Slots: step (a number, or after growth an array: each entry counts its own), exp_avg,
    exp_avg_sq, max_exp_avg_sq. Raises ValueError for a negative option, or a beta outside [0, 1).

    >>> import numpy as np
    >>> p = Parameter(np.zeros(1))
    >>> p.accumulate(np.ones(1))
    >>> Adam([p], lr=0.5, eps=0.0).step()
    >>> p.data.tolist(), p.slots["step"]
    ([-0.5], 1)
    """

    _options = ("betas", "eps", "weight_decay", "amsgrad")

    def __init__(
        self,
        parameters: Owner | Iterable[Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
    ) -> None:
        super().__init__(parameters, lr)
        name = type(self).__name__
        _at_least_zero(name, eps=eps, weight_decay=weight_decay)
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise ValueError(f"{name}: betas must be a pair of numbers, found {shown(betas)}")
        for index, beta in enumerate(betas):
            if not 0.0 <= beta < 1.0:
                raise ValueError(f"{name}: betas[{index}] must be at least 0 and below 1, found {beta}")
        self.betas = (float(betas[0]), float(betas[1]))
        self.eps, self.weight_decay, self.amsgrad = float(eps), float(weight_decay), amsgrad

    def _rule(self, lr: float) -> Any:
        decay = 1.0 - lr * self.weight_decay if isinstance(self, AdamW) else self.weight_decay
        options = (*self.betas, decay, self.eps)
        rule = load("growarray.cuda.update").adam(options, lr, not isinstance(self, AdamW), self.amsgrad)

        def own(p: Parameter) -> tuple[float, float]:
            step = p.slots.get("step", 0)  # an array of steps is counted there
            first, second = (1.0 if is_array(step) else _bias_correction(beta, step + 1) for beta in self.betas)
            return lr / first, second**0.5

        return rule, own

    def _decayed(self, data: Array, gradient: Array, lr: float) -> tuple[Array, Array]:
        """Data and gradient after weight decay."""
        return data, gradient + self.weight_decay * data if self.weight_decay else gradient

    def update(self, parameter: Parameter, gradient: Array, lr: float) -> Array:
        """One step of one parameter."""
        xp, slots, (beta1, beta2) = namespace(parameter.data), parameter.slots, self.betas
        data, gradient = self._decayed(parameter.data, gradient, lr)
        step = slots.get("step", 0) + 1
        nothing = xp.zeros_like(data) if "exp_avg" not in slots or self.amsgrad else 0.0
        mean = beta1 * slots.get("exp_avg", nothing) + (1.0 - beta1) * gradient
        square = beta2 * slots.get("exp_avg_sq", nothing) + (1.0 - beta2) * gradient * gradient
        slots.update(step=step, exp_avg=mean, exp_avg_sq=square)
        if self.amsgrad:
            square = xp.maximum(slots.get("max_exp_avg_sq", nothing), square)
            slots["max_exp_avg_sq"] = square
        root = xp.sqrt(square) / _bias_correction(beta2, step) ** 0.5
        return data - lr / _bias_correction(beta1, step) * mean / (root + self.eps)


class AdamW(Adam):
    """:class:`Adam` whose weight decay shrinks the data itself, ``p = p (1 - lr weight_decay)``, not the gradient.

    >>> import numpy as np
    >>> p = Parameter(np.ones(1))
    >>> p.accumulate(np.zeros(1))
    >>> AdamW([p], lr=0.5, weight_decay=0.5).step()
    >>> p.data.tolist()
    [0.75]
    """

    def __init__(
        self,
        parameters: Owner | Iterable[Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
    ) -> None:
        super().__init__(parameters, lr, betas, eps, weight_decay, amsgrad)

    def _decayed(self, data: Array, gradient: Array, lr: float) -> tuple[Array, Array]:
        return data * (1.0 - lr * self.weight_decay), gradient


def constant(lr: float) -> Schedule:
    """The same learning rate at every step.

    >>> constant(0.1)(1000)
    0.1
    """
    return lambda step: lr


def cosine(lr: float, steps: int, final: float = 0.0) -> Schedule:
    """From ``lr`` at step 0 along half a cosine to ``final`` at step ``steps``, and ``final`` from there on.

    Raises ValueError if ``steps`` is less than 1.

    >>> schedule = cosine(1.0, 10)
    >>> schedule(0), round(schedule(5), 6), schedule(10), schedule(11)
    (1.0, 0.5, 0.0, 0.0)
    """
    if steps < 1:
        raise ValueError(f"cosine: steps must be at least 1, found {steps}")
    return lambda step: final + (lr - final) * (1.0 + math.cos(math.pi * min(step, steps) / steps)) / 2.0


def warm_up(schedule: Schedule, steps: int) -> Schedule:
    """Rise linearly to ``schedule(0)`` over the first ``steps`` steps, then follow ``schedule`` from its start.

    Raises ValueError if ``steps`` is negative.

    >>> rising = warm_up(constant(1.0), 4)
    >>> [rising(step) for step in (0, 1, 3, 4)]
    [0.25, 0.5, 1.0, 1.0]
    """
    if steps < 0:
        raise ValueError(f"warm_up: steps must not be negative, found {steps}")
    return lambda step: schedule(0) * (step + 1) / steps if step < steps else schedule(step - steps)


def clip_gradients(parameters: Owner | Parameter | Iterable[Parameter], max_norm: float) -> float:
    """Scale all gradients by ``min(1, max_norm / (norm + 1e-6))``; returns the L2 norm of all of them before.

    On a GPU the norm is an array without axes, as a number would wait. Raises ValueError for a negative ``max_norm``.

    >>> import numpy as np
    >>> p = Parameter(np.zeros(2))
    >>> p.accumulate(np.array([3.0, 4.0]))
    >>> clip_gradients([p], 1.0), p.grad.round(4).tolist()
    (5.0, [0.6, 0.8])
    """
    _at_least_zero("clip_gradients", max_norm=max_norm)
    found = [parameters] if isinstance(parameters, Parameter) else parameters
    found = found.parameters() if isinstance(found, Owner) else found
    held = [(p, p.grad) for p in {id(p): p for p in found}.values() if p.grad is not None and p.requires_grad]
    if held and is_cupy(held[0][1]):
        there: Any = load("growarray.cuda.update").clip_together(held, float(max_norm))
        if there is not None:
            return there  # type: ignore[no-any-return]
    squares: Any = 0.0
    for _, gradient in held:
        values = namespace(gradient).astype(gradient, accurate_dtype(namespace(gradient), gradient), copy=False)
        squares = squares + namespace(gradient).sum(values * values)
    norm = math.sqrt(float(squares))
    scale = min(float(max_norm) / (norm + 1e-6), 1.0)
    if scale != 1.0:
        for p, gradient in held:
            p.grad = gradient * scale
    return norm
