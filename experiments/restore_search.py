"""Write the checkpoint of a search again, as it was when its last complete stage ended, from its record.

    python experiments/restore_search.py RUN
    python train_search.py --resume RUN
A record in results/ has no weights, but each stage starts with new ones. So the candidates that are left, and the
random numbers already drawn, are all that the next stage needs; it continues as if the search had never stopped. RUN is
a copy of the record, in the place from which the search found its data. Expect RUN/checkpoint.pt; epochs of an
unfinished stage are dropped from the record.
"""
import sys
from argparse import Namespace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
import train_search
from harness import cli, records
from harness.log import log
from harness.runs import Run
from input_pipeline import search_parts
from input_pipeline.batches import Batches


def get_args_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="the record of a search, without a checkpoint")
    return parser


def main(args: Namespace) -> None:
    _, metrics = records.read_run(args.run, "stage", "epoch", "seconds")
    options = train_search.parse_args(["--resume", str(args.run)])
    if (args.run / "checkpoint.pt").exists():
        raise ValueError(f"{args.run} has a checkpoint.pt: resume it")
    complete = len(metrics) // options.epochs
    if not 0 < complete < 3:
        raise ValueError(f"{args.run} has {complete} complete stages, and 1 or 2 can be continued: start a new search")
    source = search_parts.open_data(options, torch.device("cpu"))
    if isinstance(source.train_batches, Batches):
        for batches, epochs in ((source.train_batches, options.epochs),
                                (source.valid_batches, options.epochs - options.warmup_epochs)):
            for _ in range(complete * epochs * len(source.train_batches)):
                batches.next()
    run = Run("search", args.run, options, "cpu", state_after(complete, options, records.read_alphas(args.run)))
    run.metrics = metrics[:complete * options.epochs]
    run.keep(train_batches=source.train_batches, valid_batches=source.valid_batches)
    run.save()
    log.info(f"{args.run} continues with stage {complete + 1}: python train_search.py --resume {args.run}")


def state_after(complete: int, options: Namespace, alphas: dict) -> train_search.Progress:
    """The state of a search in which so many stages are complete. Raises ValueError if alphas lack one of them."""
    progress = train_search.begin(options)
    for stage in train_search.make_stages(options)[:complete]:
        names = [f"stage{stage.number}_{cell}" for cell in ("normal", "reduce")]
        for name, candidates in zip(names, (progress.normal, progress.reduce)):
            if len(alphas.get(name, ())) != options.epochs or alphas[f"{name}_candidates"].tolist() != candidates:
                raise ValueError(f"{options.resume}/alphas.npz has no complete stage {stage.number} as in "
                                 "metrics.jsonl: restore the file")
            progress.alphas |= {name: list(torch.from_numpy(alphas[name])), f"{name}_candidates": candidates}
        last = [progress.alphas[name][-1] for name in names]
        train_search.advance(progress, stage, train_search.read_choices(progress, last))
    return progress


if __name__ == "__main__":
    cli.run(main, get_args_parser().parse_args)
