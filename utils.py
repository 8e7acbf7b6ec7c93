"""Devices, precision, seeds, and counting: time, memory, parameters, multiply-adds."""
import contextlib
import copy
import os
import platform
import sys
from pathlib import Path

import numpy
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from harness import launchers, parallel

try:
    import resource
except ImportError:  # on Windows
    resource = None


def pick_device(name: str | None, deterministic: bool) -> torch.device:
    """The device of that name; without one CUDA, MPS or the CPU, whichever there is first. Raises ValueError."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic  # shapes repeat: let it choose by trying
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
        if device.type not in ("cuda", "mps", "cpu"):
            raise RuntimeError
    except (RuntimeError, AssertionError):  # no such name; torch built without it
        raise ValueError(f"--device {name} can't be used here: leave it out, or say cpu") from None
    if device.type == "cuda" and launchers.launched():
        # A launcher may show each process its own GPU only; that two share one is seen when they join.
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        torch.cuda.set_device(device)
    return device


def describe_device(device: torch.device) -> str:
    """The device in words, for logs and result tables."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {device.type.upper()}, {torch.get_num_threads()} threads"


def seed_everything(seed: int, *position: int) -> None:
    """Seed torch on all devices from the run's seed and a position in it (stage, epoch, step), differently per rank.

    Seeding anew for each step is what makes a resumed run equal an undisturbed one: no state needs to be saved.
    """
    torch.manual_seed(derive_seed(seed, parallel.rank(), *position))


def derive_seed(*words: int) -> int:
    """One seed out of several numbers; different numbers give unrelated seeds."""
    return int(numpy.random.SeedSequence(words).generate_state(1)[0])


def set_precision(network: nn.Module, amp: str) -> torch.amp.GradScaler:
    """Put the network's forward under autocast ("off", "bf16" or "fp16"); returns the gradient scaler to go with it."""
    device = network.classifier.weight.device
    if amp != "off":
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[amp]
        forward = torch.autocast(device.type, dtype)(network.forward)
        network.forward = lambda images: tree_map_only(Tensor, Tensor.float, forward(images))  # losses are float32's
    return torch.amp.GradScaler(device.type, enabled=amp == "fp16")


def sgd(parameters, args) -> torch.optim.SGD:
    """The optimizer of the weights, as the options say."""
    return torch.optim.SGD(parameters, args.learning_rate, args.momentum, weight_decay=args.weight_decay, fused=True)


def clipped_step(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, grad_clip: float) -> None:
    """An optimizer's step on its gradients, unscaled, their norm clipped."""
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], grad_clip)
    scaler.step(optimizer)
    scaler.update()


def compile_seconds() -> float:
    """What torch.compile has taken so far."""
    dynamo = sys.modules.get("torch._dynamo.utils")  # slow to import for those who don't need it
    return dynamo.calculate_time_spent()["total_wall_time"] if dynamo else 0.0


def peak_memory_mb(device: torch.device) -> float | None:
    """The most memory used so far: what torch allocated on a GPU, the process's resident set on the CPU, if known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if resource is None:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def device_memory(device: torch.device) -> int | None:
    """Bytes of memory that a device has, of the CPU's what is free; None where unknown."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return free_memory() if device.type == "cpu" else None


def free_memory() -> int | None:
    """Bytes of memory that a process may still have, by Linux and its container's limit; None where unknown."""
    known = []
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        known.append(int(fields["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
            known.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(OSError, ValueError):  # no container, no limit: "max"
        known.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(known, default=None)


def count_parameters(network: nn.Module, auxiliary: bool = False) -> int:
    """The number of parameters, those of an auxiliary head counted only if asked."""
    return sum(p.numel() for name, p in network.named_parameters() if auxiliary or not name.startswith("auxiliary"))


@torch.no_grad()
def count_multiply_adds(network: nn.Module, image_size: int, published: bool = False) -> int:
    """Multiply-adds of the convolutions and linear layers for one image, the auxiliary head's left out.

    The published convention adds 2 for every output of a batch norm and 1 for every output of a ReLU.
    """
    total = 0

    def count(module, inputs, output):
        nonlocal total
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            total += output[0].numel() * module.weight[0].numel()
        elif published:
            total += output[0].numel() * {nn.BatchNorm2d: 2, nn.ReLU: 1}.get(type(module), 0)

    network = copy.deepcopy(network).to("meta").eval()  # shapes only
    for module in network.modules():
        module.register_forward_hook(count)
        if isinstance(module, (nn.BatchNorm2d, nn.ReLU)):
            module.forward = lambda x: x  # keeps the shape; on meta a batch norm takes a millisecond
    network(torch.empty(1, 3, image_size, image_size, device="meta"))
    return total
