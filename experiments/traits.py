"""Which cells do well? Traits of every trained cell next to its errors, and how they correlate.

    python experiments/traits.py RUN_DIR RUN_DIR RUN_DIR [...]
The runs are evaluation runs of different cells. Expect a Markdown table with one line per run, the best first: its
errors after the last epoch, and, of the normal cell's eight edges, the number of skip-connects, pools, separable
convolutions and dilated convolutions, and the number of edges that come from the cell's inputs: the more of them, the
wider and shallower the cell (Shu, Wang and Cai, ICLR 2020). The last line has the correlation of each column with the
test error.
"""
import statistics
import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from harness import cli, records
from reporting import tables
from reporting.runs import read_run, state

TRAITS = ("error, test (%)", "error, training (%)", "skips", "pools", "sep_conv", "dil_conv", "edges from inputs")


def traits(run: dict) -> list[float]:
    """The TRAITS of a finished evaluation run."""
    last, edges = run["metrics"][-1], run["genotype"].normal
    kinds = [sum(name in op for op, _ in edges) for name in ("skip", "pool", "sep_conv", "dil_conv")]
    return [100 - last["test_acc"], 100 - last["train_acc"], *kinds, sum(i < 2 for _, i in edges)]


def correlation(first: list[float], second: list[float]) -> str:
    try:
        return f"{statistics.correlation(first, second):.2f}"
    except statistics.StatisticsError:  # one of the two is constant
        return "–"


def main(args: Namespace) -> None:
    runs = [read_run(run_dir) for run_dir in args.run_dirs]
    for run in runs:
        if run["kind"] == "search" or state(run) != "finished":
            raise ValueError(f"{run['name']} is not a finished evaluation run: omit it")
        if run["genotype"] is None:
            raise ValueError(f"{run['name']} has no genotype.json: restore the file")
        records.read_run(run["path"], "train_acc")  # raises ValueError if an epoch lacks it
    if len(runs) < 3:
        raise ValueError(f"{len(runs)} runs are too few for a correlation: pass three or more")
    rows = sorted((traits(run), run["args"]["arch"]) for run in runs)
    lines = [[Path(arch).stem, *(f"{error:.2f}" for error in values[:2]), *map(str, values[2:])]
             for values, arch in rows]
    columns = list(zip(*(values for values, _ in rows)))
    correlations = [correlation(columns[0], column) for column in columns]
    print(tables.markdown([["cell", *TRAITS], *lines, ["correlation", *correlations]]))


def get_args_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("run_dirs", nargs="+", metavar="RUN_DIR", help="run directories of evaluations")
    return parser


if __name__ == "__main__":
    cli.run(main, get_args_parser().parse_args)
