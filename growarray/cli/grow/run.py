"""A run of ``growarray grow`` without the terminal: network and loop, saving, and the files at the end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from growarray.checkpoint import Grown
from growarray.cli.grow.checkpoint import Checkpoint, take_checkpoint, write_checkpoint
from growarray.cli.grow.data import RunData, load_data
from growarray.cli.grow.folder import CHECKPOINT, GRAPH, HISTORY, MODEL, PICTURE, write_weights
from growarray.cli.grow.options import RunOptions
from growarray.cli.grow.resume import check_fits, restore
from growarray.cli.options import use_precision
from growarray.errors import ResumeError
from growarray.networks import Growth, History, task_named, write_atomically
from growarray.networks.build import build_network, hidden_activation, number_of_places
from growarray.networks.graph.picture import draw_graphs, frames_of
from growarray.networks.picture import draw
from growarray.ops import cross_entropy
from growarray.optim import AdamW, cosine

OnEntry = Callable[[Growth, dict[str, Any]], None]


def build_loop(options: RunOptions, data: RunData, widths: list[int] | None) -> Growth:
    """Network, AdamW along a cosine, task and settings; ``--width`` wide everywhere, or as wide as ``widths``."""
    use_precision(options.precision, options.device, options.dtype)
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
        image=data.image,
    )
    task = task_named(options.task)
    if options.task == "classification":
        task = replace(task, loss=partial(cross_entropy, label_smoothing=options.label_smoothing))
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


def check_budget(loop: Growth) -> None:
    """Raise ``ValueError`` if the budget is spent before the first growth of a run that is to grow."""
    network, settings = loop.network, loop.settings
    layers = network.growing_layers
    if settings.growths == 0 or any(loop.planner.affordable(layer) for layer in layers):
        return
    cost, start = min(int(layer.parameters_per_neuron) for layer in layers), network.number_of_parameters()
    flag, found, unit = "--max-parameters", loop.budget, "parameters"
    if found is None or found >= start + cost:
        flag, found, unit = "--max-flops", settings.max_flops, "FLOPs"
        cost, start = 2 * cost, network.flops_per_sample()
    raise ValueError(
        f"{flag}: the network starts with {start} {unit} and one more neuron costs {cost}, so nothing could grow "
        f"within {found}; allow at least {start + cost}, or leave the option out"
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
        self.data = load_data(options)
        self.loop = build_loop(options, self.data, widths)
        if widths is None:
            check_budget(self.loop)
        self.seconds = 0.0

    @classmethod
    def resumed(cls, options: RunOptions, checkpoint: Checkpoint, folder: Path) -> Run:
        """The run as it was when ``checkpoint`` was written; ``ResumeError`` if that cannot be."""
        path, best = folder / CHECKPOINT, checkpoint.best
        check_fits(path, options, checkpoint)
        run = cls(options, folder=folder, widths=checkpoint.widths)
        if run.data.digest != checkpoint.data:
            raise ResumeError(
                f"--resume: {options.data} holds other data now than when the run in {folder} began; "
                "bring the old data back, or start another run with another --output"
            )
        twin = None if best is None else build_loop(options, run.data, best["widths"])
        restore(path, checkpoint, run.loop, twin)
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
        """Write the checkpoint, if there is a folder."""
        if self.folder is not None:
            options, network = asdict(self.options), self.options.network
            now = take_checkpoint(
                self.loop, options=options, data=self.data.digest, kind=network, seconds=self.seconds, final=final
            )
            write_checkpoint(self.folder / CHECKPOINT, now)

    def finish(self, on_entry: OnEntry | None = None) -> dict[str, Any]:
        """Test, train the fixed network if asked for, write everything; returns the final figures."""
        grown = self.loop.history.of("growth")
        final = {
            "score_name": self.loop.task.score_name,
            **self._figures(self.loop, self.seconds),
            "places": self.loop.network.width_names,
            "samples": {part: 0 if pair is None else int(pair[0].shape[0]) for part, pair in self.data.parts()},
            "epochs": self.loop.epoch,
            "growths": self.loop.growths,
            "refused": sum("refused" in entry for entry in grown),
            "compare": self._fixed(on_entry) if self.options.compare else None,
            "features": self.data.features,
            "image": None if self.data.image is None else list(self.data.image),  # as JSON gives it again
            "classes": list(self.data.classes),
            "scaling": self.data.scaling,
            "options": asdict(self.options),
        }
        self.loop.history.final = final
        if self.folder is not None:
            self._write(self.folder, self.loop.history)
            self.save(final)  # last: a run that is killed before it writes the others again
        return final

    def _write(self, folder: Path, history: History) -> None:
        """The weights, the network as a graph, the pictures and the history."""
        write_weights(folder, self.loop.network)
        result = Grown(self.loop.network, self.options.task, self.data.classes, self.data.scaling, history)
        result.to_onnx(folder / MODEL)
        write_atomically(folder / PICTURE, draw(history.steps, history.final))
        frames = frames_of(history.steps)
        if frames:
            write_atomically(folder / GRAPH, draw_graphs(frames))
        history.save(folder / HISTORY)

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
        loop.network.restructure(self.loop.network.structure())
        loop.callbacks = [] if on_entry is None else [on_entry]
        return self._figures(loop, _timed(loop, options.epochs)) | {"steps": loop.history.of("train")}


def _timed(loop: Growth, until: int) -> float:
    start = time.perf_counter()
    loop.run(until=until)
    return time.perf_counter() - start
