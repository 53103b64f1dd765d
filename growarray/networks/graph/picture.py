"""The picture of graphs: nodes from left to right by their depth, one graph or a strip of them as they grew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from growarray.networks.graph.structure import in_order
from growarray.networks.picture import saved

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NODE, _NEW, _EDGE = "#dbe9f6", "#f7c59f", "#8c8c8c"
_SHOWN = 7  # growths of a graph whose edges never change
_WIDE, _HIGH = 259.0, 174.0  # of a panel without its title, in points
_RADIUS = 17.9  # of a node in points, where there are few
_MARGIN = 0.22  # of a panel, on each side
Outline = Mapping[str, Any]  # nodes: width by name; edges: pairs of names


def places(outline: Outline) -> dict[str, tuple[float, float]]:
    """Positions of the nodes: x is the longest way from the start; nodes of one depth are spread over y.

    >>> places({"nodes": {"start": 4, "1": 2, "end": 3}, "edges": [["start", "1"], ["1", "end"], ["start", "end"]]})
    {'start': (0.0, 0.0), '1': (1.0, 0.6), 'end': (2.0, 0.0)}
    """
    edges = [(str(source), str(target)) for source, target in outline["edges"]]
    depth: dict[str, int] = {}
    for node in in_order("a picture", outline["nodes"], edges):
        depth[node] = max((depth[source] + 1 for source, target in edges if target == node), default=0)
    places = {}
    for x in sorted(set(depth.values())):
        row = [node for node in outline["nodes"] if depth[node] == x]
        for index, node in enumerate(row):
            alone = len(row) == 1 and 0 < x < max(depth.values())
            places[node] = (float(x), (0.6 if x % 2 else -0.6) if alone else index - (len(row) - 1) / 2)
    return places


def frames_of(steps: Sequence[Mapping[str, Any]]) -> list[tuple[str, Outline]]:
    """Titles and outlines from the entries of a history: the start, then each change of the graph.

    Growths that only make nodes wider are shown in the frame of the change before them, but for a graph whose edges
    never change: of its growths at most seven are shown, the last among them.
    """
    first = next((step["graph"] for step in steps if step["event"] == "train" and "graph" in step), None)
    grown = [step for step in steps if step["event"] == "growth" and "refused" not in step and "graph" in step]
    frames = [] if first is None else [("start", first)]
    if grown and first is not None and all(step["graph"]["edges"] == first["edges"] for step in grown):
        shown = sorted({round(i * (len(grown) - 1) / (_SHOWN - 1)) for i in range(_SHOWN)})
        for step in (grown[i] for i in shown):
            frames.append((f"epoch {step['epoch']}: {step['parameters']:,} parameters", step["graph"]))
        return frames
    for step in grown:
        until, title = f"\nuntil epoch {step['epoch']}", f"epoch {step['epoch']}: {step['where']}"
        if step["graph"]["edges"] == frames[-1][1]["edges"]:
            title = frames.pop()[0].partition("\n")[0] + until
        frames.append((title, step["graph"]))
    return frames


def graph_figure(frames: Sequence[tuple[str, Outline]], columns: int = 4) -> Figure:
    """A panel for each graph; what is new or wider since the one before is in another colour.

    Raises ImportError if matplotlib is missing, ValueError if there is nothing to draw.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f'graph_figure: {error}; install it with: pip install "growarray[cli]"') from error
    if not frames:
        raise ValueError("graph_figure: there is no graph to draw; grow a GrowingDAG first")
    columns = min(columns, len(frames))
    rows = -(-len(frames) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.7 * rows), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    before: Outline = frames[0][1]
    for panel, (title, outline) in zip(panels, frames, strict=False):
        _draw(panel, outline, before)
        panel.set_title(title, fontsize=9)
        before = outline
    for panel in panels:
        panel.set_axis_off()
    return figure


def draw_graphs(frames: Sequence[tuple[str, Outline]]) -> bytes:
    """The picture of :func:`graph_figure` as a PNG.

    >>> draw_graphs([("start", {"nodes": {"start": 4, "end": 2}, "edges": [["start", "end"]]})])[1:4]
    b'PNG'
    """
    return saved(graph_figure(frames))


def _draw(panel: Axes, outline: Outline, before: Outline) -> None:
    at = places(outline)
    size = min(1.0, 5.0 / (max(x for x, _ in at.values()) + 1.0))
    known = {tuple(edge) for edge in before["edges"]}
    for source, target in outline["edges"]:
        colour = _EDGE if (source, target) in known else "#d95f02"
        panel.annotate(
            "", at[target], at[source], zorder=1,
            arrowprops={"arrowstyle": "-|>", "color": colour, "shrinkA": 17 * size, "shrinkB": 17 * size,
                        "connectionstyle": f"arc3,rad={bend(at, source, target, _RADIUS * size)}"},
        )  # fmt: skip
    for node, (x, y) in at.items():
        same = before["nodes"].get(node) == outline["nodes"][node]
        panel.scatter(
            [x], [y], s=1000 * size**2, color=_NODE if same else _NEW, edgecolors="black", linewidths=0.8, zorder=2
        )
        name = node.split("@")[0]
        panel.text(
            x, y, f"{name}\n{outline['nodes'][node]}", ha="center", va="center", zorder=3,
            fontsize=min(4 + 3 * size, 46 * size / len(name)),  # so that a long name stays in its circle
        )  # fmt: skip
    panel.margins(_MARGIN)


def bend(at: Mapping[str, tuple[float, float]], source: str, target: str, radius: float) -> float:
    """How far an edge bends, as matplotlib's ``arc3`` counts it, so that it passes no node that it does not join.

    >>> nodes = {"start": (0.0, 0.0), "1": (1.0, 0.6), "end": (2.0, 0.0)}
    >>> bend(nodes, "start", "1", 10.0), bend(nodes, "start", "end", 10.0)
    (0.0, 0.25)
    """
    if at[target][0] - at[source][0] == 1:
        return 0.0
    xs, ys = zip(*at.values(), strict=True)
    scale = np.array([_WIDE / (max(xs) - min(xs) or 1.0), _HIGH / (max(ys) - min(ys) or 1.0)]) / (1.0 + 2 * _MARGIN)
    points = {node: scale * place for node, place in at.items()}
    start, end = points[source], points[target]
    others = [place for node, place in points.items() if node not in (source, target)]
    t = np.linspace(0.0, 1.0, 33)[:, None]

    def clearance(bent: float) -> float:
        """From the nearest other node to the quadratic Bézier curve that is drawn."""
        control = (start + end) / 2 + bent * np.array([end[1] - start[1], start[0] - end[0]])
        curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end
        return min((float(np.min(np.linalg.norm(curve - other, axis=1))) for other in others), default=np.inf)

    bends = (0.25, -0.25, 0.4, -0.4, 0.12, -0.12)
    return next((bent for bent in bends if clearance(bent) > 1.2 * radius), max(bends, key=clearance))
