"""``growarray compress``: factorize the layers of a network, or the tensors of a file of weights, under a budget."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer

from growarray.backend import to_numpy
from growarray.checkpoint import Checkpoint, load_checkpoint, save_safetensors
from growarray.checkpoint.inspect import inspect
from growarray.cli.compress.data import accuracy, labelled
from growarray.cli.compress.weights import Weights
from growarray.cli.files import check_writable, fixed_shape, make_folder, sizes_from
from growarray.cli.grow.folder import locked
from growarray.cli.options import at_least, choices, is_known, option, switch
from growarray.cli.terminal import Screen, show_line, stderr_bar
from growarray.compression import Compression
from growarray.compression import compress as compress_network
from growarray.datasets.files import load_arrays
from growarray.display import printable
from growarray.errors import DataError, ShapeError, shown
from growarray.factorized.report import Change
from growarray.factorized.tensor import kinds
from growarray.networks import write_atomically
from growarray.nn.module import Module
from growarray.onnx.export import to_onnx
from growarray.onnx.read import from_onnx

_WEIGHTS, _GRAPH, _REPORT, _PICTURE = "compressed.safetensors", "compressed.onnx", "report.json", "tradeoff.png"
_BESIDE = ".growarray-compress-"  # begins the name of the folder that files are written to first
_FORMATS = tuple(kind.name.lower() for kind in kinds() if kind.format.decomposition is not None)
_DEFAULT = signature(compress_network).parameters["formats"].default
_COSTS = ("parameters", "flops", "time")

Texts = list[str] | None


def compress(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="an ONNX graph, or torch, safetensors or .npz weights")],
    budget: Annotated[str, option("NUMBER", "0.5 or 50% of the dense cost, or the cost itself as a whole number")],
    by: Annotated[
        str, option(choices(*_COSTS), "what the budget counts; time is predicted, in microseconds")
    ] = "parameters",
    formats: Annotated[
        Texts, option(choices(*_FORMATS), f"repeat it for more; default {', '.join(_DEFAULT)}", "--format")
    ] = None,
    calibration: Annotated[
        Path | None, option("FILE", ".npy with inputs (n, ...), or .npz with one array for each input of the graph")
    ] = None,
    data: Annotated[
        Path | None,
        option("FILE", "samples and their classes, .npz with x and y: measure the accuracy before and after"),
    ] = None,
    input_shape: Annotated[
        str | None, option("SIZES", "3,32,32 or, with the batch, 1,3,32,32: of the graph's input")
    ] = None,
    keep: Annotated[Texts, option("LAYER", "layer that stays dense; repeat it for more")] = None,
    measure: Annotated[bool, switch("--measure", "also time the layers, dense and factorized")] = False,
    output: Annotated[Path | None, option("FOLDER", "to write into; without it nothing is written")] = None,
    force: Annotated[bool, switch("--force", "replace what an earlier run wrote there")] = False,
    seed: Annotated[int, option("NUMBER", "of what is drawn at random")] = 0,
    as_json: Annotated[bool, switch("--json", "print JSON in place of the table")] = False,
) -> None:
    """Check what is asked for, compress, show, and write."""
    at_least("--seed", seed, 0)
    for name in formats or ():
        is_known("--format", name, _FORMATS)
    options: dict[str, Any] = {
        "budget": _budget(budget), "by": by, "formats": formats or _DEFAULT, "keep": keep or (),
        "measure": measure, "rng": np.random.default_rng(seed),
    }  # fmt: skip
    checkpoint = load_checkpoint(file)
    graph = checkpoint.kind == "onnx"
    with nullcontext() if output is None else _folder(output, force):
        with stderr_bar("compressing") as bar:
            options["progress"] = bar.update
            made = (
                _graph(file, options, calibration, data, input_shape)
                if graph
                else _weights(checkpoint, options, {"--calibration": calibration, "--data": data}, input_shape)
            )
        report, console = json.dumps(made.to_dict(), indent=1), Screen()
        if as_json:
            typer.echo(report)
        for line in () if as_json else (*str(made.found).splitlines(), *_accuracy(made, data)):
            show_line(console, printable(line))  # names come from a file: they cannot move the cursor
        if output is not None:
            names = _write(output, made, report)
            show_line(Screen(stderr=True) if as_json else console, f"written into {output}: {', '.join(names)}")


class _Made(NamedTuple):
    """A compression, its state dict, the shape of each input of a graph, and the accuracy if it was measured."""

    found: Compression
    state: Mapping[str, Any]
    shapes: dict[str, tuple[int, ...]] | None = None
    accuracy: Change | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return self.found.to_dict() | ({} if self.accuracy is None else {"accuracy": self.accuracy._asdict()})


def _accuracy(made: _Made, data: Path | None) -> list[str]:
    """What is known of the accuracy of a graph."""
    if made.accuracy is not None:
        return [f"accuracy {made.accuracy.before:.2%} dense, {made.accuracy.after:.2%} compressed, on {data}"]
    return [] if made.shapes is None else ["accuracy not measured; --data FILE, samples and their classes, does"]


def _budget(text: str) -> float:
    """A share, from a number with a point or a percent sign; else a whole number."""
    number = text.strip().removesuffix("%")
    try:
        value = int(number) if number.replace("_", "").isdecimal() and "%" not in text else float(number)
    except ValueError:
        value = -1.0
    if "%" in text:
        value = float(value) / 100.0
    if not (value > 0 and (isinstance(value, int) or value <= 1.0)):
        raise ValueError(
            f"--budget {text}: expected a fraction such as 0.5 or 50%, or a whole number of parameters, FLOPs or "
            "microseconds"
        )
    return value


@contextmanager
def _folder(output: Path, force: bool) -> Iterator[None]:
    """Make the folder and hold it; see that files can be written and none is replaced by accident."""
    make_folder(output)
    check_writable(output)
    with locked(output):
        there = [name for name in (_WEIGHTS, _GRAPH, _REPORT, _PICTURE) if (output / name).exists()]
        if there and not force:
            raise FileExistsError(f"--output {output}: holds {', '.join(there)}; name another folder, or add --force")
        for left in output.glob(f"{_BESIDE}*"):  # by a run that was killed: no other holds the folder
            shutil.rmtree(left)
        yield


def _compressed(network: Module, options: Mapping[str, Any]) -> Compression:
    """Compress, without the ``compress:`` of the library's messages, which the command writes itself."""
    try:
        return compress_network(network, **options)
    except ValueError as error:
        text = str(error).removeprefix("compress: ")
        if isinstance(error, ShapeError):
            raise ShapeError(text) from error
        raise ValueError(f"{'--' * text.startswith('calibration')}{text}") from error


# A graph.


def _graph(
    file: Path, options: dict[str, Any], calibration: Path | None, data: Path | None, input_shape: str | None
) -> _Made:
    """The compressed graph."""
    network = from_onnx(file)
    inputs = None if calibration is None else _calibration(calibration, network.inputs)
    shapes = _shapes(file, network.inputs, input_shape, inputs)
    sample = shapes if len(shapes) > 1 else next(iter(shapes.values()))
    feeds = None if inputs is None else inputs if len(shapes) > 1 else next(iter(inputs.values()))
    if data is not None and len(shapes) > 1:
        raise ValueError(f"--data: expected a graph with one input, found {', '.join(shapes)}; leave it out")
    labels = None if data is None else labelled(data, next(iter(shapes.values())))
    before = None if labels is None else accuracy(network, *labels)  # what is wrong with the data is said at once
    said = [("--input-shape", input_shape), ("--calibration", calibration)]
    try:
        compressed = _compressed(network, {**options, "calibration": feeds, "input_shape": sample})
    except ShapeError as error:
        where = ", ".join(f"{flag} {value}" for flag, value in said if value is not None) or str(file)
        raise ShapeError(f"{where}: {error}") from error
    change = None if labels is None or before is None else Change(before, accuracy(compressed.network, *labels))
    return _Made(compressed, compressed.network.state_dict(), shapes, change)


def _shapes(
    file: Path, names: Sequence[str], text: str | None, data: Mapping[str, np.ndarray] | None
) -> dict[str, tuple[int, ...]]:
    """Shape of each input with a batch: from the option, from the data, or from the file, in this order."""
    outline = inspect(file).graph
    ports = {port.name: port.shape for port in (outline.inputs if outline is not None else ())}
    shapes: dict[str, tuple[int, ...]] = {}
    for name in names:
        known = ports.get(name)
        if text is not None:
            if len(names) > 1:
                raise ValueError(
                    f"--input-shape: the graph has {len(names)} inputs; give --calibration as .npz instead"
                )
            sizes = sizes_from(text, "3,32,32")
            shapes[name] = (1, *sizes) if known is not None and len(known) == len(sizes) + 1 else sizes
        elif data is not None:
            shapes[name] = (1, *data[name].shape[1:])
        else:
            fixed = fixed_shape(known)
            if fixed is None:
                raise ValueError(
                    f"input {shown(name)} has no fixed shape in the file ({known}); pass it with --input-shape, "
                    "or give --calibration"
                )
            shapes[name] = fixed
    return shapes


def _calibration(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Arrays by the names of the inputs."""
    try:
        arrays = load_arrays(path)
    except DataError as error:
        raise DataError(f"--calibration {error}") from error
    if len(names) == 1 and len(arrays) == 1:
        arrays = {names[0]: next(iter(arrays.values()))}
    if set(arrays) != set(names):
        raise DataError(
            f"--calibration {path}: holds {', '.join(map(shown, arrays))}, expected one array for each input: "
            f"{', '.join(names)}"
        )
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise DataError(f"--calibration {path}: {shown(name)} is {array.dtype}, expected real numbers")
    return {name: arrays[name].astype(np.float32) if arrays[name].dtype.kind != "f" else arrays[name] for name in names}


# Weights alone.


def _weights(
    checkpoint: Checkpoint, options: dict[str, Any], files: Mapping[str, Path | None], input_shape: str | None
) -> _Made:
    """Factors of the tensors of a state dict."""
    if options["by"] != "parameters" or options["measure"]:
        option = "--measure" if options["by"] == "parameters" else f"--by {options['by']}"
        raise ValueError(
            f"{option} needs a graph, and {checkpoint.source} is of the kind {checkpoint.kind}, weights alone: the "
            "order and the inputs of its layers are not known; give an ONNX file, or use --by parameters"
        )
    for flag, value in {**files, "--input-shape": input_shape}.items():
        if value is not None:
            raise ValueError(f"{flag}: weights alone cannot be run; give an ONNX file, or leave it out")
    weights = Weights(checkpoint)
    for (name, wide), count in Counter((t.dtype.name, t.dtype.wide) for t in checkpoint.stored.values()).items():
        if name.startswith(("bfloat", "float8")):
            wider = np.dtype(wide).name
            typer.echo(f"growarray compress: note: {count} tensors are {name} and are written as {wider}", err=True)
    compressed = _compressed(weights, options)
    return _Made(compressed, compressed.network.state())


def _write(folder: Path, made: _Made, report: str) -> list[str]:
    """Write everything to a folder beside, then move all of it into place; returns the names of what was written."""
    from growarray.cli.compress.picture import draw  # matplotlib takes half a second to import

    with tempfile.TemporaryDirectory(dir=folder, prefix=_BESIDE) as name:
        beside = Path(name)
        arrays = {name: np.asarray(to_numpy(value), order="C") for name, value in made.state.items()}
        save_safetensors(arrays, beside / _WEIGHTS)
        names = [_WEIGHTS, _REPORT, _PICTURE]
        if made.shapes is not None:
            to_onnx(made.found.network, beside / _GRAPH, made.shapes)
            names.insert(1, _GRAPH)
        write_atomically(beside / _REPORT, report.encode())
        write_atomically(beside / _PICTURE, draw(made.found))
        for path in beside.iterdir():
            path.replace(folder / path.name)
    return names
