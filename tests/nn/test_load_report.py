"""The report of a load: its table, the names it suggests, and shapes with axes swapped."""

from __future__ import annotations

import time
from typing import Any

import pytest

from growarray.nn.load_report import Cast, LoadReport, Misshapen, nearest_names, prefix_hint
from tests.checkpoint.files import rows


@pytest.mark.parametrize(
    ("found", "expected", "said"),
    rows(
        {
            "matrix": ((3, 2), (2, 3), "last two axes swapped"),
            "reversed": ((3, 4, 5, 6), (6, 5, 4, 3), "axes reversed"),
            "last two": ((3, 4, 6, 5), (3, 4, 5, 6), "last two axes swapped"),
            "first two": ((4, 3, 5, 6), (3, 4, 5, 6), "first two axes swapped"),
            "other": ((2, 4), (2, 3), ""),
            "rank": ((3, 2, 1), (2, 3), ""),
            "vector": ((3,), (2,), ""),
            "scalar": ((), (1,), ""),
            "another order": ((5, 6, 3, 4), (3, 4, 5, 6), ""),
        }
    ),
)
def test_transposed(found: Any, expected: Any, said: str) -> None:
    entry = Misshapen("w", found, expected)
    assert entry.transposed == said
    assert LoadReport(misshapen=(entry,)).transposed == ((entry,) if said else ())


def test_the_table() -> None:
    report = LoadReport(
        missing=("body.bias",),
        unexpected=("body.biases", "other"),
        misshapen=(Misshapen("head.weight", (5, 2), (2, 5)), Misshapen("w", (1,), (2,))),
        refused=(Cast("counter", "float32", "int64"),),
        matched=("a", "b", "c"),
        casts=(Cast("a", "float64", "float32"), Cast("b", "float64", "float32"), Cast("c", "bfloat16", "float32")),
        shapes={"body.bias": (4,), "body.biases": (4,), "other": ()},
    )
    assert str(report).splitlines() == [
        "3 matched, 1 missing, 2 unexpected, 2 misshapen, 1 refused, 3 casts",
        "what        name         found     expected  remark",
        "missing     body.bias              (4,)      near: body.biases",
        "unexpected  body.biases  (4,)",
        "unexpected  other        ()",
        "misshapen   head.weight  (5, 2)    (2, 5)    last two axes swapped? transpose it yourself",
        "misshapen   w            (1,)      (2,)",
        "refused     counter      float32   int64     values would change: cast it yourself",
        "cast        a, b         float64   float32",
        "cast        c            bfloat16  float32",
    ]
    assert report.sentence() == (
        "missing: body.bias (near: body.biases); unexpected: body.biases, other; "
        "misshapen: head.weight has shape (5, 2), expected (2, 5) (transposed?), w has shape (1,), expected (2,); "
        "refused casts: counter from float32 to int64"
    )


@pytest.mark.parametrize(
    ("report", "wrong"),
    rows(
        {
            "empty": (LoadReport(), False),
            "casts": (LoadReport(matched=("a",), casts=(Cast("a", "float64", "float32"),)), False),
            "unused": (LoadReport(unused=("x.",)), False),
            "missing": (LoadReport(missing=("a",)), True),
            "unexpected": (LoadReport(unexpected=("a",)), True),
            "misshapen": (LoadReport(misshapen=(Misshapen("a", (1,), (2,)),)), True),
            "refused": (LoadReport(refused=(Cast("a", "float32", "int64"),)), True),
        }
    ),
)
def test_it_is_true_where_something_did_not_fit(report: LoadReport, wrong: bool) -> None:
    assert bool(report) is wrong
    assert ("every name and shape agrees" in str(report)) is not wrong


def test_names_of_a_file_cannot_steer_the_terminal() -> None:
    evil = "w\x1b]0;title\x07\u202e.weight"
    report = LoadReport(
        missing=(evil,),
        unexpected=(evil + "s",),
        misshapen=(Misshapen(evil, (1,), (2,)),),
        refused=(Cast(evil, "float32", "int64"),),
        matched=(evil,),
        casts=(Cast(evil, "float64", "float32"),),
        unused=(evil,),
    )
    text = str(report)
    assert text.replace("\n", "").isprintable()
    assert report.sentence().isprintable()
    assert text.count("\\x1b") >= 6


def test_long_lists_are_cut() -> None:
    names = tuple(f"layer{i}.weight" for i in range(5000))
    report = LoadReport(missing=names, unexpected=tuple(name.replace("layer", "block") for name in names))
    lines = str(report).splitlines()
    assert len(lines) == 2 + 2 * 41
    assert lines[42].split() == ["missing", "…", "and", "4960", "more"]
    assert len(report.sentence()) < 1500


# Names that look alike.


SHAPES = {
    "layer1.0.conv1.weight": (8, 3, 3, 3),
    "layer1.0.bn1.weight": (8,),
    "stages.0.0.conv1.weight": (8, 3, 3, 3),
    "stages.0.0.conv2.weight": (8, 8, 3, 3),
    "stages.0.0.bn1.weight": (8,),
    "optimizer.step": (),
}


def test_the_same_shape_goes_first() -> None:
    missing = ["layer1.0.conv1.weight", "layer1.0.bn1.weight"]
    found = nearest_names(missing, [name for name in SHAPES if name not in missing], SHAPES)
    assert found["layer1.0.conv1.weight"][0] == "stages.0.0.conv1.weight"
    assert found["layer1.0.bn1.weight"][0] == "stages.0.0.bn1.weight"
    assert all("optimizer.step" not in names for names in found.values())
    swapped = nearest_names(["fc.weight"], ["fc.weights", "gc.weight"], {"fc.weight": (2,), "gc.weight": (2,)})
    assert swapped == {"fc.weight": ("gc.weight", "fc.weights")}


def test_nothing_alike_is_not_suggested() -> None:
    assert nearest_names(["weight"], ["exp_avg_sq"], {}) == {}
    assert nearest_names([], ["a"], {}) == nearest_names(["a"], [], {}) == {}


@pytest.mark.parametrize(
    ("missing", "unexpected", "expected"),
    rows(
        {
            "off": (["a.w", "a.b"], ["net.a.w", "net.a.b"], {"net.": ""}),
            "on": (["net.a.w", "net.a.b"], ["a.w", "a.b", "c"], {"": "net."}),
            "too few": (["a", "b", "c"], ["net.a"], {}),
            "none": (["a"], ["b"], {}),
            "deep": (["w"], ["." * 100 + "w"], {}),
        }
    ),
)
def test_prefix_hint(missing: list[str], unexpected: list[str], expected: dict[str, str]) -> None:
    assert prefix_hint(missing, unexpected) == expected


def test_the_hint_is_shown() -> None:
    report = LoadReport(missing=("fc.weight",), unexpected=("module.fc.weight",))
    assert str(report).splitlines()[-1] == "try rename={'module.': ''}"
    assert report.sentence().endswith("; try rename={'module.': ''}")


def test_suggestions_for_many_names_take_bounded_time() -> None:
    missing = tuple(f"encoder.layer.{i}.attention.self.query.weight" for i in range(3000))
    unexpected = tuple(f"transformer.h.{i}.attention.query_projection.weight" for i in range(3000))
    start = time.process_time()
    report = LoadReport(missing=missing, unexpected=unexpected, shapes=dict.fromkeys(missing + unexpected, (8, 8)))
    assert len(report.suggestions) == 100
    assert time.process_time() - start < 10.0  # without the bound it is hours
