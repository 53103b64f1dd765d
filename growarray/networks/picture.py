"""The picture of a run: loss, figure of merit and widths over the epochs, growths marked."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # matplotlib takes as long to import as the library: only who draws waits for it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TRAIN, _VALIDATION, _GROWTH, _REFUSED = "#1f77b4", "#d95f02", "#8c8c8c", "#c0392b"
_FIXED: dict[str, Any] = {"linestyle": ":", "linewidth": 1.6}  # the network that does not grow, in the same colours
_INSIDE = 6  # entries of a legend that leave most of a panel free

Entries = list[dict[str, Any]]  # of a history: its steps, or those of one event


def draw(steps: Entries, final: dict[str, Any] | None) -> bytes:
    """The picture as a PNG; the arguments are those of :func:`figure_of`.

    >>> entry = {"event": "train", "epoch": 1, "train_loss": 2.0, "validation_loss": 2.1, "widths": [2]}
    >>> draw([{**entry, "validation_score": 0.3}], None)[1:4]
    b'PNG'
    """
    return saved(figure_of(steps, final))


def saved(figure: Figure, kind: str = "png") -> bytes:
    """The bytes of a figure, as ``png``, ``svg`` or ``pdf``."""
    stream = io.BytesIO()
    figure.savefig(stream, format=kind)
    return stream.getvalue()


def figure_of(steps: Entries, final: dict[str, Any] | None) -> Figure:
    """Three panels over one axis of epochs, from the entries and the summary of a history; the fixed network dotted.

    Raises ImportError if matplotlib is missing, ValueError if no epoch has been trained.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise ImportError(f'History.plot: {error}; install it with: pip install "growarray[cli]"') from error
    trained, grown = _of(steps, "train"), _of(steps, "growth")
    if not trained:
        raise ValueError("History.plot: the history holds no epoch, so there is nothing to draw; train first")
    figure = Figure(figsize=(8.0, 8.5), dpi=120, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
    FigureCanvasAgg(figure)  # no window, whatever matplotlib's own setting is
    loss, score, width = figure.subplots(3, 1, sharex=True)
    summary = final or {}
    fixed = (summary.get("compare") or {}).get("steps", [])
    _loss(loss, trained, fixed)
    _score(score, trained, summary, fixed)
    _widths(width, steps, summary, fixed)
    for panel in (loss, score, width):
        _mark_growths(panel, grown, named=panel is loss)
        panel.grid(axis="y", alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
        many = len(panel.get_legend_handles_labels()[1]) > _INSIDE
        where: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if many else {"loc": "best"}
        panel.legend(fontsize=9, framealpha=0.9, **where)
    width.set_xlabel("epoch")
    for axis in (width.xaxis, width.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _of(steps: Entries, event: str) -> Entries:
    return [entry for entry in steps if entry["event"] == event]


def _loss(panel: Axes, entries: Entries, fixed: Entries) -> None:
    judged = _judged_by(entries, after=", after each epoch")
    for key, colour, label in (("train_loss", _TRAIN, "training"), ("validation_loss", _VALIDATION, judged)):
        _curve(panel, entries, key, color=colour, label=label, marker=".", markersize=4)
        _curve(panel, fixed, key, color=colour, label=f"{label}, fixed", **_FIXED)
    values = [v for e in (*entries, *fixed) for v in (e["train_loss"], e["validation_loss"])]
    if min(values) > 0 and max(values) > 20 * min(values):
        panel.set_yscale("log")
    panel.set_ylabel("loss")


def _judged_by(entries: Entries, after: str = "") -> str:
    """What the figures called validation were measured on: without such data the training data."""
    return "validation" if entries[0].get("judged_by") != "training" else f"training{after}"


def _curve(panel: Axes, entries: Entries, key: str, **style: Any) -> None:
    """One figure over the epochs; nothing if there are no entries."""
    if entries:
        panel.plot([entry["epoch"] for entry in entries], [entry[key] for entry in entries], **style)


def _score(panel: Axes, entries: Entries, final: dict[str, Any], fixed: Entries) -> None:
    name = final.get("score_name", "score")
    judged = _judged_by(entries)
    _curve(panel, entries, "validation_score", color=_VALIDATION, label=judged, marker=".", markersize=4)
    _curve(panel, fixed, "validation_score", color=_VALIDATION, label=f"{judged}, fixed", **_FIXED)
    for figures, points, label, fill in (
        (final.get("compare") or {}, fixed, "test at the end, fixed", "none"),
        (final, entries, "test at the end", "black"),
    ):
        tested = figures.get("test_score")
        if tested is not None and points:
            text = f"{label}: {tested:.2%}" if name == "accuracy" else f"{label}: {tested:.4f}"
            at = ([points[-1]["epoch"]], [tested])
            panel.scatter(*at, s=42, marker="D", facecolors=fill, edgecolors="black", zorder=3, label=text)
    if name == "accuracy":
        from matplotlib.ticker import PercentFormatter

        panel.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    panel.set_ylabel("R2" if name == "r2" else name)


def _widths(panel: Axes, steps: Entries, final: dict[str, Any], fixed: Entries) -> None:
    """Every width as a stair: it is that of the epoch's end until a growth at that end raises it."""
    known = [step for step in steps if "widths" in step]
    planned = [step for step in _of(steps, "growth") if "layer_index" in step]
    names = {step["layer_index"]: step.get("widens", step["where"]) for step in planned}
    names |= dict(enumerate(final.get("places", [])))
    epochs, count = [step["epoch"] for step in known], max(len(step["widths"]) for step in known)
    if len(known[0]["widths"]) < count:  # a graph, whose nodes are no places: they come one after the other
        names = dict(enumerate(f"node {name}" for name in final.get("places", [])))
    for index in range(count):
        widths = [(step["widths"] + [0] * count)[index] for step in known]
        label = names.get(index, f"width {index}")
        (line,) = panel.plot(epochs, widths, drawstyle="steps-post", label=label)
        fixed_widths = [step["widths"][index] for step in fixed if index < len(step["widths"])]
        if fixed_widths:
            panel.plot([step["epoch"] for step in fixed], fixed_widths, color=line.get_color(), **_FIXED)
    if fixed:
        panel.plot([], [], color="black", label="fixed", **_FIXED)
    panel.set_ylim(bottom=0)
    panel.set_ylabel("width")


def _mark_growths(panel: Axes, entries: Entries, *, named: bool) -> None:
    done = [entry["epoch"] for entry in entries if "refused" not in entry]
    refused = [entry["epoch"] for entry in entries if "refused" in entry]
    for epochs, colour, style, label in ((done, _GROWTH, "--", "growth"), (refused, _REFUSED, ":", "growth refused")):
        for index, epoch in enumerate(epochs):
            shown = label if named and not index else None
            panel.axvline(epoch, color=colour, linestyle=style, linewidth=0.8, zorder=0, label=shown)
