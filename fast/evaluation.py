"""The cells of an evaluation network in training: equal to model.Cell, with less saved for backward.

All edges that leave a state share one ReLU of it, and the backward pass recomputes most pointwise convolutions.
"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fast.depthwise import Depthwise
from fast.functions import PointwiseNorm
from fast.known import is_convolution
from fast.pixels import alternate_pixels, fast_memory_format, redilate, undilate
from operations import FactorizedReduce, ReLUConvBN, SepConv, drop_path


def train_cells(network: nn.Module, s0: Tensor, s1: Tensor) -> tuple[list[Tensor], Tensor | None]:
    """The loop over the cells of model.NetworkCIFAR or NetworkImageNet, see `_run_cells` there."""
    maps, logits_aux, one_stem = [], None, s0 is s1
    s0 = F.relu_(fast_memory_format(s0))  # in place: every use of s0 and s1 begins with a ReLU
    s1 = s0 if one_stem else fast_memory_format(s1)
    for i, cell in enumerate(network.cells):
        maps += [s1] if cell.reduction else []
        if i or not one_stem:
            s1 = F.relu(s1) if network.gives_maps and cell.reduction else F.relu_(s1)
        s0, s1 = s1, train_cell(cell, s0, s1, network.drop_path_prob)
        if i == network.auxiliary_cell and network.auxiliary_head:
            logits_aux = network.auxiliary_head(s1)
    return [*maps, s1], logits_aux


def train_cell(cell: nn.Module, s0: Tensor, s1: Tensor, drop_prob: float) -> Tensor:
    """Apply a model.Cell to s0 (B, C_prev_prev, ., .), s1 (B, C_prev, H, W), which are after their ReLU."""
    states = [apply_without_relu(cell.preprocess0, s0), apply_without_relu(cell.preprocess1, s1)]  # (B, C, H, W) each
    relus = {}  # by state: shared by all edges that leave it
    for i, (op, source) in enumerate(zip(cell._ops, cell.sources)):
        if is_convolution(op, affine=True):
            if source not in relus:
                relus[source] = F.relu(states[source])
            y = apply_without_relu(op, relus[source])
        else:
            y = op(states[source])
        if drop_prob > 0 and type(op) is not nn.Identity:
            y = drop_path(y, drop_prob)
        if i % 2 == 0:  # a node sums two edges
            states.append(y)
        else:
            states[-1] = states[-1] + y
    return torch.cat([states[i] for i in cell.concat], dim=1)


def apply_without_relu(op: nn.Module, x: Tensor) -> Tensor:
    """Apply `op`, which begins with a ReLU, to an x that is after its ReLU."""
    if isinstance(op, ReLUConvBN):
        return pointwise_norm(x, op.op[1], op.op[2])
    if isinstance(op, FactorizedReduce):
        pixels, shifted = alternate_pixels(x)
        return op.bn(torch.cat([op.conv_1(pixels), op.conv_2(shifted)], dim=1))
    y = pointwise_norm(depthwise_conv(x, op.op[1]), op.op[2], op.op[3])
    if isinstance(op, SepConv):
        y = F.relu_(y)  # in place: batch norm saves its input for backward, not its output
        return pointwise_norm(depthwise_conv(y, op.op[5]), op.op[6], op.op[7])
    return redilate(y, x.size(0))


def pointwise_norm(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """norm(conv(x)), for a pointwise convolution."""
    if not norm.training:  # its running statistics are frozen
        return norm(conv(x))
    norm.num_batches_tracked.add_(1)
    return PointwiseNorm.apply(x, conv.weight.to(x.dtype), norm.weight, norm.bias, norm.running_mean, norm.running_var)


def depthwise_conv(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """conv(x), for a depthwise convolution; if it is dilated, `redilate` completes it."""
    stride, dilation = conv.stride[0], conv.dilation[0]
    if dilation == 2:
        x, stride, dilation = undilate(x, stride)
    return Depthwise.apply(conv.weight.to(x.dtype), stride, dilation, (0,), x)
