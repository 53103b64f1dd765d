"""MergeGrowingModule: neighbours of a merge, and what it keeps of a batch."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, ClassVar

from growarray.backend import Array, library
from growarray.contraction.checks import is_ordered
from growarray.errors import GrowthError, ShapeError
from growarray.growing.checks import as_scalar, check_function
from growarray.growing.moment import TensorStatistic
from growarray.growing.neighbour import Recorder, require_neighbour
from growarray.growing.update import activation_slope
from growarray.nn import Identity, Module
from growarray.nn.module import Pullback
from growarray.ops.sizes import whole_number

__all__ = ["MergeGrowingModule"]


class MergeGrowingModule(Recorder):
    """What every merge has: neighbours, the sum that the caller made, statistics of what flows in and out.

    The caller adds the branches; the merge takes the sum, applies ``post_merge_function`` and hands the result to its
    next modules. It has no parameters of its own but those of the function. ``device`` is where its statistics are
    kept, default where the data are.
    """

    _links: ClassVar[tuple[str, ...]] = ("previous_modules", "next_modules")
    use_bias = True

    def __init__(
        self,
        post_merge_function: Module | None = None,
        previous_modules: Iterable[Any] | None = None,
        next_modules: Iterable[Any] | None = None,
        allow_growing: bool = False,
        in_features: int | None = None,
        device: str | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__()
        if in_features is None:
            raise TypeError(f"{type(self).__name__}: in_features is required, the width of the branches' sum")
        self.name = name or f"{type(self).__name__}_{id(self):x}"
        check_function(post_merge_function, "post_merge_function", self.name)
        self.post_merge_function = post_merge_function or Identity()
        self.in_features = whole_number(type(self).__name__, "in_features", in_features, 0)
        self.allow_growing = allow_growing
        library(device)
        self._device = device
        self.previous_modules: list[Any] = []
        self.next_modules: list[Any] = []
        self._input: Array | None = None
        self._activity: Array | None = None
        self.pre_activity_grad: Array | None = None
        self.parameter_update_decrease: float | None = None
        self._declare_statistics()
        self.set_previous_modules([] if previous_modules is None else previous_modules)
        self.set_next_modules([] if next_modules is None else next_modules)

    def _declare_statistics(self) -> None:
        """Declare statistics for the present widths; each kind of merge says which."""
        self.tensor_s = TensorStatistic(None, name=f"S({self.name})")
        self.previous_tensor_s: TensorStatistic | None = None
        self.previous_tensor_m: TensorStatistic | None = None

    def _statistics(self) -> list[TensorStatistic]:
        """Every statistic that a new batch makes stale."""
        return [s for s in (self.tensor_s, self.previous_tensor_s, self.previous_tensor_m) if s is not None]

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """``post_merge_function`` of the branches' sum, and the way back; what is asked for is kept."""
        y, back = self.post_merge_function.vjp(x)
        keeps = self.wants("input") or self.wants("activity")
        if keeps:
            self._input, self._activity, self.pre_activity_grad = x, y if self.wants("activity") else None, None
            for statistic in self._statistics():
                statistic.updated = False

        def pullback(dy: Array) -> Array:
            dx = back(dy)
            if keeps and self._input is x:
                self.pre_activity_grad = dx
            return dx

        return y, pullback

    def _kept(self, what: str, value: Array | None) -> Array:
        if value is None:
            stored = self.wants("input") or self.wants("activity")
            hint = "run a forward pass and its pullback" if stored else "call init_computation()"
            raise GrowthError(f"{self.name}: no {what} is kept; {hint} first")
        return value

    @property
    def input(self) -> Array:
        """Sum of the branches in the last batch."""
        return self._kept("input", self._input if self.wants("input") else None)

    pre_activity = input

    @property
    def activity(self) -> Array:
        """Output of the last batch."""
        return self._kept("activity", self._activity if self.wants("activity") else None)

    def _forget(self, what: str) -> None:
        if what == "activity":
            self._activity = None
        if what == "input":
            self._input, self.pre_activity_grad = None, None

    @property
    def store_activity(self) -> int:
        """1 while the output of each batch is kept, else 0; may be set."""
        return int(self.wants("activity"))

    @store_activity.setter
    def store_activity(self, value: bool) -> None:
        (self.request if value else self.release)("activity", "user")

    def clear_pre_activity_grad(self) -> None:
        """Forget the gradient of the last batch."""
        self.pre_activity_grad = None

    @property
    def layers_before(self) -> list[Any]:
        """The previous modules that have weights: merges among them are left out, as in the original."""
        return [module for module in self.previous_modules if hasattr(module, "layer")]

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return self.in_features

    @property
    def input_volume(self) -> int:
        """Same as ``in_features``."""
        return self.in_features

    @property
    def output_volume(self) -> int:
        """Same as ``out_features``."""
        return self.out_features

    @property
    def number_of_successors(self) -> int:
        """Number of next modules."""
        return len(self.next_modules)

    @property
    def number_of_predecessors(self) -> int:
        """Number of previous modules."""
        return len(self.previous_modules)

    @property
    def total_in_features(self) -> int:
        """Width of the full activity: the inputs of all previous layers with their ones columns."""
        return self.sum_in_features(with_bias=True)

    def sum_in_features(self, with_bias: bool = False) -> int:
        """Sum of the previous layers' input widths, with a column of ones for each bias where asked for."""
        return sum(m.in_features + int(with_bias and m.use_bias) for m in self.layers_before)

    def sum_out_features(self) -> int:
        """Sum of the next modules' output widths."""
        return sum(int(m.out_features) for m in self.next_modules)

    @property
    def output_function(self) -> Module:
        """What is applied to the sum: ``post_merge_function``."""
        return self.post_merge_function

    @property
    def output_slope(self) -> float:
        """Derivative at zero from above of ``post_merge_function``."""
        return activation_slope(self.post_merge_function)

    # Neighbours.

    def set_previous_modules(self, previous_modules: Iterable[Any]) -> None:
        """Replace the previous modules; statistics of what flows in start anew.

        Raises
        ------
        TypeError
            A module is neither a growing layer nor a merge.
        ValueError
            Its output has another width than this merge. Nothing has changed then.
        """
        modules = self._listed(previous_modules, "previous_modules")
        for module in modules:
            require_neighbour(module, "previous", self.name)
            if int(module.out_features) != self.in_features:
                raise ShapeError(
                    f"{self.name}: previous module {module.name} has {module.out_features} outputs, the merge expects "
                    f"{self.in_features}; give them the same width"
                )
        self._warn_if_used(self.previous_tensor_s, self.previous_tensor_m)
        self.previous_modules = modules
        self._declare_statistics()

    def set_next_modules(self, next_modules: Iterable[Any]) -> None:
        """Replace the next modules; any module with ``in_features`` will do, a plain layer too.

        Raises
        ------
        TypeError
            A module has no ``in_features``.
        ValueError
            Its input has another width than this merge. Nothing has changed then.
        """
        modules = self._listed(next_modules, "next_modules")
        for module in modules:
            width = getattr(module, "in_features", None)
            if width is None:
                raise TypeError(
                    f"{self.name}: next module {type(module).__name__} has no in_features; expected a layer"
                )
            if int(width) != self.out_features:
                raise ShapeError(
                    f"{self.name}: next module {getattr(module, 'name', type(module).__name__)} has {width} inputs, "
                    f"the merge has {self.out_features} outputs; give them the same width"
                )
        self._warn_if_used(self.tensor_s)
        self.next_modules = modules

    def _listed(self, modules: Iterable[Any], role: str) -> list[Any]:
        if isinstance(modules, Module) or not is_ordered(modules):
            raise TypeError(
                f"{self.name}: {role} is a {type(modules).__name__}, expected a list of modules; write [module] for one"
            )
        return list(modules)

    def _warn_if_used(self, *statistics: TensorStatistic | None) -> None:
        for statistic in statistics:
            if statistic is not None and statistic.samples:
                warnings.warn(
                    f"{self.name}: {statistic.name} holds {statistic.samples} samples of the old neighbours; "
                    "call reset_computation() first",
                    stacklevel=3,
                )

    def add_previous_module(self, module: Any) -> None:
        """Append one previous module."""
        self.set_previous_modules([*self.previous_modules, module])

    def add_next_module(self, module: Any) -> None:
        """Append one next module."""
        self.set_next_modules([*self.next_modules, module])

    def grow(self) -> None:
        """Check all neighbours again, after they grew; call :meth:`update_size` before."""
        self.set_next_modules(self.next_modules)
        self.set_previous_modules(self.previous_modules)

    def update_size(self) -> None:
        """Take the width of the previous modules over, and declare statistics for it."""
        if self.previous_modules:
            self.in_features = int(self.previous_modules[0].out_features)
        self._declare_statistics()

    def update_scaling_factor(self, scaling_factor: Any) -> None:
        """Scale the previous modules' output extensions and the next modules' changes by one factor.

        Raises
        ------
        TypeError
            A neighbour is not a growing layer, or the factor is not a number; nothing has changed then.
        """
        factor = as_scalar(scaling_factor, f"{self.name}.update_scaling_factor")
        for module in (*self.previous_modules, *self.next_modules):
            if not hasattr(module, "optimal_delta_scaling"):
                raise TypeError(
                    f"{self.name}: {type(module).__name__} is not a growing layer, so it has no scaling; "
                    "scale a chain of merges one by one"
                )
        for module in self.previous_modules:
            module.output_extension_scaling = factor
        for module in self.next_modules:
            module.scaling_factor = factor
