"""``growarray bench search``: instances read, planners scored, what is refused."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

import growarray.cli.bench.search as bench_search
from growarray.cli.application import app
from growarray.cli.bench.candidates import window_path
from growarray.cli.bench.equation import equation_from
from growarray.cli.bench.search import PLANNERS, planner_named, read_instances, scores

ROOT = Path(__file__).parents[2]
CP = {
    "equation": "n c y x, r, o r, c r, y r, x r -> n o y x | y, x",
    "shapes": [[8, 64, 56, 56], [28], [64, 28], [64, 28], [3, 28], [3, 28]],
    "padding": 1,
    "best": {"flops": 188260436},
}
RING = {
    "inputs": [["a", "b"], ["b", "c"], ["c", "d"], ["d", "a"]],
    "output": [],
    "size_dict": {"a": 9, "b": 2, "c": 8, "d": 3},
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "cp.json").write_text(json.dumps(CP))
    (tmp_path / "ring.json").write_text(json.dumps(RING))
    return tmp_path


def command(*arguments):
    return CliRunner().invoke(app, ["bench", "search", *map(str, arguments)])


def test_planners_are_scored_by_what_their_paths_cost_here(folder):
    result = command(folder, "--seconds", 0.1, "--json")
    assert result.exit_code == 0, result.output
    cp, ring = json.loads(result.stdout)
    assert cp["flops"] == {"growarray": 188260436, "greedy-windows": 188262144, "dp-windows": 899170384}
    assert cp["best"] == 188260436
    assert ring["best"] == min(ring["flops"].values())  # where no instance says it


def test_the_table_says_what_each_knows_and_how_far_it_is_from_the_best(folder):
    result = command(folder, "--planner", "growarray-trials", "--planner", "dp-windows")
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["growarray-trials", "convolutions", "2", "2", "1.000", "1"] in [line[:6] for line in lines]
    assert next(line for line in lines if line[:1] == ["dp-windows"])[1:6] == ["windows", "2", "1", "2.185", "4.78"]
    assert "2 instances; FLOPs of a forward pass beside the least that are known" in result.stdout


def test_a_function_of_the_users_is_a_planner(folder, monkeypatch):
    monkeypatch.setattr(
        bench_search, "from_left", lambda inputs, output, sizes: [(0, 1)] * (len(inputs) - 1), raising=False
    )
    result = command(folder / "cp.json", "--planner", "growarray.cli.bench.search:from_left", "--json")
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)
    assert row["flops"]["growarray.cli.bench.search:from_left"] > row["best"]


def refused(inputs, output, sizes):
    """A planner that has no path for equations of six operands."""
    if len(inputs) == 6:
        raise RuntimeError("too many")
    return [(0, 1)] * (len(inputs) - 1)


def test_an_instance_without_a_path_is_marked_and_the_others_are_scored(folder):
    planner = f"{__name__}:refused"
    result = command(folder, "--planner", planner, "--planner", "growarray-trials", "--json")
    assert result.exit_code == 0, result.output
    cp, ring = json.loads(result.stdout)
    assert (cp["flops"][planner], cp["best"]) == (None, 188260436)
    assert "failed on" in cp["missing"][planner]
    assert "too many" in cp["missing"][planner]
    assert ring["flops"][planner] > 0
    assert ring["missing"] == {}
    table = command(folder, "--planner", planner, "--planner", "growarray-trials").stdout
    assert f"{planner}: no path on cp; on the first: optimize" in " ".join(table.split())


def test_a_planner_without_any_path_is_an_error_after_the_table(folder):
    result = command(folder / "cp.json", "--planner", f"{__name__}:refused", "--planner", "growarray-trials")
    assert result.exit_code == 2
    assert "growarray-trials" in result.stdout
    assert "refused has a path on no instance: optimize" in result.stderr
    assert result.stderr.count("\n") == 1


def test_seconds_are_of_the_instances_that_a_planner_is_asked_for(folder, monkeypatch):
    monkeypatch.setitem(PLANNERS, "dp-windows", replace(PLANNERS["dp-windows"], most=4))
    cp, ring = json.loads(command(folder, "--planner", "dp-windows", "--json").stdout)
    assert (cp["seconds"]["dp-windows"], cp["missing"]["dp-windows"]) == (None, "not asked above 4 operands")
    assert ring["seconds"]["dp-windows"] > 0
    assert "dp-windows: not asked above 4 operands, 1 of the instances" in command(folder).stdout


@pytest.mark.filterwarnings("ignore:Couldn't import `kahypar`")
def test_cotengra_over_our_costs_beside_the_window_view():
    pytest.importorskip("cotengra", reason="cotengra, of the extra search, is not installed")
    planners = {name: PLANNERS[name] for name in ("cotengra", "cotengra-windows", "random-greedy")}
    (row,) = scores({"cp": equation_from(CP)}, planners, seconds=0.5)
    assert row["flops"]["cotengra-windows"] > 4 * row["best"]
    assert row["flops"]["cotengra"] < 1.01 * row["best"]
    assert row["flops"]["random-greedy"] < 1.01 * row["best"]


def test_a_planner_that_is_not_installed_is_named_with_its_extra(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "cotengra", None)
    result = command(folder, "--planner", "cotengra")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "planner 'cotengra' needs cotengra" in result.stderr
    assert 'pip install "growarray[search]"' in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--planner", "fastest"), "--planner: expected one of growarray, growarray-trials, random-greedy, cotengra,"),
        (("--planner", "nowhere.at:all"), "--planner nowhere.at:all: cannot be imported (No module named 'nowhere')"),
        (
            ("--planner", "json:__name__"),
            "--planner json:__name__: found 'json', expected a function as opt_einsum calls",
        ),
        (("--seconds", "0"), "--seconds: expected more than 0, found 0"),
        (("--seed", "-1"), "--seed: expected at least 0, found -1"),
    ],
)
def test_what_is_refused_is_one_line(folder, arguments, message):
    result = command(folder, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_instances_that_do_not_parse_are_named(folder):
    (folder / "bad.json").write_text("{")
    assert f"{folder / 'bad.json'}: cannot be read as a layer or an equation" in command(folder).stderr
    (folder / "bad.json").write_text(json.dumps({**RING, "size_dict": {"a": 3}}))
    assert f"{folder / 'bad.json'}: size_dict: no size for mode(s) b, c, d" in command(folder).stderr
    (folder / "bad.json").write_text(json.dumps({"format": "cp"}))
    assert f"{folder / 'bad.json'}: unknown key(s) format" in command(folder).stderr
    assert "no JSON files are there" in command(ROOT / "growarray").stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            json.dumps({**CP, "best": [1]}),
            'best: expected whole numbers of at least 0 such as {"flops": 1008}, found [1]',
        ),
        (json.dumps({**CP, "best": {"flops": "many"}}), "best: expected whole numbers"),
        (json.dumps({**CP, "best": {"flops": float("nan")}}), "best: expected whole numbers"),
        (json.dumps({**RING, "size_dict": dict.fromkeys("abcd", 2.7)}), "2.7 is no whole number"),
        (json.dumps({**RING, "size_dict": dict.fromkeys("abcd", float("inf"))}), "inf is no whole number"),
        (json.dumps({"equation": "ij->i", "shapes": [[True, 2]]}), "shapes: expected one for each operand"),
        ("[" * 100_000, "cannot be read as a layer or an equation"),
    ],
    ids=["a list", "a word", "NaN", "a fraction", "infinite", "a bool", "too deep"],
)
def test_numbers_of_an_instance_are_whole(folder, text, message):
    (folder / "bad.json").write_text(text)
    assert f"{folder / 'bad.json'}: " in (stderr := command(folder).stderr)
    assert message in stderr


def test_window_planners_take_one_operand_and_steps_of_several():
    one = equation_from({"equation": "i j -> i", "shapes": [[2, 3]]})
    assert window_path(one, "greedy")[0] == ((0,),)
    empty = equation_from({"equation": "i j, j k -> i k", "shapes": [[2, 0], [0, 4]]})
    assert window_path(empty, "dp")[0] == ((0, 1),)
    three = equation_from({"equation": "i j, j k, k l -> i l", "shapes": [[2, 3], [3, 4], [4, 5]]})
    assert window_path(three, [(0, 1, 2)])[0] == ((0, 1, 2),)


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "bench" / "instances").glob("*.json")))
def test_the_instances_that_are_kept_have_a_best_that_is_reached_or_beaten_by_no_window_planner(name):
    (instance,) = read_instances(ROOT / "bench" / "instances" / f"{name}.json").values()
    assert instance.problem.conv
    (row,) = scores({name: instance}, {"greedy-windows": planner_named("greedy-windows")}, seconds=1.0)
    flops = row["flops"]["greedy-windows"]
    assert flops is None or flops >= instance.best["flops"]
    if len(instance.shapes) <= 7:
        assert instance.plan(minimize="flops").flops == instance.best["flops"]
