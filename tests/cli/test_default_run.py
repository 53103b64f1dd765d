"""The command with its defaults, as the README has it: the figure that it promises."""

from __future__ import annotations

from growarray.networks import History


def test_the_default_run_reaches_97_percent_of_the_test_digits_from_width_2(grow, tmp_path):
    result = grow("--output", tmp_path / "run", "--quiet")
    assert result.exit_code == 0, result.stderr
    history = History.load(tmp_path / "run" / "history.json")
    assert history.of("train")[0]["widths"] == [2]
    assert history.final["test_accuracy"] >= 0.97
    assert history.final["parameters"] <= 1294 * 10  # one for each number to learn
    assert history.final["widths"] == history.steps[-1]["widths"]
