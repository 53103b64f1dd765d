"""Going on with a run: its checkpoint, the options that may change, and everything put back into a loop."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from growarray.backend import asarray, to_numpy
from growarray.cli.grow.checkpoint import Checkpoint, damaged, read_checkpoint
from growarray.cli.grow.folder import CHECKPOINT
from growarray.cli.grow.options import RunOptions, given_values
from growarray.cli.options import flag_of
from growarray.errors import ResumeError, shown
from growarray.networks import Best, GrowingNetwork, Growth, Judgement, Snapshot
from growarray.networks.build import number_of_places


def open_run(folder: Path, given: Mapping[str, Any]) -> tuple[RunOptions, Checkpoint]:
    """Options and checkpoint of the run in ``folder``.

    Raises ResumeError: there is none, it is damaged, or an option in ``given`` differs from the run's; more epochs are
    no difference: the run goes on to them, and is no longer finished.
    """
    path = folder / CHECKPOINT
    checkpoint = read_checkpoint(path)
    try:
        options = RunOptions.from_json(checkpoint.options)
    except ValueError as error:
        raise damaged(path, str(error)) from error
    changed = {name: value for name, value in given_values(given).items() if getattr(options, name) != value}
    epochs = changed.pop("epochs", options.epochs)
    if epochs < options.epochs:
        raise ResumeError(
            f"--epochs: the run in {folder} has {options.epochs}, the command line says {epochs}; more may be added, "
            "none taken away"
        )
    for name, value in changed.items():
        raise ResumeError(
            f"{flag_of(name)}: the run in {folder} has {shown(getattr(options, name))}, the command line says "
            f"{shown(value)}; leave the option out to go on, or start another run with another --output"
        )
    if epochs > options.epochs:
        ended = any(s["event"] == "stop" and s.get("what") == "growing" for s in checkpoint.state["history"])
        state = {**checkpoint.state, "finished_growing": ended}  # the old last epoch may have set it, too
        options, checkpoint = replace(options, epochs=epochs), replace(checkpoint, state=state, final=None)
    return options, checkpoint


def check_fits(path: Path, options: RunOptions, checkpoint: Checkpoint) -> None:
    """Raise ``ResumeError`` unless network, widths, weights and epoch are those of a run with these options."""
    try:
        if checkpoint.network != options.network:
            raise ValueError(f"network {shown(checkpoint.network)}, option {shown(options.network)}")
        layers = number_of_places(options.network, options.hidden_layers)
        kept = [vars(checkpoint)] if checkpoint.best is None else [vars(checkpoint), checkpoint.best]
        for widths, weights in ((each["widths"], each["weights"]) for each in kept):
            if options.network != "dag" and len(widths) != layers:
                raise ValueError(f"{len(widths)} widths for {layers} layers")
            sizes = {size for value in weights.values() for size in value.shape}
            if not sizes.issuperset(widths):  # before a network of that size is made
                raise ValueError(f"the widths {shown(widths)} are not those of the weights")
        if checkpoint.state["epoch"] > options.epochs:
            raise ValueError(f"epoch {checkpoint.state['epoch']} of {options.epochs}")
    except ValueError as error:
        raise damaged(path, str(error)) from error


def restore(path: Path, checkpoint: Checkpoint, loop: Growth, twin: Growth | None) -> None:
    """Put weights, slots and state into a loop that was built with the checkpoint's options and widths.

    twin : the same with the widths of the best network, None if there is none
    """
    steps = checkpoint.state["epoch"] * math.ceil(loop.data[0].shape[0] / loop.settings.batch_size)
    try:
        if checkpoint.state["steps"] != steps:
            raise ValueError(f"{checkpoint.state['steps']} steps, expected {steps}")
        best = None
        if checkpoint.best is not None and twin is not None:
            record = checkpoint.best
            _restore_network(twin.network, record["weights"], record["slots"])
            judgement = Judgement(float(record["loss"]), float(record["score"]), tuple(map(float, record["parts"])))
            best = Best(record["epoch"], record["widths"], judgement, Snapshot.of(twin.network))
        _restore_network(loop.network, checkpoint.weights, checkpoint.slots)
        loop.load_state(checkpoint.state, best)
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, str(error.args[0] if error.args else error)) from error


def _restore_network(network: GrowingNetwork, weights: dict[str, np.ndarray], saved: dict[str, dict[str, Any]]) -> None:
    """Weights and slots into a network of their widths; raises if something does not fit or is not finite."""
    network.match(weights)
    parameters = dict(network.named_parameters())
    network.load_state_dict(weights)
    for name, value in weights.items():
        if name in parameters and value.dtype != to_numpy(parameters[name].data).dtype:
            raise TypeError(f"{name} has dtype {value.dtype}")
        _check_values(name, value)
    if len({frozenset(slots) for slots in saved.values() if slots}) > 1:
        raise KeyError("a slot of a parameter is missing")
    if set(saved) != set(parameters):
        raise KeyError(f"slots of other parameters: {', '.join(sorted(set(saved) ^ set(parameters)))}")
    for name, slots in saved.items():
        parameter = parameters[name]
        for key, value in slots.items():
            if not isinstance(value, np.ndarray) and type(value) not in (int, float):
                raise TypeError(f"slot {key} of {name} is {type(value).__name__}")
            _check_values(f"slot {key} of {name}", value)
            if isinstance(value, np.ndarray) and value.shape != parameter.shape:
                raise ValueError(f"slot {key} of {name} has shape {value.shape}, expected {parameter.shape}")
        parameter.slots = {
            key: asarray(value, like=parameter.data) if isinstance(value, np.ndarray) else value
            for key, value in slots.items()
        }


def _check_values(name: str, value: Any) -> None:
    """Raise unless an array or number of a checkpoint is real and finite."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name} has dtype {array.dtype}")
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name} holds NaN or infinite values")
