"""Time and memory of a search step, fast/ against the definition of the same supernet, in one process.

    python benchmarks/search_step.py                       # the three stages at 16 channels, 32x32: minutes on a CPU
    python benchmarks/search_step.py --stages 1 --repeats 9 --json stage1.json
    python benchmarks/search_step.py --growth              # how a step grows with cells, channels, batch, image size
Plain: the definition (`network.fast = False`) as a script would first train it: all parameters requiring gradients in
both steps, contiguous tensors, default optimizers; the fast side gets its images on the CPU as `data.py` delivers them,
in channels-last memory. Both must first agree in float64 on loss, gradients and statistics. Steps are interleaved;
seconds are medians, ratios are plain / this. Bytes are those of one image: `kept` for the backward pass (storages of
saved tensors other than parameters and buffers), `peak` above what a weight step began with.
"""
import argparse
import copy
import random
import statistics
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))
from measure import check, dispatches, file_to_write, kept_bytes, machine, peak_bytes, seconds, write_json

import utils
from architect import Architect
from genotypes import PRIMITIVES
from harness import cli
from model_search import Network
from train_search import weight_step

STAGES = {1: (5, 8), 2: (11, 5), 3: (17, 3)}  # cells, candidates per edge


def get_args_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 2, 3], choices=[1, 2, 3])
    parser.add_argument("--channels", type=cli.number(int, 2), default=16, help="initial channels")
    parser.add_argument("--image_size", type=cli.number(int, 4), default=32)
    parser.add_argument("--stem", choices=["cifar", "imagenet"], default="cifar", help="imagenet: for 32x32 and more")
    parser.add_argument("--batch_size", type=cli.number(int, 2), help="default: 16 on a CPU, 96 on a GPU")
    parser.add_argument("--repeats", type=cli.number(int, 1), default=5, help="timed runs, after one that is not")
    parser.add_argument("--threads", type=cli.number(int, 1), default=1, help="of the CPU")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=cli.number(int, 0), default=0, help="of the candidates, weights and images")
    parser.add_argument("--growth", action="store_true", help="measure the growth table instead")
    parser.add_argument("--json", type=file_to_write, help="write all numbers to this file")
    return parser


class PlainSteps:
    """Both steps as a script would first write them."""

    def __init__(self, network: Network):
        self.model = network
        network.fast = False
        alphas = [network.alphas_normal, network.alphas_reduce]
        weights = [p for p in network.parameters() if all(p is not a for a in alphas)]
        self.alphas = alphas, torch.optim.Adam(alphas, 6e-4, betas=(0.5, 0.999), weight_decay=1e-3)
        self.weights = weights, torch.optim.SGD(weights, 0.025, momentum=0.9, weight_decay=3e-4)

    def weight(self, images, target):
        plain_step(self.model, *self.weights, images, target)

    def alpha(self, images, target):
        plain_step(self.model, *self.alphas, images, target)


def plain_step(model: nn.Module, parameters, optimizer, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    logits = model(images)
    loss = F.cross_entropy(logits, target)
    model.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 5.0)
    optimizer.step()
    return loss.detach(), logits.detach()


class OurSteps:
    """Both steps as `train_search.py` takes them."""

    def __init__(self, network: Network, grad_checkpoint: bool):
        self.model = network
        network.grad_checkpoint = grad_checkpoint
        weights = [p for name, p in network.named_parameters() if not name.startswith("alphas")]
        self.optimizer = torch.optim.SGD(weights, 0.025, momentum=0.9, weight_decay=3e-4, fused=True)
        self.architect = Architect(network, 6e-4, 1e-3, 5.0)

    def weight(self, images, target):
        weight_step(self.model, self.optimizer, images, target, 5.0)

    def alpha(self, images, target):
        self.architect.step(images, target)


def supernet(layers: int, K: int, args: argparse.Namespace) -> Network:
    """The supernet of a stage, its candidates drawn at random: of all 8, K on every edge."""
    rng = random.Random(args.seed)
    candidates = [[sorted(rng.sample(PRIMITIVES, K), key=PRIMITIVES.index) for _ in range(14)] for _ in range(2)]
    torch.manual_seed(args.seed)
    return Network(args.channels, 10, layers, *candidates, stem=args.stem).to(args.device).train()


def measure(layers: int, K: int, args: argparse.Namespace, modes: list[str]) -> dict[str, dict]:
    """Per mode (plain, default, checkpoint): seconds and dispatches of the steps, kept and peak bytes of one image."""
    network = supernet(layers, K, args)
    images = torch.randn(args.batch_size, 3, args.image_size, args.image_size, device=args.device)
    target = torch.randint(10, (args.batch_size,), device=args.device)
    check(network, lambda model, *batch: F.cross_entropy(model(batch[0]), batch[1]), images[:4], target[:4])
    steps = {mode: PlainSteps(copy.deepcopy(network)) if mode == "plain" else
             OurSteps(copy.deepcopy(network), mode == "checkpoint") for mode in modes}
    times = {(mode, kind): [] for mode in modes for kind in ("weight", "alpha")}
    layout = torch.channels_last if args.device == "cpu" else torch.contiguous_format
    inputs = {mode: images if mode == "plain" else images.contiguous(memory_format=layout) for mode in modes}
    for repeat in range(args.repeats + 1):
        for mode, kind in times:
            elapsed = seconds(getattr(steps[mode], kind), inputs[mode], target)
            if repeat:
                times[mode, kind].append(elapsed)
    result = {}
    for mode, step in steps.items():
        row = {kind: statistics.median(times[mode, kind]) for kind in ("weight", "alpha")}
        row["bilevel"] = statistics.median(map(sum, zip(times[mode, "weight"], times[mode, "alpha"])))
        for kind in ("weight", "alpha"):
            row[f"dispatches_{kind}"] = dispatches(getattr(step, kind), inputs[mode], target)
            row[f"kept_{kind}"] = kept_bytes(step.model, inputs[mode], kind) / args.batch_size
        row["peak"] = peak_bytes(step.weight, inputs[mode], target) / args.batch_size
        result[mode] = row
    return result


def print_stage(stage: int, result: dict[str, dict]) -> None:
    layers, K = STAGES[stage]
    print(f"\nstage {stage}: {layers} cells, {K} candidates per edge")
    print(f"{'':11}{'weight s':>15}{'alpha s':>15}{'bilevel s':>15}{'dispatches w, a':>26}{'kept MB w, a':>24}"
          f"{'peak MB':>15}")
    plain = result["plain"]
    for mode, row in result.items():
        cells = [f"{row[k]:.2f} ({plain[k] / row[k]:.2f}x)" for k in ("weight", "alpha", "bilevel")]
        print(f"{mode:11}{cells[0]:>15}{cells[1]:>15}{cells[2]:>15}", end="")
        for key, unit, width in (("dispatches_", 1, ".0f"), ("kept_", 1e6, ".1f")):
            pair = [row[key + kind] / unit for kind in ("weight", "alpha")]
            ratios = [row[key + kind] / plain[key + kind] for kind in ("weight", "alpha")]
            text = ", ".join(f"{value:{width}} ({ratio:.3f})" for value, ratio in zip(pair, ratios))
            print(f"{text:>{26 if unit == 1 else 24}}", end="")
        print(f"{row['peak'] / 1e6:8.1f} ({row['peak'] / plain['peak']:.3f})")
    print(f"default: a weight step takes as long as {result['default']['weight'] / result['default']['alpha']:.2f} "
          "alpha steps")


def print_memory(results: dict[int, dict]) -> None:
    """What a weight step needs beyond weights and optimizer, in proportion to the batch."""
    print("\npeak GB of a weight step, computed for a batch of 96 / 64 / 128 (1,024 on 8 GPUs)")
    modes = list(next(iter(results.values())))
    print(f"{'':9}" + "".join(f"{mode:>22}" for mode in modes))
    for stage, result in results.items():
        cells = [" / ".join(f"{B * result[mode]['peak'] / 1e9:.2f}" for B in (96, 64, 128)) for mode in modes]
        print(f"stage {stage}  " + "".join(f"{cell:>22}" for cell in cells))


def growth(args: argparse.Namespace) -> list[dict]:
    """One size at a time away from 5 cells, 5 candidates, and the given channels, batch and image size."""
    rows = []
    sizes = {"cells": [5, 10, 20], "channels": [8, 16, 32], "batch_size": [8, 16, 32], "image_size": [16, 32, 64]}
    print(f"{'':17}{'bilevel s':>11}{'kept MB':>10}{'peak MB':>10}   of the batch")
    for name, values in sizes.items():
        for value in values:
            sized = argparse.Namespace(**{**vars(args), "cells": 5, name: value})
            row = measure(sized.cells, 5, sized, ["default"])["default"]
            kept, peak = (row[key] * sized.batch_size / 1e6 for key in ("kept_weight", "peak"))
            print(f"{name:11}{value:6}{row['bilevel']:11.2f}{kept:10.0f}{peak:10.0f}", flush=True)
            rows.append({"size": name, "value": value, **row})
    return rows


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    utils.pick_device(args.device, deterministic=False)  # says so where it can't be used
    args.batch_size = args.batch_size or (96 if args.device == "cuda" else 16)
    print(f"{machine(args.device)}, batch {args.batch_size}, {args.channels} channels, "
          f"{args.image_size}x{args.image_size}, {args.stem} stem, median of {args.repeats}")
    if args.growth:
        results = growth(args)
    else:
        results = {}
        for stage in args.stages:
            results[stage] = measure(*STAGES[stage], args, ["plain", "default", "checkpoint"])
            print_stage(stage, results[stage])
            sys.stdout.flush()
        print_memory(results)
    write_json(args, results)


if __name__ == "__main__":
    cli.run(main, get_args_parser().parse_args)
