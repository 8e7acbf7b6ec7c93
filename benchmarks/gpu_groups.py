"""The groups of rows of gpu.py. Each is measured in a process of its own: one CUDA error spoils a process for good.

A group is a function of the options and the rows so far, which yields (what, variant, result) for each of its rows.
"""
import argparse
import contextlib
import multiprocessing
import signal
import tempfile
from functools import partial
from pathlib import Path

import evaluation_step
import golden
import loops
import torch
import torch.nn.functional as F
from measure import difference, machine, wall_seconds
from steps import (
    NETWORKS,
    STAGES,
    attempt,
    build,
    make_batch,
    make_network,
    measure_steps,
    precision,
    profile_steps,
    set_up,
    step_kinds,
)
from torch import Tensor

import engine
import utils
from train_search import weight_step

NEEDED = ("plain", "definition", "fast")


def run(function, args: argparse.Namespace, rows: list[dict], connection) -> None:
    """Send the rows of a group, one by one, then None; an error that ends the group is its last row."""
    def send_all() -> dict:
        for row in function(args, rows):
            connection.send(row)
        return {}
    multiprocessing.set_start_method(None, force=True)  # data-loading workers start as in the scripts
    with contextlib.suppress(KeyboardInterrupt):  # gpu.py ends the process: its workers and files go, too
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        if error := attempt(send_all):
            connection.send((None, "", error))
        connection.send(None)


def find(rows: list[dict], what: str, variant: str) -> dict:
    """The row, or an empty one."""
    return next((row for row in rows if (row["what"], row["way"]) == (what, variant)), {})


def device(args, rows):
    """The device, and whether torch can use it."""
    words = machine(utils.pick_device(args.device))
    if args.device == "cuda":
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        words += f", {memory:.0f} GiB, CUDA {torch.version.cuda}, cuDNN "
        try:
            words += str(torch.backends.cudnn.version())
        except RuntimeError:  # another visible GPU is too old for it
            words += "unknown"
    yield "device", "", {"note": words}


# ---- correctness

def vectors(args, rows):
    """The networks against the vectors of the published code, in float64."""
    utils.pick_device(args.device)
    torch.backends.cudnn.benchmark = False  # each shape occurs once, so autotuning would only cost time
    for name in (*golden.SUPERNETS, *golden.EVALUATION):
        for variant in golden.VARIANTS:
            # The evaluation networks have no activation checkpointing.
            if name in golden.SUPERNETS or "checkpointed" not in variant:
                yield f"vectors {name}", variant, attempt(
                    lambda *case: {"error": golden.largest_error(*case)}, name, variant, args.device)


def float64(args, rows):
    """fast/ against the reference at full width, in float64."""
    utils.pick_device(args.device)
    torch.backends.cudnn.benchmark = False
    for name in NETWORKS:
        yield f"float64 {name}", "fast", attempt(fast_error, name, args)


def fast_error(name: str, args: argparse.Namespace) -> dict:
    def loss_of(network, images, target):
        logits = network(images)
        return F.cross_entropy(logits, target)
    images, target = (part[:4] for part in make_batch(name, args))
    loss_of = loss_of if name in STAGES else evaluation_step.loss_of
    error, worst = difference(make_network(name, args), loss_of, images, target)
    return {"error": error, "note": f"against the definition, {len(images)} images; largest: {worst}"}


def third_steps(args, rows):
    """The loss in stage 1's third weight step, in every precision against float64."""
    set_up("float64", args)
    expected = third_loss("float64", args)
    for name in ("float32", "tf32", "bf16", "fp16"):
        yield "third weight step", name, attempt(precision_error, name, expected, args)


def precision_error(name: str, expected: float, args: argparse.Namespace) -> dict:
    if reason := set_up(name, args):
        return {"note": reason}
    loss = third_loss(name, args)
    return {"error": abs(loss - expected) / expected, "note": f"loss {loss:.4f}, in float64 {expected:.4f}"}


def third_loss(name: str, args: argparse.Namespace) -> float:
    network, (images, target) = make_network("stage 1", args), make_batch("stage 1", args)
    if name == "float64":
        network, images = network.double(), images.double()
    scaler = utils.set_precision(network, precision(name))
    weights = [p for name, p in network.named_parameters() if not name.startswith("alphas")]
    optimizer, losses = utils.sgd(weights, 0.025, 0.9, 3e-4), []
    for _ in range(20):
        scale = scaler.get_scale()
        loss = weight_step(network, optimizer, images, target, 5.0, scaler)[0].item()
        if scaler.get_scale() >= scale:  # else fp16's scale was too large, and the step was skipped
            losses.append(loss)
        if len(losses) == 3:
            return loss
    raise RuntimeError("fp16's scaler has skipped nearly all of 20 steps")


def twice(args, rows):
    """A training against its repetition under --deterministic."""
    utils.pick_device(args.device, deterministic=True)
    for name in ("stage 1", "evaluation"):
        yield f"twice {name}", "deterministic", attempt(repeat_error, name, args)


def repeat_error(name: str, args: argparse.Namespace) -> dict:
    first, second = trained_state(name, args), trained_state(name, args)
    differing = [key for key in first if not torch.equal(first[key], second[key])]
    return {"error": float(len(differing)), "note": f"differ: {differing[:3]}" if differing else "bit-identical"}


def trained_state(name: str, args: argparse.Namespace) -> dict[str, Tensor]:
    """Weights, alphas and batch norm statistics after two steps of every kind."""
    network, steps, batch = build(name, "fast", args)
    for step in [*steps.values()] * 2:
        step(*batch)
    return network.state_dict()


def waiting(args, rows):
    """Whether a step of a script's own loop waits for the device."""
    for script in loops.LOOPS:
        for amp in ("off", "fp16"):
            with tempfile.TemporaryDirectory() as folder:
                result = attempt(loops.waits, script, amp, args, Path(folder))
            yield f"waits {script}", f"fast{', fp16' * (amp == 'fp16')}", result


# ---- speed and memory

def timed_steps(args, rows, names=NETWORKS, variants=NEEDED):
    for variant in variants:
        for name in names:
            result = attempt(measure_steps, name, variant, args)
            for kind in step_kinds(name):
                yield f"{name} {kind}", variant, result.get(kind, result)


def script_rates(args, rows, script):
    """Images per second of a script's input alone, and of its loop, beside the rate of the step."""
    with tempfile.TemporaryDirectory() as folder:
        loop = loops.LOOPS[script](args, "off", Path(folder))
        yield f"input {script}", "alone", {"images_per_second": loops.input_rate(loop, args.device)}
        result = {"images_per_second": loops.loop_rate(loop)}
    kinds = {"train_search.py": ("stage 1 weight", "stage 1 alpha"), "train_cifar.py": ("evaluation training",),
             "train_imagenet.py": ("imagenet training",)}[script]
    timed = [find(rows, kind, "fast") for kind in kinds]
    if all(row.get("seconds") for row in timed):
        # A search counts the weights' images only: its step is an alpha step and a weight step.
        step = 1 / sum(1 / row["images_per_second"] for row in timed)
        result["note"] = f"{result['images_per_second'] / step:.2f} times the rate of the step alone"
    yield f"loop {script}", "fast", result


def validation(args, rows):
    """Evaluation mode, which always runs the definition."""
    utils.pick_device(args.device)
    for name in NETWORKS:
        yield f"{name} validation", "definition", attempt(validation_rate, name, args)


def validation_rate(name: str, args: argparse.Namespace) -> dict:
    network, batch = make_network(name, args), make_batch(name, args)

    def validate(*batch):
        engine.evaluate(network, [batch] * args.steps, "validation")
    validate(*batch)
    elapsed = wall_seconds(validate, *batch) / args.steps
    return {"seconds": elapsed, "images_per_second": len(batch[0]) / elapsed}


def other_batch(args, rows):
    """The evaluation step at the paper's other batch size."""
    sized = argparse.Namespace(**vars(args) | {"evaluation_batch_size": args.other_batch_size})
    for variant in ("definition", "fast"):
        result = attempt(measure_steps, "evaluation", variant, sized)
        yield f"evaluation training, batch {args.other_batch_size}", variant, result.get("training", result)


def profiles(args, rows):
    """Complete the rows of the steps that were timed."""
    for name in NETWORKS:
        for variant in (*NEEDED, "fast, bf16"):
            timed = {kind: find(rows, f"{name} {kind}", variant) for kind in step_kinds(name)}
            if not all(row.get("seconds") for row in timed.values()):
                continue
            set_up(variant, args)
            found = attempt(profile_steps, name, variant, args)
            for kind, row in timed.items():
                result = {"note": f"no profile: {found['note']}"} if "note" in found else busy(*found[kind], row, args)
                yield row["what"], variant, result


def busy(kernels: int, seconds: float, row: dict, args: argparse.Namespace) -> dict:
    result = {"kernels": kernels, "busy": seconds / row["seconds"]}
    # A GPU that idles for a fifth of a step waits for the CPU to launch its kernels.
    return result | ({"note": f"{'launch' if result['busy'] < 0.8 else 'kernel'}-bound"} if args.device == "cuda" else
                     {})


def compiled(args, rows, name):
    """A compiled network; `small evaluation` is also timed without, as nothing else is compared with it."""
    plain = ("fast",) if name.startswith("small") else ()
    yield from timed_steps(args, rows, (name,), (*plain, "fast, compiled"))


GROUPS = {  # in their order: if time runs out, the last ones are left out
    "device": device, "vectors": vectors, "float64": float64, "third": third_steps, "twice": twice, "waits": waiting,
    **{name.replace(" ", "-"): partial(timed_steps, names=(name,)) for name in NETWORKS},
    **{script: partial(script_rates, script=script) for script in loops.LOOPS},
    "validation": validation,
    "bf16": partial(timed_steps, variants=("fast, bf16", "definition, bf16")),
    "tf32": partial(timed_steps, variants=("fast, tf32",)),
    "fp16": partial(timed_steps, variants=("fast, fp16",)),
    "checkpointed": partial(timed_steps, names=STAGES, variants=("fast, checkpointed",)),
    "other-batch": other_batch,
    "profiles": profiles,
    "channels-last": partial(timed_steps, variants=(
        "fast, channels-last", "definition, channels-last", "fast, channels-last, bf16")),
    "compiled-small": partial(compiled, name="small evaluation"),
    "compiled-stage-1": partial(compiled, name="stage 1")}
OPTIONAL = tuple(variant for name in ("bf16", "tf32", "fp16", "checkpointed", "channels-last")
                 for variant in GROUPS[name].keywords["variants"])
