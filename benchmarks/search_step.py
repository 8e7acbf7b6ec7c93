"""Time and memory of a search step, fast/ against the reference implementation of the same supernet, in one process.

    python benchmarks/search_step.py                       # the three stages at 16 channels, 32x32: minutes on a CPU
    python benchmarks/search_step.py --stages 1 --repeats 9 --json stage1.json
    python benchmarks/search_step.py --growth              # how a step grows with cells, channels, batch, image size
`plain` is the reference (`network.fast = False`) as a script would first train it: all parameters require gradients in
both steps, tensors are contiguous, optimizers have their defaults. `default` is fast/, `checkpoint` the same with
--grad_checkpoint; on the CPU both get images in channels-last memory, as input_pipeline/ delivers them. All must first
agree in float64 on loss, gradients and batch norm statistics. Steps are interleaved, and times are medians. The
speed-up (x) is plain / fast, other ratios are fast / plain. Memory is per image: `saved` for backward (storages of
saved tensors except parameters and buffers), and the `peak` above what was allocated before a weight step. Skip dropout
is off.
"""
import argparse
import copy
import random
import statistics
import sys
from functools import partial
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

import utils
from architect import Architect
from genotypes import PRIMITIVES
from harness import cli
from model_search import Network
from train_search import weight_step

STAGES = {1: (5, 8), 2: (11, 5), 3: (17, 3)}  # number of cells, candidates per edge
KINDS = ("weight", "alpha")


def get_args_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 2, 3], choices=[1, 2, 3],
                        help="stages to measure; default: 1 2 3")
    parser.add_argument("--channels", type=cli.number(int, 2), default=16, help="initial channels")
    parser.add_argument("--image_size", type=cli.number(int, 4), default=32, help="side of the images in pixels")
    parser.add_argument("--stem", choices=["cifar", "imagenet"], default="cifar",
                        help="stem of the supernet; imagenet needs images of 32x32 or more; default: cifar")
    parser.add_argument("--batch_size", type=cli.number(int, 2),
                        help="images per step; default: 64 on a CPU, which takes 8 GB, 96 on a GPU")
    parser.add_argument("--repeats", type=cli.number(int, 1), default=5, help="timed runs, after one warm-up")
    parser.add_argument("--threads", type=cli.number(int, 1), default=1, help="number of CPU threads")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu",
                        help="device to measure; default: cuda if there is a GPU, else cpu")
    parser.add_argument("--seed", type=cli.number(int, 0), default=0, help="seed of candidates, weights and images")
    parser.add_argument("--growth", action="store_true", help="measure how a step grows instead of the stages")
    parser.add_argument("--json", type=file_to_write, help="write all numbers to this file")
    return parser


def plain_steps(network: Network) -> dict:
    """Both steps, by kind, as a script would first write them."""
    network.fast = False
    alphas = [network.alphas_normal, network.alphas_reduce]
    weights = [p for p in network.parameters() if all(p is not a for a in alphas)]
    sgd = torch.optim.SGD(weights, 0.025, momentum=0.9, weight_decay=3e-4)
    adam = torch.optim.Adam(alphas, 6e-4, betas=(0.5, 0.999), weight_decay=1e-3)
    return {"weight": partial(plain_step, network, weights, sgd), "alpha": partial(plain_step, network, alphas, adam)}


def plain_step(model: nn.Module, parameters, optimizer, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    logits = model(images)
    loss = F.cross_entropy(logits, target)
    model.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 5.0)
    optimizer.step()
    return loss.detach(), logits.detach()


def fast_steps(network: Network, grad_checkpoint: bool, scaler: torch.amp.GradScaler | None = None) -> dict:
    """Both steps, by kind, as `train_search.py` takes them."""
    network.grad_checkpoint = grad_checkpoint
    architect = Architect(network, 6e-4, 1e-3, 5.0)
    architect.scaler = scaler = scaler or architect.scaler
    optimizer = utils.sgd(architect.weights, 0.025, 0.9, 3e-4)
    return {"weight": lambda images, target: weight_step(network, optimizer, images, target, 5.0, scaler),
            "alpha": architect.step}


def supernet(layers: int, K: int, args: argparse.Namespace) -> Network:
    """A stage's supernet with K random candidates, of all 8, on every edge."""
    rng = random.Random(args.seed)
    candidates = [[sorted(rng.sample(PRIMITIVES, K), key=PRIMITIVES.index) for _ in range(14)] for _ in range(2)]
    torch.manual_seed(args.seed)
    return Network(args.channels, 10, layers, *candidates, stem=args.stem).to(args.device).train()


def measure(layers: int, K: int, args: argparse.Namespace, modes: list[str]) -> dict[str, dict]:
    """Per mode (plain, default, checkpoint): seconds and dispatches of the steps, saved and peak bytes per image."""
    network = supernet(layers, K, args)
    images = torch.randn(args.batch_size, 3, args.image_size, args.image_size, device=args.device)
    target = torch.randint(10, (args.batch_size,), device=args.device)
    check(network, lambda model, *batch: F.cross_entropy(model(batch[0]), batch[1]), images[:4], target[:4])
    networks = {mode: copy.deepcopy(network) for mode in modes}
    steps = {mode: plain_steps(own) if mode == "plain" else fast_steps(own, mode == "checkpoint")
             for mode, own in networks.items()}
    memory_format = torch.channels_last if args.device == "cpu" else torch.contiguous_format
    inputs = {mode: images if mode == "plain" else images.contiguous(memory_format=memory_format) for mode in modes}
    times = take_turns({(mode, kind): (steps[mode][kind], inputs[mode], target) for mode in modes for kind in KINDS},
                       args.repeats)
    result = {}
    for mode in modes:
        row = {kind: statistics.median(times[mode, kind]) for kind in KINDS}
        # A bilevel step is an alpha step and a weight step; the median is over the sums of both.
        row["bilevel"] = statistics.median(map(sum, zip(times[mode, "weight"], times[mode, "alpha"])))
        # Counting slows a step down, so it comes after all timing.
        for kind in KINDS:
            row[f"dispatches_{kind}"] = count_dispatches(steps[mode][kind], inputs[mode], target)
            row[f"kept_{kind}"] = saved_bytes(networks[mode], inputs[mode], kind) / args.batch_size
        row["peak"] = peak_bytes(steps[mode]["weight"], inputs[mode], target) / args.batch_size
        result[mode] = row
    return result


# ---- tables

def print_columns(rows: list[list[str]]) -> None:
    """Print a table in columns that are two spaces apart, all but the first aligned on the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    for name, *values in rows:
        print("  ".join([name.ljust(widths[0]), *(text.rjust(width) for text, width in zip(values, widths[1:]))]))


def print_stage(stage: int, result: dict[str, dict]) -> None:
    layers, K = STAGES[stage]
    print(f"\nstage {stage}: {layers} cells, {K} candidates per edge")
    plain, default = result["plain"], result["default"]
    rows = [["", "weight s", "alpha s", "bilevel s", "weight dispatches", "alpha dispatches", "weight saved MB",
             "alpha saved MB", "peak MB"]]
    for mode, row in result.items():
        # A time is followed by its speed-up over plain, a count or size by its ratio to plain.
        times = [f"{row[kind]:.2f} ({plain[kind] / row[kind]:.2f}x)" for kind in (*KINDS, "bilevel")]
        counts = [f"{row[key]} ({row[key] / plain[key]:.3f})" for key in ("dispatches_weight", "dispatches_alpha")]
        megabytes = [f"{row[key] / 1e6:.1f} ({row[key] / plain[key]:.3f})" for key in
                     ("kept_weight", "kept_alpha", "peak")]
        rows.append([mode, *times, *counts, *megabytes])
    print_columns(rows)
    print(f"default: a weight step takes as long as {default['weight'] / default['alpha']:.2f} alpha steps", flush=True)


def print_memory(results: dict[int, dict]) -> None:
    """Print what a weight step needs besides weights and optimizer, in proportion to the batch."""
    print("\npeak GB of a weight step, computed for a batch of 96 / 64 / 128 (1,024 over 8 GPUs)")
    rows = [["", *next(iter(results.values()))]]
    for stage, result in results.items():
        rows.append([f"stage {stage}", *(" / ".join(f"{B * row['peak'] / 1e9:.2f}" for B in (96, 64, 128))
                                         for row in result.values())])
    print_columns(rows)


def growth(args: argparse.Namespace) -> list[dict]:
    """Measure the default, varying one size at a time from 5 cells and the given channels, batch and image size."""
    rows = []
    sizes = {"cells": [5, 10, 20], "channels": [8, 16, 32], "batch_size": [8, 16, 32], "image_size": [16, 32, 64]}
    print(f"{'':16} {'bilevel s':>10} {'saved MB':>9} {'peak MB':>9}   MB of the whole batch")
    for name, values in sizes.items():
        for value in values:
            sized = argparse.Namespace(**{**vars(args), "cells": 5, name: value})
            row = measure(sized.cells, 5, sized, ["default"])["default"]
            # Each line is printed at once, because the next one may take minutes.
            saved, peak = (row[key] * sized.batch_size / 1e6 for key in ("kept_weight", "peak"))
            print(f"{name:10} {value:5} {row['bilevel']:10.2f} {saved:9.0f} {peak:9.0f}", flush=True)
            rows.append({"size": name, "value": value, **row})
    return rows


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    utils.pick_device(args.device, deterministic=False)  # raises ValueError if the device can't be used
    args.batch_size = args.batch_size or (96 if args.device == "cuda" else 64)
    print(f"{machine(args.device)}, batch {args.batch_size}, {args.channels} channels, "
          f"{args.image_size}x{args.image_size}, {args.stem} stem, median of {args.repeats}")
    if args.growth:
        results = growth(args)
    else:
        results = {}
        for stage in args.stages:
            results[stage] = measure(*STAGES[stage], args, ["plain", "default", "checkpoint"])
            print_stage(stage, results[stage])
        print_memory(results)
    write_json(args, results)


if __name__ == "__main__":
    cli.run(main, get_args_parser().parse_args)
