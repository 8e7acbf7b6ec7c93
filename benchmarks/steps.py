"""The steps of the published runs, for gpu.py: networks and batches by name, in several variants, timed and profiled.

A name is one of NETWORKS or "small evaluation"; a variant lists its properties, as in "fast, channels-last, bf16".
"""
import argparse
import gc
import re
import statistics
import traceback

import evaluation_step
import search_step
import torch
from measure import peak_bytes, wall_seconds
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import fast
import genotypes
import utils
from model import NetworkCIFAR, NetworkImageNet

STAGES = ("stage 1", "stage 2", "stage 3")
NETWORKS = (*STAGES, "evaluation", "imagenet")


def attempt(function, *args) -> dict:
    """The dict that `function` returns, or a note with its error, because one failure must not lose the other rows."""
    try:
        return function(*args)
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split()).replace("|", "/")
        if isinstance(error, torch.cuda.OutOfMemoryError) or re.search("out of memory|ALLOC(ATION)?_FAILED", text):
            return {"note": "out of memory"}
        traceback.print_exc()  # the note is too short to mend it
        return {"note": f"failed: {text[:200]}"}
    finally:
        if torch.cuda.is_initialized():
            gc.collect()
            torch.cuda.empty_cache()


def precision(variant: str) -> str:
    """A variant's mixed precision, as for --amp."""
    return next((name for name in ("bf16", "fp16") if name in variant), "off")


def set_up(variant: str, args: argparse.Namespace) -> str | None:
    """Set up torch for a variant -> None, or why the device can't run it."""
    try:
        utils.pick_device(args.device, tf32="tf32" in variant, amp=precision(variant))
    except ValueError as error:
        return f"unsupported: {error}"


def make_network(name: str, args: argparse.Namespace) -> nn.Module:
    """A stage's supernet, or an evaluation network."""
    if name in STAGES:
        stage = 1 + STAGES.index(name)
        sizes = argparse.Namespace(channels=args.channels, device=args.device, seed=0, stem="cifar")
        return search_step.supernet(args.cells[stage - 1], search_step.STAGES[stage][1], sizes)
    torch.manual_seed(0)
    genotype = genotypes.load("PDARTS")
    if name == "imagenet":
        return NetworkImageNet(args.imagenet_channels, 1000, args.imagenet_cells, True, genotype).to(args.device)
    cells = args.evaluation_cells if name == "evaluation" else args.small_cells
    return NetworkCIFAR(args.evaluation_channels, 10, cells, True, genotype).to(args.device)


def make_batch(name: str, args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    B, size = ((args.batch_size, args.image_size) if name in STAGES else
               (args.imagenet_batch_size, 224) if name == "imagenet" else (args.evaluation_batch_size, 32))
    torch.manual_seed(1)
    return torch.randn(B, 3, size, size, device=args.device), torch.randint(10, (B,), device=args.device)


def step_kinds(name: str) -> tuple[str, ...]:
    """The kinds of training step of a network."""
    return ("weight", "alpha") if name in STAGES else ("training",)


def build(name: str, variant: str, args: argparse.Namespace) -> tuple[nn.Module, dict, tuple[Tensor, Tensor]]:
    """A network, its steps by kind, and their batch."""
    memory_format = torch.channels_last if "channels-last" in variant else torch.contiguous_format
    network, (images, target) = make_network(name, args).to(memory_format=memory_format), make_batch(name, args)
    network.fast = "fast" in variant
    scaler = utils.set_precision(network, precision(variant))
    plain = variant == "plain"
    if name in STAGES:
        network.skip_dropout = 0.2  # most epochs of a search have a rate above 0
        if "compiled" in variant:
            fast.compile_cells(network)
        steps = (search_step.plain_steps(network) if plain else
                 search_step.fast_steps(network, "checkpointed" in variant, scaler))
    else:
        network.drop_path_prob = 0.0 if name == "imagenet" else 0.15  # as published, in the middle of a run
        if "compiled" in variant:
            network.compile()
        steps = {"training": evaluation_step.make_step(network, fused=not plain, scaler=scaler)}
    return network, steps, (images.contiguous(memory_format=memory_format), target)


def step_seconds(step, batch: tuple, args: argparse.Namespace) -> float:
    """Wall-clock time per step, over several in a row: as in a run, the CPU may launch kernels ahead of the GPU."""
    def several(*batch):
        for _ in range(args.steps):
            step(*batch)
    for _ in range(args.warmup):
        step(*batch)  # cudnn autotunes, the allocator grows
    return statistics.median(wall_seconds(several, *batch) for _ in range(args.repeats)) / args.steps


def measure_steps(name: str, variant: str, args: argparse.Namespace) -> dict[str, dict]:
    """Seconds and memory per kind of step, or a note if the device can't run this variant."""
    if reason := set_up(variant, args):
        return {"note": reason}
    _, steps, batch = build(name, variant, args)
    result = {}
    for kind, step in steps.items():
        elapsed = step_seconds(step, batch, args)
        peak = peak_bytes(step, *batch)  # without weights and optimizer, which a GPU's number includes
        peak = torch.cuda.max_memory_allocated() if batch[0].is_cuda else peak
        result[kind] = {"seconds": elapsed, "images_per_second": len(batch[0]) / elapsed, "peak_mb": peak / 1e6}
    return result


def profile_steps(name: str, variant: str, args: argparse.Namespace) -> dict[str, tuple[int, float]]:
    """Per kind of step: how many kernels it launches, copies included, and the seconds in which at least one runs.

    On a CPU it counts operators instead of kernels.
    """
    _, steps, batch = build(name, variant, args)
    # Profiles only the device: with the CPU's activity, annotations would count as kernels.
    activity, device = ((ProfilerActivity.CUDA, DeviceType.CUDA) if args.device == "cuda" else
                        (ProfilerActivity.CPU, DeviceType.CPU))
    result = {}
    for kind, step in steps.items():
        # The warm-up is not profiled.
        wall_seconds(step, *batch)
        with profile(activities=[activity]) as profiler:
            wall_seconds(step, *batch)  # waits for the last kernel
        spans = sorted((e.start_ns(), e.start_ns() + e.duration_ns())
                       for e in profiler.profiler.kineto_results.events()
                       if e.device_type() == device and not e.is_user_annotation())
        if not spans:
            raise RuntimeError("the profiler recorded nothing")
        # Kernels may overlap, so only what follows the latest end so far is added.
        busy = end = 0
        for start, stop in spans:
            busy += max(0, stop - max(start, end))
            end = max(end, stop)
        result[kind] = len(spans), busy / 1e9
    return result
