"""Collecting: what a linear growing layer keeps of a batch, and the statistics made of it."""

from __future__ import annotations

import math

from growarray.backend import Array, namespace
from growarray.errors import GrowthError
from growarray.growing.initialise import ExtensionMixin
from growarray.growing.moment import TensorStatistic, cross_moment
from growarray.growing.stream import Stream
from growarray.growing.update import neuron_goal
from growarray.nn.module import Pullback
from growarray.ops import linear
from growarray.ops.gradient import check_gradient

__all__ = ["CollectingLinear"]


class CollectingLinear(ExtensionMixin):
    """Value, way back, and statistics of a linear growing layer; see :class:`LinearGrowingModule`.

    ``trace_precision`` (default None) makes M estimate its error, from the next ``init_computation`` on.
    """

    trace_precision: float | None = None

    def _start(self) -> None:
        self._input: Array | None = None
        self._pre_activity: Array | None = None
        self.pre_activity_grad: Array | None = None
        self._moment: Array | None = None
        self._streams: dict[str, Stream] = {}
        self._declare_statistics()

    @property
    def in_features(self) -> int:
        """Width of the input."""
        return self.layer.in_features

    in_neurons = in_features

    @property
    def out_features(self) -> int:
        """Width of the output."""
        return self.layer.out_features

    @property
    def parameters_per_neuron(self) -> int:
        """Scalars that one more neuron before this layer costs: its incoming and outgoing weights, its bias."""
        return self.previous.parameters_per_output + self.out_features

    @property
    def parameters_per_output(self) -> int:
        """Scalars that one more output of this layer costs: its weights, its bias, its share of a normalisation."""
        return self.in_features + int(self.use_bias) + self.post_layer_function.parameters_per_feature

    @property
    def input_volume(self) -> int:
        """Same as ``in_features``."""
        return self.in_features

    @property
    def output_volume(self) -> int:
        """Same as ``out_features``."""
        return self.out_features

    def vjp(self, x: Array) -> tuple[Array, Pullback]:
        """Value and pullback; input and gradient at the pre-activity are kept while somebody asks for them.

        The gradients kept are those of the latest pullback of the latest forward pass. ``pullback(dy, wrt_x=False)``
        returns None and spares the product that dx costs, for a layer at the network's input.
        """
        weight = self.layer.weight.data
        pre, back = linear(x, weight, None if self.layer.bias is None else self.layer.bias.data)
        y, back_post = self.post_layer_function.vjp(pre)
        keeps_input, keeps_gradient = self.wants("input"), self.wants("pre_activity")
        wrt_w = self.layer.weight.requires_grad
        if keeps_input or keeps_gradient:
            self._input, self._pre_activity = x if keeps_input else None, pre if keeps_gradient else None
            self.pre_activity_grad, self._moment = None, None
            self._streams = {}
            for statistic in self._statistics():
                statistic.updated = False

        def pullback(dy: Array, *, wrt_x: bool = True) -> Array:
            d_pre = back_post(dy)
            check_gradient(self.name, d_pre, pre.shape)
            latest = self._pre_activity is pre
            if not (latest and self._input is x):
                dx, dw, db = back(d_pre, wrt_x=wrt_x, wrt_w=wrt_w)
                if latest:
                    self.pre_activity_grad = d_pre
            else:  # the weight gradient is M^T: one product, accurate in float64, serves both
                self.pre_activity_grad = d_pre
                self._moment = moment = cross_moment(self.input_stream, self.gradient_stream())
                dx = d_pre @ weight if wrt_x else None
                dw = namespace(moment).matrix_transpose(moment[: weight.shape[1], :])
                db = moment[-1, :] if self.use_bias else None
            self.layer.weight.accumulate(dw)
            if self.layer.bias is not None:
                self.layer.bias.accumulate(db)
            return dx

        return y, pullback

    def request(self, what: str, by: object) -> None:
        """Keep ``what`` of every batch until ``by`` releases it; S of inputs that a merge gives needs its activity."""
        super().request(what, by)
        if what == "input" and self._shared_statistic() is not None:
            self.previous.request("activity", self)

    def _forget(self, what: str) -> None:
        self._moment, self._streams = None, {}
        if what == "pre_activity":
            self._pre_activity, self.pre_activity_grad = None, None
        if what == "input":
            self._input = None
            if self._shared_statistic() is not None:
                self.previous.release("activity", self)

    @property
    def store_pre_activity(self) -> int:
        """1 while pre-activity and its gradient are kept, else 0; may be set."""
        return int(self.wants("pre_activity"))

    @store_pre_activity.setter
    def store_pre_activity(self, value: bool) -> None:
        (self.request if value else self.release)("pre_activity", "user")

    def _kept(self, what: str, value: Array | None) -> Array:
        if value is None:
            kind = "input" if what == "input" else "pre_activity"
            hint = "run a forward pass and its pullback"
            hint = hint if self.wants(kind) else f"set store_{kind} or call init_computation()"
            raise GrowthError(f"{self.name}: no {what} is kept; {hint} first")
        return value

    @property
    def input(self) -> Array:
        """Input of the last batch, (n, d) or (n, t, d)."""
        return self._kept("input", self._input if self.wants("input") else None)

    @property
    def pre_activity(self) -> Array:
        """Output of the layer before ``post_layer_function``, last batch."""
        return self._kept("pre_activity", self._pre_activity if self.wants("pre_activity") else None)

    @property
    def input_extended(self) -> Array:
        """Input of the last batch with its column of ones where there is a bias."""
        return self.input_stream.materialise()

    @property
    def input_stream(self) -> Stream:
        """Input of the last batch as a stream."""
        return self._stream_of("input", self.input, self.use_bias)

    def _stream_of(self, what: str, array: Array, bias: bool = False) -> Stream:
        """One stream for all moments of a batch: what is made of its rows is made once."""
        kept = self._streams.get(what)
        if kept is None or kept.array is not array or kept.bias != bias:
            kept = self._streams[what] = Stream(array, bias)
        return kept

    def gradient_stream(self, desired_activation: Array | None = None) -> Stream:
        """Gradient at the pre-activity in the last batch, or what is wanted in its place, as a stream."""
        if desired_activation is not None:
            return Stream(desired_activation)
        return self._stream_of("gradient", self._kept("pre_activity gradient", self.pre_activity_grad))

    def clear_pre_activity_grad(self) -> None:
        """Forget the gradient of the last batch."""
        self.pre_activity_grad, self._moment = None, None

    def _declare_statistics(self) -> None:
        self.delta_raw = None  # it was solved from the statistics that end here
        d, o = self.in_features + int(self.use_bias), self.out_features
        self._own_tensor_s = TensorStatistic((d, d), self.compute_s_update, name=f"S({self.name})", reuse=True)
        self.tensor_m = TensorStatistic(
            (d, o), self.compute_m_update, name=f"M({self.name})", trace_precision=self.trace_precision
        )
        self.tensor_m_prev = TensorStatistic(None, self.compute_m_prev_update, name=f"M_prev({self.name})")
        self.cross_covariance = TensorStatistic(None, self.compute_cross_covariance_update, name=f"P({self.name})")
        self.covariance_loss_gradient = TensorStatistic(
            (o, o), self.compute_covariance_loss_gradient_update, name=f"E({self.name})"
        )

    def _statistics(self) -> tuple[TensorStatistic, ...]:
        return (
            self._own_tensor_s,
            self.tensor_m,
            self.tensor_m_prev,
            self.cross_covariance,
            self.covariance_loss_gradient,
        )

    @property
    def tensor_s(self) -> TensorStatistic:
        """Second moment of the input; after a merge the merge's own, whose last row and column are of ones."""
        shared = None if self.previous_module is None else self._shared_statistic()
        return self._own_tensor_s if shared is None else shared

    def _shared_statistic(self) -> TensorStatistic | None:
        return getattr(self.previous_module, "input_statistic_for_next", None)

    @property
    def input_statistic_for_next(self) -> None:
        """A layer keeps no statistic for the layers after it."""
        return None

    @property
    def growth_statistic(self) -> TensorStatistic:
        """Second moment of ``input_stream``, for neurons that are added to this layer's output."""
        return self.tensor_s if self.use_bias else self._own_tensor_s

    @property
    def tensor_s_growth(self) -> TensorStatistic:
        """S used for adding neurons: that of the previous module's inputs."""
        return self.previous.growth_statistic

    def _own_s(self) -> Array:
        """Mean S in the shape of this layer: a shared one loses its ones where the layer has no bias."""
        s, d = self.tensor_s(), self.in_features + int(self.use_bias)
        return s[:d, :d]

    def compute_s_update(self, *, out: Array | None = None) -> tuple[Array, int]:
        """Sum of ``B^T B`` over the last batch, (d, d) with the ones column last, and its samples."""
        stream = self.input_stream
        return cross_moment(stream, out=out), stream.samples

    def compute_m_update(self, desired_activation: Array | None = None) -> tuple[Array, int]:
        """Sum of ``B^T dA`` over the last batch, (d, o); ``desired_activation`` replaces dA."""
        if desired_activation is None and self._moment is not None:
            return self._moment, self.input_stream.samples
        stream = self.input_stream
        return cross_moment(stream, self.gradient_stream(desired_activation)), stream.samples

    def moment_with(self, gradient: Array) -> Array:
        """Sum of ``B^T gradient`` over the last batch: the pullback's own product where the gradient is the same."""
        if self._moment is not None and gradient is self.pre_activity_grad:
            return self._moment
        return cross_moment(self.input_stream, Stream(gradient))

    def compute_m_prev_update(self, desired_activation: Array | None = None) -> tuple[Array, int]:
        """Sum of ``B_prev^T dA``, (d_prev, o); after a merge B_prev is its full activity."""
        stream = self.previous.input_stream
        return cross_moment(stream, self.gradient_stream(desired_activation)), stream.samples

    def compute_cross_covariance_update(self) -> tuple[Array, int]:
        """Sum of ``B_prev^T B``, (d_prev, d); after a merge B is without its ones, as in the original."""
        stream = self.previous.input_stream
        own = self.input_stream if self._shared_statistic() is None else Stream(self.input)
        return cross_moment(stream, own), stream.samples

    def compute_covariance_loss_gradient_update(self) -> tuple[Array, int]:
        """Sum of ``dA^T dA``, (o, o)."""
        stream = self.gradient_stream()
        return cross_moment(stream), stream.samples

    def compute_n_update(self) -> tuple[Array, int]:
        """Sum of ``x^T v``, v what the next module's planned delta leaves undone; samples count every token.

        Raises
        ------
        TypeError
            The next module is no growing layer.
        """
        if not hasattr(self.next_module, "moment_with"):
            raise TypeError(
                f"{self.name}: the next module is {type(self.next_module).__name__}, expected a growing layer, whose "
                "planned delta says what is left to do; set next_module"
            )
        goal = self.next_module.projected_v_goal(self.next_module.input)
        return cross_moment(Stream(self.input), Stream(goal)), math.prod(goal.shape[:-1])

    @property
    def tensor_n(self) -> Array:
        """``N = -M_prev + P dW^T``, (d_prev, o); needs the optimal delta."""
        if self.delta_raw is None:
            raise GrowthError(f"{self.name}: the optimal delta is not computed; call compute_optimal_delta() first")
        return neuron_goal(self.tensor_m_prev(), self.cross_covariance(), self.delta_raw)

    def projected_v_goal(self, input_vector: Array | None = None) -> Array:
        """``dA - dW B``: the part of the wanted change that the planned delta does not make, last batch."""
        if self.optimal_delta_layer is None:
            raise GrowthError(f"{self.name}: the optimal delta is not computed; call compute_optimal_delta() first")
        x = self.input if input_vector is None else input_vector
        return self.gradient_stream().array - self.optimal_delta_layer(x)

    def init_computation(self) -> None:
        """Start a collection: empty statistics here and at the previous module, keep inputs and gradients."""
        self.reset_computation()
        self._declare_statistics()
        self.request("input", self)
        self.request("pre_activity", self)
        if self.previous_module is not None and self._shared_statistic() is None:
            self.previous.request("input", self)

    def update_computation(self, update_covariance_loss_gradient: bool = True) -> None:
        """Add the last batch to every statistic; a second call for the same batch changes nothing.

        After a merge that is S and M; the merge collects what growth through it needs. A batch with NaN or infinite
        values raises ``GrowthError`` and is left out of all of them.
        """
        statistics = [self.tensor_m]  # first those of both ends: what is not finite raises before anything is added
        squares = [self.tensor_s]
        if self.previous_module is not None and self._shared_statistic() is None:
            statistics += [self.tensor_m_prev, self.cross_covariance]
            squares.append(self.previous.growth_statistic)
        if update_covariance_loss_gradient:
            statistics.append(self.covariance_loss_gradient)
        for statistic in statistics + squares:
            statistic.update()

    def update_covariance_loss_gradient(self, count_samples: bool = True) -> None:
        """Add the present gradient to E, whether or not it was added before (several passes over one batch)."""
        value, samples = self.compute_covariance_loss_gradient_update()
        self.covariance_loss_gradient.update(value, samples, count_samples=count_samples)

    def reset_computation(self) -> None:
        """End a collection: forget statistics, S of the module before too, and keep nothing for this module's sake."""
        for statistic in self._statistics():
            statistic.reset()
        self.release("input", self)
        self.release("pre_activity", self)
        if self._shared_statistic() is not None:
            self.tensor_s.reset()
        elif self.previous_module is not None:
            self.previous.release("input", self)
            self.previous.growth_statistic.reset()
