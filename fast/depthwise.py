"""Depthwise convolutions and their gradients, n kernels of several states at once."""
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from fast import pixels

aten = torch.ops.aten


def depthwise(x: Tensor, kernel: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
    """x (B, C, H, W), kernel (C, 1, k, k) -> (B, C, H/stride, W/stride)."""
    return F.conv2d(x, kernel, None, stride, dilation * (kernel.size(-1) // 2), dilation, groups=x.size(1))


def conv_backward(g, x, weight, stride=1, padding=(0, 0), dilation=1, groups=1, mask=(True, True)):
    """Gradients of a convolution with regard to x and weight, where `mask` asks for them."""
    return aten.convolution_backward(g, x, weight, None, [stride] * 2, padding, [dilation] * 2, False, [0, 0], groups,
                                     [*mask, False])[:2]


def depthwise_backward(g, x, kernel, stride=1, dilation=1, wants_kernel=True):
    """Gradients of `depthwise` with regard to x and kernel."""
    k, dense = kernel.size(-1), stride == dilation == 1
    by_columns = wants_kernel and k == 5 and x.size(3) % 2 == 0
    if pixels.on_cpu(x) and dense and (by_columns or not wants_kernel):
        # The same convolution, its kernel turned around, is faster than oneDNN's gradient.
        return depthwise(g, kernel.flip(2, 3)), kernel_gradient_5x5(g, x, kernel) if wants_kernel else None
    padding = [dilation * (k // 2)] * 2
    return conv_backward(g, x, kernel, stride, padding, dilation, x.size(1), (True, wants_kernel))


def kernel_gradient_5x5(g: Tensor, x: Tensor, kernel: Tensor) -> Tensor:
    """The kernel's gradient from kernels of width 3, for which oneDNN is several times faster: (C, 1, 5, 5).

    Width 3 on the maps gives columns 1, 2, 3. In channels-last memory two neighbouring pixels are one pixel of 2C
    channels, whose neighbours are two columns away: width 3 on that view gives columns 0, 2, 4, of even and odd pixels.
    """
    B, C, H, W = x.shape
    rows = 2
    if H < 5:  # fast only on maps as tall as the kernel
        x, rows = F.pad(x, (0, 0, 2, 2)), 0
    g, x = (m.contiguous(memory_format=torch.channels_last) for m in (g, x))
    pairs = (m.as_strided((B, 2 * C, m.size(2), W // 2), (m.size(2) * W * C, 1, W * C, 2 * C)) for m in (g, x))
    narrow, mask = kernel.new_empty(2 * C, 1, 5, 3), (False, True)  # its shape is all that counts here
    _, near = conv_backward(g, x, narrow[:C], 1, [rows, 1], 1, C, mask)
    _, far = conv_backward(*pairs, narrow, 1, [rows, 1], 1, 2 * C, mask)
    one, two, three = near.unbind(-1)
    zero, _, four = far.view(2, C, 1, 5, 3).sum(0).unbind(-1)
    return torch.stack([zero, one, two, three, four], dim=-1)


def side_by_side(maps) -> Tensor:
    """n maps (B, C, H, W) -> (B, nC, H, W)."""
    return torch.cat(maps, dim=1) if len(maps) > 1 else maps[0]


class Depthwise(Function):
    """n kernels, each on one of the states (B, C, H, W), already past their ReLU -> (B, nC, H/stride, W/stride).

    which: the state of each kernel; every state is given once, as torch.compile wants it.
    """

    @staticmethod
    def forward(ctx, *inputs):
        kernel, stride, dilation, which, *states = inputs
        x = side_by_side([states[i] for i in which])  # (B, nC, H, W)
        ctx.save_for_backward(kernel, *states)
        ctx.stride, ctx.dilation, ctx.which = stride, dilation, which
        return depthwise(x, kernel, stride, dilation)

    @staticmethod
    def backward(ctx, g):
        kernel, *states = ctx.saved_tensors
        x = side_by_side([states[i] for i in ctx.which])
        g_x, g_kernel = depthwise_backward(g, x, kernel, ctx.stride, ctx.dilation, ctx.needs_input_grad[0])
        g_states = [None] * len(states)
        for i, g in zip(ctx.which, g_x.split(states[0].size(1), dim=1)):
            g_states[i] = g if g_states[i] is None else g_states[i] + g
        return g_kernel, None, None, None, *g_states
