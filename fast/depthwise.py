"""Depthwise convolutions and their gradients, n kernels of several states at once.

On the CPU some shapes of oneDNN's gradients are 10 to 100 times slower than their neighbours: kernels wider than 3, or
larger than the map. Such a gradient is taken from another shape, of the same numbers (docs/performance.md).
"""
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from fast import pixels


def depthwise(x: Tensor, kernel: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
    """x (B, C, H, W), kernel (C, 1, k, k) -> (B, C, H/stride, W/stride)."""
    kernel = crop(kernel, unreached(kernel, x, dilation))
    if kernel.size(-1) == 1:
        return x[:, :, ::stride, ::stride] * kernel.view(1, -1, 1, 1)
    return F.conv2d(x, kernel, None, stride, dilation * (kernel.size(-1) // 2), dilation, groups=x.size(1))


def unreached(kernel: Tensor, x: Tensor, dilation: int) -> int:
    """How wide a rim of the kernel only ever meets padding: on 2x2 pixels 5x5 is 3x3, on 1x1 it is a factor."""
    k = kernel.size(-1)
    return k // 2 - min(k // 2, (max(x.shape[2:]) - 1) // dilation) if pixels.on_cpu(x) else 0


def crop(kernel: Tensor, rim: int) -> Tensor:
    """The kernel without a rim of this width; with one of zeros where it is negative."""
    return F.pad(kernel, [-rim] * 4) if rim else kernel


def depthwise_backward(g: Tensor, x: Tensor, kernel: Tensor, stride: int = 1, dilation: int = 1,
                       wants_kernel: bool = True) -> tuple[Tensor, Tensor | None]:
    """Gradients of `depthwise` with regard to x and, if wanted, kernel."""
    k = kernel.size(-1)
    padding = [dilation * (k // 2)] * 2
    if not pixels.on_cpu(x) or (k == 3 and x.size(2) >= 3 and wants_kernel):
        mask = (True, wants_kernel)
        return conv_backward(g, x, kernel, [stride] * 2, padding, [dilation] * 2, x.size(1), mask)
    if stride == 1:  # the same convolution, its kernel turned around, is faster than oneDNN's gradient
        g_x = depthwise(g, kernel.flip(2, 3), 1, dilation)
    else:
        g_x, _ = conv_backward(g, x, kernel, [stride] * 2, padding, [dilation] * 2, x.size(1), (True, False))
    if not wants_kernel:
        return g_x, None
    rim = unreached(kernel, x, dilation)
    return g_x, crop(kernel_gradient(g, x, k - 2 * rim, stride, dilation), -rim)


def conv_backward(g, x, weight, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, mask=(True, True)):
    """Gradients of a convolution with regard to x and weight, where `mask` asks for them."""
    return torch.ops.aten.convolution_backward(g, x, weight, None, stride, padding, dilation, False, [0, 0], groups,
                                               [*mask, False])[:2]


def kernel_gradient(g: Tensor, x: Tensor, k: int, stride: int, dilation: int) -> Tensor:
    """The gradient (C, 1, k, k) of a kernel that has taken x (B, C, H, W) to where g is."""
    C = x.size(1)
    if k == 1:
        return (g * x[:, :, ::stride, ::stride]).sum(dim=(0, 2, 3)).view(C, 1, 1, 1)

    rows = dilation * (k // 2)
    if x.size(2) < k and dilation == 1:  # quick only on maps as tall as the kernel
        x, rows = F.pad(x, (0, 0, rows, rows)), 0

    def gradient(g, x, like, strides):  # oneDNN's, of kernels of the shape of `like`
        return conv_backward(g, x, like, strides, [rows, dilation * (like.size(-1) // 2)], [dilation] * 2, x.size(1),
                             (False, True))[1]

    if dilation > 1 or k != 5:
        return gradient(g, x, x.new_empty(C, 1, k, k), [stride] * 2)
    # 5 columns by kernels of width 3: on pairs of columns, a kernel's neighbours are two columns away.
    if x.size(3) % 2:
        x = F.pad(x, (0, 1))
        g = F.pad(g, (0, 1)) if stride == 1 else g
    g_pairs = torch.cat([g, g], dim=1) if stride == 2 else pixels.column_pairs(g)
    of_pairs = gradient(g_pairs, pixels.column_pairs(x), x.new_empty(2 * C, 1, 5, 3), [stride, 1])
    if stride == 2:
        zero_two_four, one_three_none = of_pairs.split(C)  # of the even columns, of the odd ones
        return torch.stack([zero_two_four, one_three_none], dim=-1).flatten(-2)[..., :5]
    zero_two_four = of_pairs.view(2, C, 1, 5, 3).sum(0)
    one_two_three = gradient(g, x, zero_two_four, [1, 1])
    zero, _, four = zero_two_four.split(1, dim=-1)
    return torch.cat([zero, one_two_three, four], dim=-1)


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
        if len(ctx.which) == 1:
            return g_kernel, None, None, None, g_x
        g_states = [None] * len(states)
        for i, g in zip(ctx.which, g_x.split(states[0].size(1), dim=1)):
            g_states[i] = g if g_states[i] is None else g_states[i] + g
        return g_kernel, None, None, None, *g_states
