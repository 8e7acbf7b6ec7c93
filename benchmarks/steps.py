"""The steps of the published runs, for gpu.py: networks and batches by name, taken in several ways, timed and profiled.

A name is one of STAGES, "evaluation" or "small evaluation"; a way is a list in words, as "fast, channels-last, bf16".
"""
import argparse
import gc
import multiprocessing
import statistics
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parent.parent))
import evaluation_step
import search_step
from measure import peak_bytes, seconds

import fast
import genotypes
import utils
from model import NetworkCIFAR

STAGES = ("stage 1", "stage 2", "stage 3")


def attempt(function, *args) -> dict:
    """The dict that `function` returns, or a note why it can't: that one fails is no reason to lose the others."""
    try:
        return function(*args)
    except torch.cuda.OutOfMemoryError:
        return {"note": "out of memory"}
    except Exception as error:
        return {"note": " ".join(f"{type(error).__name__}: {error}".split()).replace("|", "/")[:200]}
    finally:
        if torch.cuda.is_initialized():
            gc.collect()
            torch.cuda.empty_cache()


def make_network(name: str, args: argparse.Namespace) -> nn.Module:
    """A stage's supernet, or an evaluation network."""
    if name in STAGES:
        stage = 1 + STAGES.index(name)
        sizes = argparse.Namespace(channels=args.channels, device=args.device, seed=0, stem="cifar")
        return search_step.supernet(args.cells[stage - 1], search_step.STAGES[stage][1], sizes)
    torch.manual_seed(0)
    cells = args.evaluation_cells if name == "evaluation" else args.small_cells
    return NetworkCIFAR(args.evaluation_channels, 10, cells, True, genotypes.load("PDARTS")).to(args.device)


def make_batch(name: str, args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    B, size = (args.batch_size, args.image_size) if name in STAGES else (args.evaluation_batch_size, 32)
    torch.manual_seed(1)
    return torch.randn(B, 3, size, size, device=args.device), torch.randint(10, (B,), device=args.device)


def kinds(name: str) -> tuple[str, ...]:
    """The kinds of step that a network takes."""
    return ("weight", "alpha") if name in STAGES else ("training",)


def build(name: str, way: str, args: argparse.Namespace) -> tuple[nn.Module, dict, tuple[Tensor, Tensor]]:
    """The network, its steps by kind, and the batch that they take."""
    layout = torch.channels_last if "channels-last" in way else torch.contiguous_format
    network, (images, target) = make_network(name, args).to(memory_format=layout), make_batch(name, args)
    network.fast = "fast" in way
    utils.set_precision(network, torch.device(args.device), "bf16" if "bf16" in way else "off")
    if name in STAGES:
        network.skip_dropout = 0.2  # most epochs of a search have some
        if "compiled" in way:
            fast.compile_cells(network)
        plain = way == "plain"
        pair = search_step.PlainSteps(network) if plain else search_step.OurSteps(network, "checkpointed" in way)
        steps = {"weight": pair.weight, "alpha": pair.alpha}
    else:
        network.drop_path_prob = 0.15
        if "compiled" in way:
            network.compile()
        steps = {"training": evaluation_step.make_step(network, fused=way != "plain")}
    return network, steps, (images.contiguous(memory_format=layout), target)


def seconds_of(step, batch: tuple, args: argparse.Namespace) -> float:
    """Of one step among several in a row: as in a run, the CPU may launch ahead of the GPU."""
    def several(*batch):
        for _ in range(args.steps):
            step(*batch)
    for _ in range(args.warmup):
        step(*batch)  # cudnn tries its algorithms, the allocator grows
    return statistics.median(seconds(several, *batch) for _ in range(args.repeats)) / args.steps


def measure_steps(name: str, way: str, args: argparse.Namespace) -> dict[str, dict]:
    """Seconds and peak memory per kind of step."""
    utils.pick_device(args.device, deterministic=False)  # lets cudnn try: in a process of its own, too
    _, steps, batch = build(name, way, args)
    result = {}
    for kind, step in steps.items():
        elapsed = seconds_of(step, batch, args)
        result[kind] = {"seconds": elapsed, "images_per_second": len(batch[0]) / elapsed,
                        "peak_mb": peak_bytes(step, *batch) / 1e6}
    return result


def measure_compiled(name: str, limit: float, args: argparse.Namespace) -> dict[str, dict]:
    """The same of a compiled network, in a process of its own, which is ended after `limit` seconds."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        try:
            return pool.apply_async(attempt, (measure_steps, name, "fast, compiled", args)).get(limit)
        except multiprocessing.TimeoutError:
            return {"note": f"not compiled and measured in {limit:.0f} s"}


def profile_steps(name: str, way: str, args: argparse.Namespace) -> dict[str, tuple[int, float]]:
    """Per kind of step, how many kernels it launches, copies among them, and the seconds in which any of them runs.

    On a CPU: operators.
    """
    _, steps, batch = build(name, way, args)
    # Of the device alone: with the CPU's activity, annotations would be taken for kernels.
    activity, device = ((ProfilerActivity.CUDA, DeviceType.CUDA) if args.device == "cuda" else
                        (ProfilerActivity.CPU, DeviceType.CPU))
    result = {}
    for kind, step in steps.items():
        seconds(step, *batch)
        with profile(activities=[activity]) as profiler:
            seconds(step, *batch)  # waits for the last kernel
        spans = sorted((e.start_ns(), e.start_ns() + e.duration_ns())
                       for e in profiler.profiler.kineto_results.events()
                       if e.device_type() == device and not e.is_user_annotation())
        if not spans:
            raise RuntimeError("the profiler saw nothing run")
        busy = end = 0
        for start, stop in spans:  # they may overlap
            busy += max(0, stop - max(start, end))
            end = max(end, stop)
        result[kind] = len(spans), busy / 1e9
    return result
