"""What modules of several inputs share: how they are called, and the gradient of what was broadcast."""

from __future__ import annotations

from growarray.backend import Array, namespace
from growarray.nn.module import Module


def sum_to(gradient: Array, shape: tuple[int, ...]) -> Array:
    """The gradient of an operand that was broadcast: summed over the axes along which it was repeated."""
    xp, lead = namespace(gradient), gradient.ndim - len(shape)
    repeated = [i + lead for i, n in enumerate(shape) if n == 1 and gradient.shape[i + lead] != 1]
    axes = (*range(lead), *repeated)
    if axes:
        gradient = xp.sum(gradient, axis=axes, keepdims=True)
    return gradient if tuple(gradient.shape) == shape else xp.reshape(gradient, shape)


class Several(Module):
    """A module of any number of inputs."""

    def forward(self, *inputs: Array) -> Array:
        """Value of the module alone."""
        return self.vjp(*inputs)[0]

    def __call__(self, *inputs: Array) -> Array:
        """:meth:`forward`."""
        return self.forward(*inputs)
