"""Several processes as one run: what they sum and share, who goes first, and how all of them stop together."""
import contextlib
import os
import platform
import signal
import time

import torch
import torch.distributed as dist
from torch import Tensor, nn

from harness import launchers
from harness.cli import Stopped
from harness.log import log

_store: dist.Store | None = None  # where processes that join leave each other notes


def init_distributed(device: torch.device) -> None:
    """Join the other processes where a launcher started this one: tensors on the CPU go by gloo, on GPUs by NCCL.

    Raises Stopped on all of them where two share a GPU, ValueError as `launched`.
    """
    global _store
    if not launchers.launched():
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
    if not launchers.is_torchrun():
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


def leave() -> None:
    """Part from the other processes, if there are any."""
    if dist.is_initialized():
        dist.destroy_process_group()


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


def barrier() -> None:
    """Wait until all processes are here."""
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


def broadcast(network: nn.Module, buffers_only: bool = False) -> None:
    """Give every process the parameters and batch norm statistics of rank 0."""
    if dist.is_initialized():
        for tensor in [*network.buffers(), *([] if buffers_only else network.parameters())]:
            dist.broadcast(tensor.detach(), src=0)


# ---- stopping together

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]
_signals: list[int] = []


def catch_signals() -> None:
    """From now on signals end the run between two steps, where `stop_if_asked` is called."""
    for number in SIGNALS:
        signal.signal(number, remember)


def remember(number: int, frame) -> None:
    """The handler: note the signal."""
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
