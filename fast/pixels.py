"""Memory order and pixels: channels-last maps, and the images that a stride or a dilation of 2 really looks at."""
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function


def on_cpu(x: Tensor) -> bool:
    """Whether x is where oneDNN's kernels run, whose fast and slow cases this package is built around."""
    return x.device.type == "cpu"


def fast_layout(x: Tensor) -> Tensor:
    """x (B, C, H, W) in the memory order that the cells run best in, which all of their layers then keep."""
    return x.contiguous(memory_format=torch.channels_last) if on_cpu(x) else x


class Interleave(Function):
    """(B, C, H, W) -> (4B, C, H/2, W/2): the even and odd rows and columns as four images."""

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
    """(4B, C, H/2, W/2) -> (B, C, H, W): the inverse."""

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
    """x (B, C, H, W) from each of the pixels (i, i) in `starts` on, every second: (B, C, H/2, W/2) each.

    As plain slices, but autograd's gradient of a slice leaves channels-last memory, which slows what comes after it.
    """

    @staticmethod
    def forward(ctx, x, starts):
        ctx.starts, ctx.memory = starts, (x.shape, x.stride())
        return tuple(x[:, :, i::2, i::2].clone() for i in starts)

    @staticmethod
    def backward(ctx, *gs):
        g_x = gs[0].new_empty_strided(*ctx.memory).zero_()
        for i, g in zip(ctx.starts, gs):
            g_x[:, :, i::2, i::2] = g
        return g_x, None


def alternate_pixels(x: Tensor) -> tuple[Tensor, Tensor]:
    """The pixels that the two convolutions of a FactorizedReduce see: (B, C, H/2, W/2) each, odd sizes padded."""
    if x.size(2) % 2 or x.size(3) % 2:
        x = F.pad(x, (0, x.size(3) % 2, 0, x.size(2) % 2))
    return EverySecond.apply(x, (0, 1))


def undilate(x: Tensor, stride: int) -> tuple[Tensor, int, int]:
    """x (B, C, H, W), stride and dilation under which a kernel of dilation 2 and that stride gives the same.

    A dilation of 2 is dense on every second pixel: with stride 2 on those of even row and column, with stride 1 on
    each of the four interleaved images (even sizes only). On the CPU the dense gradients are several times faster.
    """
    if on_cpu(x) and stride == 2:
        return EverySecond.apply(x, (0,))[0], 1, 1
    if on_cpu(x) and x.size(2) % 2 == x.size(3) % 2 == 0:
        return Interleave.apply(x), 1, 1
    return x, stride, 2


def redilate(y: Tensor, B: int) -> Tensor:
    """The inverse of `undilate` on a result of B images: (B or 4B, C, H', W') -> (B, C, H, W)."""
    return y if y.size(0) == B else Deinterleave.apply(y)


def column_pairs(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, 2C, H, W/2): in channels-last memory two columns are one of twice as many channels."""
    B, C, H, W = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    return x.as_strided((B, 2 * C, H, W // 2), (H * W * C, 1, W * C, 2 * C))
