"""Layers that leave features unchanged which growth may add."""

from __future__ import annotations

from growarray.backend import Array
from growarray.nn.module import ExtendedPullback, Module


class PassesExtension(Module):
    """A layer that acts on the present features alone: norms, and dropout that does not penalise growth."""

    def extended_forward(self, x: Array | None, x_ext: Array | None = None) -> tuple[Array | None, Array | None]:
        """Value of the layer, and ``x_ext`` itself."""
        return None if x is None else self.forward(x), x_ext

    def extended_vjp(
        self, x: Array | None, x_ext: Array | None = None
    ) -> tuple[tuple[Array | None, Array | None], ExtendedPullback]:
        """:meth:`extended_forward` and the way back; ``dy_ext`` passes through as ``x_ext`` does."""
        y, back = (None, None) if x is None else self.vjp(x)

        def pullback(dy: Array | None, dy_ext: Array | None = None) -> tuple[Array | None, Array | None]:
            return None if back is None or dy is None else back(dy), dy_ext

        return (y, x_ext), pullback
