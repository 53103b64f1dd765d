"""How SGD, Adam and AdamW move a parameter."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from growarray.backend import Array, is_array, load, namespace
from growarray.errors import shown
from growarray.nn import Owner, Parameter
from growarray.optim.optimizer import Optimizer, at_least_zero


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
        at_least_zero("SGD", momentum=momentum, weight_decay=weight_decay)
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
    """1 - beta^step, for a number or an array of steps, without cancellation in float32."""
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
        at_least_zero(name, eps=eps, weight_decay=weight_decay)
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
        zero = xp.zeros_like(data) if "exp_avg" not in slots or self.amsgrad else 0.0
        mean = beta1 * slots.get("exp_avg", zero) + (1.0 - beta1) * gradient
        square = beta2 * slots.get("exp_avg_sq", zero) + (1.0 - beta2) * gradient * gradient
        slots.update(step=step, exp_avg=mean, exp_avg_sq=square)
        if self.amsgrad:
            square = xp.maximum(slots.get("max_exp_avg_sq", zero), square)
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
