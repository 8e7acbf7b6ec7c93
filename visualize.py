"""Draw a cell, or everything that a run has measured: pictures as PNG and SVG, and for a run report.html.

    python visualize.py RUN_DIR | NAME | genotype.json [--out DIR]
The training scripts do this themselves at the end of each stage and of the run. A run's pictures are in
RUN_DIR/pictures/, those of a genotype in the current directory; --out DIR puts either elsewhere.
"""
import os
from argparse import Namespace
from pathlib import Path

import genotypes
from harness import cli
from harness.log import log
from reporting.page import draw_genotype, draw_run


def get_args_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("what", metavar="RUN_DIR | NAME | genotype.json", help="a run, a published cell or random:SEED")
    parser.add_argument("--out", metavar="DIR", help="where to write; default: the run, or the current directory")
    return parser


def main(args: Namespace) -> None:
    if os.path.exists(os.path.join(args.what, "args.json")):  # Path.exists would not take a long text
        log.info(f"wrote {draw_run(args.what, args.out)} and its pictures")
        return
    genotype = genotypes.load(args.what)
    name = Path(genotypes.label(args.what)).resolve().name.removesuffix(".json").replace(":", "-")
    for path in draw_genotype(genotype, Path(args.out or "."), name).values():
        log.info(f"wrote {path} and {path.with_suffix('.png').name}")


if __name__ == "__main__":
    cli.run(main, get_args_parser().parse_args)
