"""The candidate operations of a cell's edge (DARTS / P-DARTS search space), the networks' stems, dropout, drop path.

The nesting of the modules determines the `state_dict` keys, which are the published ones: existing weights load as is.
"""
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ReLUConvBN(nn.Module):
    """ReLU, 1x1 convolution, batch norm: (B, C_in, H, W) -> (B, C_out, H, W)."""

    def __init__(self, C_in: int, C_out: int, affine: bool = True):
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(C_in, C_out, 1, bias=False),
            nn.BatchNorm2d(C_out, affine=affine),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class FactorizedReduce(nn.Module):
    """ReLU, two 1x1 stride-2 convolutions on alternate pixels, batch norm: (B, C_in, H, W) -> (B, C_out, H/2, W/2).

    Odd sizes round up: the shifted branch is padded by one (deviation: the published code fails on them).
    """

    def __init__(self, C_in: int, C_out: int, affine: bool = True):
        super().__init__()
        self.relu = nn.ReLU()
        self.conv_1 = nn.Conv2d(C_in, C_out // 2, 1, bias=False)
        self.conv_2 = nn.Conv2d(C_in, C_out - C_out // 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(C_out, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(self.relu(x), (0, x.size(3) % 2, 0, x.size(2) % 2))  # (B, C_in, H, W), even
        # Every second pixel, not stride=2: in channels-last memory torch 2.14's kernel for that writes out of bounds.
        return self.bn(torch.cat([self.conv_1(x[:, :, ::2, ::2]), self.conv_2(x[:, :, 1::2, 1::2])], dim=1))


class DilConv(nn.Module):
    """ReLU, kxk depthwise (dilation 2) and 1x1 convolution, batch norm: (B, C, H, W) -> (B, C, H/stride, W/stride)."""

    def __init__(self, C: int, kernel: int, stride: int, affine: bool = True):
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(C, C, kernel, stride, padding=kernel - 1, dilation=2, groups=C, bias=False),
            nn.Conv2d(C, C, 1, bias=False),
            nn.BatchNorm2d(C, affine=affine),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class SepConv(nn.Module):
    """Twice (ReLU, kxk depthwise and 1x1 convolution, batch norm), the stride in the first one; shapes as DilConv."""

    def __init__(self, C: int, kernel: int, stride: int, affine: bool = True):
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(C, C, kernel, stride, padding=kernel // 2, groups=C, bias=False),
            nn.Conv2d(C, C, 1, bias=False),
            nn.BatchNorm2d(C, affine=affine),
            nn.ReLU(),
            nn.Conv2d(C, C, kernel, padding=kernel // 2, groups=C, bias=False),
            nn.Conv2d(C, C, 1, bias=False),
            nn.BatchNorm2d(C, affine=affine),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


def conv_7x1_1x7(C: int, stride: int, affine: bool = True) -> nn.Sequential:
    """ReLU, 1x7 convolution strided along W, 7x1 strided along H, batch norm; shapes as DilConv (NASNet, AmoebaNet)."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(C, C, (1, 7), (1, stride), padding=(0, 3), bias=False),
        nn.Conv2d(C, C, (7, 1), (stride, 1), padding=(3, 0), bias=False),
        nn.BatchNorm2d(C, affine=affine),
    )


class Operation(NamedTuple):
    """What the networks know of an operation."""
    make: Callable[[int, int, bool], nn.Module]  # C, stride, affine -> (B, C, H, W) to (B, C, H/stride, W/stride)
    is_pool: bool = False  # it has no batch norm: one follows it in the supernet


TABLE = {  # by name; a script may add its own, see docs/own-operations.md
    "max_pool_3x3": Operation(lambda C, stride, affine: nn.MaxPool2d(3, stride, padding=1), is_pool=True),
    "avg_pool_3x3": Operation(lambda C, stride, affine: nn.AvgPool2d(3, stride, padding=1, count_include_pad=False),
                              is_pool=True),
    "skip_connect": Operation(lambda C, stride, affine: FactorizedReduce(C, C, affine) if stride > 1 else
                              nn.Identity()),
    "sep_conv_3x3": Operation(lambda C, stride, affine: SepConv(C, 3, stride, affine)),
    "sep_conv_5x5": Operation(lambda C, stride, affine: SepConv(C, 5, stride, affine)),
    "sep_conv_7x7": Operation(lambda C, stride, affine: SepConv(C, 7, stride, affine)),
    "dil_conv_3x3": Operation(lambda C, stride, affine: DilConv(C, 3, stride, affine)),
    "dil_conv_5x5": Operation(lambda C, stride, affine: DilConv(C, 5, stride, affine)),
    "conv_7x1_1x7": Operation(conv_7x1_1x7),
}
OURS = dict(TABLE)


def build(primitive: str, C: int, stride: int, affine: bool = True) -> nn.Module:
    """The operation named `primitive` on C channels: (B, C, H, W) -> (B, C, H/stride, W/stride), sizes rounded up.

    Raises ValueError if TABLE lacks it, and so does its forward if an operation of one's own gives another shape.
    """
    if primitive not in TABLE:
        raise ValueError(f"the operation {primitive!r} is not among {', '.join(TABLE)}: register it first, as "
                         "docs/own-operations.md does")
    op = TABLE[primitive].make(C, stride, affine)
    if TABLE[primitive] is not OURS.get(primitive):
        op.register_forward_hook(partial(_check_shape, primitive, stride))
    return op


def _check_shape(primitive: str, stride: int, op: nn.Module, inputs: tuple[Tensor], y: Tensor) -> None:
    B, C, H, W = inputs[0].shape
    if y.shape != (B, C, -(-H // stride), -(-W // stride)):
        raise ValueError(f"the operation {primitive!r} with stride {stride} made {tuple(y.shape)} of {(B, C, H, W)}: "
                         f"it must be {(B, C, -(-H // stride), -(-W // stride))}")


def cifar_stem(C: int) -> nn.Sequential:
    """3x3 convolution, batch norm: images (B, 3, H, W) -> (B, C, H, W)."""
    return nn.Sequential(nn.Conv2d(3, C, 3, padding=1, bias=False), nn.BatchNorm2d(C))


def imagenet_stems(C: int) -> tuple[nn.Sequential, nn.Sequential]:
    """Two stems in sequence: images (B, 3, H, W) -> (B, C, H/4, W/4) -> (B, C, H/8, W/8)."""
    stem0 = nn.Sequential(
        nn.Conv2d(3, C // 2, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(C // 2),
        nn.ReLU(inplace=True),
        nn.Conv2d(C // 2, C, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(C),
    )
    stem1 = nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(C, C, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(C),
    )
    return stem0, stem1


def dropout(x: Tensor, drop_prob: float) -> Tensor:
    """Zero each value of x with probability `drop_prob`; scale the rest by 1 / (1 - drop_prob). Equals F.dropout.

    On the CPU, where F.dropout is slow, 16 random bits decide on a value, so that the probability is exact to 2^-16.
    """
    if x.device.type != "cpu" or not 0 < drop_prob < 1:
        return F.dropout(x, drop_prob)
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-2**63, None)  # 4 times 16 bits
    bits = words.view(torch.int16)[:x.numel()].as_strided(x.shape, torch.empty_like(x).stride())  # in x's memory order
    mask = bits >= int(2**16 * drop_prob) - 2**15
    return x * mask / (1.0 - drop_prob)  # only the mask is saved for backward, a byte per value


def drop_path(x: Tensor, drop_prob: float) -> Tensor:
    """Zero whole samples of x (B, C, H, W) with probability `drop_prob`; scale the rest by 1 / (1 - drop_prob)."""
    keep_prob = 1.0 - drop_prob
    mask = torch.rand(x.size(0), 1, 1, 1, device=x.device) < keep_prob  # bernoulli_ would recompile for each rate
    return x * (mask / keep_prob).to(x.dtype)


def global_average_pool(x: Tensor) -> Tensor:
    """The mean over H and W: (B, C, H, W) -> (B, C)."""
    return F.avg_pool2d(x, x.shape[2:]).flatten(1)
