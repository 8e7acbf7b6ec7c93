"""The cells of an evaluation network in training: equal to model.Cell, with one ReLU a state and fewer maps kept."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fast.depthwise import Depthwise
from fast.functions import PointwiseNorm
from fast.pixels import alternate_pixels, fast_layout, redilate, undilate
from operations import DilConv, FactorizedReduce, ReLUConvBN, SepConv, drop_path


def train_cells(network: nn.Module, s0: Tensor, s1: Tensor) -> tuple[Tensor, Tensor | None]:
    """The loop over the cells of model.NetworkCIFAR or NetworkImageNet -> the last one's output, auxiliary logits."""
    logits_aux, same = None, s0 is s1
    s0 = F.relu_(fast_layout(s0))  # in place: all that takes a state begins with a ReLU
    s1 = s0 if same else F.relu_(fast_layout(s1))
    for i, cell in enumerate(network.cells):
        s0, s1 = s1, train_cell(cell, s0, s1, network.drop_path_prob)
        if cell is not network.cells[-1]:
            s1 = F.relu_(s1)
        if i == network.auxiliary_cell and network.auxiliary_head:
            logits_aux = network.auxiliary_head(s1)
    return s1, logits_aux


def train_cell(cell: nn.Module, s0: Tensor, s1: Tensor, drop_prob: float) -> Tensor:
    """`cell` of s0 (B, C_prev_prev, ., .), s1 (B, C_prev, H, W), which are past their ReLU."""
    states = [after_relu(cell.preprocess0, s0), after_relu(cell.preprocess1, s1)]  # (B, C, H, W) each
    relus = {}  # one of a state serves all its edges
    for i, (op, source) in enumerate(zip(cell._ops, cell.sources)):
        if isinstance(op, (FactorizedReduce, DilConv, SepConv)):
            if source not in relus:
                relus[source] = F.relu(states[source])
            y = after_relu(op, relus[source])
        else:
            y = op(states[source])
        if drop_prob > 0 and not isinstance(op, nn.Identity):
            y = drop_path(y, drop_prob)
        if i % 2 == 0:
            states.append(y)
        else:
            states[-1] = states[-1] + y
    return torch.cat([states[i] for i in cell.concat], dim=1)


def after_relu(op: nn.Module, x: Tensor) -> Tensor:
    """`op` without the ReLU that it begins with."""
    if isinstance(op, ReLUConvBN):
        return pointwise_norm(x, op.op[1], op.op[2])
    if isinstance(op, FactorizedReduce):
        pixels, shifted = alternate_pixels(x)
        return op.bn(torch.cat([op.conv_1(pixels), op.conv_2(shifted)], dim=1))
    y = pointwise_norm(depthwise_of(x, op.op[1]), op.op[2], op.op[3])
    if isinstance(op, SepConv):
        y = F.relu_(y)  # in place: batch norm keeps its input, not its output
        return pointwise_norm(depthwise_of(y, op.op[5]), op.op[6], op.op[7])
    return redilate(y, x.size(0))


def pointwise_norm(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """norm(conv(x)), for a 1x1 convolution."""
    if not norm.training:  # its running statistics are frozen
        return norm(conv(x))
    norm.num_batches_tracked.add_(1)
    return PointwiseNorm.apply(x, conv.weight.to(x.dtype), norm.weight, norm.bias, norm.running_mean, norm.running_var)


def depthwise_of(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """conv(x), for a depthwise convolution; if it is dilated, up to `redilate`."""
    stride, dilation = conv.stride[0], conv.dilation[0]
    if dilation == 2:
        x, stride, dilation = undilate(x, stride)
    return Depthwise.apply(conv.weight.to(x.dtype), stride, dilation, (0,), x)
