"""Devices, precision, seeds, and measurements: time, memory, parameters, multiply-adds.

Checkpoints are written by harness/runs.py; what a script adds to them is in its call of `run.keep`.
"""
import bisect
import contextlib
import copy
import os
import platform
import re
import sys
import warnings
from pathlib import Path

import numpy
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from harness import launchers, parallel
from harness.process import at_end, change

try:
    import resource
except ImportError:  # on Windows
    resource = None


def pick_device(name: str | None, deterministic: bool = False, tf32: bool = False, amp: str = "off") -> torch.device:
    """The device `name`, by default CUDA, else MPS, else the CPU, with torch set up for it until the run ends.

    Raises ValueError if the device, or the precision `amp` on it, can't be used here.
    """
    if deterministic and "CUBLAS_WORKSPACE_CONFIG" not in os.environ:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        at_end(os.environ.pop, "CUBLAS_WORKSPACE_CONFIG", None)
    at_end(torch.set_deterministic_debug_mode, torch.get_deterministic_debug_mode())
    torch.use_deterministic_algorithms(deterministic)
    # Nothing reads uninitialised memory, and filling it would cost a launch each.
    change(torch.utils.deterministic, "fill_uninitialized_memory", False)
    change(torch.backends.cudnn, "benchmark", not deterministic)  # shapes repeat, so autotuning pays
    # Deviation from torch, whose convolutions use TF32 by default: the published code ran on a P100, which has none.
    # Set by torch's older interface, since some versions of torch.compile fail once the newer one was used.
    with contextlib.suppress(RuntimeError), warnings.catch_warnings():  # as in `change`
        warnings.simplefilter("ignore")  # torch 2.9 warns once that this interface is the older one
        at_end(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
    change(torch.backends.cudnn, "allow_tf32", tf32)
    torch.backends.cuda.matmul.allow_tf32 = tf32
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda":
            device = _pick_gpu(device)
        torch.zeros(1, device=device)
        if device.type not in ("cuda", "mps", "cpu"):
            raise RuntimeError
    except (RuntimeError, AssertionError, AttributeError):  # an unknown name, or torch is built without it
        raise ValueError(f"--device {name} can't be used here: omit it, or use --device cpu") from None
    _check_precision(device, amp)
    return device


def _pick_gpu(device: torch.device) -> torch.device:
    """This rank's GPU, set before tensors open a 500 MB context on GPU 0. Raises ValueError if torch can't use it."""
    if launchers.launched():
        # A launcher may show each rank only its own GPU; `init_distributed` rejects two ranks on one GPU.
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % max(1, torch.cuda.device_count()))
    if device.index is not None:  # what names no device, such as torch.cuda.get_rng_state, means the current one
        torch.cuda.set_device(device)
    have = torch.cuda.get_device_capability(device)
    built = [arch.split("_") for arch in torch.cuda.get_arch_list() if "_" in arch]  # ROCm's names have none
    found = [(kind, divmod(int(number.rstrip("af")), 10)) for kind, number in built]
    # Machine code runs on GPUs of its own major version, from its minor version on; PTX on all later ones.
    if found and not any(version <= have and (kind == "compute" or version[0] == have[0]) for kind, version in found):
        raise ValueError(f"{torch.cuda.get_device_name(device)} has compute capability {have[0]}.{have[1]}, for which "
                         f"this torch is not built ({', '.join(torch.cuda.get_arch_list())}): install a torch that is, "
                         "or use --device cpu")
    return device


def _check_precision(device: torch.device, amp: str) -> None:
    """Raise ValueError if a device has no mixed precision of this kind, or only emulates it."""
    if amp == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(f"--amp bf16: {torch.cuda.get_device_name(device)} only emulates it: use --amp fp16, or off")
    # On MPS, torch before 2.12 aborts in fast/'s batch norm of half values, and applies overflowed gradients of fp16;
    # later versions were not tried.
    if amp != "off" and (device.type == "mps" or not torch.amp.is_autocast_available(device.type)):
        raise ValueError(f"--amp {amp}: torch has no reliable mixed precision on {device.type}: use --amp off")


FAST_BY_DEFAULT = {"cpu": True, "cuda": True, "mps": True}  # benchmarks/gpu.py measures which is faster on a device


def use_fast(choice: str, device: torch.device) -> bool:
    """Whether to train by fast/ or by the reference networks; choice: "auto", "on" or "off"."""
    return FAST_BY_DEFAULT[device.type] if choice == "auto" else choice == "on"


def describe_device(device: torch.device) -> str:
    """The device in words, for logs and result tables; a CPU with its name on Linux and torch's vector instructions.

    Two kinds of CPU can round differently.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device) + (" with TF32" if torch.backends.cudnn.allow_tf32 else "")
    words, threads = f"{platform.machine()} {device.type.upper()}", torch.get_num_threads()
    if device.type == "cpu":
        words += f" ({', '.join([*_cpu_name(), torch.backends.cpu.get_cpu_capability()])})"
    return f"{words}, {threads} thread{'s' if threads > 1 else ''}"


def _cpu_name() -> list[str]:
    """The CPU's name, where the system gives it."""
    with contextlib.suppress(OSError):
        return re.findall(r"^model name\s*: (.*\S)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[:1]
    return []


def seed_everything(seed: int, *position: int) -> None:
    """Seed torch on all devices from the run's seed and a position in it (stage, epoch, step), differently per rank.

    Reseeding each step makes a resumed run equal an uninterrupted one: no generator state needs to be saved.
    """
    torch.manual_seed(derive_seed(seed, parallel.rank(), *position))


def derive_seed(*numbers: int) -> int:
    """One seed from several numbers; different numbers yield unrelated seeds."""
    return int(numpy.random.SeedSequence(numbers).generate_state(1)[0])


def set_precision(network: nn.Module, amp: str) -> torch.amp.GradScaler:
    """Run the network's forward under autocast; amp: "off", "bf16" or "fp16" -> the matching gradient scaler."""
    device = network.classifier.weight.device
    if amp != "off":
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[amp]
        forward = torch.autocast(device.type, dtype)(network.forward)
        network.forward = lambda images: tree_map_only(Tensor, Tensor.float, forward(images))  # losses in float32
    return torch.amp.GradScaler(device.type, enabled=amp == "fp16")


def sgd(parameters, learning_rate: float, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """Fused SGD for the weights, with momentum starting at zero."""
    optimizer = torch.optim.SGD(parameters, learning_rate, momentum, weight_decay=weight_decay, fused=True)
    _fill_momentum(optimizer)
    optimizer.register_load_state_dict_post_hook(_fill_momentum)  # a checkpoint may be from before the first step
    return optimizer


def _fill_momentum(optimizer: torch.optim.SGD) -> None:
    """Add missing momentum buffers as zeros, which leaves the first step unchanged.

    torch's fused step allocates them uninitialised, and never fills them if the gradient scaler skips that step.
    """
    for group in optimizer.param_groups:
        for p in group["params"] if group["momentum"] else ():
            if optimizer.state[p].get("momentum_buffer") is None:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)


def clipped_step(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, grad_clip: float) -> None:
    """Unscale an optimizer's gradients, clip their norm, and step."""
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], grad_clip)
    scaler.step(optimizer)
    scaler.update()


def compile_seconds() -> float:
    """The seconds that torch.compile has taken so far."""
    dynamo = sys.modules.get("torch._dynamo.utils")  # slow to import: looked up only if it is in use
    return dynamo.calculate_time_spent()["total_wall_time"] if dynamo else 0.0


def peak_memory_mb(device: torch.device) -> float | None:
    """Peak memory so far in MiB: torch's allocations on CUDA, otherwise the process's resident set; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if resource is None:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def device_memory(device: torch.device) -> int | None:
    """A device's memory in bytes: the total on CUDA, the free part on the CPU; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return free_memory() if device.type == "cpu" else None


def free_memory() -> int | None:
    """Bytes that this process can still use, according to Linux and the container's limit; None if unknown."""
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


def most_channels(make, image_size: int, max_multiply_adds: float) -> int:
    """The most channels, a multiple of 4 up to 4096, with which make(channels) needs so many million multiply-adds.

    In the published convention; make returns an evaluation network. Raises ValueError if even 4 channels exceed them.
    """
    def count(channels: int) -> int:
        with torch.device("meta"):
            return count_multiply_adds(make(channels), image_size, published=True)

    channels = range(4, 4097, 4)
    if not (found := bisect.bisect_right(channels, max_multiply_adds * 1e6, key=count)):
        raise ValueError(f"--max_multiply_adds {max_multiply_adds:g} million are too few: 4 channels already need "
                         f"{count(4) / 1e6:.3g} million at {image_size}x{image_size}; raise it, or use fewer cells")
    return channels[found - 1]


def count_parameters(network: nn.Module, auxiliary: bool = False) -> int:
    """The number of parameters, with those of the auxiliary head only if `auxiliary` is true."""
    return sum(p.numel() for name, p in network.named_parameters() if auxiliary or not name.startswith("auxiliary"))


@torch.no_grad()
def count_multiply_adds(network: nn.Module, image_size: int, published: bool = False) -> int:
    """Multiply-adds of the convolutions and linear layers for one image, without the auxiliary head.

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
