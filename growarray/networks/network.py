"""GrowingNetwork: the base class of networks that the loop can grow."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

from growarray.backend import Array, namespace
from growarray.errors import GrowthError, ShapeError, shown
from growarray.growing import TINY, GrowingModule, MergeGrowingModule, Rule
from growarray.growing.fisher import softmax_fisher_seeds
from growarray.growing.means import on_host
from growarray.nn import Module
from growarray.nn.inference import gradients_kept
from growarray.nn.module import Pullback


def is_frozen(layer: Any) -> bool:
    """Whether growth before a layer or merge would change a frozen parameter, of what comes before it or after."""
    return any(not parameter.requires_grad for changed in layer.changed_layers for parameter in changed.parameters())


class GrowingNetwork(Module):
    """A network that grows before some of its layers: those with a previous growing module, and merges that may widen.

    A subclass defines :attr:`growing_layers`, these in order, and :attr:`chain`, the modules from input to output; if
    statistics need more than they collect, :meth:`collectors` too.
    """

    selected: int | None = None
    flatten: bool = True  # whether a sample of several axes is flattened
    image: tuple[int, ...] | None = None  # the shape that every sample is brought to, if it is an image

    @property
    def growing_layers(self) -> list[Any]:
        """The layers and merges before which neurons can be added, as :meth:`select_update` counts them."""
        raise NotImplementedError(f"{type(self).__name__} must define growing_layers")

    def collectors(self) -> Iterator[Any]:
        """Modules that collect statistics for the growing layers; by default these themselves."""
        yield from self.growing_layers

    @property
    def chain(self) -> list[Any]:
        """The modules that are run one after another."""
        raise NotImplementedError(f"{type(self).__name__} must define chain")

    def _flat(self, x: Array) -> Array:
        if self.image is not None:
            shape, numbers = tuple(x.shape[1:]), math.prod(self.image)
            if shape not in (self.image, (numbers,)):
                raise ShapeError(
                    f"{type(self).__name__}: samples have shape {shape}, expected images {self.image} or rows of "
                    f"{numbers} numbers"
                )
            return namespace(x).reshape(x, (x.shape[0], *self.image))
        if not self.flatten or x.ndim == 2:
            return x
        return namespace(x).reshape(x, (x.shape[0], math.prod(x.shape[1:])))

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """Logits or predictions (n, out_features), and the way back to a gradient of the shape of ``x``.

        ``pullback(dy, wrt_x=False)`` returns None and spares the first module's input gradient: training needs none.
        """
        namespace(x)  # says what is wrong with a list
        shape, y, backs = x.shape, self._flat(x), []
        for module in self.chain:
            y, back = module.vjp(y)
            backs.append(back)

        def pullback(dy: Array, *, wrt_x: bool = True) -> Array:
            for back in reversed(backs[1:]):
                dy = back(dy)
            dx = backs[0](dy, wrt_x=wrt_x)
            return namespace(dx).reshape(dx, shape) if wrt_x else None

        return y, pullback

    def extended_forward(self, x: Array, x_ext: Array | None = None) -> Array:
        """Output with every planned change, at the scalings that are set."""
        y = self._flat(x)
        for module in self.chain:
            y, x_ext = module.extended_forward(y, x_ext)
        return y

    @property
    def widths(self) -> list[int]:
        """Widths of everything that can grow, in the order of :attr:`growing_layers`."""
        return [int(layer.in_neurons) for layer in self.growing_layers]

    def flops_per_sample(self) -> int:
        """Multiplications and additions of one forward pass of one sample, those of the weights alone.

        Raises GrowthError if a weight is a kernel, whose FLOPs depend on the size of the sample.
        """
        kernel = next((name for name, p in self.named_parameters() if p.data.ndim > 2), None)
        if kernel is not None:
            raise GrowthError(
                f"the FLOPs of {shown(kernel)} depend on the size of the samples, so max_flops= is only for "
                "networks of linear layers; use max_parameters="
            )
        return 2 * sum(p.size for name, p in self.named_parameters() if name.endswith("weight") and p.data.ndim > 1)

    def structure(self) -> Any:
        """What growth may change besides the widths, or None."""
        return None

    def outline(self) -> dict[str, Any] | None:
        """Nodes with their widths, and edges, for histories and pictures; None if the network is no graph."""
        return None

    def match(self, state: Mapping[str, Any]) -> None:
        """Take on the structure of the network in a state dict; does nothing if growth changes widths only."""

    @property
    def width_names(self) -> list[str]:
        """What each of :attr:`widths` belongs to."""
        return [layer.widens for layer in self.growing_layers]

    def restructure(self, structure: Any) -> None:
        """Restore what :meth:`structure` returned; set the weights of new parts afterwards."""

    def init_computation(self, *, trace_precision: float | None = None) -> None:
        """Start a collection everywhere; with ``trace_precision`` every M estimates its error."""
        for module in self._growing_modules():
            module.trace_precision = trace_precision
        for module in self.collectors():
            module.init_computation()

    def collect_batch(
        self,
        x: Array,
        target: Array,
        loss: Callable[..., Any],
        *,
        fisher: bool = False,
        exact: bool = False,
        weights: Array | None = None,
    ) -> None:
        """One batch of a collection: forward, back, and into every statistic, E with ``fisher``.

        The gradient is that of the sum of the sample losses, so that predicted improvements are of their mean.
        exact : E is :meth:`update_computation_true_fisher`'s, of outputs that are the logits of a softmax
        """
        self.weigh(weights)
        y, pullback = self.vjp(x)
        dy = loss(y, target)[1](float(x.shape[0]))
        if fisher and exact:
            self.update_computation_true_fisher(pullback, dy, y, weights=weights)
            return
        pullback(dy, wrt_x=False)
        self.update_computation(update_covariance_loss_gradient=fisher)

    def update_covariance_loss_gradient(self, count_samples: bool = True) -> None:
        """Add the present gradients to E everywhere, whether or not it has been updated for this batch."""
        for module in self.collectors():
            module.update_covariance_loss_gradient(count_samples)

    def update_computation_true_fisher(
        self,
        pullback: Pullback,
        dy: Array,
        logits: Array,
        loss_normalization: float = 1.0,
        *,
        weights: Array | None = None,
    ) -> None:
        """Add the last batch to every statistic, with the exact Fisher of a softmax as E.

        pullback, logits : what ``vjp`` gave, logits (n, c)    dy : gradient of the loss at the logits
        loss_normalization : what the gradients of the samples in ``dy`` are divided by, n if it is that of their mean;
        the original's default is n, here statistics are of sums    weights : those that ``dy`` carries
        """
        self.accumulate_true_fisher_covariance(pullback, logits, loss_normalization, weights=weights)
        pullback(dy, wrt_x=False)  # last, so that gradients of weights and of the batch are the loss's
        self.update_computation(update_covariance_loss_gradient=False)

    def accumulate_true_fisher_covariance(
        self, pullback: Pullback, logits: Array, loss_normalization: float = 1.0, *, weights: Array | None = None
    ) -> None:
        """Add ``J^T (diag(p) - p p^T) J`` of the last batch to E everywhere, p the softmax of the logits (n, c).

        That is c - 1 calls of the pullback; gradients of weights stay as they are. It is exact if samples are
        independent: a BatchNorm has to be in evaluation mode. The rest as in :meth:`update_computation_true_fisher`.
        """
        xp = namespace(logits)
        factors = xp.ones_like(logits[:, :1]) if weights is None else weights[:, None]
        factors = xp.astype(factors / loss_normalization, logits.dtype, copy=False)
        with gradients_kept(self):
            for index, seed in enumerate(softmax_fisher_seeds(logits)):
                pullback(seed * factors, wrt_x=False)
                self.update_covariance_loss_gradient(count_samples=index == 0)

    def update_computation(self, update_covariance_loss_gradient: bool = True) -> None:
        """Add the last batch to every statistic."""
        for module in self.collectors():
            module.update_computation(update_covariance_loss_gradient)

    def weigh(self, weights: Array | None) -> None:
        """Count the samples of the next batch by ``weights`` (n,), which the gradient of their loss carries too.

        Statistics are then those of samples that came that many times. None, and the end of a collection, count each
        sample once.
        """
        roots = None if weights is None else namespace(weights).sqrt(weights)
        for module in self.modules():
            if isinstance(module, GrowingModule | MergeGrowingModule):
                module.recorder.roots = roots

    def reset_computation(self) -> None:
        """End the collection everywhere."""
        self.weigh(None)
        for module in self.collectors():
            module.reset_computation()

    def relative_error(self) -> float:
        """Largest estimated relative error of the collected M; see ``TensorStatistic.relative_error``."""
        modules = [module for module in self._growing_modules() if module.trace_precision is not None]
        used: list[float] = [module.tensor_m.relative_error() for module in modules if module.tensor_m.samples]
        if not used:
            raise GrowthError("no M estimates its error; call init_computation(trace_precision=1e-3) first")
        return max(used)

    def compute_optimal_updates(self, rule: Rule = TINY, **options: Any) -> None:
        """Plan updates for every growing layer by ``rule``; single options may be given by name."""
        self.selected = None
        with self.means_on_host():
            for layer in self.growing_layers:
                layer.compute_optimal_updates(rule, **options)

    def means_on_host(self) -> AbstractContextManager[None]:
        """Inside, the means of all statistics are NumPy arrays, copied from a GPU at once, unless one is large."""
        modules = (module for module in self.modules() if isinstance(module, GrowingModule | MergeGrowingModule))
        return on_host(*self.collectors(), *modules)

    def update_information(self) -> dict[int, dict[str, float]]:
        """For each growing layer: first-order improvement (``update_value``) and the delta's part of it."""
        return {
            index: {
                "update_value": layer.first_order_improvement,
                "parameter_improvement": layer.first_order_improvement - layer.new_neurons_fo_improvement,
            }
            for index, layer in enumerate(self.growing_layers)
        }

    @property
    def first_order_improvement(self) -> float:
        """Improvement by the selected layer, or by all together if none is selected."""
        layers = self.growing_layers if self.selected is None else [self.growing_layers[self.selected]]
        return float(sum(layer.first_order_improvement for layer in layers))

    def select_best_update(self, value: Callable[[Any], float] | None = None) -> int:
        """Select the layer with the greatest ``value``, by default the first-order improvement; returns its index."""
        measure = value or (lambda layer: float(layer.first_order_improvement))
        layers = self.growing_layers
        return self.select_update(max(range(len(layers)), key=lambda index: measure(layers[index])))

    def select_update(self, layer_index: int) -> int:
        """Keep the planned change of one growing layer, delete the others'; returns the index."""
        layers = self.growing_layers
        if not 0 <= layer_index < len(layers):
            raise IndexError(
                f"layer_index is {layer_index}, expected 0 to {len(layers) - 1}, one of the growing layers"
            )
        for index, layer in enumerate(layers):
            if index != layer_index:
                layer.delete_update()
        self.selected = layer_index
        return layer_index

    @property
    def currently_updated_layer(self) -> Any:
        """The selected layer."""
        if self.selected is None:
            raise GrowthError("no update is selected; call select_update(index) or select_best_update() first")
        return self.growing_layers[self.selected]

    def set_scaling_factor(self, factor: float) -> None:
        """Give every growing layer the same scaling factor."""
        for layer in self.growing_layers:
            layer.scaling_factor = factor

    def apply_change(self, scaling_factor: float | None = None) -> None:
        """Carry out what is planned for the selected layer."""
        self.currently_updated_layer.apply_change(scaling_factor=scaling_factor)

    def delete_update(self) -> None:
        """Forget every planned change."""
        for layer in self.growing_layers:
            layer.delete_update()
        self.selected = None

    def missing_neurons(self) -> int:
        """Number of neurons still missing to reach the targets of all growing layers."""
        return sum(layer.missing_neurons() for layer in self._with_target())

    def complete_growth(self, extension_kwargs: dict[str, Any] | None = None) -> None:
        """Add random neurons to every growing layer until it reaches its target."""
        for layer in self._with_target():
            layer.complete_growth(extension_kwargs)

    def _growing_modules(self) -> Iterator[Any]:
        """The growing layers, those too before which nothing can be added; merges have no weights, and no M."""
        yield from (module for module in self.modules() if isinstance(module, GrowingModule))

    def _with_target(self) -> list[Any]:
        layers = [layer for layer in self.growing_layers if isinstance(layer, GrowingModule)]
        return [layer for layer in layers if layer.target_in_neurons is not None]
