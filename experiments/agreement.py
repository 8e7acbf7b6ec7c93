"""Do searches choose alike? Compare the candidates' probabilities in several searches.

    python experiments/agreement.py RUN_DIR [RUN_DIR ...] [--against RUN_DIR [RUN_DIR ...]] [--plot FILE]
Expect a Markdown table: for each stage that two or more searches have ended, after its first epoch with alpha steps and
after its last, and for both cells, means over all pairs of these searches of
    correlation   of the probabilities (14 edges, 8 operations; dropped candidates have 0)
    beyond means  the same without each operation's mean over the edges: do they prefer something on the same edges?
    same          edges on which both prefer the same operation; the zero operation is never chosen
    by chance     the mean of `same` if the edges of each search are permuted
The p-values, of "beyond means" and of "same", are the fractions of 10,000 such permutations that agree at least as
much. Searches that prefer the same operations on all edges have a high correlation, but agree on edges by chance only.
Edges from the cell's inputs may differ from all others: "p (within)" is that of "beyond means" if these two groups of
edges are permuted separately.
With --against, the pairs are only those of a search before it and one after it: unchanged searches and controls, say.
The edges of all searches after it are then permuted alike, so that it does not count how they agree with each other.
--plot draws "beyond means", and the limit that 5% of the permutations exceed.
"""
import itertools
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
from scipy.special import softmax

sys.path.insert(0, str(Path(__file__).parent.parent))
from compare import figure_file
from experiments import significance
from experiments.dropped import check_candidates, first_stage_kind
from genotypes import NODES, PRIMITIVES
from harness import cli, records
from harness.files import replace_file
from harness.log import log
from reporting import tables
from reporting.figures import CELLS, render, style

HEAD = ["stage", "alpha steps", "cell", "pairs", "correlation", "beyond means", "p (beyond)", "p (within)", "same",
        "by chance", "p (same)"]
STATES = [state for node in range(NODES) for state in range(2 + node)]  # where each edge begins; 0 and 1 are the inputs
GROUPS = tuple([edge for edge, state in enumerate(STATES) if (state < 2) == inputs] for inputs in (True, False))


def probabilities(alphas: dict, stage: int, cell: str, epoch: int) -> np.ndarray:
    """The probability of each of the 8 operations on each edge, (14, 8), from alphas.npz; dropped ones have 0."""
    probs = softmax(alphas[f"stage{stage}_{cell}"][epoch].astype(float), axis=-1)
    every = np.zeros((len(probs), len(PRIMITIVES)))
    for row, names, values in zip(every, alphas[f"stage{stage}_{cell}_candidates"], probs, strict=True):
        row[[PRIMITIVES.index(name) for name in names]] = values
    return every


def products(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Each row of the first matrix times each of the second, (14, 14): the sum of its diagonal is their correlation."""
    first, second = (matrix - matrix.mean() for matrix in (first, second))
    return first @ second.T / max(np.linalg.norm(first) * np.linalg.norm(second), 1e-300)


def same_choice(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Whether an edge of the first search prefers the same operation as one of the second, (14, 14)."""
    eligible = [i for i, name in enumerate(PRIMITIVES) if name != "none"]
    first, second = (probs[:, eligible].argmax(axis=1) for probs in (first, second))
    return (first[:, None] == second).astype(float)


def compare(searches: dict[int, np.ndarray], pairs: list[tuple[int, int]],
            against: bool) -> tuple[list[str], significance.Agreement]:
    """One cell's probabilities (14, 8) in each search -> columns from "pairs" on, agreement beyond means.

    against: whether each pair has a search from either side of --against.
    """
    def compare_edges(searches: dict[int, np.ndarray], measure) -> dict[tuple[int, int], np.ndarray]:
        found = {(a, b): measure(searches[a], searches[b]) for a, b in pairs}
        # With --against, one pair, of the two sides: so the edges of a side's searches are permuted alike.
        return {(0, 1): np.mean(list(found.values()), axis=0)} if against else found

    correlation = np.mean([products(searches[a], searches[b]).trace() for a, b in pairs])
    # Without each operation's mean over the edges; an edge's own mean is 1/8 on all edges.
    centred = {search: probs - probs.mean(axis=0) for search, probs in searches.items()}
    matches = compare_edges(centred, products)
    beyond, within = (significance.agreement(matches, groups) for groups in ((), GROUPS))
    same = significance.agreement(compare_edges(searches, same_choice))
    return [str(len(pairs)), f"{correlation:.2f}", f"{beyond.value:.2f}", f"{beyond.p:.4f}", f"{within.p:.4f}",
            f"{same.value:.1f}", f"{same.by_chance:.1f}", f"{same.p:.4f}"], beyond


def read_searches(run_dirs: list[str]) -> tuple[list[dict], int, int]:
    """The searches' alphas, and their epochs and warm-up epochs per stage. Raises ValueError if they do not match."""
    paths = [Path(run_dir).resolve() for run_dir in run_dirs]
    if len(paths) < 2:
        raise ValueError(f"{run_dirs[0]} is one search: pass two or more to compare")
    for path in paths:
        if paths.count(path) > 1:
            raise ValueError(f"{path.name} is given twice: pass each search once")
        if (kind := records.read_args(path)["kind"]) != "search":
            raise ValueError(f"{path.name} is a run of kind {kind}, which has no alphas: pass searches")
    args = [records.read_args(path, "epochs", "warmup_epochs") for path in paths]
    lengths = sorted({(record["args"]["epochs"], record["args"]["warmup_epochs"]) for record in args})
    if len(lengths) > 1:
        words = " and ".join(f"{epochs} epochs ({warmup} of them warm-up)" for epochs, warmup in lengths)
        raise ValueError(f"a stage has {words} in these searches: compare searches of equal length")
    found = [records.read_alphas(path) for path in paths]
    for path, alphas in zip(paths, found):
        check_candidates(path.name, alphas)
    return found, *lengths[0]


def check_one_kind(run_dirs: list[str]) -> None:
    """Check that first stages are all those of P-DARTS, or of the same control. Raises ValueError."""
    kinds = {first_stage_kind(run_dir): run_dir for run_dir in run_dirs}
    if len(kinds) > 1:
        words = " and ".join(f"{Path(run_dir).name} ({kind})" for kind, run_dir in kinds.items())
        raise ValueError(f"{words} are searches of different kinds: pass one kind, or two on either side "
                         "of --against")


def warn_of_repetitions(run_dirs: list[str]) -> None:
    """Warn if more than two searches have seeds in common: their pairs are not independent."""
    seeds = [records.read_args(run_dir)["args"].get("seed") for run_dir in run_dirs]
    if len(seeds) > 2 and (again := sorted({seed for seed in seeds if seed is not None and seeds.count(seed) > 1})):
        log.warning(f"more than one search has the seed {' or '.join(map(str, again))}, so pairs are not independent, "
                    "and p-values are too small: pass one search of each seed, or two searches alone")


# ---- figure

@style()
def plot(found: dict[str, dict[str, significance.Agreement]], path: Path) -> None:
    """Draw the agreement beyond means; found: cell -> "stage, alpha steps" -> its agreement. Raises OSError."""
    from matplotlib.figure import Figure

    from reporting.curves import CURVES
    figure = Figure((4.8, 3.2), layout="constrained")
    ax = figure.subplots()
    for (cell, agreements), color in zip(found.items(), CURVES):
        ax.plot(list(agreements), [agreement.value for agreement in agreements.values()], "o-", color=color, label=cell)
        ax.plot(list(agreements), [agreement.limit for agreement in agreements.values()], ":", color=color)
    ax.set_ylim(bottom=min(0, ax.get_ylim()[0]))
    ax.set_title("dotted: 5% of the permutations agree more", loc="left")
    ax.set_xlabel("stage: alpha steps")
    ax.set_ylabel("correlation beyond means")
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    replace_file(path, render(figure, path.suffix[1:]))


# ---- command line

def main(args: Namespace) -> None:
    run_dirs = args.run_dirs + args.against
    searches, epochs, warmup = read_searches(run_dirs)
    for side in (args.run_dirs, args.against):
        check_one_kind(side)
        warn_of_repetitions(side)
    steps = {(record["stage"], record["epoch"]): record.get("alpha_steps", "–")
             for run_dir in run_dirs for record in records.read_run(run_dir, "stage", "epoch")[1]}
    table, found = [HEAD], {name: {} for name in CELLS.values()}
    # A stage's first epoch with alpha steps, and its last.
    for stage, epoch in itertools.product((1, 2, 3), sorted({warmup, epochs - 1})):
        for cell, name in CELLS.items():
            ended = {search: probabilities(alphas, stage, cell, epoch) for search, alphas in enumerate(searches)
                     if len(alphas.get(f"stage{stage}_{cell}", ())) == epochs}
            pairs = [(a, b) for a, b in itertools.combinations(ended, 2)
                     if not args.against or a < len(args.run_dirs) <= b]
            if pairs:
                taken = str(steps.get((stage, epoch), "–"))
                columns, found[name][f"{stage}: {taken}"] = compare(ended, pairs, bool(args.against))
                table.append([str(stage), taken, name.split()[0], *columns])
    if len(table) == 1:
        raise ValueError("no two searches to compare have ended their first stage: --resume them")
    print(tables.markdown(table))
    if args.plot:
        plot(found, args.plot)


def get_args_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("run_dirs", nargs="+", metavar="RUN_DIR", help="run directories of searches")
    parser.add_argument("--against", nargs="+", default=[], metavar="RUN_DIR", help="compare only with these")
    parser.add_argument("--plot", type=figure_file, metavar="FILE", help="plot agreement beyond means as .svg or .png")
    return parser


if __name__ == "__main__":
    cli.run(main, get_args_parser().parse_args)
