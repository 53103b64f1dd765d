"""``growarray bench paths`` on equations: inline, from files of ours, and as others write their instances."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from growarray.cli.application import app
from growarray.cli.bench.candidates import candidates_for
from growarray.cli.bench.equation import equation_from, read_options
from growarray.contraction import plan, tree_dict

CHAIN = {
    "inputs": [["a", "b"], ["b", "c"], ["c", "d"]],
    "output": ["a", "d"],
    "size_dict": {"a": 9, "b": 2, "c": 8, "d": 3},
}
CONV = "n c x, r c, x r, o r -> n o x | x"
SHAPES = "2x3x12, 4x3, 3x4, 5x4"


def paths(*arguments):
    return CliRunner().invoke(app, ["bench", "paths", "--repeat", "1", "--paths", "5", *map(str, arguments)])


def test_an_equation_inline():
    result = paths("--equation", CONV, "--shapes", SHAPES, "--padding", 1, "--stride", 2, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    made = plan(CONV, (2, 3, 12), (4, 3), (3, 4), (5, 4), padding=1, stride=2)
    assert report["layer"]["equation"] == CONV
    rows = {name: row for row in report["paths"] for name in row["names"]}
    assert rows["auto: time"]["forward"]["flops"] == made.flops
    assert {"factorized", "reconstructed", "patterns", "windows: optimal"} <= set(rows)
    assert all(row["difference"] < 1e-5 for row in report["paths"])


def test_a_plain_equation_has_no_presets():
    found = equation_from(CHAIN)
    names = {name for candidate in candidates_for(found, 9) for name in candidate.names}
    assert {"auto: time", "auto: flops", "opt_einsum: optimal"} <= names
    assert not {"factorized", "patterns"} & names


def test_a_path_too_large_to_measure_is_left_out_and_said(monkeypatch):
    monkeypatch.setattr("growarray.cli.bench.candidates._HEAVIEST", 1 << 19)
    result = paths("--equation", CONV, "--shapes", "1x300x9, 2x300, 3x2, 300x2", "--json", "--no-training")
    report = json.loads(result.stdout)
    assert report["remarks"][0].startswith("reconstructed: not measured, it should hold 1.09 MB and take ")
    assert "reconstructed" not in {name for row in report["paths"] for name in row["names"]}


@pytest.mark.parametrize("kind", ["json", "toml", "cotengra"])
def test_an_equation_from_a_file(tmp_path, kind):
    path = tmp_path / f"equation.{'toml' if kind == 'toml' else 'json'}"
    if kind == "toml":
        path.write_text('equation = "ab,bc,cd->ad"\nshapes = [[9, 2], [2, 8], [8, 3]]\ndtype = "float64"\n')
    elif kind == "json":
        path.write_text(json.dumps({"equation": "ab,bc,cd->ad", "shapes": "9x2, 2x8, 8x3", "dtype": "float64"}))
    else:
        path.write_text(json.dumps(CHAIN | {"dtype": "float64"}))
    result = paths(path, "--json", "--no-training")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    best = plan("ab,bc,cd->ad", (9, 2), (2, 8), (8, 3), minimize="flops").flops
    assert min(row["forward"]["flops"] for row in report["paths"]) == best
    assert max(row["difference"] for row in report["paths"]) < 1e-13


@pytest.mark.parametrize(
    "arguments",
    [
        ("--in", 3, "--out", 4, "--rank", 2, "--size", 6, "--stride", 2, "--dtype", "float64"),
        ("--equation", "n c x, c x -> n c x | x", "--shapes", "2x3x8, 3x3", "--padding", 1, "--stride", 2),
        ("--equation", "ab,bc,cd->ad", "--shapes", "9x2, 2x8, 8x3"),
    ],
    ids=["layer", "convolution", "plain"],
)
def test_the_tree_that_it_writes_is_read_again(tmp_path, arguments):
    written = paths(*arguments, "--no-training", "--output", tmp_path)
    assert written.exit_code == 0, written.output
    first = json.loads((tmp_path / "paths.json").read_text())
    again = paths(tmp_path / "tree.json", "--no-training", "--json")
    assert again.exit_code == 0, again.output
    second = json.loads(again.stdout)
    assert second["layer"]["dtype"] == first["layer"]["dtype"]
    costs = [{row["forward"]["flops"] for row in report["paths"]} for report in (first, second)]
    assert costs[0] == costs[1]


def test_a_tree_for_cotengra_is_its_contraction(tmp_path):
    made = plan("ab,bc,cd->ad", (9, 2), (2, 8), (8, 3))
    path = tmp_path / "tree.json"
    path.write_text(json.dumps(tree_dict(made)))
    assert equation_from(read_options(path, ())).shapes == ((9, 2), (2, 8), (8, 3))


def test_windows_without_their_equation_are_refused(tmp_path):
    path = tmp_path / "tree.json"
    path.write_text(json.dumps(tree_dict(plan("n c x, c x -> n c x | x", (2, 3, 8), (3, 3), padding=1))))
    with pytest.raises(ValueError, match=r"unknown key\(s\) convolutions; known are name, equation, shapes"):
        read_options(path, ())


@pytest.mark.parametrize(
    "names", [("a", "b", "c", "d"), ("ab", "b", "c", "d"), ("1", "x y", "*", "é"), (0, 1, 2, 3)], ids=str
)
def test_any_name_of_others_is_a_mode(names):
    word = dict(zip("abcd", names, strict=True))
    given = {
        "inputs": [[word[m] for m in term] for term in CHAIN["inputs"]],
        "output": [word[m] for m in CHAIN["output"]],
        "size_dict": {str(word[m]): n for m, n in CHAIN["size_dict"].items()},
    }
    found, arrays = equation_from(given), [np.ones((9, 2)), np.ones((2, 8)), np.ones((8, 3))]
    assert found.shapes == ((9, 2), (2, 8), (8, 3))
    assert np.array_equal(found.plan()(*arrays), arrays[0] @ arrays[1] @ arrays[2])


def test_modes_of_one_operand_each_may_have_long_names():
    found = equation_from({"inputs": [["ab"], ["ab"]], "output": [], "size_dict": {"ab": 3}})
    assert found.plan()(np.ones(3), np.ones(3)) == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({**CHAIN, "size_dict": {"a": 1}}, "size_dict: no size for mode(s) b, c, d"),
        ({"inputs": [3], "output": [], "size_dict": {}}, "inputs, output, size_dict: expected lists of modes and a"),
        ({**CHAIN, "inputs": "ab,bc"}, "inputs: expected a list with the modes of each operand, found 'ab,bc'"),
        ({"equation": "ab - b", "shapes": "2x3"}, "character 4: unexpected '-', expected a name, ',', '->' or '|'"),
        ({**CHAIN, "size_dict": {**CHAIN["size_dict"], "a": "x"}}, "inputs, output, size_dict: expected lists"),
        ({"inputs": [["a"]], "output": []}, "size_dict: none given; a contraction has inputs, output, size_dict"),
        ({"equation": "ab,bc->ac"}, "shapes: none given; an equation needs one for each operand, such as 8x64, 64x3"),
        ({"equation": "ab,bc->ac", "shapes": "2x3"}, "this equation cannot be contracted: 'a b, b c -> a c' has 2"),
        ({"equation": "ab,bc->ac", "shapes": "2xq, 3x4"}, "shapes: expected one for each operand such as 8x64, 64x3"),
        ({"equation": "ab,,->", "shapes": "2x3, (), ()", "dtype": "int8"}, "dtype: expected float32 or float64, found"),
        ({"equation": "ab,bc->ad", "shapes": "2x3, 3x4"}, "output mode 'd' is not in any operand"),
        ({"equation": "a,b->ab", "shapes": "99999, 99999"}, "an array of this equation has more than 268435456"),
        ({"equation": "ab,bc->ac", "shapes": "2x3, 3x4", "rank": 3}, "rank: an option of a layer; with an equation"),
        ({**CHAIN, "equation": "ab->a"}, "expected either an equation with shapes, or inputs, output and size_dict"),
        ({"equation": "n c x, o c x -> n o x | x", "shapes": "1x2x9, 2x2x3", "stride": 0}, "--stride: expected whole"),
    ],
)  # fmt: skip
def test_what_is_no_equation_is_refused(given, message):
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        equation_from(given)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shapes", "2x3"), "or inputs, output and size_dict, found shapes"),
        (("--equation", "ab,bc->ac", "--shapes", "2x3, 3x4", "--rank", "3"), "rank: an option of a layer; with an"),
        (("--equation", "ab,bc->ac", "--shapes", "9000x9000, 9000x9000", "--dtype", "float64"), "the best path should"),
    ],
)
def test_a_command_that_is_refused_is_one_line(arguments, message):
    result = paths(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_empty_arrays_have_paths_and_equal_results():
    report = json.loads(paths("--equation", "ab,bc,cd->ad", "--shapes", "2x0, 0x5, 5x3", "--json").stdout)
    assert report["remarks"] == []


def test_a_file_that_is_refused_names_the_file(tmp_path):
    path = tmp_path / "broken.json"
    path.write_text(json.dumps({**CHAIN, "size_dict": {}}))
    assert f"{path}: size_dict: no size for mode(s) a, b, c, d" in paths(path).stderr
