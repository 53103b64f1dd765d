"""The folder that ``growarray grow --output`` wrote, opened for use: network, scaling, classes, history."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from growarray.checkpoint.load import load_checkpoint
from growarray.errors import CheckpointError, DataError, GrowArrayError, ShapeError
from growarray.networks.build import rebuild_network
from growarray.networks.history import History
from growarray.networks.network import GrowingNetwork
from growarray.networks.scale import Scale
from growarray.nn import Sequential, Softmax
from growarray.onnx.export import to_onnx

_WEIGHTS = ("weights.safetensors", "weights.npz")


@dataclass(frozen=True, eq=False, repr=False)
class Grown:
    """A grown network with what belongs to it, from features as they are in the data to classes or values.

    network : of scaled features, in evaluation mode    task : ``'classification'`` or ``'regression'``
    classes : their names in the order of the network's outputs, empty for a regression
    scaling : what features, and targets of a regression, had subtracted and were multiplied by: ``feature_offset``,
        ``feature_factor``, ``target_offset``, ``target_factor``; None if nothing was
    history : of the run, with its figures in ``final``

    >>> from growarray.networks import GrowingMLP
    >>> grown = Grown(GrowingMLP(2, 2, hidden_size=1), "classification", ("no", "yes"))
    >>> grown.predict([[0.0, 1.0], [2.0, 3.0]]).shape, grown.predict_proba([[0.0, 1.0]]).shape
    ((2,), (1, 2))
    """

    network: GrowingNetwork
    task: str
    classes: tuple[str, ...] = ()
    scaling: Mapping[str, list[float]] | None = None
    history: History = field(default_factory=History)

    @classmethod
    def _restored(cls, **saved: Any) -> Self:
        grown = cls(**saved)
        _check(grown)
        return grown

    @property
    def features(self) -> int:
        """Features of one sample."""
        network: Any = self.network
        return int(network.in_features)

    @property
    def outputs(self) -> int:
        """Classes, or values of one sample."""
        network: Any = self.network
        return int(network.out_features)

    def model(self) -> Sequential:
        """The network between its scales, which shares its weights: features in, probabilities or values out."""
        scaling = self.scaling or {}
        parts: list[Any] = [self.network]
        if "feature_offset" in scaling:
            parts.insert(0, Scale(scaling["feature_offset"], scaling["feature_factor"]))
        if self.task == "classification":
            parts.append(Softmax())
        elif "target_offset" in scaling:
            parts.append(Scale(scaling["target_offset"], scaling["target_factor"]).inverse())
        return Sequential(*parts)

    def predict(self, x: Any) -> np.ndarray:
        """The class of each sample, as a whole number if all names are numbers; or its values, (n,) or (n, t).

        x : (n, features) as in the data, not scaled; further axes are flattened

        Raises ShapeError for another number of features, TypeError or DataError if they are not finite numbers.
        """
        outputs = self._outputs(x)
        if self.task == "classification":
            return np.asarray(self.labels[np.argmax(outputs, axis=1)])
        return outputs[:, 0] if outputs.shape[1] == 1 else outputs

    def predict_proba(self, x: Any) -> np.ndarray:
        """The probability of each class for each sample, (n, k) in the order of :attr:`classes`.

        Raises what :meth:`predict` raises, and ValueError for a regression.
        """
        if self.task != "classification":
            raise ValueError("Grown.predict_proba: a regression has no probabilities; call predict(x)")
        return self._outputs(x)

    @property
    def labels(self) -> np.ndarray:
        """The classes as :meth:`predict` gives them: whole numbers if all names are, else text."""
        names = np.array(self.classes, dtype=np.str_)
        if names.size and all(name.removeprefix("-").isdecimal() and str(int(name)) == name for name in self.classes):
            return names.astype(np.int64)
        return names

    def to_onnx(self, path: str | os.PathLike[str]) -> None:
        """Write an ONNX model of features as they are in the data: scaling and probabilities are nodes of it.

        Input ``features`` (n, d), output ``probabilities`` (n, k) or ``values`` (n, t); ``classes`` is a JSON list in
        its metadata. In float64 only if onnxruntime has all operators in it, else in float32.
        """
        output = "probabilities" if self.task == "classification" else "values"
        options: dict[str, Any] = {
            "input_names": ("features",),
            "output_names": (output,),
            "metadata": {"task": self.task, "classes": json.dumps(self.classes)},
        }
        try:
            to_onnx(self.model(), path, (1, self.features), **options)
        except NotImplementedError:
            to_onnx(self.model(), path, (1, self.features), dtype="float32", **options)

    def _outputs(self, x: Any) -> np.ndarray:
        """What :meth:`model` gives for checked features."""
        values = np.asarray(x)
        if values.dtype.kind not in "biuf":
            raise TypeError(f"Grown.predict: features are {values.dtype}, expected real numbers")
        if values.ndim < 2 or math.prod(values.shape[1:]) != self.features:
            remedy = "; put one sample into a list: predict([x])" if values.shape == (self.features,) else ""
            raise ShapeError(
                f"Grown.predict: features have shape {values.shape}, expected (n, {self.features}), the columns that "
                f"the network was trained on{remedy}"
            )
        dtype = next(iter(self.network.parameters())).data.dtype
        with np.errstate(over="ignore"):
            rows = values.reshape(len(values), self.features).astype(dtype)
        broken = np.argwhere(~np.isfinite(rows))
        if len(broken):
            row, column = (int(i) for i in broken[0])
            raise DataError(
                f"Grown.predict: feature {column} of sample {row} is {values.reshape(rows.shape)[row, column]}, "
                f"expected a finite number within {dtype}; fix it or drop the sample"
            )
        if not len(rows):
            return np.empty((0, self.outputs), dtype=dtype)
        outputs: np.ndarray = self.model().predict(rows)
        return outputs

    def __repr__(self) -> str:
        what = f"{len(self.classes)} classes" if self.classes else f"{self.outputs} value(s)"
        widths = " ".join(map(str, self.network.widths))
        return f"Grown({self.task}, {self.features} features -> {what}, widths {widths})"


def load_folder(folder: str | os.PathLike[str]) -> Grown:
    """The result of ``growarray grow --output folder``, to predict with.

    Read are ``history.json`` and the weights, as plain numbers and text. Raises CheckpointError if the folder holds no
    finished run, or its files are damaged or do not belong together.
    """
    path = Path(folder)
    history, weights = path / "history.json", next((path / n for n in _WEIGHTS if (path / n).is_file()), None)
    if not history.is_file() or weights is None:
        unfinished = (path / "checkpoint.npz").is_file()
        missing = "a run that is not finished" if unfinished else "no history.json"
        remedy = f"growarray grow --output {path}{' --resume finishes it' if unfinished else ' makes one'}"
        if history.is_file():
            missing, remedy = f"neither {' nor '.join(_WEIGHTS)}", "restore the weights"
        raise CheckpointError(f"{path}: expected the folder of a finished run, found {missing}; {remedy}")
    try:
        recorded = History.load(history)
        final = _final(recorded)
        options, classes = final["options"], tuple(final["classes"])
        network = rebuild_network(
            options["network"], final["widths"], options["activation"], options["dtype"],
            dict(load_checkpoint(weights, mmap=False)), final.get("features"), final.get("image"),
        )  # fmt: skip
        network.eval()
        grown = Grown(network, options["task"], classes, final["scaling"], recorded)
        _check(grown)
    except (GrowArrayError, KeyError, TypeError, ValueError, OSError) as error:
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise CheckpointError(
            f"{path}: expected what growarray grow wrote, found it damaged ({text}); restore the folder or grow again"
        ) from error
    return grown


_KINDS = {"options": dict, "widths": list, "classes": list}
_OPTIONS = ("task", "network", "activation", "dtype")


def _final(history: History) -> dict[str, Any]:
    """The summary of a history, its entries checked for what is used of them."""
    final = history.final or {}
    for name, kind in _KINDS.items():
        if not isinstance(final.get(name), kind):
            raise ValueError(f"history.json has no {kind.__name__} {name!r} in 'final'")
    if not all(isinstance(final["options"].get(name), str) for name in _OPTIONS):
        raise ValueError(f"history.json lacks one of the options {', '.join(_OPTIONS)}")
    if not all(type(width) is int and width >= 0 for width in final["widths"]):
        raise ValueError(f"history.json has the widths {final['widths']}")
    if not all(isinstance(name, str) for name in final["classes"]):
        raise ValueError("history.json has classes that are not strings")
    if final["options"]["dtype"] not in ("float32", "float64"):
        raise ValueError(f"history.json has the dtype {final['options']['dtype']!r}")
    scaling = final.get("scaling")
    if scaling is not None and not (isinstance(scaling, dict) and all(map(_are_numbers, scaling.values()))):
        raise ValueError("history.json has a scaling that is not lists of finite numbers")
    return {**final, "scaling": scaling}


def _are_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) in (int, float) and math.isfinite(v) for v in values)


def _check(grown: Grown) -> None:
    """Raise ValueError if task, classes, scaling and network do not belong together."""
    scaling = grown.scaling or {}
    if grown.task not in ("classification", "regression"):
        raise ValueError(f"the task is {grown.task!r}")
    if len(grown.classes) != (grown.outputs if grown.task == "classification" else 0):
        raise ValueError(f"{len(grown.classes)} classes for {grown.outputs} outputs")
    sizes = {"feature": grown.features, "target": grown.outputs}
    for name in {key.partition("_")[0] for key in scaling}:
        pair = [scaling.get(f"{name}_offset"), scaling.get(f"{name}_factor")]
        if any(values is None or len(values) != sizes.get(name) for values in pair):
            raise ValueError(f"the scaling of {name}s has another size than the network")
    if 0.0 in scaling.get("target_factor", ()):
        raise ValueError("the scaling of targets has a factor of 0")
