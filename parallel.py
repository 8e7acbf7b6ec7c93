"""torchrun and its like: ranks, what they sum and share, who goes first, and how all of them stop at a signal."""
import contextlib
import os
import signal

import torch
import torch.distributed as dist
from torch import Tensor, nn


def init_distributed(device: torch.device) -> None:
    """Join the other processes where torchrun started this one: tensors on the CPU go by gloo, on GPUs by NCCL."""
    if dist.is_torchelastic_launched():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        store, rank, world_size = next(dist.rendezvous("env://"))
        # A restart under --max-restarts must not find the addresses of the processes before it in the store.
        store = dist.PrefixStore(f"restart{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size)


def rank() -> int:
    """This process's number; 0 writes the files."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextlib.contextmanager
def rank0_first():
    """Let rank 0 through, and the others when it is done."""
    if rank() > 0:
        wait_for_all()
    yield
    if rank() == 0:
        wait_for_all()


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


class Stopped(Exception):
    """SIGINT or SIGTERM asked the run to end."""


_signals: list[int] = []


def remember(number: int, frame) -> None:
    """The handler of signals that end the run between two steps, where `stop_if_asked` is called."""
    _signals.append(number)
    # A second one ends the process at once; but torchrun passes on what a terminal or a cluster sent to all already.
    signal.signal(number, signal.SIG_IGN if dist.is_torchelastic_launched() else signal.SIG_DFL)


def stop_if_asked() -> None:
    """Raise Stopped on all processes where a signal has come to one; all of them call it, between steps."""
    number = torch.tensor(_signals[0] if _signals else 0)
    if dist.is_initialized():
        dist.all_reduce(number, dist.ReduceOp.MAX)
    if number > 0:
        raise Stopped(int(number))
