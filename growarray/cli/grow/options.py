"""The options of ``growarray grow``: the table that signature, help, checks and saved settings are read from."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from growarray.backend import library
from growarray.cli.options import PRECISIONS, Option, flag_of, options_of, use_precision
from growarray.errors import shown
from growarray.growing import FISHER, GRADMAX, TINY, GrowthRule
from growarray.networks import GrowthSettings
from growarray.networks.build import NETWORKS, hidden_activation
from growarray.networks.choice import CHOICES, JUDGED

DIGITS = "digits"
RULES: dict[str, GrowthRule] = {"tiny": TINY, "gradmax": GRADMAX, "fisher": FISHER}

_DATA, _NETWORK, _GROWTH, _TRAINING, _OUTPUT = "Data", "Network", "Growth", "Training", "Output"


def _row(default: Any, text: str, panel: str, **more: Any) -> Any:
    return field(default=default, metadata={"option": Option(default, text, panel, **more)})


@dataclass(frozen=True)
class RunOptions:
    """The options of a run and their defaults.

    >>> RunOptions(epochs=3).settings().epochs
    3
    """

    data: str = _row(DIGITS, "'digits', a .npz, .npy or .csv file, or a folder of images", _DATA, takes="FILE")
    labels: str | None = _row(None, "second .npy file, with the labels", _DATA, takes="FILE", means="none")
    label_column: str | None = _row(None, "CSV column with the labels", _DATA, takes="NAME", means="the last")
    task: str = _row("classification", "what the labels are for", _DATA, choices=("classification", "regression"))
    standardise: bool | None = _row(
        None, "scale features to mean 0 and deviation 1", _DATA, means="no for digits, yes for files"
    )
    validation_fraction: float = _row(
        0.1, "share of the training part to choose the network by", _DATA, least=0, below=1
    )
    test_fraction: float = _row(0.2, "share of all samples to test with", _DATA, least=0, below=1)
    network: str = _row("mlp", "layers, blocks, a graph; cnn, resnet, mixer: of images", _NETWORK, choices=NETWORKS)
    hidden_layers: int = _row(1, "hidden layers, residual blocks, or stages of a cnn", _NETWORK, least=1)
    width: int = _row(2, "neurons, or channels, of each at the start", _NETWORK, least=1)
    activation: str = _row("relu", "relu, gelu, selu, tanh, ...", _NETWORK, takes="NAME")
    rule: str = _row("tiny", "how new neurons are computed", _GROWTH, choices=tuple(RULES))
    choose: str | None = _row(
        None,
        "where to grow: by what is promised (first_order, for each parameter or FLOP), by width, by dependence "
        "(hsic), or by what comes of it (validation, score, bic)",
        _GROWTH,
        choices=CHOICES,
        means="narrowest for cnn and resnet, else first_order",
    )
    neurons: int = _row(8, "most neurons that one growth adds", _GROWTH, least=1)
    every: int = _row(2, "epochs from growth to growth", _GROWTH, least=1)
    first: int = _row(2, "epochs before the first growth", _GROWTH, least=0)
    growths: int | None = _row(None, "most growths", _GROWTH, means="no limit", least=0)
    max_parameters: int | None = _row(
        None, "most parameters; 0 for no limit", _GROWTH, means="as many as the data allow", least=0
    )
    least_gain: float = _row(0.0, "least fall of the validation loss for each parameter added", _GROWTH, least=0)
    patience: int = _row(3, "growths in a row that may fail; 0 for no limit", _GROWTH, least=0)
    max_flops: int = _row(0, "most FLOPs of one sample's forward pass; 0 for no limit", _GROWTH, least=0)
    relative_error: float | None = _row(
        None, "collect until statistics are this sure", _GROWTH, means="all samples", least=0
    )
    epochs: int = _row(100, "passes over the training part", _TRAINING, least=1)
    batch_size: int = _row(32, "samples a step", _TRAINING, least=1)
    lr: float = _row(5e-3, "learning rate at the start; falls to 0 along a cosine", _TRAINING, least=0)
    weight_decay: float = _row(0.3, "of AdamW", _TRAINING, least=0)
    label_smoothing: float = _row(0.1, "of the cross entropy", _TRAINING, least=0, below=1)
    seed: int = _row(0, "of splits, weights and batches", _TRAINING, least=0)
    dtype: str = _row("float32", "of data and weights", _TRAINING, choices=("float32", "float64"))
    device: str = _row("cpu", "cpu, cuda or cuda:N", _TRAINING, takes="NAME")
    precision: str = _row("float32", "in which a GPU multiplies float32", _TRAINING, choices=PRECISIONS)
    compare: bool = _row(False, "train a fixed network too", _OUTPUT, flag="--compare", means="no")

    def __post_init__(self) -> None:
        for name, row in OPTIONS.items():
            row.check(name, getattr(self, name))
        if self.relative_error == 0.0:
            raise ValueError("--relative-error: expected more than 0, found 0; leave it out to take all samples")
        if self.data == DIGITS:
            wrong = [name for name in ("labels", "label_column") if getattr(self, name) is not None]
            if wrong or self.task != "classification":
                raise ValueError(
                    f"{flag_of(wrong[0] if wrong else 'task')}: the digits come with their classes; "
                    "name a file of your own with --data, or leave the option out"
                )
        rule = RULES[self.rule]
        if self.choose in JUDGED and (rule.alpha_zero or rule.omega_zero):
            raise ValueError(
                f"--choose: expected first_order with the rule {self.rule}, whose new neurons start at zero and change "
                f"no loss, found {self.choose!r}; leave it out"
            )
        if self.network == "dag" and (rule.alpha_zero or rule.omega_zero):
            raise ValueError(
                f"--rule: expected tiny or fisher for a dag, found {self.rule!r}, whose new neurons start at zero, so "
                "that nothing tells where to put them"
            )
        hidden_activation(self.activation, where="--activation")

    def settings(self) -> GrowthSettings:
        """What the loop needs of the options: those of the same name, with 0 and no number read as the help says."""
        names, images = {each.name for each in fields(GrowthSettings)}, self.network in ("cnn", "resnet")
        return GrowthSettings(**{name: value for name, value in vars(self).items() if name in names} | {
            "rule": RULES[self.rule],
            "choose": self.choose or ("narrowest" if images else "first_order"),
            "balance": images,
            "max_parameters": "auto" if self.max_parameters is None else self.max_parameters or None,
            "max_flops": self.max_flops or None,
            "patience": self.patience or None,
        })  # fmt: skip

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RunOptions:
        """Read back ``dataclasses.asdict``; ``ValueError`` for other names or types."""
        types = typing.get_type_hints(cls)
        if set(values) != set(types):
            raise ValueError(f"other options: {', '.join(sorted(set(values) ^ set(types)))}")
        for name, kind in types.items():
            allowed = typing.get_args(kind) or (kind,)
            if type(values[name]) not in allowed and not (float in allowed and type(values[name]) is int):
                raise ValueError(f"option {name} is {shown(values[name])}")
        return cls(**values)


OPTIONS = options_of(RunOptions)


def options_from(given: Mapping[str, Any]) -> RunOptions:
    """Options of a new run: those given, the defaults for the others. ``ValueError`` names one that cannot be used.

    >>> options_from({"epochs": 2, "rule": "gradmax"}).neurons
    8
    """
    values = given_values(given)
    if values.get("task") == "regression" and values.setdefault("label_smoothing", 0.0):
        raise ValueError("--label-smoothing: expected none for a regression, which has no classes; leave it out")
    options = RunOptions(**values)
    use_precision(options.precision, options.device, options.dtype)
    library(options.device)  # a device that is missing is said before a folder is made
    return options


def given_values(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options with paths made absolute: a run may go on from another folder."""
    paths = [name for name in ("data", "labels") if given.get(name, DIGITS) != DIGITS]
    return {**given, **{name: str(Path(given[name]).absolute()) for name in paths}}
