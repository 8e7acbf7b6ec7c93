"""Draw a cell: a layered drawing, in which operations stand in columns of their own and so never overlap."""
import random

from matplotlib.figure import Figure
from matplotlib.patches import BoxStyle, FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path

COLORS = {  # one hue per kind of operation; Okabe and Ito's colours, which colour-blind readers can tell apart
    "none": "#A6A6A6", "skip_connect": "#000000", "max_pool_3x3": "#D55E00", "avg_pool_3x3": "#E69F00",
    "sep_conv_3x3": "#56B4E9", "sep_conv_5x5": "#0072B2", "sep_conv_7x7": "#1B2A6B",
    "dil_conv_3x3": "#CC79A7", "dil_conv_5x5": "#882255", "conv_7x1_1x7": "#009E73",
}
SIZE = {"state": 0.42, "label": 0.3, "bend": 0.16}  # height to keep free, in inches
COLUMN, LABEL = 0.95, 0.86  # width of a column and a label, in inches


def trace_edges(genes: list, concat: list) -> list[tuple[str | None, list]]:
    """A cell's edges as (operation or None, points): from the source state over bends to the label and the target.

    A point is (column, kind, which). States stand in even columns (the output in an odd one), labels before their
    target; every column between gets a bend, so that each step of an edge leads to the next column.
    """
    depth = [0, 0]  # the longest way from an input to each state
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
    """The height of each point: the best of several random starts, c_{k-2} above c_{k-1}."""
    columns, neighbours, rng = {}, {}, random.Random(0)
    for _, points in edges:
        for a, b in zip(points, points[1:]):
            neighbours.setdefault(a, []).append(b)
            neighbours.setdefault(b, []).append(a)
    for state in range(2):
        neighbours.setdefault((0, "state", state), [])  # a cell needn't use both its inputs
    for point in neighbours:
        columns.setdefault(point[0], []).append(point)
    best, lowest = {}, float("inf")
    for _ in range(40):
        y = {point: rng.uniform(-1, 1) for point in neighbours}
        for sweep in range(24):
            for column in sorted(columns, reverse=sweep % 2):
                settle(columns[column], neighbours, y)
        cost = disorder(edges, y)
        if cost < lowest:
            best, lowest = y, cost
    flip = best[0, "state", 0] < best[0, "state", 1]
    return {point: -height if flip else height for point, height in best.items()}


def settle(column: list, neighbours: dict, y: dict) -> None:
    """Move a column's points towards their neighbours, keeping the distance that their sizes need."""
    def wish(point):
        weights = [4 if "bend" in (point[1], other[1]) else 1 for other in neighbours[point]]  # long edges are straight
        total = sum(weight * y[other] for weight, other in zip(weights, neighbours[point]))
        return total / sum(weights) if weights else y[point]

    wishes = {point: wish(point) for point in column}
    order = sorted(column, key=wishes.get)
    for below, point in zip([None, *order], order):
        y[point] = wishes[point]
        if below:
            y[point] = max(y[point], y[below] + (SIZE[below[1]] + SIZE[point[1]]) / 2)
    shift = sum(wishes[point] - y[point] for point in column) / len(column)
    for point in column:
        y[point] += shift


def disorder(edges: list, y: dict) -> float:
    """What makes a drawing hard to read: crossings and long ways up and down."""
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
    for op, points in edges:
        if op:
            draw_box(ax, COLUMN * points[-2][0], y[points[-2]], LABEL, 0.22, op, edgecolor=COLORS[op],
                     facecolor=tint(COLORS[op]), linestyle=line_style(op))
        start, end = 0.25 if points[0][2] < 2 else 0.15, 0.16 if op else 0.26  # from border to border
        way = [(COLUMN * points[0][0] + start, y[points[0]])]
        for point in points[1:-1]:  # level in a column of labels: touches none
            half = LABEL / 2 if point[0] % 2 else 0
            way += [(COLUMN * point[0] + dx, y[point]) for dx in sorted({-half, half})]
        draw_edge(ax, op, [*way, (COLUMN * points[-1][0] - end, y[points[-1]])])
    names = ["$c_{k-2}$", "$c_{k-1}$", *map(str, range(len(genes) // 2)), "$c_{k}$"]
    for column, kind, state in y:
        if kind == "state":
            outside = state < 2 or state == len(names) - 1
            draw_box(ax, COLUMN * column, y[column, kind, state], 0.5 if outside else 0.3, 0.3, names[state],
                     fontsize=10, edgecolor="#404040", facecolor="#E8E8E8" if outside else "white")
    return figure


def draw_edge(ax, op: str | None, points: list[tuple[float, float]]) -> None:
    """A smooth line through the points [(x, y), ...], an arrow at its end."""
    slopes = [0.0] * len(points)
    for i in range(1, len(points) - 1):
        (x0, y0), (_, y1), (x2, y2) = points[i - 1:i + 2]
        slopes[i] = (y2 - y0) / (x2 - x0) if (y1 - y0) * (y2 - y1) > 0 else 0.0  # on its way up or down, go on
    vertices, codes = [points[0]], [Path.MOVETO]
    for i, ((x0, y0), (x1, y1)) in enumerate(zip(points, points[1:])):
        reach = 0.45 * (x1 - x0)
        vertices += [(x0 + reach, y0 + reach * slopes[i]), (x1 - reach, y1 - reach * slopes[i + 1]), (x1, y1)]
        codes += [Path.CURVE4] * 3
    ax.add_patch(FancyArrowPatch(
        path=Path(vertices, codes), arrowstyle="-|>", mutation_scale=7, linewidth=1.3 if op else 0.8, capstyle="butt",
        color=COLORS[op] if op else "#8C8C8C", linestyle=line_style(op), fill=False, zorder=1))


def draw_box(ax, x: float, y: float, width: float, height: float, text: str, fontsize: float = 8, **style) -> None:
    """A rounded box around (x, y) with a text in it."""
    shape = BoxStyle("round", pad=0, rounding_size=height / 2)
    ax.add_patch(FancyBboxPatch((x - width / 2, y - height / 2), width, height, shape, linewidth=1, zorder=2, **style))
    ax.text(x, y, text, fontsize=fontsize, ha="center", va="center_baseline", zorder=3)


def line_style(op: str | None):
    """Skip-connects are dashed in every picture."""
    return (0, (3, 1.5)) if op == "skip_connect" else "-"


def tint(color: str) -> tuple:
    """The colour, almost white, for what a text stands on."""
    return tuple(1 - 0.14 * (1 - int(color[i:i + 2], 16) / 255) for i in (1, 3, 5))
