"""A run of ``growarray grow`` without the terminal: options, network, loop, saving and going on."""

from __future__ import annotations

import math
import time
import typing
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from growarray.backend import library
from growarray.checkpoint import Grown
from growarray.cli import save
from growarray.cli.budget import check_room
from growarray.cli.build import RULES
from growarray.cli.data import DIGITS, RunData, load_data
from growarray.errors import ResumeError
from growarray.networks import Growth, GrowthSettings, Task, accuracy, task_named, write_atomically
from growarray.networks.build import NETWORKS, build_network, hidden_activation, number_of_places
from growarray.networks.picture import draw
from growarray.ops import cross_entropy
from growarray.optim import AdamW, cosine

__all__ = ["CHOICES", "Run", "RunOptions", "build_loop", "open_run", "options_from"]

OnEntry = Callable[[Growth, dict[str, Any]], None]

CHOICES = {
    "task": ("classification", "regression"),
    "network": NETWORKS,
    "rule": tuple(RULES),
    "choose": ("first_order", "validation"),
    "dtype": ("float32", "float64"),
}
_AT_LEAST = {
    "hidden_layers": 1,
    "width": 1,
    "neurons": 1,
    "every": 1,
    "first": 0,
    "growths": 0,
    "max_parameters": 0,
    "least_gain": 0.0,
    "patience": 0,
    "max_flops": 0,
    "epochs": 1,
    "batch_size": 1,
    "seed": 0,
    "lr": 0.0,
    "weight_decay": 0.0,
    "relative_error": 0.0,
}


@dataclass(frozen=True)
class RunOptions:
    """The options of a run, and their defaults; what each means is said by ``growarray grow --help``.

    standardise : None is no for the digits, which lie in [0, 1], and yes for files
    growths : None is no limit;  relative_error : None is all batches
    max_parameters : None is as many as the data can teach, 0 is no limit;  max_flops, patience : 0 is no limit

    >>> RunOptions(epochs=3).settings().epochs
    3
    """

    data: str = DIGITS
    labels: str | None = None
    label_column: str | None = None
    task: str = "classification"
    standardise: bool | None = None
    validation_fraction: float = 0.1
    test_fraction: float = 0.2
    network: str = "mlp"
    hidden_layers: int = 1
    width: int = 2
    activation: str = "relu"
    rule: str = "tiny"
    choose: str = "first_order"
    neurons: int = 8
    every: int = 2
    first: int = 2
    growths: int | None = None
    max_parameters: int | None = None
    least_gain: float = 0.0
    patience: int = 3
    max_flops: int = 0
    relative_error: float | None = None
    epochs: int = 100
    batch_size: int = 32
    lr: float = 5e-3
    weight_decay: float = 0.3
    label_smoothing: float = 0.1
    seed: int = 0
    dtype: str = "float32"
    device: str = "cpu"
    compare: bool = False

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{_flag(name)}: expected {' or '.join(known)}, found {getattr(self, name)!r}")
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and not (least <= value < math.inf):
                raise ValueError(f"{_flag(name)}: expected at least {least}, found {value}")
        if self.relative_error == 0.0:
            raise ValueError("--relative-error: expected more than 0, found 0.0; leave it out to take all samples")
        for name in ("validation_fraction", "test_fraction", "label_smoothing"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{_flag(name)}: expected at least 0 and below 1, found {getattr(self, name)}")
        if self.data == DIGITS:
            wrong = [name for name in ("labels", "label_column") if getattr(self, name) is not None]
            if wrong or self.task != "classification":
                raise ValueError(
                    f"{_flag(wrong[0] if wrong else 'task')}: the digits come with their classes; "
                    "name a file of your own with --data, or leave the option out"
                )
        rule = RULES[self.rule]
        if self.choose == "validation" and (rule.alpha_zero or rule.omega_zero):
            raise ValueError(
                f"--choose: expected first_order with the rule {self.rule}, whose new neurons start at zero and change "
                "no loss, found 'validation'; leave it out"
            )
        hidden_activation(self.activation, where="--activation")

    def settings(self) -> GrowthSettings:
        """What the loop needs of the options."""
        return GrowthSettings(
            epochs=self.epochs,
            batch_size=self.batch_size,
            rule=RULES[self.rule],
            neurons=self.neurons,
            every=self.every,
            first=self.first,
            growths=self.growths,
            max_parameters="auto" if self.max_parameters is None else self.max_parameters or None,
            least_gain=self.least_gain,
            patience=self.patience or None,
            max_flops=self.max_flops or None,
            choose=self.choose,
            relative_error=self.relative_error,
        )

    def load(self) -> RunData:
        """The data that the options name."""
        return load_data(
            self.data,
            labels=self.labels,
            label_column=self.label_column,
            task=self.task,
            test_fraction=self.test_fraction,
            validation_fraction=self.validation_fraction,
            seed=self.seed,
            dtype=self.dtype,
            scaled=self.data != DIGITS if self.standardise is None else self.standardise,
            device=self.device,
        )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RunOptions:
        """Read back ``dataclasses.asdict``; ``ValueError`` for other names or types."""
        types = typing.get_type_hints(cls)
        if set(values) != set(types):
            raise ValueError(f"other options: {', '.join(sorted(set(values) ^ set(types)))}")
        for name, kind in types.items():
            allowed = typing.get_args(kind) or (kind,)
            if type(values[name]) not in allowed and not (float in allowed and type(values[name]) is int):
                raise ValueError(f"option {name} is {values[name]!r}")
        return cls(**values)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def options_from(given: Mapping[str, Any]) -> RunOptions:
    """Options of a new run: those given, the defaults for the others. ``ValueError`` names one that cannot be used.

    >>> options_from({"epochs": 2, "rule": "gradmax"}).neurons
    8
    """
    values = _plain(given)
    if values.get("task") == "regression" and values.setdefault("label_smoothing", 0.0):
        raise ValueError("--label-smoothing: expected none for a regression, which has no classes; leave it out")
    options = RunOptions(**values)
    library(options.device)  # a device that is missing is said before a folder is made
    return options


def _plain(given: Mapping[str, Any]) -> dict[str, Any]:
    """What is not None, with paths made absolute: a run may go on from another folder."""
    values = {name: value for name, value in given.items() if value is not None}
    paths = [name for name in ("data", "labels") if values.get(name, DIGITS) != DIGITS]
    return values | {name: str(Path(values[name]).absolute()) for name in paths}


def build_loop(options: RunOptions, data: RunData, widths: list[int] | None = None) -> Growth:
    """Network, AdamW along a cosine, task and settings; ``--width`` wide everywhere, or as wide as ``widths``."""
    rng = np.random.Generator(np.random.PCG64(options.seed))
    network = build_network(
        options.network,
        data.features,
        data.outputs,
        [options.width] * number_of_places(options.network, options.hidden_layers) if widths is None else widths,
        function=hidden_activation(options.activation),
        dtype=options.dtype,
        device=options.device,
        rng=rng,
    )
    task = task_named(options.task)
    if options.task == "classification":
        task = Task(
            task.name, partial(cross_entropy, label_smoothing=options.label_smoothing), accuracy, task.score_name
        )
    steps = options.epochs * math.ceil(data.train[0].shape[0] / options.batch_size)
    return Growth(
        network,
        AdamW(network, lr=options.lr, weight_decay=options.weight_decay),
        data.train,
        validation=data.validation,
        task=task,
        settings=options.settings(),
        schedule=cosine(options.lr, steps),
        rng=rng,
    )


class Run:
    """One run: :meth:`train`, then :meth:`finish`. With a ``folder`` every epoch ends in a checkpoint.

    >>> run = Run(RunOptions(epochs=2, first=1, neurons=2))
    >>> run.train()
    >>> run.finish()["widths"]
    [4]
    """

    def __init__(self, options: RunOptions, *, folder: Path | None = None, widths: list[int] | None = None) -> None:
        self.options, self.folder = options, folder
        self.data = options.load()
        self.loop = build_loop(options, self.data, widths)
        if widths is None:
            check_room(self.loop)
        self.seconds = 0.0

    @classmethod
    def resumed(cls, options: RunOptions, checkpoint: save.Checkpoint, folder: Path) -> Run:
        """The run as it was when ``checkpoint`` was written; ``ResumeError`` where that cannot be."""
        path = folder / save.CHECKPOINT
        try:
            if checkpoint.network != options.network:
                raise ValueError(f"network {checkpoint.network!r}, option {options.network!r}")
            places = number_of_places(options.network, options.hidden_layers)
            best, kept = checkpoint.best, [(checkpoint.widths, checkpoint.weights)]
            for widths, weights in kept if best is None else [*kept, (best["widths"], best["weights"])]:
                if len(widths) != places:
                    raise ValueError(f"{len(widths)} widths for {places} places")
                sizes = {size for value in weights.values() for size in value.shape}
                if not sizes.issuperset(widths):  # before a network of that size is made
                    raise ValueError(f"the widths {widths} are not those of the weights")
            if checkpoint.state["epoch"] > options.epochs:
                raise ValueError(f"epoch {checkpoint.state['epoch']} of {options.epochs}")
        except ValueError as error:
            raise save.damaged(path, str(error)) from error
        run = cls(options, folder=folder, widths=checkpoint.widths)
        if run.data.digest != checkpoint.data:
            raise ResumeError(
                f"--resume: {options.data} holds other data now than when the run in {folder} began; "
                "bring the old data back, or start another run with another --output"
            )
        twin = None if best is None else build_loop(options, run.data, best["widths"])
        save.restore(path, checkpoint, run.loop, twin)
        run.seconds = checkpoint.seconds
        return run

    def train(self, on_entry: OnEntry | None = None, *, until: int | None = None) -> None:
        """Train and grow to epoch ``until``, by default to the last, with a checkpoint after each."""
        last = self.options.epochs if until is None else min(until, self.options.epochs)
        if self.loop.epoch == 0:
            self.save()
        self.loop.callbacks = [] if on_entry is None else [on_entry]
        while self.loop.epoch < last:
            self.seconds += _timed(self.loop, self.loop.epoch + 1)
            self.save()

    def save(self, final: dict[str, Any] | None = None) -> None:
        """Write the checkpoint, where there is a folder."""
        if self.folder is not None:
            checkpoint = save.take_checkpoint(
                self.loop,
                options=asdict(self.options),
                data=self.data.digest,
                kind=self.options.network,
                seconds=self.seconds,
                final=final,
            )
            save.write_checkpoint(self.folder / save.CHECKPOINT, checkpoint)

    def finish(self, on_entry: OnEntry | None = None) -> dict[str, Any]:
        """Test, train the fixed network where asked for, write everything; returns the final figures."""
        grown = self.loop.history.of("growth")
        final = {
            "score_name": self.loop.task.score_name,
            **self._figures(self.loop, self.seconds),
            "places": [place.widens for place in self.loop.network.growing_layers],
            "samples": {part: 0 if pair is None else int(pair[0].shape[0]) for part, pair in self.data.parts()},
            "epochs": self.loop.epoch,
            "growths": self.loop.growths,
            "refused": sum("refused" in entry for entry in grown),
            "compare": self._fixed(on_entry) if self.options.compare else None,
            "classes": list(self.data.classes),
            "scaling": self.data.scaling,
            "options": asdict(self.options),
        }
        self.loop.history.final = final
        if self.folder is not None:
            save.write_weights(self.folder, self.loop.network)
            data = self.data
            result = Grown(self.loop.network, self.options.task, data.classes, data.scaling, self.loop.history)
            result.to_onnx(self.folder / save.MODEL)
            write_atomically(self.folder / save.PICTURE, draw(self.loop.history.steps, self.loop.history.final))
            self.loop.history.save(self.folder / save.HISTORY)
            self.save(final)  # last: a run that is killed before it writes the others again
        return final

    def _figures(self, loop: Growth, seconds: float) -> dict[str, Any]:
        """Test figures, size and time of a trained network."""
        loss, score = None, None
        if self.data.test is not None:
            loss, score = loop.evaluate(self.data.test, task=task_named(self.options.task))  # labels as they are
        return {
            **({"test_accuracy": score} if self.options.task == "classification" else {}),
            "test_score": score,
            "test_loss": loss,
            "parameters": loop.network.number_of_parameters(),
            "widths": list(loop.network.widths),
            "seconds": seconds,
        }

    def _fixed(self, on_entry: OnEntry | None) -> dict[str, Any]:
        """The same training of a network that has the final widths from the start."""
        options = replace(self.options, growths=0)
        loop = build_loop(options, self.data, list(self.loop.network.widths))
        loop.callbacks = [] if on_entry is None else [on_entry]
        return self._figures(loop, _timed(loop, options.epochs)) | {"steps": loop.history.of("train")}


def _timed(loop: Growth, until: int) -> float:
    start = time.perf_counter()
    loop.run(until=until)
    return time.perf_counter() - start


def open_run(folder: Path, given: Mapping[str, Any]) -> tuple[RunOptions, save.Checkpoint]:
    """Options and checkpoint of the run in ``folder``.

    Raises
    ------
    ResumeError
        There is none, it is damaged, or an option in ``given`` that is not None differs from the run's; more epochs
        are no difference: the run goes on to them, and is no longer finished.
    """
    path = folder / save.CHECKPOINT
    checkpoint = save.read_checkpoint(path)
    try:
        options = RunOptions.from_json(checkpoint.options)
    except ValueError as error:
        raise save.damaged(path, str(error)) from error
    changed = {name: value for name, value in _plain(given).items() if getattr(options, name) != value}
    epochs = changed.pop("epochs", options.epochs)
    if epochs < options.epochs:
        raise ResumeError(
            f"--epochs: the run in {folder} has {options.epochs}, the command line says {epochs}; more may be added, "
            "none taken away"
        )
    for name, value in changed.items():
        raise ResumeError(
            f"{_flag(name)}: the run in {folder} has {getattr(options, name)!r}, the command line says {value!r}; "
            "leave the option out to go on, or start another run with another --output"
        )
    if epochs > options.epochs:
        ended = any(s["event"] == "stop" and s.get("what") == "growing" for s in checkpoint.state["history"])
        state = {
            **checkpoint.state,
            "finished_growing": ended,
        }  # the last epoch, which is the last no more, ended it too
        options, checkpoint = replace(options, epochs=epochs), replace(checkpoint, state=state, final=None)
    return options, checkpoint
