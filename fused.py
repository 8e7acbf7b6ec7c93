"""Convolutions that compute what nn.Conv2d and nn.BatchNorm2d do, but faster or with less kept for backward."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

aten = torch.ops.aten


def fast_layout(images: Tensor) -> Tensor:
    """The images (B, 3, H, W) in the memory order that a network runs best in, which its layers then keep."""
    return images.contiguous(memory_format=torch.channels_last) if images.device.type == "cpu" else images


class PointwiseNorm(torch.autograd.Function):
    """Batch norm, by the batch's statistics, of a 1x1 convolution: (B, C_in, H, W) -> (B, C_out, H, W).

    Keeps its input only: backward computes the convolution's output anew, which costs less than memory does.
    """

    @staticmethod
    def forward(ctx, x, weight, scale, shift, running_mean, running_var, momentum, eps):
        with torch.autocast(x.device.type, enabled=False):                 # in backward there is no autocast either
            y = F.conv2d(x, weight.to(x.dtype))
            z, mean, invstd = torch.native_batch_norm(y, scale, shift, running_mean, running_var, True, momentum, eps)
        ctx.save_for_backward(x, weight, scale, mean, invstd)
        ctx.eps = eps
        return z

    @staticmethod
    def backward(ctx, grad):
        x, weight, scale, mean, invstd = ctx.saved_tensors
        y = F.conv2d(x, weight.to(x.dtype))
        grad_y, grad_scale, grad_shift = aten.native_batch_norm_backward(
            grad, y, scale, None, None, mean, invstd, True, ctx.eps, [True, scale is not None, scale is not None])
        grad_x, grad_weight, _ = aten.convolution_backward(
            grad_y, x, weight.to(x.dtype), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, True, False])
        return grad_x, grad_weight.to(weight.dtype), grad_scale, grad_shift, None, None, None, None


def pointwise_norm(x: Tensor, conv: nn.Conv2d, bn: nn.BatchNorm2d) -> Tensor:
    """bn(conv(x)) in training, for a 1x1 convolution: (B, C_in, H, W) -> (B, C_out, H, W)."""
    bn.num_batches_tracked.add_(1)
    return PointwiseNorm.apply(x, conv.weight, bn.weight, bn.bias, bn.running_mean, bn.running_var, bn.momentum, bn.eps)


def interleave(x: Tensor) -> Tensor:
    """Even and odd rows and columns apart: (B, C, H, W) -> (4B, C, H/2, W/2), channels last."""
    B, C, H, W = x.shape
    x = x.permute(0, 2, 3, 1).reshape(B, H // 2, 2, W // 2, 2, C).permute(2, 4, 0, 1, 3, 5)  # (2, 2, B, H/2, W/2, C)
    return x.reshape(4 * B, H // 2, W // 2, C).permute(0, 3, 1, 2)


def deinterleave(x: Tensor) -> Tensor:
    """The inverse: (4B, C, H/2, W/2) -> (B, C, H, W), channels last."""
    B, C, H, W = x.shape
    x = x.permute(0, 2, 3, 1).reshape(2, 2, B // 4, H, W, C).permute(2, 3, 0, 4, 1, 5)  # (B, H/2, 2, W/2, 2, C)
    return x.reshape(B // 4, 2 * H, 2 * W, C).permute(0, 3, 1, 2)


def dilated_depthwise(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """conv(x) for a depthwise convolution of dilation 2 without the CPU's slow dilated kernels: as conv's shapes.

    Each output sees only every second pixel, so it is a dense convolution of those: of one picture at stride 2, of four
    interleaved ones at stride 1.
    """
    dense = {"padding": conv.kernel_size[0] // 2, "groups": conv.groups}
    if x.device.type == "cpu" and conv.stride[0] == 2:
        return F.conv2d(x[:, :, ::2, ::2], conv.weight, **dense)
    if x.device.type == "cpu" and x.size(2) % 2 == 0 and x.size(3) % 2 == 0:
        return deinterleave(F.conv2d(interleave(x), conv.weight, **dense))
    return conv(x)
