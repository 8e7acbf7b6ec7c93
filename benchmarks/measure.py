"""What the benchmarks share: seconds, memory, dispatches, whether fast/ equals the definition, and where results go."""
import argparse
import copy
import json
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parent.parent))
import utils


def machine(device: torch.device | str = "cpu") -> str:
    """Torch's version and the device in words, with the kind of CPU: how fast a step is depends on it."""
    device = torch.device(device)
    kind = f", {torch.backends.cpu.get_cpu_capability()}" if device.type == "cpu" else ""
    return f"torch {torch.__version__}, {utils.describe_device(device)}{kind}"


def file_to_write(text: str) -> Path:
    """The type of --json: a missing folder is said now, not when all is measured."""
    path = Path(text)
    if not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: there is no such folder, make it first")
    return path


def write_json(args: argparse.Namespace, results: dict | list) -> None:
    if args.json:
        device = getattr(args, "device", "cpu")
        record = {"args": vars(args), "torch": torch.__version__, "machine": machine(device), "results": results}
        args.json.write_text(json.dumps(record, indent=1, default=str))


def difference(network: nn.Module, loss_of, images: Tensor, target: Tensor) -> tuple[float, str]:
    """The largest error of fast/ against the definition, in float64, relative to what is off most: its name.

    Compared are loss, gradients and statistics; what is 0 but for rounding may be off by that much.
    """
    results = []
    for fast in (False, True):
        same = copy.deepcopy(network).double()
        same.fast = fast
        loss = loss_of(same, images.double(), target)
        loss.backward()
        gradients = {name: p.grad for name, p in same.named_parameters() if p.grad is not None}
        results.append({"loss": loss.detach(), **gradients, **dict(same.named_buffers())})
    names = list(results[0])
    errors = torch.tensor([(results[1][name] - results[0][name]).abs().max() / results[0][name].abs().max().clamp(1e-5)
                           for name in names])
    worst = int(errors.argmax())  # what is no number, if there is such
    return float(errors[worst]), names[worst]


def check(network: nn.Module, loss_of, images: Tensor, target: Tensor) -> None:
    """Raise AssertionError where fast/ and the definition differ."""
    error, name = difference(network, loss_of, images, target)
    assert error <= 1e-8, f"not the same {name}: off by {error:.1e}"


class Dispatches(TorchDispatchMode):
    """Counts the operators that are dispatched, forward, backward and optimizer."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def dispatches(step, *batch) -> int:
    with Dispatches() as counter:
        step(*batch)
    return counter.count


def kept_bytes(model: nn.Module, images: Tensor, trained: str) -> int:
    """Bytes of the storages that a forward pass keeps for backward, parameters and buffers not counted."""
    for name, p in model.named_parameters():
        p.requires_grad_(not model.fast or name.startswith("alphas") == (trained == "alpha"))
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    storages = {}

    def note(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logits = model(images)
    del logits
    model.requires_grad_(True)
    return sum(size for pointer, size in storages.items() if pointer not in own)


def peak_bytes(step, *batch) -> int:
    """The most bytes allocated at once during a step, above those allocated before it."""
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
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def seconds(step, *batch) -> float:
    synchronize = torch.cuda.synchronize if batch[0].is_cuda else (lambda: None)
    synchronize()
    start = time.perf_counter()
    step(*batch)
    synchronize()
    return time.perf_counter() - start
