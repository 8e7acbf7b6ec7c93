"""Do searches choose alike? Compare their alphas in stage 1, where all edges still have 8 candidates.

    python experiments/agreement.py RUN_DIR RUN_DIR [RUN_DIR ...]
Expect a Markdown table with one line per epoch of stage 1, counted from 0 as in the log: means over all pairs of
searches. For the normal and the reduction cell it has the number of edges on which both prefer the same operation (by
chance 2 of 14, that is one in seven, because the zero operation is never chosen), the correlation of their alphas, and
their correlation beyond the means, that is without each operation's mean over the edges.
"""
import itertools
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from genotypes import PRIMITIVES
from harness import cli, records
from reporting import tables

CELLS = ("normal", "reduce")


def agreement(first: np.ndarray, second: np.ndarray) -> list[float]:
    """For two searches' alphas (14, 8): edges with the same choice, correlation, correlation beyond the means."""
    first, second = (alphas - alphas.mean(axis=1, keepdims=True) for alphas in (first, second))
    eligible = [i for i, name in enumerate(PRIMITIVES) if name != "none"]
    same = (first[:, eligible].argmax(axis=1) == second[:, eligible].argmax(axis=1)).sum()
    return [same, correlation(first, second), correlation(first - first.mean(axis=0), second - second.mean(axis=0))]


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    return np.corrcoef(first.ravel(), second.ravel())[0, 1]


def main(args: Namespace) -> None:
    paths = list(dict.fromkeys(Path(run_dir).resolve() for run_dir in args.run_dirs))
    if len(paths) < 2:
        raise ValueError(f"{', '.join(args.run_dirs)} is one search: pass two or more to compare")
    for path in paths:
        if (kind := records.read_args(path)["kind"]) != "search":
            raise ValueError(f"{path.name} is a run of kind {kind}, which has no alphas: pass searches")
    searches = [[records.read_alphas(path)[f"stage1_{cell}"] for cell in CELLS] for path in paths]
    lengths = sorted({len(alphas) for search in searches for alphas in search})
    if len(lengths) > 1:
        raise ValueError(f"stage 1 has {' and '.join(map(str, lengths))} epochs in these searches: compare searches of "
                         "equal length, after their first stage")
    table = [["epoch", *(title for cell in CELLS for title in (f"{cell}: same", "correlation", "beyond means"))]]
    for epoch in range(lengths[0]):
        # Each pair of searches has three numbers per cell, and the line has their means over all pairs.
        pairs = [sum([agreement(a[epoch], b[epoch]) for a, b in zip(*pair)], [])
                 for pair in itertools.combinations(searches, 2)]
        # The first of the three is a number of edges, the others are correlations.
        means = [f"{value:.{1 if i % 3 == 0 else 2}f}" for i, value in enumerate(np.mean(pairs, axis=0))]
        table.append([str(epoch), *means])
    print(tables.markdown(table))


def get_args_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("run_dirs", nargs="+", metavar="RUN_DIR", help="run directories of searches")
    return parser


if __name__ == "__main__":
    cli.run(main, get_args_parser().parse_args)
