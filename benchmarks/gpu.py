"""One GPU, one command: correctness, speed, bottlenecks, and the device-hours of the published runs.

    python benchmarks/gpu.py --json gpu.json               # ends within 8 minutes
    python benchmarks/gpu.py --device cpu                  # the same at toy sizes, to check that it runs
`plain` is the reference implementation, in steps as a script would first write them (search_step.py,
evaluation_step.py). `definition` is the reference (`network.fast = False`) in the scripts' own steps, `fast` is their
default. Float32 is without TF32, as in the scripts, unless a variant says tf32. Seconds are wall-clock time per step,
over several steps in a row. Times is the speed-up over the first variant of the same step. Peak MB are torch's
allocations, with weights and optimizer; on a CPU only those above them. The profile gives the number of kernels of a
step, and the fraction of its time in which the GPU runs them. Errors are relative; for `twice` they are the number of
tensors that differ; for `waits` 1 if a step of a script's own loop waits for the device. `loop` is a script's own loop,
`input` its batches without training. The last rows tell for each network which of fast and definition is quicker.
Each group of rows has a process of its own; one that fails is a row with its reason. When time runs out, the last of
the groups below are left out. The exit status is 1 if a number is wrong or missing, or a group has failed.
"""
import argparse
import math
import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.connection import wait
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
import gpu_groups
from gpu_groups import GROUPS, NEEDED, OPTIONAL
from measure import file_to_write, write_json
from steps import NETWORKS, STAGES, step_kinds

import utils
from harness import cli
from reporting import tables

SIZES = {"cuda": {"channels": 16, "image_size": 32, "batch_size": 96, "cells": (5, 11, 17), "evaluation_channels": 36,
                  "evaluation_cells": 20, "small_cells": 6, "evaluation_batch_size": 128, "other_batch_size": 96,
                  "imagenet_channels": 48, "imagenet_cells": 14, "imagenet_batch_size": 128, "loop_steps": 20,
                  "file_steps": 16, "distinct_files": 64, "workers": 4, "warmup": 3, "steps": 5, "repeats": 3,
                  "compile_seconds": 90},
         "cpu": {"channels": 2, "image_size": 8, "batch_size": 4, "cells": (1, 1, 2), "evaluation_channels": 2,
                 "evaluation_cells": 2, "small_cells": 1, "evaluation_batch_size": 2, "other_batch_size": 3,
                 "imagenet_channels": 2, "imagenet_cells": 2, "imagenet_batch_size": 2, "loop_steps": 6,
                 "file_steps": 6, "distinct_files": 2, "workers": 2, "warmup": 1, "steps": 1, "repeats": 1,
                 "compile_seconds": 0}}
MAX_SECONDS = 180  # of a group: one that hangs must not take the others' time
# Fields of a row, in the table and in --json, and their formats; `way` is the variant.
FIELDS = {"what": "", "way": "", "seconds": ".4f", "times": ".2f", "images_per_second": ".0f", "peak_mb": ".1f",
          "kernels": ".0f", "busy": ".0%", "error": ".1e", "hours": ".2f", "note": ""}
# The largest allowed errors, by the first word of `what`.
MAX_ERRORS = {"vectors": 1e-8, "float64": 1e-8, "third": 0.05, "twice": 0, "waits": 0}
# A server imports torch once for all groups; Windows has none.
processes = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
PRELOADED = ["gpu_groups", "torch._dynamo", "torchvision.transforms.v2"]


def parse_args() -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda",
                        help="cuda, or cpu at toy sizes; default: cuda")
    parser.add_argument("--groups", nargs="+", choices=list(GROUPS), default=list(GROUPS), metavar="GROUP",
                        help=f"what to measure; default: {' '.join(GROUPS)}")
    parser.add_argument("--minutes", type=cli.number(float, 0), default=7.5,
                        help="time limit, after which the remaining groups are left out")
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
        self.args, self.rows, self.start, self.device = args, [], time.perf_counter(), args.device

    def elapsed(self) -> float:
        return time.perf_counter() - self.start

    def add(self, what: str, variant: str, result: dict) -> None:
        """Add a row, or complete the one of this step and variant."""
        row = self.find(what, variant)
        if not row:
            row = dict.fromkeys(FIELDS) | {"what": what, "way": variant}
            self.rows.append(row)
        row |= result
        # The first variant of a step is the one that the others are compared with.
        first = next(r for r in self.rows if r["what"] == what)
        if row["seconds"] and first["seconds"]:
            row["times"] = first["seconds"] / row["seconds"]
        print(f"{self.elapsed():4.0f} s  {what}, {variant}: " + ", ".join(
            f"{name} {text}" for name, text in zip(FIELDS, format_row(row)) if text and name not in ("what", "way")),
            flush=True)
        self.save()  # after each row, so that an interrupted run keeps its rows

    def save(self) -> None:
        write_json(self.args, self.rows, self.device)

    def find(self, what: str, variant: str) -> dict:
        return gpu_groups.find(self.rows, what, variant)

    def reject_wrong(self) -> None:
        """Raise ValueError if a group has failed, or a number is NaN, exceeds its bound or is missing."""
        bounds = {what: bound for what, bound in MAX_ERRORS.items() if what != "waits" or self.args.device == "cuda"}
        wrong = [f"{row['what']} ({row['way']})" for row in self.rows if is_wrong(row, bounds)]
        if wrong:
            raise ValueError(f"wrong or missing on this device, see the table: {', '.join(wrong)}")

    def print_table(self) -> None:
        print(f"\n{self.device}, {self.elapsed():.0f} s\n")
        titles = [name.replace("_", " ") for name in FIELDS]
        print(tables.markdown([titles, *map(format_row, self.rows)]), flush=True)


def format_row(row: dict) -> list[str]:
    return ["" if row[name] is None else format(row[name], spec) for name, spec in FIELDS.items()]


def is_wrong(row: dict, bounds: dict[str, float]) -> bool:
    note, bound = row["note"] or "", bounds.get(row["what"].split()[0])
    if note.startswith("unsupported"):  # a precision that the device lacks
        return False
    within = bound is None or (row["error"] is not None and row["error"] <= bound)
    numbers = [value for value in row.values() if isinstance(value, float)]
    return note.startswith("failed") or not within or not all(map(math.isfinite, numbers))


def measure_group(report: Report, group: str) -> None:
    """Add the rows of a group, which a process of its own measures: at most until the time is over."""
    most = report.args.compile_seconds if group.startswith("compiled") else MAX_SECONDS
    limit = most if group == "device" else min(most, 60 * report.args.minutes - report.elapsed())
    if limit <= 0:
        return report.add(group, "", {"note": "left out: no time"})
    reader, writer = processes.Pipe(duplex=False)
    process = processes.Process(target=gpu_groups.run, args=(GROUPS[group], report.args, report.rows, writer))
    # The process ignores Ctrl-C, which a terminal sends to it, too.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    process.start()
    signal.signal(signal.SIGINT, handler)
    writer.close()
    outcome = "late"
    try:
        outcome = receive_rows(report, group, reader, process, limit)
    finally:
        if outcome == "late":
            process.terminate()
        process.join(10)
        process.kill()
        process.join()
    if outcome == "late":
        reason = "left out" if limit < MAX_SECONDS else "failed"
        report.add(group, "", {"note": f"{reason}: not done within {limit:.0f} s"})
    elif outcome == "dead":
        report.add(group, "", {"note": f"failed: {ended(process.exitcode)}"})


def receive_rows(report: Report, group: str, reader, process, limit: float) -> str:
    """Add the rows that a process sends, until it is done, dead or late."""
    end = time.perf_counter() + limit
    try:
        # A dead process's own children may still hold the pipe, so its end is watched, too.
        while reader in (ready := wait([reader, process.sentinel], max(0, end - time.perf_counter()))):
            row = reader.recv()
            if row is None:
                return "done"
            what, variant, result = row
            report.add(what or group, variant, result)
    except EOFError:
        return "dead"
    return "dead" if ready else "late"


def preload() -> None:
    """Let the server of the groups' processes import what they need, once, and without opening CUDA, as it forks."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    # Older versions of Python do not hand their path on to the server.
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    processes.set_forkserver_preload(PRELOADED)


def ended(status: int) -> str:
    return f"the process ended by {signal.Signals(-status).name}" if status < 0 else f"the process exited with {status}"


# ---- what follows from the rows

def stage_cost(report: Report, stage: str, variant: str) -> float | None:
    """Seconds of a search stage per weight batch: 25 epochs, the last 15 of them bilevel."""
    weight, alpha = (report.find(f"{stage} {kind}", variant).get("seconds") for kind in ("weight", "alpha"))
    return 25 * weight + 15 * alpha if weight and alpha else None


def add_hours(report: Report) -> None:
    """Device-hours of the published runs, training steps only.

    A search has 25,000 images for the weights; evaluations have 600 epochs on CIFAR, 250 on ImageNet.
    """
    args = report.args
    for variant in (*NEEDED, *OPTIONAL):
        # A search has hours only if the steps of all its stages were timed.
        costs = [stage_cost(report, stage, variant) for stage in STAGES]
        if all(costs):
            hours = math.ceil(25_000 / args.batch_size) * sum(costs) / 3600
            report.add("published search", variant, {"hours": hours})
        for name, epochs, images, batch_size in (("evaluation", 600, 50_000, args.evaluation_batch_size),
                                                 ("imagenet", 250, 1_281_167, args.imagenet_batch_size)):
            if training := report.find(f"{name} training", variant).get("seconds"):
                hours = epochs * math.ceil(images / batch_size) * training / 3600
                report.add(f"published {name}", variant, {"hours": hours})


def add_verdicts(report: Report) -> None:
    """For each network, which of fast and definition is quicker, and what to set."""
    device = report.args.device
    for name in NETWORKS:
        def cost(variant, name=name):
            return (stage_cost(report, name, variant) if name in STAGES else
                    report.find(f"{name} {step_kinds(name)[0]}", variant).get("seconds"))
        fast, definition = cost("fast"), cost("definition")
        if not (fast and definition):
            report.add(f"quicker {name}", "", {"note": "unknown: not timed both ways"})
            continue
        faster, default = fast <= definition, utils.FAST_BY_DEFAULT[device]
        note = f"train with --fast {'on' if faster else 'off'}; utils.FAST_BY_DEFAULT[{device!r}] is {default}"
        note += ", as it should be" if faster == default else f": if most networks agree, set it to {faster}"
        if cost("fast, bf16") and cost("definition, bf16"):
            note += f"; in bf16 fast is {cost('definition, bf16') / cost('fast, bf16'):.2f} times as quick"
        if device == "cpu":
            note = "toy sizes decide nothing"
        report.add(f"quicker {name}", "fast" if faster else "definition",
                   {"times": max(fast, definition) / min(fast, definition), "note": note})


def main(args: argparse.Namespace) -> None:
    report = Report(args)
    try:
        for group in GROUPS:
            if group == "device" or group in args.groups:
                measure_group(report, group)
            if group == "device":
                report.device = report.rows[-1]["note"]
                if is_wrong(report.rows[-1], {}):
                    raise ValueError(f"nothing can be measured on {args.device}: {report.device}")
        add_hours(report)
        add_verdicts(report)
        report.print_table()
    except KeyboardInterrupt:
        report.save()  # it may have interrupted this
        kept = f"{len(report.rows)} rows are in {args.json}" if args.json else "--json FILE would have kept the rows"
        raise cli.Stopped(128 + signal.SIGINT, f"stopped by a signal; {kept}") from None
    report.reject_wrong()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the process of a group must not outlive this one
    if hasattr(os, "fork"):
        preload()
    cli.run(main, parse_args)
