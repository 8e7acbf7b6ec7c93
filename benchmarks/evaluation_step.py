"""Time and memory of a training step of the CIFAR evaluation network, fast/ against the definition, in one process.

    python benchmarks/evaluation_step.py                   # PDARTS, 36 channels, 20 cells, 32x32
Plain: the definition (`network.fast = False`) on contiguous tensors, with the default optimizer; this: images in
channels-last memory, as `data.py` delivers them on the CPU. Both must first agree in float64 on loss, gradients and
statistics. Steps are interleaved; seconds are medians, ratios are plain / this. Kept: bytes of the storages saved for
backward, parameters and buffers not counted, per image.
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
from measure import check, dispatches, file_to_write, kept_bytes, machine, peak_bytes, seconds, write_json

import genotypes
from harness import cli
from model import NetworkCIFAR


def get_args_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("--arch", default="PDARTS")
    parser.add_argument("--init_channels", type=cli.number(int, 2), default=36)
    parser.add_argument("--layers", type=cli.number(int, 1), default=20)
    parser.add_argument("--batch_size", type=cli.number(int, 2), default=8)
    parser.add_argument("--repeats", type=cli.number(int, 1), default=5, help="timed runs, after one that is not")
    parser.add_argument("--threads", type=cli.number(int, 1), default=2, help="of the CPU")
    parser.add_argument("--json", type=file_to_write, help="write all numbers to this file")
    return parser


def loss_of(model: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    logits, logits_aux = model(images)
    return F.cross_entropy(logits, target) + 0.4 * F.cross_entropy(logits_aux, target)


def make_step(model: nn.Module, fused: bool):
    optimizer = torch.optim.SGD(model.parameters(), 0.025, momentum=0.9, weight_decay=3e-4, fused=fused)

    def step(images: Tensor, target: Tensor) -> None:
        loss = loss_of(model, images, target)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    return step


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
    times = {name: [] for name in steps}
    for repeat in range(args.repeats + 1):
        for name, step in steps.items():
            elapsed = seconds(step, inputs[name], target)
            if repeat:
                times[name].append(elapsed)
    print(f"{machine()}, {args.arch}, C = {args.init_channels}, {args.layers} cells, batch {args.batch_size}, "
          f"median of {args.repeats}")
    rows = {name: {"seconds": statistics.median(times[name]),
                   "kept": kept_bytes(models[name], inputs[name], "weight") / args.batch_size,
                   "peak": peak_bytes(steps[name], inputs[name], target) / args.batch_size,
                   "dispatches": dispatches(steps[name], inputs[name], target)} for name in models}
    plain = rows["plain"]
    for name, row in rows.items():
        share = {key: row[key] / plain[key] for key in row}
        print(f"{name:6} {row['seconds']:6.2f} s ({1 / share['seconds']:.2f}x)   "
              f"kept {row['kept'] / 1e6:6.1f} MB/image ({share['kept']:.2f})   "
              f"peak {row['peak'] / 1e6:6.1f} MB/image ({share['peak']:.2f})   "
              f"{row['dispatches']} dispatches ({share['dispatches']:.2f})")
    write_json(args, rows)


if __name__ == "__main__":
    cli.run(main, get_args_parser().parse_args)
