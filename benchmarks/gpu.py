"""One GPU, one command: correctness, speed, bottlenecks, and the device-hours of the published runs.

    python benchmarks/gpu.py --json gpu.json               # under 8 minutes on an H100
    python benchmarks/gpu.py --device cpu                  # the same at toy sizes, to check that it runs
`plain` is the reference implementation, in steps as a script would first write them (search_step.py,
evaluation_step.py). `definition` is the reference (`network.fast = False`) in the scripts' own steps, `fast` is their
default. Seconds are wall-clock time per step, over several steps in a row. Times is the speed-up over the first variant
of the same step. Peak MB is the peak above what was allocated before a step. The profile gives the number of kernels of
a step, and the fraction of its time in which the GPU runs them. Errors are relative; for `twice` they are the number of
tensors that differ. Float32 convolutions use TF32, torch's default.
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
    make_batch,
    make_network,
    measure_compiled,
    measure_steps,
    profile_steps,
    step_kinds,
    step_seconds,
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
# Fields of a row, in the table and in --json, and their formats; `way` is the variant.
FIELDS = {"what": "", "way": "", "seconds": ".4f", "times": ".2f", "images_per_second": ".0f", "peak_mb": ".1f",
          "kernels": ".0f", "busy": ".0%", "error": ".1e", "hours": ".2f", "note": ""}
# The largest allowed errors, by the first word of `what`.
MAX_ERRORS = {"vectors": 1e-8, "float64": 1e-8, "third": 0.05, "twice": 0}


def parse_args() -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda",
                        help="cuda, or cpu at toy sizes; default: cuda")
    parser.add_argument("--minutes", type=cli.number(float, 0), default=7.0,
                        help="time limit, after which optional rows are skipped")
    parser.add_argument("--compile_seconds", type=cli.number(float, 0),
                        help="time limit for compiling a network; default: 90, on a CPU 0")
    parser.add_argument("--json", type=file_to_write, help="write all rows to this file")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device: use --device cpu, which runs the same at toy sizes")
    options = {name: value for name, value in vars(args).items() if value is not None}
    return argparse.Namespace(**vars(args) | SIZES[args.device] | options)


class Report:
    """The rows so far: printed and saved to --json one by one, and printed as a table at the end."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.rows, self.start = args, [], time.perf_counter()

    def elapsed(self) -> float:
        return time.perf_counter() - self.start

    def seconds_left(self) -> float:
        return 60 * self.args.minutes - self.elapsed()

    def add(self, what: str, variant: str, result: dict) -> None:
        row = dict.fromkeys(FIELDS) | {"what": what, "way": variant} | result
        self.rows.append(row)
        # The first variant of a step is the one that the others are compared with.
        first = next(r for r in self.rows if r["what"] == what)
        if row["seconds"] and first["seconds"]:
            row["times"] = first["seconds"] / row["seconds"]
        print(f"{self.elapsed():4.0f} s  {what}, {variant}: " + ", ".join(
            f"{name} {text}" for name, text in zip(FIELDS, format_row(row)) if text and name not in ("what", "way")),
            flush=True)
        # The file is rewritten after each row, so that an interrupted run keeps its rows.
        write_json(self.args, self.rows)

    def find(self, what: str, variant: str) -> dict:
        return next((r for r in self.rows if (r["what"], r["way"]) == (what, variant)), dict.fromkeys(FIELDS))

    def reject_errors(self) -> None:
        """Raise ValueError if an error exceeds its bound, is NaN or is missing."""
        wrong = []
        for row in self.rows:
            bound = MAX_ERRORS.get(row["what"].split()[0])
            if bound is not None and (row["error"] is None or not row["error"] <= bound):
                wrong.append(f"{row['what']} ({row['way']})")
        if wrong:
            raise ValueError(f"wrong results on this device, see the errors in the table: {', '.join(wrong)}")

    def print_table(self) -> None:
        print(f"\n{machine(self.args.device)}, {self.elapsed():.0f} s\n")
        titles = [name.replace("_", " ") for name in FIELDS]
        print(tables.markdown([titles, *map(format_row, self.rows)]))


def format_row(row: dict) -> list[str]:
    return ["" if row[name] is None else format(row[name], spec) for name, spec in FIELDS.items()]


# ---- correctness

def add_vectors(report: Report, args: argparse.Namespace) -> None:
    """Compare in float64: the networks with the published vectors, and at full width fast/ with the reference."""
    torch.backends.cudnn.benchmark = False  # each shape occurs once, so autotuning would only cost time
    for name in (*golden.SUPERNETS, *golden.EVALUATION):
        for variant in golden.VARIANTS:
            # The evaluation networks have no activation checkpointing.
            if name in golden.SUPERNETS or "checkpointed" not in variant:
                result = attempt(lambda *case: {"error": golden.largest_error(*case)}, name, variant, args.device)
                report.add(f"vectors {name}", variant, result)
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
    utils.set_precision(network, "bf16" if precision == "bf16" else "off")
    weights = [p for name, p in network.named_parameters() if not name.startswith("alphas")]
    optimizer = torch.optim.SGD(weights, 0.025, momentum=0.9, weight_decay=3e-4, fused=True)
    return [weight_step(network, optimizer, images, target, 5.0)[0].item() for _ in range(3)][-1]


def precision_error(precision: str, args: argparse.Namespace) -> dict:
    expected, loss = third_loss("float64", args), third_loss(precision, args)
    return {"error": abs(loss - expected) / expected, "note": f"loss {loss:.4f}, in float64 {expected:.4f}"}


def trained_state(name: str, args: argparse.Namespace) -> dict[str, Tensor]:
    """Weights, alphas and batch norm statistics after two steps of every kind."""
    network, steps, batch = build(name, "fast", args)
    for step in [*steps.values()] * 2:
        step(*batch)
    return network.state_dict()


def repeat_error(name: str, args: argparse.Namespace) -> dict:
    first, second = trained_state(name, args), trained_state(name, args)
    differing = [key for key in first if not torch.equal(first[key], second[key])]
    return {"error": float(len(differing)), "note": f"differ: {differing[:3]}" if differing else "bit-identical"}


def add_sanity(report: Report, args: argparse.Namespace) -> None:
    """Compare float32 and bf16 with float64, and a training with its repetition under --deterministic."""
    for precision in ("float32", "bf16"):
        report.add("third weight step", precision, attempt(precision_error, precision, args))
    utils.pick_device(args.device, deterministic=True)
    for name in ("stage 1", "evaluation"):
        report.add(f"twice {name}", "deterministic", attempt(repeat_error, name, args))
    utils.pick_device(args.device, deterministic=False)


# ---- speed

def add_steps(report: Report, args: argparse.Namespace, variants: tuple[str, ...], optional: bool) -> None:
    for name in NETWORKS:
        for variant in variants:
            # The evaluation networks have no activation checkpointing.
            if "checkpointed" in variant and name == "evaluation":
                continue
            # Optional variants are skipped at the time limit, so that the report still ends with its table.
            if optional and report.seconds_left() <= 0:
                result = {"note": f"skipped after {args.minutes:g} minutes"}
            else:
                result = attempt(measure_steps, name, variant, args)
            for kind in step_kinds(name):
                report.add(f"{name} {kind}", variant, result.get(kind, result))


def add_profiles(report: Report, args: argparse.Namespace) -> None:
    """Complete the rows of the steps after all are timed, because a profiler may slow down later steps."""
    for name in NETWORKS:
        for variant in (*NEEDED, *OPTIONAL[:1] * (report.seconds_left() > 0)):
            # Only steps that could be timed are profiled.
            rows = {kind: report.find(f"{name} {kind}", variant) for kind in step_kinds(name)}
            if not all(row["seconds"] for row in rows.values()):
                continue
            profiles = attempt(profile_steps, name, variant, args)
            for kind, row in rows.items():
                if "note" in profiles:
                    row["note"] = f"no profile: {profiles['note']}"
                    continue
                row["kernels"], busy = profiles[kind]
                row["busy"] = busy / row["seconds"]
                # A GPU that idles for a fifth of a step waits for the CPU to launch its kernels.
                if args.device == "cuda":
                    row["note"] = f"{'launch' if row['busy'] < 0.8 else 'kernel'}-bound"
    write_json(args, report.rows)


def add_compiled(report: Report, args: argparse.Namespace) -> None:
    """Compile only a small evaluation network and stage 1's supernet, and only for a limited time."""
    small = attempt(measure_steps, "small evaluation", "fast", args)
    report.add("small evaluation training", "fast",
               {"note": f"cells: {args.small_cells}"} | small.get("training", small))
    for name in ("small evaluation", "stage 1"):
        limit = min(args.compile_seconds, report.seconds_left())
        result = attempt(measure_compiled, name, limit, args) if limit > 0 else {"note": "skipped: time limit"}
        for kind in step_kinds(name):
            report.add(f"{name} {kind}", "fast, compiled", result.get(kind, result))


def pipeline_rate(batch_size: int, row: dict, args: argparse.Namespace) -> dict:
    """The images per second of the CIFAR training input, compared with those of a step's row."""
    images = torch.randint(256, (args.train_images, 3, 32, 32), dtype=torch.uint8)
    target = torch.randint(10, (len(images),))
    dataset = DataSet(images, target, images, target, list("0123456789"), *CIFAR_STATS["cifar10"], flip=True)
    batches = Batches(images, target, batch_size, dataset, args.device, seed=0, cutout=16)
    rate = batch_size / step_seconds(lambda _: batches.next(), (torch.zeros(1, device=args.device),), args)
    note = f"{rate / row['images_per_second']:.1f} times the rate of a step" if row["images_per_second"] else None
    return {"images_per_second": rate, "note": note}


def add_hours(report: Report, args: argparse.Namespace) -> None:
    """Device-hours of the published runs, training steps only.

    A search has 25 epochs per stage, the last 15 of them bilevel; an evaluation has 600 epochs.
    """
    search_steps, evaluation_steps = -(-25_000 // args.batch_size), -(-50_000 // args.evaluation_batch_size)
    for variant in (*NEEDED, *OPTIONAL):
        # A search has hours only if the steps of all its stages were timed.
        seconds = [[report.find(f"{stage} {kind}", variant)["seconds"] for kind in ("weight", "alpha")]
                   for stage in STAGES]
        if all(weight and alpha for weight, alpha in seconds):
            total = sum(search_steps * (25 * weight + 15 * alpha) for weight, alpha in seconds)
            report.add("published search", variant, {"hours": total / 3600})
        training = report.find("evaluation training", variant)["seconds"]
        if training:
            report.add("published evaluation", variant, {"hours": 600 * evaluation_steps * training / 3600})


def main(args: argparse.Namespace) -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # must be set before CUDA starts
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
    report.reject_errors()


if __name__ == "__main__":
    cli.run(main, parse_args)
