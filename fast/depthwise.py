"""Depthwise convolutions and their gradients: equal to F.conv2d with groups=C, for n kernels on several states at once.

On the CPU, oneDNN's gradients of some shapes are 10 to 100 times slower than those of similar ones: kernels wider than
3, or larger than the feature map. Such a gradient is computed from another shape that gives the same numbers
(docs/performance.md). g, g_x, g_kernel: the gradients with regard to the output, x and kernel.
"""
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from fast import pixels


def depthwise(x: Tensor, kernel: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
    """x (B, C, H, W), kernel (C, 1, k, k) -> (B, C, H/stride, W/stride)."""
    kernel = crop(kernel, unused_border(kernel, x, dilation))
    if kernel.size(-1) == 1:
        return x[:, :, ::stride, ::stride] * kernel.view(1, -1, 1, 1)
    return F.conv2d(x, kernel, None, stride, dilation * (kernel.size(-1) // 2), dilation, groups=x.size(1))


def unused_border(kernel: Tensor, x: Tensor, dilation: int) -> int:
    """Width of the kernel's border that meets only padding: on 2x2 pixels 5x5 acts as 3x3, on 1x1 as a factor."""
    k = kernel.size(-1)
    return k // 2 - min(k // 2, (max(x.shape[2:]) - 1) // dilation) if pixels.on_cpu(x) else 0


def crop(kernel: Tensor, border: int) -> Tensor:
    """The kernel without a border of this width; zero-padded if it is negative."""
    return F.pad(kernel, [-border] * 4) if border else kernel


def depthwise_backward(g: Tensor, x: Tensor, kernel: Tensor, stride: int = 1, dilation: int = 1,
                       needs_kernel_grad: bool = True) -> tuple[Tensor, Tensor | None]:
    """Gradients of `depthwise` with regard to x and, if needed, kernel."""
    k = kernel.size(-1)
    padding = [dilation * (k // 2)] * 2
    if not pixels.on_cpu(x) or (k == 3 and x.size(2) >= 3 and needs_kernel_grad):
        mask = (True, needs_kernel_grad)
        return conv_backward(g, x, kernel, [stride] * 2, padding, [dilation] * 2, x.size(1), mask)
    if stride == 1:  # a convolution with the flipped kernel is faster than oneDNN's gradient
        g_x = depthwise(g, kernel.flip(2, 3), 1, dilation)
    else:
        g_x, _ = conv_backward(g, x, kernel, [stride] * 2, padding, [dilation] * 2, x.size(1), (True, False))
    if not needs_kernel_grad:
        return g_x, None
    border = unused_border(kernel, x, dilation)
    return g_x, crop(kernel_gradient(g, x, k - 2 * border, stride, dilation), -border)


def conv_backward(g, x, weight, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, mask=(True, True)):
    """Gradients of a convolution with regard to x and weight; None for each that `mask` excludes."""
    return torch.ops.aten.convolution_backward(g, x, weight, None, stride, padding, dilation, False, [0, 0], groups,
                                               [*mask, False])[:2]


def kernel_gradient(g: Tensor, x: Tensor, k: int, stride: int, dilation: int) -> Tensor:
    """Gradient (C, 1, k, k) of the kernel: x (B, C, H, W) is its input, g (B, C, H/stride, W/stride) of its output."""
    C = x.size(1)
    if k == 1:
        return (g * x[:, :, ::stride, ::stride]).sum(dim=(0, 2, 3)).view(C, 1, 1, 1)

    padding = dilation * (k // 2)  # of rows
    if x.size(2) < k and dilation == 1:  # oneDNN is fast only on feature maps as tall as the kernel
        x, padding = F.pad(x, (0, 0, padding, padding)), 0

    def gradient(g, x, like, strides):  # oneDNN's, of a kernel of the shape of `like`
        return conv_backward(g, x, like, strides, [padding, dilation * (like.size(-1) // 2)], [dilation] * 2,
                             x.size(1), (False, True))[1]

    if dilation > 1 or k != 5:
        return gradient(g, x, x.new_empty(C, 1, k, k), [stride] * 2)
    # 5 columns by kernels of width 3: on pairs of columns, a kernel's neighbours are two columns away.
    if x.size(3) % 2:
        x = F.pad(x, (0, 1))
        g = F.pad(g, (0, 1)) if stride == 1 else g
    g_pairs = torch.cat([g, g], dim=1) if stride == 2 else pixels.column_pairs(g)
    of_pairs = gradient(g_pairs, pixels.column_pairs(x), x.new_empty(2 * C, 1, 5, 3), [stride, 1])
    if stride == 2:
        columns_024, columns_135 = of_pairs.split(C)  # from the even and the odd columns of x; there is no column 5
        return torch.stack([columns_024, columns_135], dim=-1).flatten(-2)[..., :5]
    columns_024 = of_pairs.view(2, C, 1, 5, 3).sum(0)
    columns_123 = gradient(g, x, columns_024, [1, 1])
    column_0, _, column_4 = columns_024.split(1, dim=-1)
    return torch.cat([column_0, columns_123, column_4], dim=-1)


def concat_channels(feature_maps) -> Tensor:
    """n feature maps (B, C, H, W) -> (B, nC, H, W), without a copy if n is 1."""
    return torch.cat(feature_maps, dim=1) if len(feature_maps) > 1 else feature_maps[0]


class Depthwise(Function):
    """n kernels, each on one of the states (B, C, H, W), which are after their ReLU -> (B, nC, H/stride, W/stride).

    sources: for each kernel, the index of its state; torch.compile needs every state to be passed only once.
    """

    @staticmethod
    def forward(ctx, *inputs):
        kernel, stride, dilation, sources, *states = inputs
        x = concat_channels([states[i] for i in sources])  # (B, nC, H, W)
        ctx.save_for_backward(kernel, *states)
        ctx.stride, ctx.dilation, ctx.sources = stride, dilation, sources
        return depthwise(x, kernel, stride, dilation)

    @staticmethod
    def backward(ctx, g):
        kernel, *states = ctx.saved_tensors
        x = concat_channels([states[i] for i in ctx.sources])
        g_x, g_kernel = depthwise_backward(g, x, kernel, ctx.stride, ctx.dilation, ctx.needs_input_grad[0])
        if len(ctx.sources) == 1:
            return g_kernel, None, None, None, g_x
        g_states = [None] * len(states)
        for i, g in zip(ctx.sources, g_x.split(states[0].size(1), dim=1)):
            g_states[i] = g if g_states[i] is None else g_states[i] + g
        return g_kernel, None, None, None, *g_states
