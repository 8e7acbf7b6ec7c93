"""A run's alphas and curves over its epochs."""
import numpy
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import genotypes
from harness import records
from reporting.cells import color_of, line_style
from reporting.figures import CELLS

CURVES = ["#0072B2", "#D55E00"]  # from the palette in cells.py


def softmax(alphas: numpy.ndarray) -> numpy.ndarray:
    """The candidates' probabilities: (..., K) -> (..., K)."""
    exp = numpy.exp(alphas - alphas.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def read_stages(alphas: dict, cell: str) -> list[tuple[numpy.ndarray, numpy.ndarray, list]]:
    """A cell's stages so far: (epochs x (E,), probabilities (E, 14, K), the 14 edges' candidates)."""
    stages, start = [], 0
    for name in sorted(name for name in alphas if name.endswith(f"_{cell}")):
        probs = softmax(alphas[name])  # (E, 14, K)
        stages.append((start + numpy.arange(len(probs)), probs, alphas[f"{name}_candidates"].tolist()))
        start += len(probs)
    return stages


def draw_alphas(stages: list, genes: list) -> Figure:
    """Each edge's candidates over the epochs: row = node, column = source; a cross marks a dropped one.

    genes: those of the found cell, which are marked; empty if there is none yet.
    """
    figure = Figure((7.2, 5.0))
    figure.subplots_adjust(left=0.1, right=0.99, bottom=0.085, top=0.955, wspace=0.12, hspace=0.4)
    axes = figure.subplots(4, 5, sharex=True, sharey=True)
    chosen = {(i // 2, source): op for i, (op, source) in enumerate(genes)}
    edge = 0
    # A panel per edge, in the order of the alphas; the upper right of the grid has none.
    for node, row in enumerate(axes):
        for source, ax in enumerate(row):
            if source > 1 + node:
                ax.axis("off")
                continue
            draw_edge_alphas(ax, stages, edge, chosen.get((node, source)))
            name = ("$c_{k-2}$", "$c_{k-1}$", "0", "1", "2")[source]
            ax.set_title(f"{name} $\\rightarrow$ {node}", pad=3, y=1)  # with y, matplotlib need not measure the axes
            edge += 1
    figure.supxlabel("epoch", fontsize=8)
    figure.supylabel("probability, in units of 1 / K", x=0.005, fontsize=8)
    lines = [Line2D([], [], color=color_of(op), linestyle=line_style(op), label=op) for op in genotypes.PRIMITIVES]
    lines += [Line2D([], [], color="#404040", linestyle="", marker=marker, markersize=4, label=label)
              for marker, label in (("x", "dropped"), ("o", "in the genotype"))]
    axes[0, 4].legend(handles=lines, loc="upper right", ncols=2)
    return figure


def draw_edge_alphas(ax, stages: list, edge: int, chosen: str | None) -> None:
    """One edge's panel; `chosen` is its operation in the genotype, or None."""
    for i, (x, probs, candidates) in enumerate(stages):
        later = stages[i + 1][2][edge] if i + 1 < len(stages) else candidates[edge]
        for k, op in enumerate(candidates[edge]):
            p = probs[:, edge, k] * len(candidates[edge])  # 1 in each stage if none is preferred
            ax.plot(x, p, color=color_of(op), linestyle=line_style(op), linewidth=1)
            if op not in later:
                ax.plot(x[-1], p[-1], "x", color=color_of(op), markersize=4)
            elif op == chosen and x is stages[-1][0]:
                ax.plot(x[-1], p[-1], "o", color=color_of(op), markersize=4)
    mark_stages(ax, [x[0] for x, _, _ in stages])


def mark_stages(ax, starts: list, named: bool = False) -> None:
    """Dotted lines between stages, which begin at the epochs `starts`; if `named`, their names above."""
    for i, start in enumerate(starts):
        if i:
            ax.axvline(start - 0.5, color="#8C8C8C", linestyle=":", linewidth=0.8, zorder=0)
        if named:
            ax.text(start, 1.02, f"stage {i + 1}", color="#606060", fontsize=7, transform=ax.get_xaxis_transform())


def draw_search(metrics: list[dict], alphas: dict) -> Figure:
    """A search's loss, accuracy, entropy of the choices, skip-connects, skip dropout and learning rate, by epoch."""
    figure = Figure((7.2, 3.8))
    figure.subplots_adjust(left=0.055, right=0.985, bottom=0.105, top=0.89, wspace=0.3, hspace=0.25)
    axes = figure.subplots(2, 3, sharex=True)
    starts = [i for i, record in enumerate(metrics) if not i or record["stage"] > metrics[i - 1]["stage"]]
    panels = [("loss", {"train_loss": "training", "valid_loss": "validation"}),
              ("accuracy, %", {"train_acc": "training", "valid_acc": "validation"}),
              ("entropy", {}), ("skip-connects, normal cell", {"skips": None}),
              ("skip dropout", {"skip_dropout": None}), ("learning rate", {"lr": None})]
    # A panel per metric; the upper row names the stages.
    for ax, (title, curves) in zip(axes.flat, panels):
        for color, (key, label) in zip(CURVES, curves.items()):
            draw_curve(ax, metrics, key, starts, color=color, label=label)
        if title == "entropy":
            draw_entropy(ax, alphas)
            ax.ticklabel_format(useOffset=False)  # at first it differs from 1 in the fifth digit
        ax.set_title(title, loc="left", pad=14 if ax in axes[0] else 6)
        mark_stages(ax, starts, named=ax in axes[0])
    axes[1, 0].yaxis.get_major_locator().set_params(integer=True)
    # Legends above the upper row; the lower row starts at 0.
    for above, below in axes.T:
        above.legend(loc="lower right", bbox_to_anchor=(1.05, 1.06), ncols=2, handlelength=0.8,
                     handletextpad=0.4, columnspacing=0.8)
        below.set_ylim(bottom=0)
        below.set_xlabel("epoch")
    return figure


def draw_curve(ax, metrics: list[dict], key: str, starts: list, **style) -> None:
    """The metric `key` over the epochs, with a gap between stages; epochs without a value are skipped."""
    values = numpy.array([record[key] for record in metrics], float)  # None becomes nan
    for start, end in zip(starts, [*starts[1:], len(values)]):
        x, y = numpy.arange(start, end), values[start:end]
        x, y = x[~numpy.isnan(y)], y[~numpy.isnan(y)]
        ax.plot(x, y, marker=".", markersize=3, clip_on=False, **style)
        style["label"] = None  # one line in the legend


def draw_entropy(ax, alphas: dict) -> None:
    """The entropy of an edge's choice, 1 if its candidates are equal: mean and range over a cell's 14 edges."""
    for color, (cell, name) in zip(CURVES, CELLS.items()):
        for i, (x, p, _) in enumerate(read_stages(alphas, cell)):
            entropy = -(p * numpy.log(p)).sum(-1) / numpy.log(p.shape[-1])  # (E, 14)
            ax.plot(x, entropy.mean(1), color=color, marker=".", markersize=3, label=None if i else name.split()[0])
            ax.fill_between(x, entropy.min(1), entropy.max(1), color=color, alpha=0.15, linewidth=0)


def draw_training(metrics: list[dict]) -> Figure:
    """An evaluation run's loss, accuracy (last and best marked), learning rate and drop path."""
    figure = Figure((7.2, 2.3))
    figure.subplots_adjust(left=0.055, right=0.985, bottom=0.17, top=0.91, wspace=0.22)
    axes = figure.subplots(1, 3)
    judge = records.judged_by(metrics)
    for color, part, name in zip(CURVES, ("train", judge), ("training", {"valid": "validation"}.get(judge, judge))):
        draw_curve(axes[0], metrics, f"{part}_loss", [0], color=color, label=name)
        draw_curve(axes[1], metrics, f"{part}_acc", [0], color=color, label=name)
    accuracy = [record[f"{judge}_acc"] for record in metrics]
    for marker, name, i in (("*", "best", accuracy.index(max(accuracy))), ("s", "last", len(accuracy) - 1)):
        axes[1].plot(i, accuracy[i], marker, color="#404040", markersize=7 if marker == "*" else 4, zorder=3,
                     fillstyle="none", label=f"{name} {accuracy[i]:.2f}")
    for color, key, name in zip(CURVES, ("lr", "drop_path_prob"), ("learning rate", "drop path")):
        scale = max(record[key] for record in metrics)
        draw_curve(axes[2], [{key: record[key] / (scale or 1)} for record in metrics], key, [0], color=color,
                   label=f"{name} / {scale:.3g}")
    axes[2].set(ylim=(-0.03, 1.5), yticks=(0, 0.5, 1))  # space for the legend
    for ax, title in zip(axes, ("loss", "accuracy (%)", "schedule, fraction of its maximum")):
        ax.set_title(title, loc="left")
        ax.set_xlabel("epoch")
        ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        ax.legend()
    return figure
