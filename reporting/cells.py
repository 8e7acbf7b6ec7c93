"""Draw a cell as a layered graph, in which operations have columns of their own and so never overlap."""
import random

from matplotlib.figure import Figure
from matplotlib.patches import BoxStyle, FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path

COLORS = {  # one hue per kind of operation; Okabe and Ito's colours, distinct for colour-blind readers
    "none": "#A6A6A6", "skip_connect": "#000000", "max_pool_3x3": "#D55E00", "avg_pool_3x3": "#E69F00",
    "sep_conv_3x3": "#56B4E9", "sep_conv_5x5": "#0072B2", "sep_conv_7x7": "#1B2A6B",
    "dil_conv_3x3": "#CC79A7", "dil_conv_5x5": "#882255", "conv_7x1_1x7": "#009E73",
}
OWN_COLOR = "#999933"  # of an operation that a script has added; an entry in COLORS takes precedence
SIZE = {"state": 0.42, "label": 0.3, "bend": 0.16}  # height to reserve, in inches
COLUMN, LABEL = 0.95, 0.86  # width of a column and a label, in inches


def trace_edges(genes: list, concat: list) -> list[tuple[str | None, list]]:
    """A cell's edges as (operation or None, points): from the source state by bends to the label and the target.

    A point is (column, kind, index). States are in even columns (the output in an odd one), labels in the column before
    their target; every column between has a bend, so that each segment of an edge leads to the next column.
    """
    depth = [0, 0]  # the longest path from an input to each state
    for (_, a), (_, b) in zip(genes[::2], genes[1::2]):
        depth.append(1 + max(depth[a], depth[b]))
    edges = []
    for i, (op, source) in enumerate(genes):
        start, end = 2 * depth[source], 2 * depth[2 + i // 2]
        bends = [(column, "bend", i) for column in range(start + 1, end - 1)]
        edges.append((op, [(start, "state", source), *bends, (end - 1, "label", i), (end, "state", 2 + i // 2)]))
    for source in concat:
        start, end = 2 * depth[source], 2 * max(depth) + 1
        bends = [(column, "bend", -source) for column in range(start + 1, end)]
        edges.append((None, [(start, "state", source), *bends, (end, "state", len(depth))]))
    return edges


def arrange(edges: list) -> dict[tuple, float]:
    """The height of each point: the best of 40 random starts, with c_{k-2} above c_{k-1}."""
    columns, neighbours, rng = {}, {}, random.Random(0)
    # Collect each point's neighbours, and each column's points.
    for _, points in edges:
        for a, b in zip(points, points[1:]):
            neighbours.setdefault(a, []).append(b)
            neighbours.setdefault(b, []).append(a)
    for state in range(2):
        neighbours.setdefault((0, "state", state), [])  # a cell need not use both its inputs
    for point in neighbours:
        columns.setdefault(point[0], []).append(point)
    # From each random start, sweep left and right until the points have settled; keep the clearest drawing.
    best, lowest = {}, float("inf")
    for _ in range(40):
        y = {point: rng.uniform(-1, 1) for point in neighbours}
        for sweep in range(24):
            for column in sorted(columns, reverse=sweep % 2):
                settle(columns[column], neighbours, y)
        cost = clutter(edges, y)
        if cost < lowest:
            best, lowest = y, cost
    flip = best[0, "state", 0] < best[0, "state", 1]
    return {point: -height if flip else height for point, height in best.items()}


def settle(column: list, neighbours: dict, y: dict) -> None:
    """Move a column's points towards their neighbours, at the distance that their sizes require."""
    def target(point):
        weights = [4 if "bend" in (point[1], other[1]) else 1 for other in neighbours[point]]  # straightens long edges
        total = sum(weight * y[other] for weight, other in zip(weights, neighbours[point]))
        return total / sum(weights) if weights else y[point]

    # Place the points in the order of their targets, each at least its distance above the one below.
    targets = {point: target(point) for point in column}
    order = sorted(column, key=targets.get)
    for below, point in zip([None, *order], order):
        y[point] = targets[point]
        if below:
            y[point] = max(y[point], y[below] + (SIZE[below[1]] + SIZE[point[1]]) / 2)
    # Centre the column on its targets.
    shift = sum(targets[point] - y[point] for point in column) / len(column)
    for point in column:
        y[point] += shift


def clutter(edges: list, y: dict) -> float:
    """How hard a drawing is to read: its crossings, plus the squared heights of its segments."""
    steps = [(a, b) for _, points in edges for a, b in zip(points, points[1:])]
    crossings = sum(a[0] == c[0] and (y[a] - y[c]) * (y[b] - y[d]) < 0
                    for i, (a, b) in enumerate(steps) for c, d in steps[:i])
    return crossings + sum((y[a] - y[b]) ** 2 for a, b in steps)


def draw_cell(genes: list, concat: list) -> Figure:
    """A cell's graph, from c_{k-2} and c_{k-1} on the left to c_{k} on the right; skip-connects are dashed."""
    edges = trace_edges(genes, concat)
    y = arrange(edges)
    low, high = min(y.values()) - 0.25, max(y.values()) + 0.25
    width = COLUMN * max(column for column, _, _ in y) + 0.8
    figure = Figure((width, high - low))
    ax = figure.add_axes((0, 0, 1, 1), xlim=(-0.4, width - 0.4), ylim=(low, high))
    ax.axis("off")
    # Each edge: the box of its operation, then its line, level in columns of labels.
    for op, points in edges:
        if op:
            draw_box(ax, COLUMN * points[-2][0], y[points[-2]], LABEL, 0.22, op, edgecolor=color_of(op),
                     facecolor=tint(color_of(op)), linestyle=line_style(op))
        start, end = 0.25 if points[0][2] < 2 else 0.15, 0.16 if op else 0.26  # from border to border
        line = [(COLUMN * points[0][0] + start, y[points[0]])]
        for point in points[1:-1]:  # level in a column of labels, to touch none
            half = LABEL / 2 if point[0] % 2 else 0
            line += [(COLUMN * point[0] + dx, y[point]) for dx in sorted({-half, half})]
        draw_edge(ax, op, [*line, (COLUMN * points[-1][0] - end, y[points[-1]])])
    names = ["$c_{k-2}$", "$c_{k-1}$", *map(str, range(len(genes) // 2)), "$c_{k}$"]
    # The boxes of the states, wider and shaded for inputs and output.
    for column, kind, state in y:
        if kind == "state":
            outside = state < 2 or state == len(names) - 1
            draw_box(ax, COLUMN * column, y[column, kind, state], 0.5 if outside else 0.3, 0.3, names[state],
                     fontsize=10, edgecolor="#404040", facecolor="#E8E8E8" if outside else "white")
    return figure


def draw_edge(ax, op: str | None, points: list[tuple[float, float]]) -> None:
    """A smooth line through the points [(x, y), ...], with an arrow at its end."""
    slopes = [0.0] * len(points)
    for i in range(1, len(points) - 1):
        (x0, y0), (_, y1), (x2, y2) = points[i - 1:i + 2]
        slopes[i] = (y2 - y0) / (x2 - x0) if (y1 - y0) * (y2 - y1) > 0 else 0.0  # level at highs and lows
    vertices, codes = [points[0]], [Path.MOVETO]
    for i, ((x0, y0), (x1, y1)) in enumerate(zip(points, points[1:])):
        reach = 0.45 * (x1 - x0)
        vertices += [(x0 + reach, y0 + reach * slopes[i]), (x1 - reach, y1 - reach * slopes[i + 1]), (x1, y1)]
        codes += [Path.CURVE4] * 3
    ax.add_patch(FancyArrowPatch(
        path=Path(vertices, codes), arrowstyle="-|>", mutation_scale=7, linewidth=1.3 if op else 0.8, capstyle="butt",
        color=color_of(op) if op else "#8C8C8C", linestyle=line_style(op), fill=False, zorder=1))


def draw_box(ax, x: float, y: float, width: float, height: float, text: str, fontsize: float = 8, **style) -> None:
    """A rounded box around (x, y) that holds a text."""
    shape = BoxStyle("round", pad=0, rounding_size=height / 2)
    ax.add_patch(FancyBboxPatch((x - width / 2, y - height / 2), width, height, shape, linewidth=1, zorder=2, **style))
    ax.text(x, y, text, fontsize=fontsize, ha="center", va="center_baseline", zorder=3)


def color_of(op: str) -> str:
    return COLORS.get(op, OWN_COLOR)


def line_style(op: str | None):
    """Skip-connects are dashed in every figure."""
    return (0, (3, 1.5)) if op == "skip_connect" else "-"


def tint(color: str) -> tuple:
    """An almost white shade of a colour, as background of a text."""
    return tuple(1 - 0.14 * (1 - int(color[i:i + 2], 16) / 255) for i in (1, 3, 5))
