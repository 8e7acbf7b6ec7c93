"""The supernet's cells in evaluation mode: equal to model_search.Cell, with the norms folded into the convolutions.

A norm is then a fixed scale and shift of each channel. So all branches of a group, with their norms and their mixing
weights, end in one dense pointwise convolution, which also sums them.
"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fast.depthwise import depthwise, side_by_side
from fast.pixels import fast_layout, redilate
from fast.supernet import Branch, FastCell, enter_group, fast_cells, halves


def validate_cells(network: nn.Module, s0: Tensor, s1: Tensor, weights: list[Tensor]) -> Tensor:
    """The loop over the cells of model_search.Network: its stems' outputs, two (14, K) -> (B, 4C, H/4, W/4)."""
    s0, s1 = fast_layout(s0), fast_layout(s1)
    for cell, fast_cell in zip(network.cells, fast_cells(network)):
        s0, s1 = s1, mix_cell(fast_cell, s0, s1, weights[cell.reduction].flatten())
    return s1


def mix_cell(cell: FastCell, s0: Tensor, s1: Tensor, weights: Tensor) -> Tensor:
    """`cell` of s0, s1, with the mixing weights (14 * K)."""
    states = [cell.preprocess0(s0), cell.preprocess1(s1)]  # (B, C, H, W) each
    relus = [F.relu(state) for state in states]
    pooled, undilated = {}, {}  # shared, as the ReLUs, by a state's edges
    of_groups, of_rest = weights[cell.weight_order].tensor_split([sum(map(len, cell.groups))])
    of_groups, of_rest = iter(of_groups.split([len(group) for group in cell.groups] or 1)), iter(of_rest)
    convolutions = iter(cell.stacks(states[0].size(1), states[0].dtype))
    for groups, rest in cell.nodes:
        parts = [mix_group(group, relus, undilated, convolutions, next(of_groups)) for group in groups]
        parts += [next(of_rest) * apply(b, states[b.state], pooled) for b in rest]
        node = sum(parts)  # (B, C, H', W')
        states.append(node)
        relus.append(F.relu(node))
    return torch.cat(states[2:], dim=1)


def apply(b: Branch, state: Tensor, pooled: dict) -> Tensor:
    """A branch that is no convolution."""
    if "pool" not in b.primitive:
        return b.op(state)
    pool, norm = b.op
    if (b.state, b.primitive) not in pooled:
        pooled[b.state, b.primitive] = pool(state)
    return norm(pooled[b.state, b.primitive])


def mix_group(group: list[Branch], relus: list[Tensor], undilated: dict, convolutions, weights: Tensor) -> Tensor:
    """The sum of the group's branches by the mixing weights (n), (B, C, H', W'); see supernet.mix_group."""
    states, which, stride, dilation = enter_group(group, relus, undilated)
    kernel, pointwise = next(convolutions)  # (nC, 1, K, K), (nC, C, 1, 1)
    n, C, dtype = len(group), pointwise.size(1), pointwise.dtype
    d = depthwise(side_by_side([states[i] for i in which]), kernel, stride, dilation)
    for half in halves(group)[1:]:
        scale, shift = scale_and_shift([b.layers[half - 1] for b in group])  # (nC) each
        y = F.conv2d(d, (pointwise * scale.view(-1, 1, 1, 1)).to(dtype), shift.to(dtype), groups=n)
        kernel, pointwise = next(convolutions)
        d = depthwise(y.relu_(), kernel)
    scale, shift = (v * weights.repeat_interleave(C) for v in scale_and_shift([b.layers[-1] for b in group]))
    dense = (pointwise * scale.view(-1, 1, 1, 1)).view(n, C, C, 1, 1).transpose(0, 1).reshape(C, n * C, 1, 1)
    return redilate(F.conv2d(d, dense.to(dtype), shift.view(n, C).sum(0).to(dtype)), relus[0].size(0))


def scale_and_shift(norms: list[nn.BatchNorm2d]) -> tuple[Tensor, Tensor]:
    """What these norms, of no affine parameters, do to the channels of their n maps: (nC) each."""
    scale = torch.cat([norm.running_var for norm in norms]).add(norms[0].eps).rsqrt()
    return scale, -scale * torch.cat([norm.running_mean for norm in norms])
