"""``python -m bench suite``: what the suite holds, and what is made of its figures."""

import json
import subprocess
import sys

import pytest

from bench import suite as module
from bench.suite import CASES, QUICK, Case, chosen_cases, median_ratio, report, run, suite_summary
from tests.bench.checkout import ENVIRONMENT, ROOT

SMALL = (Case("cp", 3, 4, "3x3", "6x6", 1, 2, 0.5), Case("tt", 3, 4, "3", "12", 2, 1, 1.0))


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(module, "CASES", SMALL)
    monkeypatch.setattr(module, "QUICK", (2,))


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


def test_every_case_is_a_row(small):
    told = []
    found = run(quick=True, cases="1,2", progress=lambda so_far: told.append(len(so_far["cases"])))
    assert told == [1, 2]
    assert [case["number"] for case in found["cases"]] == [1, 2]
    for case in found["cases"]:
        assert -1 <= case["spearman"] <= 1
        assert -1 <= case["agreement"] <= 1
        assert case["auto_behind"] >= 0
        assert "auto" in case["auto"]
        assert all(row["difference"] < 1e-5 for row in case["paths"])
    assert found["summary"] == suite_summary(found["cases"])
    text = report(found)
    assert "| 1 | cp 0.5, 3 -> 4, 3x3 on 6x6, batch 2 |" in text
    assert "of 2 cases (" in text
    assert found["blas"] in text
    for case in found["cases"]:
        auto = next(row for row in case["paths"] if row["label"] == case["auto"])
        assert case["flops"] == auto["forward"]["flops"]
        assert case["rate"] * found["product_rate"] * case["auto_seconds"] == pytest.approx(case["flops"])


def test_quick_takes_its_own_cases(small):
    assert [case["number"] for case in run(quick=True)["cases"]] == [2]


@pytest.mark.parametrize("text", ["0", "3", "1,x", ""])
def test_a_case_that_is_not_there_is_refused(small, text):
    with pytest.raises(ValueError, match=f"--cases: expected numbers from 1 to 2 such as 3,7, found '{text}'"):
        chosen_cases(text, quick=False)


def test_a_round_that_was_slow_for_both_does_not_count():
    assert median_ratio([1.0, 9.0, 1.1], [2.0, 18.0, 2.2]) == pytest.approx(0.5)


def test_the_suite_runs_from_the_command_line_and_is_written(tmp_path):
    file = tmp_path / "suite.json"
    command = [sys.executable, "-m", "bench", "suite", "--quick", "--cases", "10", "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "| 10 | cp 0.5, 512 -> 512, 3x3 on 7x7, batch 1 |" in done.stdout
    assert [case["number"] for case in json.loads(file.read_text())["suite"]["cases"]] == [10]


def test_sums_and_what_is_shown():
    common = {"auto_seconds": 1e-3, "fastest_seconds": 9e-4, "auto": "auto: time", "fastest": "patterns", "remarks": []}
    results = [
        {"number": 1, "case": "a", "spearman": 1.0, "agreement": 0.9, "auto_behind": 0.0, **common},
        {"number": 2, "case": "b", "spearman": 0.5, "agreement": 0.8, "auto_behind": 0.05, **common},
        {"number": 3, "case": "c", "spearman": None, "agreement": None, "auto_behind": 0.11, **common},
    ]
    assert suite_summary(results) == {
        "cases": 3,
        "close": 2,
        "close_share": 2 / 3,
        "worst_behind": 0.11,
        "mean_spearman": 0.75,
        "mean_agreement": pytest.approx(0.85),
        "least_spearman": 0.5,
    }
    text = report({"cases": results, "summary": suite_summary(results)})
    assert "| 3 | c | 1 ms | 900 us | – | 11.0% | – | – | patterns |" in text
    assert "| 1 | a | 1 ms | 900 us | – | 0.0% | 1.00 | 0.90 | auto |" in text
    assert "auto within 5% of the fastest path: 2 of 3 cases (67%), at worst 11.0% behind" in text
    assert "rank correlation: mean 0.750, least 0.500" in text
    assert "rank correlation of the even rounds with the odd ones: mean 0.850" in text
