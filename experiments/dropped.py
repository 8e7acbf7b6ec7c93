"""Which operations does stage 1 drop? In searches, and in the controls of experiments/controls.py.

    python experiments/dropped.py RUN_DIR [RUN_DIR ...]
Expect a Markdown table with a line for each kind of search (P-DARTS, or a control) and each cell: the number of edges,
of 14, on which an operation is among the three candidates with the smallest alphas at the end of stage 1, which P-DARTS
drops; the mean over the searches of this kind. By chance, it is 3/8 of 14: 5.25.
"""
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from genotypes import PRIMITIVES
from harness import cli, records
from reporting import tables
from reporting.figures import CELLS
from reporting.runs import control

NUM_DROP = 3  # after stage 1


def read_alphas(run_dir: str) -> dict[str, np.ndarray]:
    """A search's alphas at the end of stage 1: cell -> (14, 8). Raises ValueError if it has not ended."""
    epochs, alphas = records.read_args(run_dir, "epochs")["args"]["epochs"], records.read_alphas(run_dir)
    found = {cell: alphas.get(f"stage1_{cell}", ()) for cell in CELLS}
    if any(len(written) < epochs for written in found.values()):
        raise ValueError(f"{run_dir} has not ended its first stage: --resume it")
    return {cell: written[-1] for cell, written in found.items()}


def is_dropped(alphas: np.ndarray) -> np.ndarray:
    """Which candidates of each edge stage 1 drops: (edges, 8) -> (edges, 8), of bool."""
    lowest = alphas.argsort(axis=1, kind="stable")[:, :NUM_DROP]  # as progressive.prune chooses
    return (lowest[:, :, None] == np.arange(alphas.shape[1])).any(axis=1)


def main(args: Namespace) -> None:
    kinds = {}
    for run_dir in args.run_dirs:
        kinds.setdefault(control(records.read_args(run_dir)) or "P-DARTS", []).append(read_alphas(run_dir))
    table = [["search", "n", "cell", *PRIMITIVES]]
    for kind, searches in kinds.items():
        for cell, title in CELLS.items():
            counts = np.mean([is_dropped(alphas[cell]).sum(axis=0) for alphas in searches], axis=0)
            table.append([kind, str(len(searches)), title.split()[0], *(f"{count:.1f}" for count in counts)])
    print(tables.markdown(table))


def get_args_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("run_dirs", nargs="+", metavar="RUN_DIR", help="run directories of searches and controls")
    return parser


if __name__ == "__main__":
    cli.run(main, get_args_parser().parse_args)
