"""Copy the records of an experiment's finished runs, without weights and without the path of the script.

    python experiments/collect.py OUT results
Expect results/RUN/ for each finished run in OUT/runs and OUT/controls, with args.json, metrics.jsonl and genotype.json,
and for a search alphas.npz and genotypes.json: all files that compare.py and visualize.py read. A search counts as soon
as its first stage has ended, since that has a cell of its own. The losses that ablation.py measured are copied to
results/supernets/. The names contain that of the data (eval-cifar-..., eval-fashion-...), so the records of several
settings can share a folder. Nothing is copied if a record is damaged.
"""
import json
import shlex
import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import compare
from harness import cli, records
from harness.files import replace_file
from harness.log import log
from reporting.runs import read_run, state

RECORDS = ("metrics.jsonl", "genotype.json", "genotypes.json", "alphas.npz")


def get_args_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="the --out of evidence.py")
    parser.add_argument("results", type=Path, metavar="RESULTS", help="folder for the records")
    return parser


def main(args: Namespace) -> None:
    found = [read_run(str(path.parent)) for folder in ("runs", "controls")
             for path in sorted((args.out / folder).glob("*/args.json"))]
    if not found:
        raise ValueError(f"{args.out} holds no runs: pass the --out of experiments/evidence.py")
    kept = [run for run in found if state(run) == "finished"
            or run["kind"] == "search" and compare.first_stage_cell(run)]
    for run in kept:
        if run["kind"] == "search":
            records.read_alphas(run["path"])
    for path in (args.out / "supernets").glob("*.json"):
        (args.results / "supernets").mkdir(parents=True, exist_ok=True)
        replace_file(args.results / "supernets" / path.name, path.read_bytes())
    for run in kept:
        folder = args.results / run["name"]
        folder.mkdir(parents=True, exist_ok=True)
        # A record that this kind of run does not write is not there to be copied.
        for name in RECORDS:
            if (run["path"] / name).exists():
                replace_file(folder / name, (run["path"] / name).read_bytes())
        # The command keeps its options, but not the path of the script, which is that of this machine.
        record = records.read_args(run["path"], "command")
        python, script, *options = shlex.split(record["command"])
        record["command"] = shlex.join([python, Path(script).name, *options])
        replace_file(folder / "args.json", json.dumps(record, indent=1).encode() + b"\n")
    log.info(f"the records of {len(kept)} of {len(found)} runs are in {args.results}")


if __name__ == "__main__":
    cli.run(main, get_args_parser().parse_args)
