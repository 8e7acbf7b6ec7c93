"""torchrun, srun and their like: ranks, what they sum and share, who goes first, and how all of them stop together."""
import contextlib
import logging
import os
import platform
import re
import signal
import time

import torch
import torch.distributed as dist
from torch import Tensor, nn

PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")  # what a launcher says, the port aside
log = logging.getLogger("pdarts")
_store: dist.Store | None = None  # where processes that join leave each other notes


# ---- launchers

def launched() -> bool:
    """Whether a launcher started this process as one of several, and left its place in the environment variables PLACE.

    torchrun does so, and whoever sets them by hand; srun's own are translated. Raises ValueError for half a set.
    """
    env = os.environ
    if dist.is_torchelastic_launched():
        return True
    # A batch script, or a shell in an allocation, has SLURM_NTASKS too, but is not a step of several tasks.
    if not env.get("RANK") and _is_number(env.get("SLURM_STEP_NUM_TASKS")) and int(env["SLURM_STEP_NUM_TASKS"]) > 1:
        _translate_srun()
    given = [name for name in PLACE[:3] if env.get(name)]  # MASTER_ADDR alone is set for others' sake
    if not given or env.get("WORLD_SIZE") == "1":
        return False
    missing = [name for name in PLACE if not env.get(name)]
    if missing:
        raise ValueError(f"{', '.join(given)} set, but not {', '.join(missing)}: set all of {', '.join(PLACE)}, or "
                         "none")
    if not all(_is_number(env[name]) for name in PLACE[:3]) or int(env["RANK"]) >= int(env["WORLD_SIZE"]):
        said = ", ".join(f"{name}={env[name]}" for name in PLACE[:3])
        raise ValueError(f"{said} is no place among processes: RANK must be a number from 0 to WORLD_SIZE - 1, and "
                         "LOCAL_RANK count a machine's own processes")
    env.setdefault("MASTER_PORT", "29500")
    return True


def _is_number(text: str | None) -> bool:
    return text is not None and text.isascii() and text.isdigit()


def _translate_srun() -> None:
    env = os.environ
    for name in ("SLURM_PROCID", "SLURM_LOCALID"):
        if name not in env:
            raise ValueError(f"SLURM_STEP_NUM_TASKS is set, but not {name}: start by srun or torchrun, or unset both")
    env["RANK"], env["LOCAL_RANK"] = env["SLURM_PROCID"], env["SLURM_LOCALID"]
    env["WORLD_SIZE"] = env["SLURM_STEP_NUM_TASKS"]
    env.setdefault("MASTER_ADDR", _first_host())
    # Above the ports that systems use, below those that they hand out; each step of a job has its own.
    job, step = (int(env[name]) if _is_number(env.get(name)) else 0 for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    env.setdefault("MASTER_PORT", str(10_000 + (job + 101 * step) % 20_000))


def _first_host() -> str:
    """The machine of an srun's first task; the one that srun was called on may be another, so it is asked last."""
    if os.environ.get("SLURM_STEP_NUM_NODES") == "1":
        return "127.0.0.1"
    for name in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"):
        if hosts := os.environ.get(name):
            return re.sub(r"\[(\w+)[^]]*\]", r"\1", hosts).split(",")[0]  # n[01-03,7],m1 begins with n01
    return os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1")


def init_distributed(device: torch.device) -> None:
    """Join the other processes where a launcher started this one: tensors on the CPU go by gloo, on GPUs by NCCL.

    Raises Stopped on all of them where two share a GPU, ValueError as `launched`.
    """
    global _store
    if not launched():
        return
    env = os.environ
    try:
        store, rank, world_size = next(dist.rendezvous("env://"))
        # A restart under --max-restarts must not find the addresses of the processes before it in the store.
        _store = dist.PrefixStore(f"restart{env.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=_store, rank=rank, world_size=world_size)
    except (RuntimeError, ValueError) as error:  # no such port, or in use; or the others don't come
        raise OSError(f"can't meet the other processes at {env['MASTER_ADDR']}:{env['MASTER_PORT']} "
                      f"({str(error)[:200]}): start all {env['WORLD_SIZE']} of them, with the address of rank 0's "
                      "machine and a port that is free there") from error
    if not dist.is_torchelastic_launched():
        by = "srun" if env.get("SLURM_PROCID") == str(rank) else "the environment variable RANK"
        log.info(f"one of {world_size} processes by {by}; they meet at {env['MASTER_ADDR']}:{env['MASTER_PORT']}")
    gpu = (platform.node(), str(torch.cuda.get_device_properties(device).uuid)) if device.type == "cuda" else None
    _check_gpus(gpu)


def _check_gpus(gpu: tuple[str, str] | None) -> None:
    """Raise Stopped where another process has the same (machine, GPU); NCCL would fail later, and at length."""
    gpus = [None] * world_size()
    dist.all_gather_object(gpus, gpu)
    machines = [gpu[0] for gpu in gpus if gpu]
    for machine in sorted(set(machines)):
        processes, there = machines.count(machine), len({gpu for gpu in gpus if gpu and gpu[0] == machine})
        if processes > there:
            raise Stopped(1, f"error: {processes} processes on {machine} have {there} GPU(s): start {there} there, or "
                             "give --device cpu")


def continue_command(words: str) -> str:
    """The command line that starts this many processes of `words`."""
    if dist.is_torchelastic_launched():
        return f"torchrun --nproc_per_node={world_size()} {words}" if world_size() > 1 else f"python {words}"
    by_srun = world_size() > 1 and os.environ.get("SLURM_PROCID") == os.environ["RANK"]
    return f"srun --ntasks={world_size()} python {words}" if by_srun else f"python {words}"


# ---- ranks, and what they share

def rank() -> int:
    """This process's number; 0 writes the files."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextlib.contextmanager
def rank0_first():
    """Let rank 0 through, then the first process of each other machine, whose disk may be its own, then the rest.

    All of them leave together, and wait as long as it takes, longer than a barrier would. Once in a run.
    """
    if not dist.is_initialized():
        yield
        return
    machine, leads = platform.node(), os.environ["LOCAL_RANK"] == "0"
    if rank() > 0:
        _wait_for("rank 0")
    if not leads:
        _wait_for(machine)
    try:
        yield
    except BaseException:
        _store.set("failed", "")
        end = time.monotonic() + 5  # rank 0 keeps the store, and leaves last: the others would complain at length
        while rank() == 0 and _store.add("heard", 0) < world_size() - 1 and time.monotonic() < end:
            time.sleep(0.05)
        raise
    for name in ["rank 0"] * (rank() == 0) + [machine] * leads:
        _store.set(name, "")
    if _store.add("through", 1) == world_size():
        _store.set("all", "")
    _wait_for("all")


def _wait_for(name: str) -> None:
    """Wait for a note in the store; ends this process, silently, where another has failed and said why."""
    failed = False
    while not failed:
        try:
            if _store.check([name]):
                return
            failed = _store.check(["failed"])
            if failed:
                _store.add("heard", 1)
        except RuntimeError:  # gone with the process that kept it
            failed = True
        time.sleep(0.05)
    raise SystemExit(1)


def wait_for_all() -> None:
    """Go on when all processes have come here."""
    if dist.is_initialized():
        dist.barrier()


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of a tensor over all processes."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def average_gradients(parameters) -> None:
    """Replace every gradient by its mean over the processes, in one message."""
    if dist.is_initialized():
        grads = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat)
        flat /= world_size()
        for grad, mean in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(mean.view_as(grad))


def share_rank0(network: nn.Module, buffers_only: bool = False) -> None:
    """Give every process the parameters and batch norm statistics of rank 0."""
    if dist.is_initialized():
        for tensor in [*network.buffers(), *([] if buffers_only else network.parameters())]:
            dist.broadcast(tensor.detach(), src=0)


# ---- stopping together

class Stopped(Exception):
    """All processes are to end: (exit status, the line that says why)."""


SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]
_signals: list[int] = []


def remember(number: int, frame) -> None:
    """The handler of signals that end the run between two steps, where `stop_if_asked` is called."""
    _signals.append(number)
    # A second one ends the process at once; but torchrun passes on what a terminal or a cluster sent to all already.
    signal.signal(number, signal.SIG_IGN if dist.is_initialized() else signal.SIG_DFL)


def stop_if_asked() -> None:
    """Raise Stopped on all processes where a signal has come to one; all of them call it, between steps."""
    _stop_together((128 + _signals[0], f"stopped by {signal.Signals(_signals[0]).name}") if _signals else None)


def stop_if_failed(error: Exception | None) -> None:
    """Raise Stopped on all processes where one has met an error that a person can mend; all of them call it."""
    _stop_together((1, f"error: {error}") if error else None)


def _stop_together(asked: tuple[int, str] | None) -> None:
    found = [asked]
    if dist.is_initialized():
        count = torch.tensor(int(asked is not None))
        dist.all_reduce(count)
        if count:
            found *= world_size()
            dist.all_gather_object(found, asked)
    for stop in filter(None, found):
        raise Stopped(*stop)


def in_step(batches, mendable: type[Exception]):
    """The batches, of which all processes have equally many; where one can't read its next, all raise Stopped."""
    batches = iter(batches)
    while True:
        batch = error = None
        try:
            batch = next(batches, None)
        except mendable as caught:
            error = caught
        stop_if_failed(error)
        if batch is None:
            return
        yield batch
