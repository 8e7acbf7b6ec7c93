"""One GPU in one command: whether it computes the same, how fast, what bounds it, the hours of the published runs.

    python benchmarks/gpu.py --json gpu.json               # under 8 minutes on an H100
    python benchmarks/gpu.py --device cpu                  # the same at toy sizes, to see that it runs
`plain` is the definition, in steps as a script would first write them (search_step.py, evaluation_step.py);
`definition` is `network.fast = False` in the scripts' own steps, `fast` is what they do by default. Seconds are those
of one step among several in a row; times: faster than the first way of the same step; MB: a step's peak above what it
began with. A profile gives the kernels of a step, and the share of its seconds in which the GPU is busy with them.
Errors are relative, but for `twice` the number of tensors that differ. Float32 convolutions use TF32, torch's default.
"""
import argparse
import os
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))
import evaluation_step
import golden
from measure import difference, file_to_write, machine, write_json
from steps import (
    STAGES,
    attempt,
    build,
    kinds,
    make_batch,
    make_network,
    measure_compiled,
    measure_steps,
    profile_steps,
    seconds_of,
)

import utils
from harness import cli
from input_pipeline import DataSet
from input_pipeline.batches import Batches
from input_pipeline.sets import CIFAR_STATS
from reporting import tables
from train_search import weight_step

SIZES = {"cuda": {"channels": 16, "image_size": 32, "batch_size": 96, "cells": (5, 11, 17), "evaluation_channels": 36,
                  "evaluation_cells": 20, "small_cells": 6, "evaluation_batch_size": 128, "train_images": 50_000,
                  "warmup": 3, "steps": 5, "repeats": 3, "compile_seconds": 90},
         "cpu": {"channels": 2, "image_size": 8, "batch_size": 4, "cells": (1, 1, 2), "evaluation_channels": 2,
                 "evaluation_cells": 2, "small_cells": 1, "evaluation_batch_size": 2, "train_images": 200,
                 "warmup": 1, "steps": 1, "repeats": 1, "compile_seconds": 0}}
NETWORKS = (*STAGES, "evaluation")
NEEDED = ("plain", "definition", "fast")
OPTIONAL = ("fast, channels-last", "definition, channels-last", "fast, bf16", "fast, channels-last, bf16",
            "fast, checkpointed")
FIELDS = {"what": "", "way": "", "seconds": ".4f", "times": ".2f", "images_per_second": ".0f", "peak_mb": ".1f",
          "kernels": ".0f", "busy": ".0%", "error": ".1e", "hours": ".2f", "note": ""}  # of a row, and their formats
BOUNDS = {"vectors": 1e-8, "float64": 1e-8, "third": 0.05, "twice": 0}  # of errors, by the first word of what is wrong


def parse_args() -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: toy sizes")
    parser.add_argument("--minutes", type=cli.number(float, 0), default=7.0, help="then, what is optional is left out")
    parser.add_argument("--compile_seconds", type=cli.number(float, 0), help="for a network; default: 90, on a CPU 0")
    parser.add_argument("--json", type=file_to_write, help="write all rows to this file")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here: --device cpu runs the same at toy sizes")
    given = {name: value for name, value in vars(args).items() if value is not None}
    return argparse.Namespace(**vars(args) | SIZES[args.device] | given)


class Report:
    """The rows so far: said as they come, kept in --json, at the end one table."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.rows, self.start = args, [], time.perf_counter()

    def seconds_left(self) -> float:
        return 60 * self.args.minutes - self.elapsed()

    def elapsed(self) -> float:
        return time.perf_counter() - self.start

    def add(self, what: str, way: str, result: dict) -> None:
        row = dict.fromkeys(FIELDS) | {"what": what, "way": way} | result
        self.rows.append(row)
        first = next(r for r in self.rows if r["what"] == what)
        if row["seconds"] and first["seconds"]:
            row["times"] = first["seconds"] / row["seconds"]
        print(f"{self.elapsed():4.0f} s  {what}, {way}: " + ", ".join(
            f"{name} {text}" for name, text in zip(FIELDS, written(row)) if text and name not in ("what", "way")),
            flush=True)
        write_json(self.args, self.rows)

    def find(self, what: str, way: str) -> dict:
        return next((r for r in self.rows if (r["what"], r["way"]) == (what, way)), dict.fromkeys(FIELDS))

    def refuse_errors(self) -> None:
        wrong = [f"{row['what']} ({row['way']})" for row in self.rows if row["what"].split()[0] in BOUNDS
                 and (row["error"] is None or not row["error"] <= BOUNDS[row["what"].split()[0]])]
        if wrong:
            raise ValueError(f"not right on this device, see the table: {', '.join(wrong)}")

    def print_table(self) -> None:
        print(f"\n{machine(self.args.device)}, {self.elapsed():.0f} s\n")
        titles = [name.replace("_", " ") for name in FIELDS]
        print(tables.markdown([titles, *map(written, self.rows)]))


def written(row: dict) -> list[str]:
    return ["" if row[name] is None else format(row[name], form) for name, form in FIELDS.items()]


# ---- is it right?

def add_vectors(report: Report, args: argparse.Namespace) -> None:
    """In float64 against the published code's vectors, and at full width fast/ against the definition."""
    torch.backends.cudnn.benchmark = False  # each shape is seen once
    for name in (*golden.SUPERNETS, *golden.EVALUATION):
        for way in golden.WAYS:
            if name in golden.SUPERNETS or "checkpointed" not in way:
                result = attempt(lambda *case: {"error": golden.largest_error(*case)}, name, way, args.device)
                report.add(f"vectors {name}", way, result)
    for name in NETWORKS:
        report.add(f"float64 {name}", "fast", attempt(fast_error, name, args))


def fast_error(name: str, args: argparse.Namespace) -> dict:
    def loss_of(network, images, target):
        logits = network(images)
        return F.cross_entropy(logits, target)
    images, target = (part[:4] for part in make_batch(name, args))
    loss_of = loss_of if name in STAGES else evaluation_step.loss_of
    error, worst = difference(make_network(name, args), loss_of, images, target)
    return {"error": error, "note": f"against the definition, {len(images)} images; largest: {worst}"}


def third_loss(precision: str, args: argparse.Namespace) -> float:
    """The loss in stage 1's third weight step."""
    network, (images, target) = make_network("stage 1", args), make_batch("stage 1", args)
    if precision == "float64":
        network, images = network.double(), images.double()
    utils.set_precision(network, torch.device(args.device), "bf16" if precision == "bf16" else "off")
    weights = [p for name, p in network.named_parameters() if not name.startswith("alphas")]
    optimizer = torch.optim.SGD(weights, 0.025, momentum=0.9, weight_decay=3e-4, fused=True)
    return [weight_step(network, optimizer, images, target, 5.0)[0].item() for _ in range(3)][-1]


def precision_error(precision: str, args: argparse.Namespace) -> dict:
    expected, loss = third_loss("float64", args), third_loss(precision, args)
    return {"error": abs(loss - expected) / expected, "note": f"loss {loss:.4f}, in float64 {expected:.4f}"}


def trained_state(name: str, args: argparse.Namespace) -> dict[str, Tensor]:
    """Weights, alphas and statistics after two steps of every kind."""
    network, steps, batch = build(name, "fast", args)
    for step in [*steps.values()] * 2:
        step(*batch)
    return network.state_dict()


def repeat_error(name: str, args: argparse.Namespace) -> dict:
    one, other = trained_state(name, args), trained_state(name, args)
    differing = [key for key in one if not torch.equal(one[key], other[key])]
    return {"error": float(len(differing)), "note": f"differ: {differing[:3]}" if differing else "bit-identical"}


def add_sanity(report: Report, args: argparse.Namespace) -> None:
    """Float32 and bf16 against float64, and what --deterministic promises."""
    for precision in ("float32", "bf16"):
        report.add("third weight step", precision, attempt(precision_error, precision, args))
    utils.pick_device(args.device, deterministic=True)
    for name in ("stage 1", "evaluation"):
        report.add(f"twice {name}", "deterministic", attempt(repeat_error, name, args))
    utils.pick_device(args.device, deterministic=False)


# ---- how fast is it?

def add_steps(report: Report, args: argparse.Namespace, ways: tuple[str, ...], optional: bool) -> None:
    for name in NETWORKS:
        for way in ways:
            if "checkpointed" in way and name == "evaluation":
                continue
            late = optional and report.seconds_left() <= 0
            result = {"note": f"left out after {args.minutes:g} minutes"} if late else attempt(
                measure_steps, name, way, args)
            for kind in kinds(name):
                report.add(f"{name} {kind}", way, result.get(kind, result))


def add_profiles(report: Report, args: argparse.Namespace) -> None:
    """Complete the rows of steps when all are timed: a profiler may slow what comes after it."""
    for name in NETWORKS:
        for way in (*NEEDED, *OPTIONAL[:1] * (report.seconds_left() > 0)):
            rows = {kind: report.find(f"{name} {kind}", way) for kind in kinds(name)}
            if not all(row["seconds"] for row in rows.values()):
                continue
            profiles = attempt(profile_steps, name, way, args)
            for kind, row in rows.items():
                if "note" in profiles:
                    row["note"] = f"no profile: {profiles['note']}"
                    continue
                row["kernels"], busy = profiles[kind]
                row["busy"] = busy / row["seconds"]
                if args.device == "cuda":
                    row["note"] = f"{'launches' if row['busy'] < 0.8 else 'kernels'} bound it"
    write_json(args, report.rows)


def add_compiled(report: Report, args: argparse.Namespace) -> None:
    """Bounded: of the evaluation network a small one, of the supernets stage 1's."""
    small = attempt(measure_steps, "small evaluation", "fast", args)
    report.add("small evaluation training", "fast",
               {"note": f"{args.small_cells} cells"} | small.get("training", small))
    for name in ("small evaluation", "stage 1"):
        limit = min(args.compile_seconds, report.seconds_left())
        result = attempt(measure_compiled, name, limit, args) if limit > 0 else {"note": "left out: no time is left"}
        for kind in kinds(name):
            report.add(f"{name} {kind}", "fast, compiled", result.get(kind, result))


def pipeline_rate(batch_size: int, row: dict, args: argparse.Namespace) -> dict:
    images = torch.randint(256, (args.train_images, 3, 32, 32), dtype=torch.uint8)
    target = torch.randint(10, (len(images),))
    dataset = DataSet(images, target, images, target, list("0123456789"), *CIFAR_STATS["cifar10"], flip=True)
    batches = Batches(images, target, batch_size, dataset, args.device, seed=0, cutout=16)
    rate = batch_size / seconds_of(lambda _: batches.next(), (torch.zeros(1, device=args.device),), args)
    note = f"{rate / row['images_per_second']:.1f} times what a step takes" if row["images_per_second"] else None
    return {"images_per_second": rate, "note": note}


def add_hours(report: Report, args: argparse.Namespace) -> None:
    """Of the published runs, training steps alone: 25 epochs a stage, the last 15 bilevel; 600 epochs of evaluation."""
    search_steps, evaluation_steps = -(-25_000 // args.batch_size), -(-50_000 // args.evaluation_batch_size)
    for way in (*NEEDED, *OPTIONAL):
        times = [[report.find(f"{stage} {kind}", way)["seconds"] for kind in ("weight", "alpha")] for stage in STAGES]
        if all(weight and alpha for weight, alpha in times):
            total = sum(search_steps * (25 * weight + 15 * alpha) for weight, alpha in times)
            report.add("published search", way, {"hours": total / 3600})
        training = report.find("evaluation training", way)["seconds"]
        if training:
            report.add("published evaluation", way, {"hours": 600 * evaluation_steps * training / 3600})


def main(args: argparse.Namespace) -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # must be there before CUDA starts
    utils.pick_device(args.device, deterministic=False)
    print(machine(args.device), flush=True)
    report = Report(args)
    add_vectors(report, args)
    add_sanity(report, args)
    add_steps(report, args, NEEDED, optional=False)
    for batch_size, step in ((args.batch_size, "stage 1 weight"), (args.evaluation_batch_size, "evaluation training")):
        report.add(f"input, batch {batch_size}", "Batches",
                   attempt(pipeline_rate, batch_size, report.find(step, "fast"), args))
    add_steps(report, args, OPTIONAL, optional=True)
    add_profiles(report, args)
    add_compiled(report, args)
    add_hours(report, args)
    report.print_table()
    report.refuse_errors()


if __name__ == "__main__":
    cli.run(main, parse_args)
