"""Merges: sums of branches that grow together."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable
from dataclasses import replace
from operator import attrgetter
from typing import Any, ClassVar

from growarray.backend import Array, library, namespace
from growarray.contraction.checks import is_ordered
from growarray.errors import GrowthError, ShapeError
from growarray.growing import place
from growarray.growing.change import GrowthUpdate
from growarray.growing.checks import as_scalar, check_function
from growarray.growing.means import check_readers, means_of_merge
from growarray.growing.moment import TensorStatistic
from growarray.growing.neighbour import Neighbour, OfFeatures, named, require_neighbour, weighted_layers, width_read
from growarray.growing.statistics import BatchRecorder, MergeStatistics
from growarray.growing.stream import JoinedStream, StreamLike
from growarray.growing.update import activation_slope
from growarray.nn import Identity, Module
from growarray.nn.module import Pullback
from growarray.ops.sizes import whole_number


class MergeGrowingModule(OfFeatures, place.PlaceFigures, Module):
    """Base class of merges: neighbours, the sum of their outputs, and statistics of what flows in and out.

    The caller adds the branches; the merge takes the sum, applies ``post_merge_function`` and hands the result to its
    next modules. It has no parameters but those of the function. ``device`` is where its statistics are kept, default
    where the data are. What is known of planned neurons is its ``update``; the layers around it hold their weights.
    """

    _links: ClassVar[tuple[str, ...]] = ("previous_modules", "next_modules")
    _records = property(attrgetter("recorder.is_active"))
    use_bias = True
    weighted_layers: tuple[Any, ...] = ()  # a merge has no weights of its own
    out_features = property(attrgetter("in_features"), doc="Width of the output.")
    output_function = property(attrgetter("post_merge_function"), doc="What is applied to the sum.")
    in_neurons = property(attrgetter("in_features"), doc="Width of the input.")
    plans_for_readers = True

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
        if in_features is None:
            raise TypeError(f"{type(self).__name__}: in_features is required, the width of the branches' sum")
        self.name = name or f"{type(self).__name__}_{id(self):x}"
        check_function(post_merge_function, "post_merge_function", self.name)
        self.post_merge_function = post_merge_function or Identity()
        self.in_features = whole_number(type(self).__name__, "in_features", in_features, 0)
        self.allow_growing = allow_growing
        library(device)
        self.previous_modules: list[Any] = []
        self.next_modules: list[Any] = []
        self.common_scaling = 0.0
        self.update: GrowthUpdate[Any] = GrowthUpdate()
        self.recorder = BatchRecorder(self.name, gradient=("input",))
        self.statistics = MergeStatistics(self, device)
        self.set_previous_modules([] if previous_modules is None else previous_modules)
        self.set_next_modules([] if next_modules is None else next_modules)

    _linked: ClassVar[tuple[str, ...]] = ("previous_modules", "next_modules", "allow_growing")

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """``post_merge_function`` of the branches' sum, and the way back; requested parts are kept."""
        y, back = self.post_merge_function.vjp(x)
        recorder, keeps = self.recorder, self.recorder.is_active
        if keeps:
            recorder.start(x, input=x, activity=y)
            self.statistics.expect()

        def pullback(dy: Array) -> Array:
            dx = back(dy)
            if keeps and recorder.is_latest(x) and recorder.is_requested("input"):
                recorder.hand_on("gradient", dx, [layer.recorder for layer in self.layers_before])
            return dx

        return y, pullback

    def extended_forward(self, x: Array, x_ext: Array | None = None) -> tuple[Array, Array | None]:
        """Function of the branches' sum, and of the sum of their new outputs."""
        return self.post_merge_function.extended_forward(x, x_ext)

    request = property(attrgetter("recorder.request"), doc="Keep a part of every batch until it is released.")
    release = property(attrgetter("recorder.release"), doc="End a request; a part that nobody requests is dropped.")
    declare_statistics = property(attrgetter("statistics.declare"), doc="Reset all statistics for the current widths.")

    def init_computation(self) -> None:
        """Start a collection: empty statistics; keep input and activity here, inputs and gradients around."""
        self.reset_computation()
        self.declare_statistics()
        if self.allow_growing:
            self.check_growable()
            for module in self.next_modules:
                module.declare_statistics()
        for module, what in self._parts_to_keep():
            module.request(what, self)

    def update_computation(self, update_covariance_loss_gradient: bool = True) -> None:
        """Add the last batch to every statistic; a second call for the same batch changes nothing."""
        self.statistics.update(update_covariance_loss_gradient)

    def reset_computation(self) -> None:
        """End a collection: reset all statistics and release what was kept for them."""
        for statistic in self.statistics.all:
            statistic.reset()
        for module, what in self._parts_to_keep():
            module.release(what, self)

    def _parts_to_keep(self) -> list[tuple[Any, str]]:
        """What the merge, the layers that it joins, and if it grows those after it, keep of a batch for its sake."""
        around = [*self.layers_before, *(self.readers if self.allow_growing else ())]
        return [(self, "input"), (self, "activity"), *itertools.product(around, ("input", "pre_activity"))]

    def input_statistic_for(self, reader: Any) -> TensorStatistic | None:
        """S of the activity, for a reader of the same features or windows; None for one that has an S of its own."""
        return self.statistics.s if reader.reads == self.reads else None

    @property
    def activity_stream(self) -> StreamLike:
        """Activity of the last batch, ones last, as its next modules read it."""
        return self.recorder.stream("activity", self.recorder.need("activity"), bias=True)

    activity_width: Any = property(lambda merge: merge.in_features + 1, doc="Columns of ``activity_stream``.")

    @property
    def layers_before(self) -> list[Any]:
        """The previous modules that have weights: merges among them are left out, as in the original."""
        return [layer for module in self.previous_modules for layer in module.weighted_layers]

    @property
    def changed_layers(self) -> list[Any]:
        """What growth at this place changes: the layers around it."""
        return [*self.layers_before, *self.next_modules]

    @property
    def total_in_features(self) -> int:
        """Width of the full activity: the inputs of all previous layers with their ones columns."""
        return sum(module.stream_width for module in self.layers_before)

    @property
    def output_slope(self) -> float:
        """Derivative at zero from above of ``post_merge_function``."""
        return activation_slope(self.post_merge_function)

    def set_previous_modules(self, previous_modules: Iterable[Any]) -> None:
        """Replace the previous modules; statistics of what flows in are reset.

        Raises TypeError for a module that is neither a growing layer nor a merge, ShapeError for one whose output has
        another width than this merge; nothing has changed then.
        """
        modules = self._listed(previous_modules, "previous_modules")
        for module in modules:
            self.check_previous(require_neighbour(module, self.name))
        self._warn_if_used(self.statistics.previous_s, self.statistics.previous_m)
        self.previous_modules = modules
        self.declare_statistics()

    def set_next_modules(self, next_modules: Iterable[Any]) -> None:
        """Replace the next modules; any module with ``in_features``, plain layers included.

        Raises TypeError for a module without, ShapeError for another width than this merge; nothing has changed then.
        """
        modules = self._listed(next_modules, "next_modules")
        for module in modules:
            self.check_next(module)
        self._warn_if_used(self.statistics.s)
        self.next_modules = modules

    def check_previous(self, module: Neighbour) -> None:
        """Raise if the output of ``module`` does not fit."""
        if module.spatial and module.weighted_layers:
            raise TypeError(
                f"{self.name}: previous module {module.name} is a convolution, expected a layer of features; "
                "put a Conv2dMergeGrowingModule between them"
            )
        self._check_width("previous", module, "outputs", module.output_volume, self.in_features)

    def check_next(self, module: Any) -> None:
        """Raise if ``module`` does not read the merge's output."""
        self._check_width("next", module, "inputs", width_read(module, self.name), self.output_volume)

    def _check_width(self, role: str, module: Any, what: str, found: int, expected: int) -> None:
        limit = f"expects {expected}" if role == "previous" else f"has {expected} outputs"
        if found != expected:
            raise ShapeError(
                f"{self.name}: {role} module {named(module)} has {found} {what}, the merge {limit}; give them the same "
                "width"
            )

    def _listed(self, modules: Iterable[Any], role: str) -> list[Any]:
        if isinstance(modules, Module) or not is_ordered(modules):
            raise TypeError(
                f"{self.name}: {role} is a {type(modules).__name__}, expected a list of modules; write [module] for one"
            )
        return list(modules)

    def _warn_if_used(self, *statistics: TensorStatistic | None) -> None:
        for used in (statistic for statistic in statistics if statistic is not None and statistic.samples):
            text = f"{self.name}: {used.name} holds {used.samples} samples of the old neighbours; "
            warnings.warn(text + "call reset_computation() first", stacklevel=3)

    def update_size(self) -> None:
        """Set the width to that of the previous modules, and reset the statistics for it."""
        if self.previous_modules:
            self.in_features = self._width_of(self.previous_modules[0])
        self.declare_statistics()

    def _width_of(self, module: Neighbour) -> int:
        return module.output_volume

    @property
    def input_stream(self) -> JoinedStream:
        """Inputs of all previous layers side by side, with their ones; never one array."""
        streams = tuple(layer.input_stream for layer in self.layers_before)
        if not streams:
            raise GrowthError(f"{self.name}: there are no previous layers; call set_previous_modules() first")
        return JoinedStream(streams)

    @property
    def growth_statistic(self) -> TensorStatistic:
        """Second moment of the full activity."""
        if self.statistics.previous_s is None:
            raise GrowthError(f"{self.name}: there are no previous layers, so there is no full activity")
        return self.statistics.previous_s

    def check_growable(self) -> None:
        """Raise if no neurons can be added: growth is off, or neighbours are missing or of another kind."""
        if not self.allow_growing:
            raise GrowthError(f"{self.name}: growth through the merge is off; construct it with allow_growing=True")
        if not self.layers_before or not self.next_modules:
            raise GrowthError(f"{self.name}: growth needs previous layers and next layers; set both first")
        check_readers(self)
        for module in (*self.previous_modules, *self.next_modules):
            if not weighted_layers(module):
                raise NotImplementedError(
                    f"{self.name}: growth through a chain of merges ({named(module)}) is not supported; supported: "
                    "growing layers before and after one merge"
                )
        for module in self.previous_modules:
            if not module.output_function.is_identity:
                raise NotImplementedError(
                    f"{self.name}: previous layer {module.name} applies {type(module.output_function).__name__} before "
                    "the sum; growth through a merge needs the function after the sum, as post_merge_function"
                )

    def cut(self, rows: Array) -> list[Array]:
        """Rows over the full activity, cut by previous layer."""
        ends = [0, *itertools.accumulate(module.stream_width for module in self.layers_before)]
        if rows.ndim != 2 or rows.shape[1] != ends[-1]:
            raise ShapeError(f"{self.name}: alpha has shape {tuple(rows.shape)}, expected (new neurons, {ends[-1]})")
        return [rows[:, start:stop] for start, stop in itertools.pairwise(ends)]

    @property
    def parameters_per_output(self) -> int:
        """Scalars that one more output costs: in all previous layers, and its share of a normalisation."""
        reads = sum(module.parameters_per_output for module in self.layers_before)
        return int(reads) + self.post_merge_function.parameters_per_feature

    @property
    def scaling_factor(self) -> float:
        """The single factor g of the planned change, for all layers around: deltas by g², extensions by g."""
        return self.common_scaling

    @scaling_factor.setter
    def scaling_factor(self, value: Any) -> None:
        factor = as_scalar(value, f"{self.name}.scaling_factor")
        for module in (*self.previous_modules, *self.next_modules):
            if not weighted_layers(module):
                raise TypeError(
                    f"{self.name}: {type(module).__name__} is not a growing layer, so it has no scaling; "
                    "scale a chain of merges one by one"
                )
        self.common_scaling = self.output_extension_scaling = factor
        for module in self.next_modules:
            module.scaling_factor = factor

    @property
    def output_extension_scaling(self) -> float:
        """Scaling of the previous layers' output extensions, which they share."""
        return float(self.layers_before[0].output_extension_scaling) if self.layers_before else 0.0

    @output_extension_scaling.setter
    def output_extension_scaling(self, value: float) -> None:
        for module in self.layers_before:
            module.output_extension_scaling = value

    @property
    def output_extension(self) -> Array:
        """The planned incoming weights over the full activity, (k, total_in_features)."""
        parts = [module.output_extension for module in self.layers_before]
        return namespace(*parts).concat(parts, axis=1)

    def set_output_extension(self, alpha: Array | None) -> None:
        """Cut alpha (k, total_in_features) into the previous layers' output extensions; None drops them.

        What was known of the neurons before, their singular values say, goes with them.
        """
        rows = [None for _ in self.layers_before] if alpha is None else self.cut(alpha)
        self.update = self.update.with_input(None)
        for module, part in zip(self.layers_before, rows, strict=True):
            module.set_output_extension(part)

    def keep_output_extension(self, keep: int, zeros: int = 0) -> None:
        """Keep the first ``keep`` new neurons of every previous layer, the last ``zeros`` of them as zeros."""
        for module in self.layers_before:
            module.keep_output_extension(keep, zeros)

    def check_output_extension(self, size: int | None = None) -> None:
        """Raise ``GrowthError`` if several layers read the merge: they must widen together."""
        if len(self.next_modules) > 1:
            raise GrowthError(
                f"{self.name}: {len(self.next_modules)} layers read this merge and must widen together; "
                "call the merge's apply_change()"
            )
        self.check_extensions(size)

    def check_extensions(self, size: int | None = None) -> None:
        """Raise unless the previous layers' output extensions fit, and have as many neurons as each other."""
        for module in self.layers_before:
            module.check_output_extension()
        sizes = {module.extended_output_layer.weight.shape[0] for module in self.layers_before}
        if len(sizes) != 1:
            raise GrowthError(f"{self.name}: the previous layers' extensions have {sorted(sizes)} neurons; plan anew")
        count = sizes.pop()
        if size is not None and count != size:
            raise ShapeError(
                f"{self.name}: the previous layers' extensions have {count} neurons, those of the next layers {size}; "
                "plan them anew"
            )
        if count:
            self.post_merge_function.check_extend(count)

    def apply_output_extension(self) -> None:
        """Widen every previous layer by its output extension, then the merge and its function."""
        self.check_extensions()
        before = self.in_features
        for module in self.layers_before:
            module.apply_output_extension()
        self.update_size()
        if self.in_features > before:
            self.post_merge_function.extend(self.in_features - before)

    def keep_outputs(self, index: Array) -> None:
        """Lose all neurons but ``index``, in every previous layer and in the function."""
        for module in self.layers_before:
            module.keep_outputs(index)
        self.update_size()
        self.post_merge_function._keep(index)

    @property
    def front(self) -> Neighbour:
        """The module that new neurons widen: the merge itself."""
        return self

    @property
    def readers(self) -> tuple[Any, ...]:
        """The growing layers after the merge."""
        return tuple(layer for module in self.next_modules for layer in weighted_layers(module))

    @property
    def new_neurons(self) -> int:
        """Number of planned neurons."""
        return 0 if self.update.singular_values is None else int(self.update.singular_values.shape[0])

    @property
    def widens_front(self) -> bool:
        """Whether there are planned neurons."""
        return self.update.singular_values is not None

    def check_front(self) -> None:
        """Raise if the previous layers cannot add the planned neurons."""
        self.check_extensions(self.new_neurons)

    means = means_of_merge
    compute_optimal_updates = place.compute_optimal_updates
    apply_change = place.apply_change

    def delete_update(self, include_previous: bool = False) -> None:
        """Forget what is planned; with ``include_previous`` the deltas and extensions of the previous layers too."""
        self.update, self.common_scaling = replace(self.update, decreases=()), 0.0
        if self.allow_growing:  # else what the neighbours plan is their own
            self.set_output_extension(None)
            self.output_extension_scaling = 0.0
            for reader in self.readers:
                reader.delete_update(include_previous=False)
        for module in self.layers_before if include_previous else ():
            module.delete_update(include_previous=False, delete_output=True)
