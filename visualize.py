"""Draw a cell, or all measurements of a run: figures as PNG and SVG, and for a run report.html.

    python visualize.py RUN_DIR | NAME | genotype.json [--out DIR]
The training scripts also draw their run, at the end of each stage and of the run. A run's figures are in
RUN_DIR/pictures/, a genotype's in the current directory; --out DIR replaces either directory.
"""
import os
import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, __file__.removesuffix("visualize.py"))  # python -I and -P omit it

import genotypes
from harness import cli
from harness.log import log
from reporting.page import draw_genotype, draw_run


def get_args_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("what", metavar="RUN_DIR | NAME | genotype.json", help="a run or a cell, as for --arch")
    parser.add_argument("--out", metavar="DIR", help="output directory; default: the run, or the current directory")
    return parser


def main(args: Namespace) -> None:
    if os.path.exists(os.path.join(args.what, "args.json")):  # Path.exists fails on a long text
        log.info(f"wrote {draw_run(args.what, args.out)} and its figures")
        return
    genotype = genotypes.load(args.what)
    name = Path(genotypes.label(args.what)).resolve().name.removesuffix(".json").replace(":", "-")
    for path in draw_genotype(genotype, Path(args.out or "."), name).values():
        log.info(f"wrote {path} and {path.with_suffix('.png').name}")


if __name__ == "__main__":
    cli.run(main, get_args_parser().parse_args)
