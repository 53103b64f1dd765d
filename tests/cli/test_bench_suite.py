"""``growarray bench suite``: what the suite holds, and what is made of its figures."""

import io
import json

import pytest
from rich.console import Console
from typer.testing import CliRunner

from growarray.cli import bench_suite
from growarray.cli.bench import app
from growarray.cli.bench_suite import CASES, QUICK, Case, chosen_cases, show_suite, suite_summary

SMALL = (Case("cp", 3, 4, "3x3", "6x6", 1, 2, 0.5), Case("tt", 3, 4, "3", "12", 2, 1, 1.0))


@pytest.fixture
def suite(monkeypatch):
    monkeypatch.setattr(bench_suite, "CASES", SMALL)
    monkeypatch.setattr(bench_suite, "QUICK", (2,))
    monkeypatch.delenv("COLUMNS", raising=False)
    return lambda *arguments: CliRunner().invoke(app, ["suite", *map(str, arguments)])


def test_the_suite_covers_what_it_should():
    assert len(CASES) >= 24
    assert {case.format for case in CASES} == {"cp", "tucker", "tt"}
    assert {case.rank for case in CASES} == {0.05, 0.1, 0.25, 0.5, 1.0}
    assert {case.batch for case in CASES} == {1, 8, 32}
    assert {case.stride for case in CASES} == {1, 2}
    assert {case.kernel for case in CASES} == {"3x3", "3x3x3"}
    places = {(case.in_channels, case.size) for case in CASES}
    assert {(64, "56x56"), (128, "28x28"), (256, "14x14"), (512, "7x7")} <= places
    assert all(case.stride == 2 for case in CASES if case.out_channels == 2 * case.in_channels)
    assert len(set(CASES)) == len(CASES)
    assert {CASES[number - 1].format for number in QUICK} == {"cp", "tucker", "tt"}
    assert all(case.layer().dtype == "float32" for case in CASES)


def test_cases_are_chosen_by_number():
    assert chosen_cases("3,7", quick=True) == [3, 7]
    assert chosen_cases(None, quick=True) == list(QUICK)
    assert chosen_cases(None, quick=False) == list(range(1, len(CASES) + 1))


def test_every_case_is_a_row_and_goes_into_the_file(suite, tmp_path):
    result = suite("--output", tmp_path, "--quick", "--cases", "1,2")
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 100
    assert "cp 0.5, 3 -> 4, 3x3 on 6x6, batch 2" in " ".join(result.stdout.split())
    assert "of 2 cases (" in result.stdout
    report = json.loads((tmp_path / "suite.json").read_text())
    assert [case["number"] for case in report["cases"]] == [1, 2]
    for case in report["cases"]:
        assert -1 <= case["spearman"] <= 1
        assert case["auto_behind"] >= 0
        assert "auto" in case["auto"]
        assert all(row["difference"] < 1e-5 for row in case["paths"])
    assert report["summary"] == suite_summary(report["cases"])


def test_quick_takes_its_own_cases(suite):
    report = json.loads(suite("--quick", "--json").stdout)
    assert [case["number"] for case in report["cases"]] == [2]


@pytest.mark.parametrize("text", ["0", "3", "1,x", ""])
def test_a_case_that_is_not_there_is_refused(suite, text):
    result = suite("--cases", text)
    assert result.exit_code == 2
    assert f"--cases: expected numbers from 1 to 2 such as 3,7, found {text!r}" in result.stderr


def test_sums_and_what_is_shown():
    common = {"auto_seconds": 1e-3, "fastest_seconds": 9e-4, "auto": "auto: time", "fastest": "patterns", "remarks": []}
    results = [
        {"number": 1, "case": "a", "spearman": 1.0, "auto_behind": 0.0, **common},
        {"number": 2, "case": "b", "spearman": 0.5, "auto_behind": 0.05, **common},
        {"number": 3, "case": "c", "spearman": None, "auto_behind": 0.11, **common},
    ]
    assert suite_summary(results) == {
        "cases": 3,
        "close": 2,
        "close_share": 2 / 3,
        "worst_behind": 0.11,
        "mean_spearman": 0.75,
        "least_spearman": 0.5,
    }
    stream = io.StringIO()
    show_suite(Console(file=stream, width=100), results)
    assert "auto within 5% of the fastest path: 2 of 3 cases (67%), at worst 11.0% behind" in stream.getvalue()
    assert "rank correlation: mean 0.750, least 0.500" in stream.getvalue()
