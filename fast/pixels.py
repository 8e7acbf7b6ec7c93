"""Memory formats and pixels: channels-last feature maps, and the pixels that a stride or a dilation of 2 reads.

Everything here only selects and rearranges pixels, so that it equals slicing.
"""
import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function


def on_cpu(x: Tensor) -> bool:
    """Whether x is on the CPU, whose oneDNN has the fast and slow cases that this package is built around."""
    return x.device.type == "cpu"


def fast_memory_format(x: Tensor) -> Tensor:
    """x (B, C, H, W) in the memory format that is fastest for the cells; all of their layers preserve it."""
    return x.contiguous(memory_format=torch.channels_last) if on_cpu(x) else x


def random_module(device: torch.device):
    """The module whose get_rng_state and set_rng_state are those of the device that draws dropout's masks.

    torch.utils.checkpoint does not restore MPS's, so that a recomputation there would draw other masks.
    """
    return torch if device.type == "cpu" else torch.get_device_module(device)


@contextlib.contextmanager
def same_random_numbers(device: torch.device, state: Tensor):
    """Draw what was drawn on the device from `state` on; afterwards go on as if nothing had been drawn."""
    module = random_module(device)
    current = module.get_rng_state()
    module.set_rng_state(state)
    try:
        yield
    finally:
        module.set_rng_state(current)


class Interleave(Function):
    """(B, C, H, W) -> (4B, C, H/2, W/2): the pixels of even and odd rows and columns as four images.

    Equals torch.cat([x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]).
    """

    @staticmethod
    def forward(ctx, x):
        B, C, H, W = x.shape
        x = x.contiguous(memory_format=torch.channels_last)
        x = torch.as_strided_copy(x, (2, 2, B, H // 2, W // 2, C), (W * C, C, H * W * C, 2 * W * C, 2 * C, 1))
        return x.as_strided((4 * B, C, H // 2, W // 2), (H * W * C // 4, 1, W * C // 2, C))

    @staticmethod
    def backward(ctx, g):
        return Deinterleave.forward(ctx, g)


class Deinterleave(Function):
    """(4B, C, H/2, W/2) -> (B, C, H, W): the inverse of Interleave."""

    @staticmethod
    def forward(ctx, x):
        B, C, H, W = x.size(0) // 4, x.size(1), 2 * x.size(2), 2 * x.size(3)
        x = x.contiguous(memory_format=torch.channels_last)
        size = H * W * C // 4  # of one of the four images
        x = torch.as_strided_copy(x, (B, H // 2, 2, W // 2, 2, C), (size, W * C // 2, 2 * B * size, C, B * size, 1))
        return x.as_strided((B, C, H, W), (H * W * C, 1, W * C, C))

    @staticmethod
    def backward(ctx, g):
        return Interleave.forward(ctx, g)


class EverySecond(Function):
    """x (B, C, H, W) -> for each i in `offsets`, x[:, :, i::2, i::2] (B, C, H/2, W/2).

    Autograd's own gradient of a slice is not channels-last, which slows down everything after it.
    """

    @staticmethod
    def forward(ctx, x, offsets):
        ctx.offsets, ctx.layout = offsets, (x.shape, x.stride())
        return tuple(x[:, :, i::2, i::2].clone() for i in offsets)

    @staticmethod
    def backward(ctx, *gs):
        g_x = gs[0].new_empty_strided(*ctx.layout).zero_()
        for i, g in zip(ctx.offsets, gs):
            g_x[:, :, i::2, i::2] = g
        return g_x, None


def alternate_pixels(x: Tensor) -> tuple[Tensor, Tensor]:
    """The pixels that the two convolutions of a FactorizedReduce read: (B, C, H/2, W/2) each, odd sizes padded."""
    if x.size(2) % 2 or x.size(3) % 2:
        x = F.pad(x, (0, x.size(3) % 2, 0, x.size(2) % 2))
    return EverySecond.apply(x, (0, 1))


def undilate(x: Tensor, stride: int) -> tuple[Tensor, int, int]:
    """x (B, C, H, W) for a kernel of dilation 2 -> the pixels it reads, and the stride and dilation to use on them.

    A kernel of dilation 2 is dense on every second pixel: with stride 2 on those of even row and column, with stride 1
    on each of the four images of `Interleave` (even sizes only). On the CPU, dense gradients are several times faster.
    """
    if on_cpu(x) and stride == 2:
        return EverySecond.apply(x, (0,))[0], 1, 1
    if on_cpu(x) and x.size(2) % 2 == x.size(3) % 2 == 0:
        return Interleave.apply(x), 1, 1
    return x, stride, 2


def redilate(y: Tensor, B: int) -> Tensor:
    """Undo the interleaving of `undilate` after the kernel, for B images: (B or 4B, C, H', W') -> (B, C, H, W)."""
    return y if y.size(0) == B else Deinterleave.apply(y)


def column_pairs(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, 2C, H, W/2): in channels-last memory, two columns are one column of twice the channels."""
    B, C, H, W = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    return x.as_strided((B, 2 * C, H, W // 2), (H * W * C, 1, W * C, 2 * C))
