"""Tables fit 80 columns whatever is in them."""

import io

import pytest
from rich.console import Console

from growarray.cli.grow.data import load_data
from growarray.cli.grow.options import RunOptions
from growarray.cli.grow.show import Show, growth_table, result_table
from growarray.networks import History
from growarray.networks.picture import draw

GROWN = {
    "epoch": 100,
    "where": "blocks.0.second",
    "widens": "blocks.0.first",
    "layer_index": 0,
    "added": 16,
    "scaling": 0.012345,
    "promised": 1.0,
    "predicted_change": -12.3456,
    "train_change": -0.00001,
    "train_loss": 1.23456,
    "validation_loss": 2.3456,
    "validation_score": 1.0,
    "parameters": 123456,
    "widths": [18, 2],
}


@pytest.fixture
def history():
    history = History()
    history.add("train", epoch=99, train_loss=2.0, validation_loss=2.0, validation_score=0.5, widths=[2, 2])
    history.add("growth", **GROWN)
    history.add(
        "growth",
        epoch=102,
        refused="no scaling lowers the validation loss",
        added=0,
        where="blocks.0.merge",
        widens="blocks.0.merge",
    )
    history.add("growth", epoch=104, refused="the budget is used up", added=0)
    return history


def rendered(shown, width, encoding="utf-8"):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(file=stream, width=width).print(shown)
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)


def test_reasons_and_notes_are_said_once(history):
    history.add("growth", epoch=106, refused="the budget is used up", added=0)
    history.add(
        "growth", **{**GROWN, "epoch": 108, "notes": ["optimal_delta: S is singular", "optimal_delta: E is singular"]}
    )
    stream = io.StringIO()
    figures = {"test_score": 0.5, "test_loss": 0.1, "parameters": 3, "widths": [1], "seconds": 1.0}
    Show(Console(file=stream, width=80)).result(RunOptions(), history, {**figures, "score_name": "r2"})
    assert (
        "after epoch 104, 106: growth refused, the budget is used up\nafter epoch 108: some inputs" in stream.getvalue()
    )
    assert stream.getvalue().count("some inputs of the grown layer are always zero or follow from others") == 1


@pytest.mark.parametrize("score_name", ["accuracy", "r2"])
@pytest.mark.parametrize("width", [80, 120])
def test_growth_table_has_one_line_a_step(history, width, score_name):
    lines = [line.rstrip() for line in rendered(growth_table(history, {"score_name": score_name}), width).splitlines()]
    assert max(map(len, lines)) <= width
    rows = [line.split() for line in lines if line.strip()][-3:]
    score = "100.00%" if score_name == "accuracy" else "1.0000"
    figures = ["100", "blocks.0.first", "+16", "123456", "0.0123", "-12.3456", "-1.0e-05", "1.2346", "2.3456", score]
    assert rows[0] == figures
    assert rows[1] == ["102", "blocks.0.merge", "0", "-", "refused", "-", "-", "-", "-", "-"]
    assert rows[2][1:5] == ["everywhere", "0", "-", "refused"]


def test_tables_can_be_piped_where_there_is_only_ascii(history):
    figures = {"test_score": None, "test_loss": None, "parameters": 3, "widths": [1], "seconds": 1.0}
    final = {**figures, "score_name": "r2", "compare": figures}
    assert "blocks.0.first" in rendered(growth_table(history, {"score_name": "accuracy"}), 80, "ascii")
    assert "no test part" in rendered(result_table(final), 80, "ascii")


class Tty(io.StringIO):
    """A stream that says to be a terminal."""

    def isatty(self):
        return True


def test_a_terminal_gets_a_bar(history):
    stream = Tty()
    console = Console(file=stream, force_terminal=True, width=80)
    data = load_data(RunOptions())
    with Show(console) as show:
        from_run = type("Loop", (), {"epoch": 0, "task": type("Task", (), {"score_name": "accuracy"})})
        from_run.data, from_run.validation = data.train, data.validation
        from_run.network = type("Network", (), {"widths": [2], "number_of_parameters": lambda: 160})
        show.start(RunOptions(), data, from_run)
        for entry in history.steps:
            show.entry(from_run, {"lr": 0.1, **entry})
    assert "validation 50.00%" in stream.getvalue()
    assert "growth refused: the budget is used up" in stream.getvalue()


def test_the_picture_takes_losses_over_decades_and_refusals(history):
    history.add("train", epoch=104, train_loss=0.01, validation_loss=0.02, validation_score=0.9, widths=[18, 2])
    assert draw(history.steps, history.final).startswith(b"\x89PNG")


def test_the_picture_calls_figures_of_the_training_data_so(history):
    names = [[text.get_text() for text in panel.get_legend().get_texts()] for panel in history.plot().axes]
    assert "validation" in names[0]
    assert names[1] == ["validation"]
    for entry in history.of("train"):
        entry["judged_by"] = "training"
    names = [[text.get_text() for text in panel.get_legend().get_texts()] for panel in history.plot().axes]
    assert names[0][:2] == ["training", "training, after each epoch"]
    assert names[1] == ["training"]


def test_the_picture_shows_the_fixed_network_beside_the_grown_one(history):
    steps = [
        {
            "epoch": epoch,
            "train_loss": 1.0 / epoch,
            "validation_loss": 1.5 / epoch,
            "validation_score": 0.5,
            "widths": [18, 2],
        }
        for epoch in (1, 2, 3)
    ]
    history.final = {"score_name": "accuracy", "test_score": 0.9, "compare": {"test_score": 0.8, "steps": steps}}
    loss, score, width = history.plot().axes
    lines = {line.get_label(): list(line.get_ydata()) for panel in (loss, score, width) for line in panel.get_lines()}
    assert lines["training, fixed"] == [1.0, 0.5, 1.0 / 3]
    assert lines["validation, fixed"] == [0.5, 0.5, 0.5]  # of the score, drawn last
    assert [18, 18, 18] in [list(line.get_ydata()) for line in width.get_lines() if line.get_linestyle() == ":"]
    assert lines["fixed"] == []  # one entry of the legend for all widths
    names = [text.get_text() for text in score.get_legend().get_texts()]
    assert names[-2:] == ["test at the end, fixed: 80.00%", "test at the end: 90.00%"]
    history.final["compare"] = None
    assert not any("fixed" in str(line.get_label()) for panel in history.plot().axes for line in panel.get_lines())


def test_an_undone_growth_shows_what_was_promised_and_what_came(history):
    undone = {"undone": True, "refused": "it raised the validation loss, 0.5000 -> 0.6000", "widens": "layers.0"}
    history.add("growth", epoch=106, added=0, predicted_change=-0.25, train_change=-0.125, **undone)
    rows = rendered(growth_table(history, {"score_name": "accuracy"}), 80).rstrip().splitlines()
    assert rows[-1].split() == ["106", "layers.0", "0", "-", "undone", "-0.2500", "-0.1250", "-", "-", "-"]


def test_without_validation_data_no_column_says_so(history):
    final = {"score_name": "accuracy", "samples": {"validation": 0}}
    text = rendered(growth_table(history, final), 80)
    assert "valid." not in text
    assert " 2.3456" not in text
