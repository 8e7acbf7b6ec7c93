"""Which operations does stage 1 drop? In searches, and in the controls of experiments/controls.py.

    python experiments/dropped.py RUN_DIR [RUN_DIR ...] [--plot FILE]
Expect a Markdown table with a line for each kind of search (P-DARTS, or a control) and each cell: the number of edges,
of 14, on which an operation is among the three candidates with the smallest alphas at the end of stage 1, which P-DARTS
drops; the mean over the searches of this kind. By chance, it is 3/8 of 14: 5.25. --plot draws these numbers.
"""
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from compare import figure_file
from genotypes import PRIMITIVES
from harness import cli, records
from harness.files import replace_file
from reporting import tables
from reporting.figures import CELLS, render, style
from reporting.runs import control

NUM_DROP = 3  # after stage 1


def read_alphas(run_dir: str) -> dict[str, np.ndarray]:
    """A search's alphas at the end of stage 1: cell -> (14, 8). Raises ValueError if it has not ended."""
    epochs, alphas = records.read_args(run_dir, "epochs")["args"]["epochs"], records.read_alphas(run_dir)
    check_candidates(run_dir, alphas)
    found = {cell: alphas.get(f"stage1_{cell}", ()) for cell in CELLS}
    if any(len(written) < epochs for written in found.values()):
        raise ValueError(f"{run_dir} has not ended its first stage: --resume it")
    return {cell: written[-1] for cell, written in found.items()}


def check_candidates(run_dir: str, alphas: dict) -> None:
    """Raise ValueError if a search had an operation of one's own."""
    names = {str(name) for key in alphas if key.endswith("_candidates") for row in alphas[key] for name in row}
    if own := sorted(names - {*PRIMITIVES}):
        raise ValueError(f"{run_dir} has the operation {own[0]}: start this by the script that adds it, as in "
                         "docs/own-operations.md, or omit the run")


def is_dropped(alphas: np.ndarray) -> np.ndarray:
    """Which candidates of each edge stage 1 drops: (edges, 8) -> (edges, 8), of bool."""
    lowest = alphas.argsort(axis=1, kind="stable")[:, :NUM_DROP]  # as progressive.prune chooses
    return (lowest[:, :, None] == np.arange(alphas.shape[1])).any(axis=1)


def first_stage_kind(run_dir: str) -> str:
    """The name of a control, or "P-DARTS": also for the control called plain, whose first stage is unchanged."""
    name = control(records.read_args(run_dir))
    return "P-DARTS" if name in (None, "plain") else name


def read_kinds(run_dirs: list[str]) -> dict[str, list[dict[str, np.ndarray]]]:
    """The alphas at the end of stage 1 of each kind of search. Raises ValueError."""
    kinds = {}
    for run_dir in run_dirs:
        kinds.setdefault(first_stage_kind(run_dir), []).append(read_alphas(run_dir))
    return kinds


def count_dropped(searches: list[dict[str, np.ndarray]], cell: str) -> np.ndarray:
    """The edges on which stage 1 drops each operation, (8,): the mean over these searches."""
    return np.mean([is_dropped(alphas[cell]).sum(axis=0) for alphas in searches], axis=0)


@style()
def plot(kinds: dict[str, list[dict[str, np.ndarray]]], path: Path) -> None:
    """Draw a panel per cell, with a column per operation and a mark per kind of search. Raises OSError."""
    from matplotlib.figure import Figure
    figure, names = Figure((6, 4.6), layout="constrained"), [name.replace("_", "\n", 1) for name in PRIMITIVES]
    for ax, (cell, title) in zip(axes := figure.subplots(2, sharex=True, sharey=True), CELLS.items()):
        for mark, (kind, searches) in zip("o^sDvP*", kinds.items()):
            ax.plot(names, count_dropped(searches, cell), mark, markersize=6, alpha=0.7, markeredgewidth=0,
                    label=f"{kind} ({len(searches)})")
        ax.axhline(NUM_DROP / len(PRIMITIVES) * 14, color="gray", linestyle=":")
        ax.set_title(f"{title}; dotted: by chance", loc="left")
        ax.set_ylabel("dropped on so many of 14 edges")
    axes[0].legend(loc="upper left", bbox_to_anchor=(1, 1))
    replace_file(path, render(figure, path.suffix[1:]))


def main(args: Namespace) -> None:
    table, kinds = [["search", "n", "cell", *PRIMITIVES]], read_kinds(args.run_dirs)
    for kind, searches in kinds.items():
        table += [[kind, str(len(searches)), title.split()[0], *(f"{n:.1f}" for n in count_dropped(searches, cell))]
                  for cell, title in CELLS.items()]
    print(tables.markdown(table))
    if args.plot:
        plot(kinds, args.plot)


def get_args_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("run_dirs", nargs="+", metavar="RUN_DIR", help="run directories of searches and controls")
    parser.add_argument("--plot", type=figure_file, metavar="FILE", help="plot the numbers as .svg or .png")
    return parser


if __name__ == "__main__":
    cli.run(main, get_args_parser().parse_args)
