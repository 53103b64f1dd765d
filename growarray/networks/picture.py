"""The picture of a run: loss, figure of merit and widths over the epochs, growths marked."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

if TYPE_CHECKING:
    from growarray.networks.history import History

__all__ = ["draw", "figure_of"]

_TRAIN, _VALIDATION, _GROWTH, _REFUSED = "#1f77b4", "#d95f02", "#8c8c8c", "#c0392b"


def draw(history: History) -> bytes:
    """A PNG of :func:`figure_of`.

    >>> from growarray.networks import History
    >>> history = History()
    >>> history.add("train", epoch=1, train_loss=2.0, validation_loss=2.1, validation_score=0.3, widths=[2])
    >>> draw(history)[1:4]
    b'PNG'
    """
    stream = io.BytesIO()
    figure_of(history).savefig(stream, format="png")
    return stream.getvalue()


def figure_of(history: History) -> Figure:
    """Three panels over one axis of epochs; ``ValueError`` where no epoch has been trained."""
    if not history.of("train"):
        raise ValueError("History.plot: the history holds no epoch, so there is nothing to draw; train first")
    figure = Figure(figsize=(8.0, 8.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)  # no window, whatever matplotlib's own setting is
    loss, score, width = figure.subplots(3, 1, sharex=True)
    _loss(loss, history.of("train"))
    _score(score, history)
    _widths(width, history)
    for panel in (loss, score, width):
        _mark_growths(panel, history.of("growth"), named=panel is loss)
        panel.grid(axis="y", alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(loc="best", fontsize=9, framealpha=0.9)
    width.set_xlabel("epoch")
    width.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _loss(panel: Axes, entries: list[dict[str, Any]]) -> None:
    epochs = [entry["epoch"] for entry in entries]
    panel.plot(epochs, [e["train_loss"] for e in entries], color=_TRAIN, label="training", marker=".", markersize=4)
    validation = [e["validation_loss"] for e in entries]
    panel.plot(epochs, validation, color=_VALIDATION, label="validation", marker=".", markersize=4)
    values = [v for e in entries for v in (e["train_loss"], e["validation_loss"])]
    if min(values) > 0 and max(values) > 20 * min(values):
        panel.set_yscale("log")
    panel.set_ylabel("loss")


def _score(panel: Axes, history: History) -> None:
    entries, final = history.of("train"), history.final or {}
    name = final.get("score_name", "score")
    epochs, scores = [e["epoch"] for e in entries], [e["validation_score"] for e in entries]
    panel.plot(epochs, scores, color=_VALIDATION, label="validation", marker=".", markersize=4)
    tested = final.get("test_score")
    if tested is not None:
        text = f"{tested:.2%}" if name == "accuracy" else f"{tested:.4f}"
        panel.plot(epochs[-1:], [tested], "D", color="black", markersize=6, label=f"test at the end: {text}")
    if name == "accuracy":
        panel.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    panel.set_ylabel("R2" if name == "r2" else name)


def _widths(panel: Axes, history: History) -> None:
    """Every width as a stair: it is that of the epoch's end until a growth at that end raises it."""
    known = [step for step in history.steps if "widths" in step]
    names = {step["place"]: step.get("widens", step["where"]) for step in history.of("growth") if "place" in step}
    names |= dict(enumerate((history.final or {}).get("places", [])))
    epochs = [step["epoch"] for step in known]
    for place in range(len(known[0]["widths"])):
        widths = [step["widths"][place] for step in known]
        label = names.get(place, f"place {place}")
        panel.plot(epochs, widths, drawstyle="steps-post", label=label)
    panel.set_ylim(bottom=0)
    panel.yaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_ylabel("width")


def _mark_growths(panel: Axes, entries: list[dict[str, Any]], *, named: bool) -> None:
    done = [entry["epoch"] for entry in entries if "refused" not in entry]
    refused = [entry["epoch"] for entry in entries if "refused" in entry]
    for epochs, colour, style, label in (
        (done, _GROWTH, "--", "growth"),
        (refused, _REFUSED, ":", "growth refused"),
    ):
        for index, epoch in enumerate(epochs):
            panel.axvline(
                epoch,
                color=colour,
                linestyle=style,
                linewidth=0.8,
                zorder=0,
                label=label if named and not index else None,
            )
