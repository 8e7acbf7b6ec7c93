"""Which kinds of cells do better? The differences of their errors, with intervals and tests.

    python experiments/differences.py RUN_DIR RUN_DIR [...] [--plot FILE]
The runs are searches and evaluations, as for compare.py. Expect a Markdown table with one line for each two kinds of
cells (P-DARTS, one stage, dealt, random, ...): the difference of their mean test errors after the last epoch, in points
(negative: the first has fewer errors) and in standard deviations of the random cells, Welch's 95% interval, and the p
of an exact permutation test. A cell counts once, with the mean of its runs. If two kinds of cells come from the same
searches, as one-stage and dealt cells do, a further line compares them within each search: the interval is Student's,
and the test changes the signs of the searches' differences. Evaluations in different settings have tables of their own.
--plot draws the error of each cell against its network's multiply-adds.
"""
import itertools
import re
import statistics
import sys
from argparse import Namespace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
import compare
import genotypes
import utils
from experiments import significance
from harness import cli, records
from harness.files import replace_file
from model import NetworkCIFAR, NetworkImageNet
from reporting import tables
from reporting.figures import render, style
from reporting.runs import control, read_run
from reporting.tables import BLANK, COLORS, signed

HEAD = ["cells", "n", "difference (points)", "95% interval", "p", "difference (std of random cells)"]


class Cell(NamedTuple):
    kind: str  # as in compare.py's table
    error: float  # in percent, mean over its runs
    run: str  # the name of one of them
    genotype: dict
    origin: str = ""  # the name of the search that it comes from, or its own


def read_settings(run_dirs: list[str]) -> dict[str, list[Cell]]:
    """The trained cells in each setting that they were trained in. Raises ValueError if there are none.

    A control is not counted as a search.
    """
    settings, rows = {}, compare.compare([path for path in run_dirs if not control(records.read_args(path))])
    searches = [name for row in rows for name in row["searches"] or ()]
    for row in rows:
        cells = [Cell(row["kind"], statistics.mean(part["last_errors"]), part["runs"][0], part["genotype"],
                      origin(part["name"], searches)) for part in row["cells"] if part["n"]]
        if cells:
            settings.setdefault(", ".join(tables.describe_setting(row["setting"])), []).extend(cells)
    if not settings:
        raise ValueError("none of these runs is a finished evaluation: pass evaluations, and the searches of their "
                         "cells")
    return settings


def origin(name: str, searches: list[str]) -> str:
    """The search of a cell, by compare.py's name of the cell: search-X-pdarts-10-TIME for X-dealt-10-0, or itself."""
    if dealt := re.fullmatch(r"(.*)-dealt-(\d+)-\d+", Path(name).stem):
        wanted = "search-{}-pdarts-{}".format(*dealt.groups())
        found = {search for search in searches if re.sub(r"-\d{8}-\d{6}(-\d+)?$", "", search) == wanted}
        return found.pop() if len(found) == 1 else name
    return name


def compare_kinds(cells: list[Cell]) -> list[list[str]]:
    """The lines of the table for the cells of one setting."""
    groups = {}  # kind -> origin -> errors
    for cell in cells:
        groups.setdefault(cell.kind, {}).setdefault(cell.origin, []).append(cell.error)
    random = sum(groups.get("random", {}).values(), [])
    std = statistics.stdev(random) if len(random) > 1 else 0
    lines = []
    for (first, a), (second, b) in itertools.combinations(groups.items(), 2):
        every = [sum(errors.values(), []) for errors in (a, b)]
        name, n = f"{first} − {second}", ", ".join(str(len(errors)) for errors in every)
        found = [(name, n, significance.difference(*every))]
        if len(common := [search for search in a if search in b]) > 1:
            own = [statistics.mean(a[search]) - statistics.mean(b[search]) for search in common]
            found.append((f"{name}, by search", str(len(own)), significance.paired_difference(own)))
        lines += [[name, n, signed(value), BLANK if low is None else f"{signed(low)} to {signed(high)}", f"{p:.4f}",
                   signed(value / std, 1) if std else BLANK] for name, n, (value, low, high, p) in found]
    return lines


# ---- figure

def read_options(run_dirs: list[str]) -> dict[str, dict]:
    """The runs' options, by the names that compare.py gives runs: the directory's, or its path if several have that."""
    options = {}
    for run in map(read_run, run_dirs):
        options |= dict.fromkeys((run["name"], str(run["path"])), run["args"] | {"init_channels": run["channels"]})
    return options


def multiply_adds(cell: Cell, args: dict) -> int:
    """Of the network that a run has trained, with 10 classes on small images; more would add as much to each cell."""
    if cell.genotype is None:
        raise ValueError(f"--plot: {cell.run} has no genotype.json: restore the file")
    size = args.get("image_size") or {"digits": 8, "imagenet": 224}.get(args["dataset"], 32)
    genotype = genotypes.Genotype(**cell.genotype)
    with torch.device("meta"):  # only shapes are needed
        network = (NetworkImageNet(args["init_channels"], 1000, args["layers"], False, genotype)
                   if args["dataset"] == "imagenet" else
                   NetworkCIFAR(args["init_channels"], 10, args["layers"], False, genotype))
    return utils.count_multiply_adds(network, size)


@style()
def plot(settings: dict[str, list[Cell]], runs: dict[str, dict], path: Path) -> None:
    """Draw error against multiply-adds, a dot per cell, a panel per setting. runs: name -> options. Raises OSError."""
    from matplotlib.figure import Figure
    figure = Figure((4.8, 3.2 * len(settings)), layout="constrained")
    for ax, (setting, cells) in zip(figure.subplots(len(settings), squeeze=False)[:, 0], settings.items()):
        sizes = [multiply_adds(cell, runs[cell.run]) / 1e6 for cell in cells]
        for kind in dict.fromkeys(cell.kind for cell in cells):
            dots = [(size, cell.error) for size, cell in zip(sizes, cells) if cell.kind == kind]
            ax.plot(*zip(*dots), "o", color=COLORS[kind], markersize=5, alpha=0.8, markeredgewidth=0, label=kind)
        errors = [cell.error for cell in cells]
        correlated = f"; correlation {np.corrcoef(sizes, errors)[0, 1]:.2f}" if len(cells) > 2 else ""
        ax.set_title(setting + correlated, loc="left")
        ax.set_xlabel("multiply-adds of the trained network (M)")
        ax.set_ylabel("top-1 error, last epoch (%)")
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    replace_file(path, render(figure, path.suffix[1:]))


# ---- command line

def get_args_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("run_dirs", nargs="+", metavar="RUN_DIR", help="run directories of searches and evaluations")
    parser.add_argument("--plot", type=compare.figure_file, metavar="FILE",
                        help="plot error against multiply-adds as .svg or .png")
    return parser


def main(args: Namespace) -> None:
    settings = read_settings(args.run_dirs)
    for setting, cells in settings.items():
        print((f"\n{setting}:\n\n" if len(settings) > 1 else "") + tables.markdown([HEAD, *compare_kinds(cells)]))
    if args.plot:
        plot(settings, read_options(args.run_dirs), args.plot)


if __name__ == "__main__":
    cli.run(main, get_args_parser().parse_args)
