"""Several ranks as one run: their rendezvous, sums and broadcasts, rank 0 first, and stopping together."""
import contextlib
import logging
import math
import os
import platform
import signal
import socket
import sys
import threading
import time
import traceback

import torch
import torch.distributed as dist
from torch import Tensor, nn

from harness import launchers
from harness.log import log
from harness.process import Stopped, at_end

_store: dist.Store | None = None  # the rendezvous store, in which the ranks leave each other notes


def init_distributed(device: torch.device) -> None:
    """Join the other ranks if a launcher started this process: gloo for tensors on the CPU, NCCL for those on GPUs.

    Raises Stopped on all ranks if two use the same GPU, OSError if the rendezvous fails, ValueError as `launched`.
    """
    global _store
    if not launchers.launched():
        return
    env = os.environ
    try:
        store, rank, world_size = next(dist.rendezvous("env://"))
        # A restart under --max-restarts must not find the addresses of the earlier processes in the store.
        _store = dist.PrefixStore(f"restart{env.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=_store, rank=rank, world_size=world_size)
    except (RuntimeError, ValueError) as error:  # no such port, or in use; or the others did not start in time
        raise OSError(f"rendezvous at {env['MASTER_ADDR']}:{env['MASTER_PORT']} failed ({str(error)[:200]}): "
                      f"start all {env['WORLD_SIZE']} processes, with the address of rank 0's machine and a port that "
                      "is free there") from error
    if not launchers.is_torchrun():
        by = "srun" if env.get("SLURM_PROCID") == str(rank) else "the environment variable RANK"
        log.info(f"world size {world_size} (from {by}); rendezvous at {env['MASTER_ADDR']}:{env['MASTER_PORT']}")
    gpu = (platform.node(), str(torch.cuda.get_device_properties(device).uuid)) if device.type == "cuda" else None
    _check_gpus(gpu)


def _check_gpus(gpu: tuple[str, str] | None) -> None:
    """Raise Stopped if two ranks have the same (machine, GPU); NCCL would fail later, with a longer message."""
    gpus = [None] * world_size()
    dist.all_gather_object(gpus, gpu)
    machines = [gpu[0] for gpu in gpus if gpu]
    for machine in sorted(set(machines)):
        processes, there = machines.count(machine), len({gpu for gpu in gpus if gpu and gpu[0] == machine})
        if processes > there:
            raise Stopped(1, f"error: {processes} processes on {machine} have {there} GPU(s): start {there} there, or "
                             "use --device cpu")


def leave(together: bool) -> None:
    """Leave the other ranks, if any; at once if this one fails alone, because they may be waiting for it.

    With NCCL, destroying the process group waits for collectives that a failed rank never joins.
    """
    if not dist.is_initialized():
        return
    if together:
        dist.destroy_process_group()
        return
    error = sys.exc_info()[1]  # the one in flight, since this is called in a `finally`
    if not isinstance(error, SystemExit):
        traceback.print_exception(error)
    _exit_now(error.code if isinstance(error, SystemExit) else 1)


def _exit_now(status: int) -> None:
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


# ---- ranks and collectives

def rank() -> int:
    """This process's rank; rank 0 writes the files."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of ranks that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextlib.contextmanager
def rank0_first():
    """Run a block on rank 0, then on the first rank of each other machine (own disk, perhaps), then on the rest.

    All ranks leave it together, and wait without the time limit of a barrier. Use it once per run.
    """
    if not dist.is_initialized():
        yield
        return
    machine, leads = platform.node(), os.environ["LOCAL_RANK"] == "0"
    # Wait for rank 0, then for the first rank of this machine.
    if rank() > 0:
        _wait_for("rank 0")
    if not leads:
        _wait_for(machine)
    try:
        yield
    except BaseException:
        _store.set("failed", "")  # the waiting ranks exit
        end = time.monotonic() + 5  # rank 0 holds the store: it exits last, or the others would print long errors
        while rank() == 0 and _store.add("heard", 0) < world_size() - 1 and time.monotonic() < end:
            time.sleep(0.05)
        raise
    # Admit the next group, then wait until the last rank is through.
    for name in ["rank 0"] * (rank() == 0) + [machine] * leads:
        _store.set(name, "")
    if _store.add("through", 1) == world_size():
        _store.set("all", "")
    _wait_for("all")


def _wait_for(name: str) -> None:
    """Wait for a note in the store; exit, silently, if another rank has failed and reported the reason."""
    failed = False
    while not failed:
        try:
            if _store.check([name]):
                return
            failed = _store.check(["failed"])
            if failed:
                _store.add("heard", 1)
        except RuntimeError:  # the process that held the store has ended
            failed = True
        time.sleep(0.05)
    raise SystemExit(1)


def barrier() -> None:
    """Wait for all ranks."""
    if dist.is_initialized():
        dist.barrier()


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum a tensor over all ranks, in place, and return it."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def gather(rows: Tensor) -> Tensor:
    """All ranks' rows, on the CPU, in stored order: rank r of n has the rows r, r + n, and so on."""
    parts = [rows.cpu()] * world_size()
    if dist.is_initialized():
        dist.all_gather_object(parts, rows.cpu())
    together = torch.empty(sum(map(len, parts)), *rows.shape[1:])
    for r, part in enumerate(parts):
        together[r::len(parts)] = part
    return together


def average_gradients(parameters) -> None:
    """Replace every gradient by its mean over the ranks, in one message."""
    if dist.is_initialized():
        grads = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat)
        flat /= world_size()
        means = flat.split([grad.numel() for grad in grads])
        torch._foreach_copy_(grads, [mean.view_as(grad) for mean, grad in zip(means, grads)])


def broadcast(network: nn.Module, buffers_only: bool = False) -> None:
    """Copy the parameters and batch norm statistics (`buffers_only`: the latter alone) of rank 0 to all ranks."""
    if dist.is_initialized():
        for tensor in [*network.buffers(), *([] if buffers_only else network.parameters())]:
            dist.broadcast(tensor.detach(), src=0)


# ---- stopping together

SIGNALS = [one for one in signal.Signals if one.name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")]
PATIENCE = 20  # seconds without a step, after which a rank that has received a signal is stuck
_signals: list[int] = []
_handlers: dict = {}  # those that the process had before
_last_step = 0.0  # when it ended; infinity: all ranks have agreed to stop


def catch_signals() -> None:
    """Until the run ends, signals end it between two steps, in `stop_if_asked`; a rank that is stuck ends by itself."""
    global _last_step
    _last_step = 0.0
    at_end(_signals.clear)
    if threading.current_thread() is not threading.main_thread():
        return  # only the main thread can catch signals
    for number in SIGNALS:
        if number.name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN:
            continue  # started by nohup
        _handlers[number] = signal.signal(number, remember) or signal.SIG_DFL
        at_end(signal.signal, number, _handlers[number])
    if dist.is_initialized():
        # No Python handler runs in a collective: a thread learns of the signal by a socket.
        reading, writing = socket.socketpair()
        writing.setblocking(False)
        at_end(writing.close)  # ends the thread
        at_end(signal.set_wakeup_fd, signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False))
        threading.Thread(target=_exit_if_stuck, args=[reading], daemon=True).start()


def _exit_if_stuck(reading: socket.socket) -> None:
    """Wait for a signal; then exit if no step ends for PATIENCE seconds: the rank waits for one that has failed."""
    with reading:
        # SIGCHLD, when a worker of a DataLoader ends, is no reason to stop.
        number = next((byte[0] for byte in iter(lambda: reading.recv(1), b"") if byte[0] in SIGNALS), None)
    if number is None:
        return  # the run has ended
    received = time.monotonic()
    while time.monotonic() - max(received, _last_step) < PATIENCE:
        time.sleep(0.2)
    log.error(f"stopped by {signal.Signals(number).name}: no step ended within {PATIENCE} s, another process may have "
              "ended; see its output for the reason")
    _exit_now(128 + number)


def note_step() -> None:
    """Tell `_exit_if_stuck` that this rank is not stuck."""
    global _last_step
    _last_step = max(_last_step, time.monotonic())


def remember(number: int, frame) -> None:
    """The signal handler: note the signal."""
    _signals.append(number)
    # A second one ends a single process at once; several ignore it, since torchrun repeats what was sent to all.
    signal.signal(number, signal.SIG_IGN if dist.is_initialized() else _handlers[number])
    if not dist.is_initialized():
        log.warning(f"{signal.Signals(number).name}: the run ends after this step, and is saved; a second one ends it "
                    "at once, and the unfinished epoch is lost")


def stop_if_asked() -> None:
    """Raise Stopped on all ranks if one has received a signal; all ranks call it, between steps."""
    note_step()
    _stop_together((128 + _signals[0], f"stopped by {signal.Signals(_signals[0]).name}") if _signals else None)


def stop_if_failed(error: Exception | str | None) -> None:
    """Raise Stopped on all ranks if one has met a fixable error; all ranks call it."""
    _stop_together((1, f"error: {error}") if error else None)


def _stop_together(asked: tuple[int, str] | None) -> None:
    found = [asked]
    if dist.is_initialized():
        count = torch.tensor(int(asked is not None))
        dist.all_reduce(count)
        if count:
            found *= world_size()
            dist.all_gather_object(found, asked)
    global _last_step
    for stop in filter(None, found):
        _last_step = math.inf  # they save and end together
        raise Stopped(*stop)


def in_step(batches, fixable: type[Exception]):
    """Yield the batches, the same number on each rank; if one can't read its next batch, all raise Stopped."""
    batches = iter(batches)
    while True:
        batch = error = None
        try:
            batch = next(batches, None)
        except fixable as caught:
            error = caught
        stop_if_failed(error)
        if batch is None:
            return
        yield batch
