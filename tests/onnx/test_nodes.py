"""The node tests of the ``onnx`` package: each case gives what the standard says, or is refused by name."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference.ops import op_pool_common

from growarray.checkpoint import from_onnx
from growarray.errors import CheckpointError, GrowArrayError
from growarray.onnx.export import OPSETS
from growarray.onnx.operators import OPERATORS

PASSES = 1409
"""Cases that pass at least, of the 1,884 of onnx 1.23; fewer may exist in another version."""
SLOPES = 750
"""Cases at least whose pullback is checked."""
EMPTY = "(fullymasked|structural_empty|boolmask_nan|local_window_gqa_rank4_mask).*expanded"
"""Written out, softmax has no derivative where a query sees no key."""
MARKS = ("operator '", "input '", "output '", "initializer '", "opset", "refused in")  # a refusal names one of these
EPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7}  # what each step in half precision rounds away: here it is in single


ONE_BY_ONE = op_pool_common.pool
POOLS: dict[str, Any] = {
    "AVG": lambda windows, axes, p: np.nanmean(windows, axes),
    "MAX": lambda windows, axes, p: np.nanmax(windows, axes),
    "LPPOOL": lambda windows, axes, p: np.nansum(np.abs(windows) ** p, axes) ** (1 / p),
}


def pool(
    padded: Any, x_shape: Any, kernel: Any, strides: Any, out_shape: Any, pooling_type: str, pads_required: Any = None,
    pads: Any = None, dilations: Any = None, count_include_pad: int = 0, p: int = 1,
) -> Any:  # fmt: skip
    """What the package gives; it takes most of its time for pooling large images window by window."""
    options = pads_required, pads, dilations, count_include_pad, p
    n, places = len(kernel), tuple(out_shape)
    strides, dilations = strides or [1] * n, dilations or [1] * n
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, tuple(range(2, n + 2)))
    windows = windows[(..., *(slice(None, None, step) for step in (*strides, *dilations)))]
    if math.prod(places) < 1000 or windows.shape[2 : n + 2] != places or padded.shape != padded_by(pads, x_shape):
        return ONE_BY_ONE(padded, x_shape, kernel, strides, out_shape, pooling_type, *options)
    return POOLS[pooling_type](windows, tuple(range(-n, 0)), p).astype(padded.dtype)


def padded_by(pads: Any, shape: Any) -> tuple[int, ...]:
    n = len(shape) - 2
    return (*shape[:2], *(shape[i + 2] + (pads[i] + pads[i + n] if pads is not None else 0) for i in range(n)))


@pytest.fixture(scope="module")
def cases() -> list[Any]:
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.setattr(op_pool_common, "pool", pool)
        from onnx.backend.test.case.node import collect_testcases  # generates all, some ten seconds

        return [case for case in collect_testcases(None) if case.model is not None]


def array(value: Any) -> np.ndarray:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def with_constants(model: onnx.ModelProto, values: list[Any]) -> onnx.ModelProto:
    """The model with all inputs but the first as initializers, as an exporter writes weights and axes."""
    found = onnx.ModelProto()
    found.CopyFrom(model)
    for info, value in list(zip(model.graph.input, values, strict=False))[1:]:
        if not isinstance(value, onnx.TensorProto | np.ndarray | np.generic):
            continue  # a sequence, or an input that is left out
        if not isinstance(value, onnx.TensorProto):
            value = numpy_helper.from_array(np.asarray(value), info.name)
        copy = onnx.TensorProto()
        copy.CopyFrom(value)
        copy.name = info.name
        found.graph.initializer.append(copy)
    return found


def outcome(model: onnx.ModelProto, inputs: list[Any], outputs: list[Any], case: Any) -> str:
    """``'passes'``, the message of a refusal, or what is wrong, after ``'WRONG'``."""
    try:
        network = from_onnx(io.BytesIO(model.SerializeToString()))
    except CheckpointError as refusal:
        return str(refusal)
    named = zip(model.graph.input, inputs, strict=False)
    given = {info.name: array(value) for info, value in named if info.name in network.inputs}
    feeds = {name: x.astype(np.float32) if x.dtype.name == "bfloat16" else x for name, x in given.items()}
    try:
        found = network.run({name: feeds[name] for name in network.inputs})
    except GrowArrayError as refusal:
        return f"refused in {refusal}"
    for info, expected in zip(model.graph.output, map(array, outputs), strict=False):
        half = EPS.get(expected.dtype.name, 0.0)
        rtol, largest = max(case.rtol, half), np.max(np.abs(np.float64(expected)), initial=0.0)
        atol = max(case.atol, 1e-7, half * largest)
        value = np.asarray(found[info.name])
        if value.shape != expected.shape:
            return f"WRONG shape {value.shape}, expected {expected.shape}"
        if not np.allclose(np.float64(value), np.float64(expected), rtol=rtol, atol=atol, equal_nan=True):
            return f"WRONG by {np.max(np.abs(np.float64(value) - np.float64(expected)))}"
    return "passes"


def is_float(x: np.ndarray) -> bool:
    return x.dtype.kind == "f" or x.dtype.name == "bfloat16"


def slopes(case: Any) -> tuple[float, float] | None:
    """What pullback and differences say of a case along a random direction, near its inputs, where nothing has a kink.

    None: it has no float inputs and outputs, is refused, rounds to half precision, or a value is not finite.
    """
    rng, named = np.random.default_rng(0), zip(case.model.graph.input, case.data_sets[0][0], strict=False)
    given = {info.name: array(value) for info, value in named if not isinstance(value, list | tuple | dict)}
    if any(x.dtype.name in EPS for x in given.values()):
        return None
    try:
        network = from_onnx(io.BytesIO(case.model.SerializeToString()), dtype="float64")
        values = [given[name] for name in network.inputs]
        ways = [rng.standard_normal(x.shape) if is_float(x) else None for x in values]
        values = [x if way is None else x + 1e-3 * way for x, way in zip(values, ways, strict=True)]
        y, pullback = network.vjp(*values)
    except (GrowArrayError, KeyError):
        return None
    outputs = y if len(network.outputs) > 1 else (y,)
    weights = [np.asarray(rng.standard_normal(out.shape)) if is_float(out) else None for out in outputs]
    if all(way is None for way in ways) or all(weight is None for weight in weights):
        return None
    found = pullback(*weights)
    pairs = zip(found if len(values) > 1 else (found,), ways, strict=True)
    slope = sum(float(np.sum(dx * way)) for dx, way in pairs if way is not None)
    sums = []
    for step in (1e-6, -1e-6):
        moved = network(*[x if way is None else x + step * way for x, way in zip(values, ways, strict=True)])
        moved = zip(moved if len(outputs) > 1 else (moved,), weights, strict=True)
        sums.append(sum(float(np.sum(out * weight)) for out, weight in moved if weight is not None))
    expected = (sums[0] - sums[1]) / 2e-6
    return (slope, expected) if np.isfinite(expected) else None


def outcomes(cases: list[Any]) -> Iterator[tuple[str, str]]:
    """Name and outcome of each case: as it is, and with constants in place of inputs if it is refused so."""
    for case in cases:
        for inputs, outputs in case.data_sets:
            found = outcome(case.model, inputs, outputs, case)
            if found != "passes" and not found.startswith("WRONG"):
                found = outcome(with_constants(case.model, inputs), inputs, outputs, case)
            yield case.name, found


def test_every_case_passes_or_is_refused_by_name(cases: list[Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = dict(outcomes(cases))
    assert {name: text for name, text in found.items() if text.startswith("WRONG")} == {}
    passing = [name for name, text in found.items() if text == "passes"]
    assert len(passing) >= PASSES, f"{len(passing)} of {len(found)} cases pass"
    for text in found.values():
        assert text == "passes" or any(mark in text for mark in MARKS), text


def test_every_pullback_is_the_slope_of_differences(cases: list[Any]) -> None:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = {case.name: pair for case in cases if (pair := slopes(case)) is not None}
    assert len(found) >= SLOPES
    wrong = {name: pair for name, pair in found.items() if not np.isclose(*pair, rtol=1e-5, atol=1e-4)}
    wrong = {name: pair for name, pair in wrong.items() if not re.search(EMPTY, name)}
    assert wrong == {}


def test_the_docs_list_every_operator() -> None:
    text = (Path(__file__).parents[2] / "docs" / "onnx.md").read_text().partition("## Operators")[2]
    table = "".join(line for line in text.splitlines(keepends=True) if line.startswith("| "))
    assert set(re.findall(r"\b[A-Z]\w+", table)) == {row.name for row in OPERATORS.values()}


def test_rows_are_those_of_the_standard() -> None:
    for key, row in OPERATORS.items():
        schema = onnx.defs.get_schema(row.name, row.domain)
        versions = [
            s.since_version
            for s in onnx.defs.get_all_schemas_with_history()
            if (s.domain, s.name) == (row.domain, row.name)
        ]
        assert row.key == key
        assert row.inputs[0] <= schema.max_input
        assert row.inputs[1] >= schema.min_input
        assert not row.writes or row.since >= min(versions) or min(versions) <= OPSETS.start
