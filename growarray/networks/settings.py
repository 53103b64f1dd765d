"""GrowthSettings: how a run of the training-and-growing loop trains and when it grows."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real

from growarray.contraction.checks import is_whole
from growarray.errors import shown
from growarray.growing import TINY, GrowthRule, Rule
from growarray.networks.choice import CHOICES, JUDGED
from growarray.ops.sizes import whole_number


@dataclass(frozen=True)
class GrowthSettings:
    """How a run trains and when it grows.

    epochs : passes over the training data in all;  batch_size : samples a step
    rule : how updates are computed, a GrowthRule or something else with ``plan(statistics)``
    neurons : most neurons a growth adds
    every : epochs between growths;  first : epochs before the first one;  growths : most growths, None for no limit
    max_parameters : budget of the grown network, None for no limit, ``'auto'`` for one that the data can teach: see
        :func:`default_budget`
    max_flops : budget of one sample's forward pass, None for no limit
    least_gain : what the validation loss must fall by at a growth, for each parameter that it adds
    patience : growths in a row that are refused or undone before growing stops, None to go on for ever
    keep_best : at the end go back to the network with the lowest validation loss, unless the last is as good
    choose : ``'first_order'`` by predicted improvement, ``'per_parameter'`` or ``'per_flop'`` by what the new weights
        gain for their cost, ``'narrowest'`` what has fewest neurons, ``'hsic'`` by how much the gradient depends on
        what new neurons would read, see :func:`growarray.growing.linear_dependence`; ``'validation'`` by the loss on
        validation data after growth, ``'score'`` by the task's figure of merit there, ``'bic'`` by :func:`bic` there:
        then growing stops when nothing lowers it
    balance : after a growth make the incoming weights of new neurons as large as those of the others, and the outgoing
        ones smaller by as much, if that changes nothing: see :func:`growarray.networks.balance.balance`
    exact_fisher : E, for a rule that takes it such as FISHER, is the exact Fisher of the softmax and not the second
        moment of the gradients, by a way back for each class but one; for classification
    relative_error : stop collecting when every M is known to it (at least two batches), None for all batches
    collect_batch : samples a batch while collecting
    search_samples : most samples that a line search looks at, spread evenly over the validation data
    clip : largest gradient norm, None for no clipping
    """

    epochs: int = 60
    batch_size: int = 32
    rule: Rule = TINY
    neurons: int = 8
    every: int = 2
    first: int = 2
    growths: int | None = None
    max_parameters: int | str | None = "auto"
    max_flops: int | None = None
    least_gain: float = 0.0
    patience: int | None = 3
    keep_best: bool = True
    choose: str = "first_order"
    balance: bool = False
    exact_fisher: bool = False
    relative_error: float | None = None
    collect_batch: int = 1024
    search_samples: int = 4096
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.choose not in CHOICES:
            raise ValueError(f"GrowthSettings: choose must be one of {', '.join(CHOICES)}, found {shown(self.choose)}")
        if not callable(getattr(self.rule, "plan", None)):
            raise TypeError(f"GrowthSettings: rule must be a GrowthRule such as TINY, found {shown(self.rule)}")
        least = {"epochs": 1, "batch_size": 1, "neurons": 1, "every": 1, "first": 0, "collect_batch": 1}
        for name, bound in {**least, "search_samples": 1}.items():
            if not is_whole(getattr(self, name)):
                raise ValueError(f"GrowthSettings: {name} must be a whole number, found {shown(getattr(self, name))}")
            object.__setattr__(self, name, whole_number("GrowthSettings", name, getattr(self, name), bound))
        for name in ("keep_best", "balance", "exact_fisher"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"GrowthSettings: {name} must be True or False, found {shown(getattr(self, name))}")
        for name in ("growths", "max_parameters", "max_flops", "least_gain", "relative_error", "clip"):
            value = getattr(self, name)
            if value is None or (name == "max_parameters" and value == "auto"):
                continue
            if not isinstance(value, Real):
                known = "a number, None or 'auto'" if name == "max_parameters" else "a number or None"
                raise ValueError(f"GrowthSettings: {name} must be {known}, found {shown(value)}")
            positive = name in ("relative_error", "clip")
            if not (float(value) > 0 if positive else float(value) >= 0):
                expected = "positive" if positive else "at least 0"
                raise ValueError(f"GrowthSettings: {name} must be {expected}, found {value}")
        if self.patience is not None:
            whole_number("GrowthSettings", "patience", self.patience, 1)
        rule = self.rule if isinstance(self.rule, GrowthRule) else TINY
        if self.choose in JUDGED and (rule.alpha_zero or rule.omega_zero) and not rule.compute_delta:
            raise ValueError(
                f"GrowthSettings: choose={self.choose!r} has nothing to compare with a rule whose neurons start at "
                "zero; use choose='first_order'"
            )
