"""What becomes of a planted operation? The controls `noise` and `twin`, beside unchanged searches.

    python experiments/planted.py RUN_DIR [RUN_DIR ...]
The runs are those of experiments/controls.py and train_search.py. In the controls another operation replaces
dil_conv_3x3. Expect a Markdown table with a line per run, on the alphas after its first stage:
    dropped       edges, of 28, on which dil_conv_3x3 or its replacement is among the three dropped candidates (by
                  chance 3 of 8: 10.5)
    none dropped  the same for the zero operation, which adds nothing
    apart         the distance of the alphas of dil_conv_3x3, or its replacement, and sep_conv_3x3: RMS over the edges
    others        the same for all other pairs of candidates. A twin's distance is what the search can't tell apart.
"""
import itertools
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from genotypes import PRIMITIVES
from harness import cli, records
from reporting import runs, tables

HEAD = ["run", "in the place of dil_conv_3x3", "dropped", "none dropped", "apart", "others"]
NUM_DROP = 3  # after stage 1
PLANTED, SIBLING = PRIMITIVES.index("dil_conv_3x3"), PRIMITIVES.index("sep_conv_3x3")


def measure(alphas: np.ndarray) -> tuple[int, int, float, float]:
    """dropped, none dropped, apart, others for the alphas (edges, 8) of both cells."""
    lowest = alphas.argsort(axis=1, kind="stable")[:, :NUM_DROP]  # as progressive.prune chooses
    dropped, none = (int((lowest == operation).sum()) for operation in (PLANTED, PRIMITIVES.index("none")))
    distances = {(a, b): np.square(alphas[:, a] - alphas[:, b]).mean()
                 for a, b in itertools.combinations(range(len(PRIMITIVES)), 2)}
    apart = distances.pop(tuple(sorted((PLANTED, SIBLING))))
    return dropped, none, float(np.sqrt(apart)), float(np.sqrt(np.mean(list(distances.values()))))


def read_line(run_dir: str) -> list[str]:
    """A run's line of the table. Raises ValueError if it has no finished first stage."""
    record, alphas = records.read_args(run_dir, "epochs"), records.read_alphas(run_dir)
    planted = runs.control(record)
    found = [alphas.get(f"stage1_{cell}", ()) for cell in ("normal", "reduce")]
    if any(len(epochs) < record["args"]["epochs"] for epochs in found):
        raise ValueError(f"{run_dir} has not ended its first stage: --resume it")
    dropped, none, apart, others = measure(np.concatenate([epochs[-1] for epochs in found]))
    return [Path(run_dir).name, planted if planted in ("noise", "twin") else "itself", str(dropped), str(none),
            f"{apart:.4f}", f"{others:.4f}"]


def main(args: Namespace) -> None:
    print(tables.markdown([HEAD, *map(read_line, args.run_dirs)]))


def get_args_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("run_dirs", nargs="+", metavar="RUN_DIR", help="run directories of searches and controls")
    return parser


if __name__ == "__main__":
    cli.run(main, get_args_parser().parse_args)
