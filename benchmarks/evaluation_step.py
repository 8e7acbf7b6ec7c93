"""Time and memory of a training step of the CIFAR evaluation network, fast/ against the reference, in one process.

    python benchmarks/evaluation_step.py                   # PDARTS, 36 channels, 20 cells, 32x32
`plain` is the reference implementation (`network.fast = False`) on contiguous tensors, with the default optimizer.
`this` is fast/ on images in channels-last memory, as input_pipeline/ delivers them on the CPU. Both must first agree in
float64 on loss, gradients and batch norm statistics. Steps are interleaved, and times are medians. The speed-up (x) is
plain / this, other ratios are this / plain. Memory is per image: `saved` for backward (storages of saved tensors except
parameters and buffers), and the `peak` above what was allocated before the step.
"""
import argparse
import copy
import statistics
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))
from measure import (
    check,
    count_dispatches,
    file_to_write,
    machine,
    peak_bytes,
    saved_bytes,
    take_turns,
    write_json,
)

import genotypes
import utils
from harness import cli
from model import NetworkCIFAR


def get_args_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("--arch", default="PDARTS", help="the cell: a name, random:SEED, a run or a file")
    parser.add_argument("--init_channels", type=cli.number(int, 2), default=36, help="channels of the first cell")
    parser.add_argument("--layers", type=cli.number(int, 1), default=20, help="number of cells")
    parser.add_argument("--batch_size", type=cli.number(int, 2), default=32, help="images per step")
    parser.add_argument("--repeats", type=cli.number(int, 1), default=5, help="timed runs, after one warm-up")
    parser.add_argument("--threads", type=cli.number(int, 1), default=2, help="number of CPU threads")
    parser.add_argument("--json", type=file_to_write, help="write all numbers to this file")
    return parser


def loss_of(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    logits, logits_aux = model(images)
    return F.cross_entropy(logits, target) + 0.4 * F.cross_entropy(logits_aux, target)


def make_step(model: nn.Module, fused: bool, scaler: torch.amp.GradScaler | None = None):
    """A function that takes one training step on (images, target), with the gradient scaler of fp16 if there is one."""
    optimizer = (utils.sgd(model.parameters(), 0.025, 0.9, 3e-4) if fused else
                 torch.optim.SGD(model.parameters(), 0.025, momentum=0.9, weight_decay=3e-4))
    scaler = scaler or torch.amp.GradScaler(enabled=False)

    def step(images: Tensor, target: Tensor) -> None:
        loss = loss_of(model, images, target)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        utils.clipped_step(optimizer, scaler, 5.0)
    return step


def print_rows(rows: dict[str, dict]) -> None:
    plain = rows["plain"]
    for name, row in rows.items():
        ratio = {key: row[key] / plain[key] for key in row}
        print(f"{name:6} {row['seconds']:6.2f} s ({1 / ratio['seconds']:.2f}x)   "
              f"saved {row['kept'] / 1e6:6.1f} MB/image ({ratio['kept']:.2f})   "
              f"peak {row['peak'] / 1e6:6.1f} MB/image ({ratio['peak']:.2f})   "
              f"{row['dispatches']} dispatches ({ratio['dispatches']:.2f})")


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    network = NetworkCIFAR(args.init_channels, 10, args.layers, True, genotypes.load(args.arch))
    images, target = torch.randn(args.batch_size, 3, 32, 32), torch.randint(10, (args.batch_size,))
    check(network, loss_of, images[:2], target[:2])
    models = {"plain": copy.deepcopy(network), "this": copy.deepcopy(network)}
    models["plain"].fast = False
    steps = {name: make_step(model, fused=name == "this") for name, model in models.items()}
    inputs = {"plain": images, "this": images.contiguous(memory_format=torch.channels_last)}
    times = take_turns({name: (step, inputs[name], target) for name, step in steps.items()}, args.repeats)
    print(f"{machine()}, {args.arch}, C = {args.init_channels}, {args.layers} cells, batch {args.batch_size}, "
          f"median of {args.repeats}")
    rows = {name: {"seconds": statistics.median(times[name]),
                   "kept": saved_bytes(models[name], inputs[name], "weight") / args.batch_size,
                   "peak": peak_bytes(steps[name], inputs[name], target) / args.batch_size,
                   "dispatches": count_dispatches(steps[name], inputs[name], target)} for name in models}
    print_rows(rows)
    write_json(args, rows)


if __name__ == "__main__":
    cli.run(main, get_args_parser().parse_args)
