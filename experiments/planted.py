"""What becomes of a planted operation? The controls `noise` and `twin`, beside unchanged searches.

    python experiments/planted.py RUN_DIR [RUN_DIR ...]
The runs are those of experiments/controls.py and train_search.py. In the controls another operation replaces
dil_conv_3x3. Expect a Markdown table with a line per run, on the alphas after its first stage:
    dropped  edges, of 28, on which dil_conv_3x3 or its replacement is among the three dropped candidates (by chance
             3 of 8: 10.5)
    apart    the distance of the alphas of dil_conv_3x3, or its replacement, and sep_conv_3x3: RMS over the edges
    others   the same for all other pairs of candidates. A twin's distance is what the search can't tell apart.
"""
import itertools
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from experiments.dropped import is_dropped, read_alphas
from genotypes import PRIMITIVES
from harness import cli, records
from reporting import tables
from reporting.runs import control

HEAD = ["run", "in the place of dil_conv_3x3", "dropped", "apart", "others"]
PLANTED, SIBLING = PRIMITIVES.index("dil_conv_3x3"), PRIMITIVES.index("sep_conv_3x3")


def measure(alphas: np.ndarray) -> tuple[int, float, float]:
    """dropped, apart, others for the alphas (edges, 8) of both cells."""
    distances = {(a, b): np.square(alphas[:, a] - alphas[:, b]).mean()
                 for a, b in itertools.combinations(range(len(PRIMITIVES)), 2)}
    apart = distances.pop(tuple(sorted((PLANTED, SIBLING))))
    return (int(is_dropped(alphas)[:, PLANTED].sum()), float(np.sqrt(apart)),
            float(np.sqrt(np.mean(list(distances.values())))))


def read_line(run_dir: str) -> list[str]:
    """A run's line of the table. Raises ValueError if it has no finished first stage."""
    planted = control(records.read_args(run_dir))
    dropped, apart, others = measure(np.concatenate([*read_alphas(run_dir).values()]))
    return [Path(run_dir).name, planted if planted in ("noise", "twin") else "itself", str(dropped), f"{apart:.4f}",
            f"{others:.4f}"]


def main(args: Namespace) -> None:
    print(tables.markdown([HEAD, *map(read_line, args.run_dirs)]))


def get_args_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("run_dirs", nargs="+", metavar="RUN_DIR", help="run directories of searches and controls")
    return parser


if __name__ == "__main__":
    cli.run(main, get_args_parser().parse_args)
