"""Shared by the benchmarks: wall-clock time, memory, dispatches, fast/ against the reference, and files of results."""
import argparse
import copy
import json
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode

import utils
from harness.files import replace_file


def machine(device: torch.device | str = "cpu") -> str:
    """The torch version and the device in words."""
    return f"torch {torch.__version__}, {utils.describe_device(torch.device(device))}"


def file_to_write(text: str) -> Path:
    """The type of --json: a missing folder is an error at once, not after all measurements."""
    path = Path(text)
    if not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: no such folder, create it first")
    return path


def write_json(args: argparse.Namespace, results: dict | list, words: str | None = None) -> None:
    """Write options, versions and results to --json, if it is set; words: the device's, if a process must not ask."""
    if args.json:
        words = words or machine(getattr(args, "device", "cpu"))
        record = {"args": vars(args), "torch": torch.__version__, "machine": words, "results": results}
        replace_file(args.json, json.dumps(record, indent=1, default=str).encode())


def difference(network: nn.Module, loss_of, images: Tensor, target: Tensor) -> tuple[float, str]:
    """The largest error of fast/ against the reference: relative, in float64, and the worst tensor's name.

    Compares loss, gradients and batch norm statistics. An error is relative to the tensor's largest entry, or to 1e-5
    if that is larger, because a tensor may be zero except for rounding.
    """
    results = []
    for fast in (False, True):
        # Both variants start from the same weights and statistics.
        variant = copy.deepcopy(network).double()
        variant.fast = fast
        loss = loss_of(variant, images.double(), target)
        loss.backward()
        gradients = {name: p.grad for name, p in variant.named_parameters() if p.grad is not None}
        results.append({"loss": loss.detach(), **gradients, **dict(variant.named_buffers())})
    names = list(results[0])
    errors = torch.tensor([(results[1][name] - results[0][name]).abs().max() / results[0][name].abs().max().clamp(1e-5)
                           for name in names])
    worst = int(errors.argmax())  # NaN counts as the largest
    return float(errors[worst]), names[worst]


def check(network: nn.Module, loss_of, images: Tensor, target: Tensor) -> None:
    """Raise AssertionError if fast/ and the reference differ."""
    error, name = difference(network, loss_of, images, target)
    assert error <= 1e-8, f"fast/ differs from the reference in {name}: relative error {error:.1e}"


class DispatchCounter(TorchDispatchMode):
    """Counts the dispatched operators: forward, backward and optimizer."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def count_dispatches(step, *batch) -> int:
    with DispatchCounter() as counter:
        step(*batch)
    return counter.count


def saved_bytes(model: nn.Module, images: Tensor, trained: str) -> int:
    """Bytes of the storages that a forward pass saves for backward, except those of parameters and buffers."""
    for name, p in model.named_parameters():
        p.requires_grad_(not model.fast or name.startswith("alphas") == (trained == "alpha"))
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    storages = {}

    def record(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor
    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        logits = model(images)
    del logits
    model.requires_grad_(True)
    return sum(size for pointer, size in storages.items() if pointer not in own)


def peak_bytes(step, *batch) -> int:
    """The peak of the bytes allocated during a step, above those allocated before it."""
    if batch[0].is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(*batch)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(profile_memory=True) as profiler:
        step(*batch)
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    allocated = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        allocated += event.nbytes()  # negative when memory is freed
        peak = max(peak, allocated)
    return peak


def wall_seconds(step, *batch) -> float:
    """The wall-clock time of a step, until the GPU has finished it."""
    synchronize = torch.cuda.synchronize if batch[0].is_cuda else (lambda: None)
    synchronize()
    start = time.perf_counter()
    step(*batch)
    synchronize()
    return time.perf_counter() - start


def take_turns(calls: dict, repeats: int) -> dict[object, list[float]]:
    """The seconds of each (step, *batch), `repeats` times after a warm-up; a slow phase of the machine slows all."""
    times = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            elapsed = wall_seconds(*call)
            if repeat:
                times[name].append(elapsed)
    return times
