"""What a conversion to a factorized layer did: size, error, cost and time, before and after."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from growarray.contraction.table import quantity, seconds
from growarray.decompose import Degeneracy
from growarray.display import Displayed


class Change(NamedTuple):
    """A figure of the dense layer, and that of the factorized one.

    >>> Change(100, 25).ratio
    0.25
    """

    before: float
    after: float

    @property
    def ratio(self) -> float:
        """After over before."""
        return self.after / self.before if self.before else math.inf if self.after else 1.0


@dataclass(frozen=True)
class ConversionReport(Displayed):
    """What a conversion did. ``print`` shows it as a table; a figure that nobody asked for is None.

    format, rank : of the factorization    kernel_shape : (out, in / groups, *kernel), or (out, in) of a linear layer
    layers : how many layers share the factorization; parameters, FLOPs, times and memory are sums (memory: the largest)
    parameters : trained scalars, biases included
    weight_error : relative Frobenius error of the weights, None if they were drawn at random
    iterations, reason : sweeps of the decomposition, and why they ended
    degeneracy : of the components, CP only: see :class:`growarray.decompose.Degeneracy`
    input_shape : what FLOPs, times and memory are for, of a forward pass
    output_error : relative Frobenius error of the output on calibration data
    flops : multiplications and additions    predicted_time, measured_time : seconds
    peak_memory : bytes of partial results and output at the worst moment

    >>> report = ConversionReport("CP", 4, (8, 8, 3, 3), Change(576, 92), predicted_time=Change(1e-4, 2e-4))
    >>> report.slower, report.to_dict()["parameters"]
    (True, {'before': 576, 'after': 92})
    """

    format: str
    rank: Any
    kernel_shape: tuple[int, ...]
    parameters: Change
    weight_error: float | None = None
    iterations: int | None = None
    reason: str | None = None
    degeneracy: Degeneracy | None = None
    input_shape: tuple[int, ...] | None = None
    output_error: float | None = None
    flops: Change | None = None
    predicted_time: Change | None = None
    measured_time: Change | None = None
    peak_memory: Change | None = None
    layers: int = 1

    @property
    def slower(self) -> bool | None:
        """Whether the factorized layer takes longer than the dense one: measured, else predicted; None if neither."""
        time = self.measured_time or self.predicted_time
        return None if time is None else time.after > time.before

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: pairs as ``{'before': …, 'after': …}``."""
        plain: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Degeneracy):
                value = {**value._asdict(), "severe": value.severe}
            elif isinstance(value, Change):
                value = value._asdict()
            plain[field.name] = list(value) if isinstance(value, tuple) else value
        return {**plain, "slower": self.slower}

    def __str__(self) -> str:
        of = f"{self.layers} kernels" if self.layers > 1 else "a kernel"
        lines = [f"{self.format}, rank {self.rank}, of {of} {self.kernel_shape}", *self._fitted(), *self._figures()]
        time, how = (self.measured_time, "measured") if self.measured_time else (self.predicted_time, "predicted")
        if time and self.slower:
            lines.append(f"SLOWER than the dense layer: {time.ratio:.3g} times its {how} time")
        return "\n".join(lines)

    def _fitted(self) -> list[str]:
        """Lines on the decomposition."""
        lines = []
        if self.reason is not None:
            count = "1 sweep" if self.iterations == 1 else f"{self.iterations} sweeps"
            lines.append(f"decomposition    {self.reason}, {count}")
        error = "the weights are random" if self.weight_error is None else f"{self.weight_error:.3g}"
        lines.append(f"weight error     {error}")
        output = "pass calibration= to have it" if self.output_error is None else f"{self.output_error:.3g}"
        lines.append(f"output error     {output}")
        if self.degeneracy is not None:
            bad = ", SEVERE: fine-tuning may fail" if self.degeneracy.severe else ""
            lines.append(
                f"degeneracy       cosine {self.degeneracy.cosine:.2f}, "
                f"component norms {self.degeneracy.norm_ratio:.3g} times the tensor's{bad}"
            )
        return lines

    def _figures(self) -> list[str]:
        """Lines with a column before and one after."""
        rows = [["", "dense", "factorized", ""], _row("parameters", self.parameters, lambda n: f"{int(n):,}")]
        for name, change, text in (
            ("FLOPs", self.flops, quantity),
            ("predicted time", self.predicted_time, seconds),
            ("measured time", self.measured_time, seconds),
            ("peak memory", self.peak_memory, lambda n: quantity(n, "B")),
        ):
            if change is not None:
                rows.append(_row(name, change, text))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [f"{a:<15}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}".rstrip() for a, b, c, d in rows]
        if self.input_shape is None:
            lines.append("FLOPs, time      pass input_shape= or calibration= to have them")
        else:
            lines.append(f"for an input of  {self.input_shape}")
        return lines


def _row(name: str, change: Change, text: Callable[[float], str]) -> list[str]:
    return [name, text(change.before), text(change.after), f"{change.ratio:.1%}"]
