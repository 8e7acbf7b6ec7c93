"""Which convolutions of a supernet's cell are computed side by side, and how their weights are stacked.

These plans are made once per cell and device, and hold the modules of a model_search.Cell; supernet.py computes them.
"""
from collections import defaultdict
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fast import known
from fast.functions import StackWeights
from genotypes import NODES
from operations import DilConv


class Branch(NamedTuple):
    """One candidate of one edge: `op`, of a kind in known.py, from `state` to the node of the edge."""
    kind: str
    op: nn.Module
    state: int
    stride: int
    weight_index: int  # of its mixing weight among all 14 * K
    pool_norms: list[nn.BatchNorm2d]  # of a pool: those of all edges that apply it to `state`; else empty


class Unit(NamedTuple):
    """ReLU, depthwise, pointwise, batch norm of each branch of a group: a dil_conv has one unit, a sep_conv two."""
    depthwise: list[nn.Conv2d]
    pointwise: list[nn.Conv2d]
    norms: list[list[nn.BatchNorm2d]]  # one per branch, as BatchStats takes them


class Group(NamedTuple):
    """Convolutions of one kind and stride into one node, computed side by side on the channel axis."""
    branches: list[Branch]  # small kernels first
    units: list[Unit]
    states: list[int]  # their input states, each once
    sources: list[int]  # for each branch, the index in `states`
    stride: int
    dilated: bool


class NodePlan(NamedTuple):
    """The branches into one node."""
    groups: list[Group]
    singles: list[Branch]  # skip-connects, pools and unknown operations, computed one by one


class WeightStack(NamedTuple):
    """Convolutions of several units whose weights one call of `StackWeights` stacks."""
    units: list[int]  # their indices in the cell
    sizes: list[int]  # branches per unit
    layers: list[nn.Conv2d]  # small kernels first
    order: Tensor | None  # for each output channel of the units in turn, its index in `layers`; None if they agree


class UnitWeights(NamedTuple):
    """The weights of a unit's n branches."""
    kernels: Tensor  # (nC, 1, K, K), K the largest
    pointwise: Tensor  # (nC, C, 1, 1)


def plan_nodes(cell: nn.Module, limit: int) -> list[NodePlan]:
    """The nodes of a model_search.Cell, in groups of at most `limit` convolutions."""
    edges = [(node, state) for node in range(NODES) for state in range(2 + node)]
    branches, pool_norms = [[] for _ in range(NODES)], defaultdict(list)
    for edge, ((node, state), mixed) in enumerate(zip(edges, cell.cell_ops)):
        stride = 2 if cell.reduction and state < 2 else 1
        for o, (primitive, op) in enumerate(zip(mixed.primitives, mixed.m_ops)):
            if primitive == "none":
                continue  # zeros
            norms, kind = [], known.kind(op, stride)
            if kind in ("max", "avg"):
                norms = pool_norms[state, kind]  # one list for all edges, which later edges extend
                norms.append(op[1])
            branches[node].append(Branch(kind, op, state, stride, edge * len(mixed.primitives) + o, norms))
    return [NodePlan(group_convolutions(of_node, limit), [b for b in of_node if b.kind != "convolution"])
            for of_node in branches]


def group_convolutions(branches: list[Branch], limit: int) -> list[Group]:
    """The convolutions among the branches into a node, in even groups of one kind and stride."""
    kinds = defaultdict(list)
    for branch in branches:
        if branch.kind == "convolution":
            kinds[type(branch.op).__name__, branch.stride].append(branch)
    groups = []
    for kind in sorted(kinds):
        same = sorted(kinds[kind], key=lambda branch: kernel_size(branch.op.op[1]))  # small kernels first
        n, count = len(same), -(-len(same) // limit)  # rounded up
        groups += [make_group(same[i * n // count:(i + 1) * n // count]) for i in range(count)]
    return groups


def make_group(branches: list[Branch]) -> Group:
    states = list(dict.fromkeys(b.state for b in branches))
    layers = [list(layer) for layer in zip(*(b.op.op for b in branches))]  # the branches' ReLUs, depthwise, ...
    units = [Unit(layers[i + 1], layers[i + 2], [[norm] for norm in layers[i + 3]]) for i in range(0, len(layers), 4)]
    return Group(branches, units, states, [states.index(b.state) for b in branches], branches[0].stride,
                 isinstance(branches[0].op, DilConv))


def kernel_size(layer: nn.Conv2d) -> int:
    return layer.kernel_size[0]


def plan_stacks(units: list[Unit], device: torch.device) -> tuple[list[WeightStack], WeightStack]:
    """Stacks of the depthwise convolutions, one for each K (a unit's largest kernel), and one of all pointwise ones."""
    by_size = defaultdict(list)
    for i, unit in enumerate(units):
        by_size[kernel_size(unit.depthwise[-1])].append(i)
    depthwise = []
    for _, same in sorted(by_size.items()):
        layers = [layer for i in same for layer in units[i].depthwise]
        depthwise.append(WeightStack(same, [len(units[i].depthwise) for i in same], *sort_by_size(layers, device)))
    sizes = [len(unit.pointwise) for unit in units]
    layers = [layer for unit in units for layer in unit.pointwise]
    return depthwise, WeightStack(list(range(len(units))), sizes, layers, None)


def sort_by_size(layers: list[nn.Conv2d], device: torch.device) -> tuple[list[nn.Conv2d], Tensor | None]:
    """The depthwise convolutions, small kernels first, and for each of their channels its index then, or None."""
    by_size = sorted(range(len(layers)), key=lambda i: kernel_size(layers[i]))
    if by_size == list(range(len(layers))):  # sorted already
        return layers, None
    C = layers[0].out_channels
    order = [by_size.index(i) * C + c for i in range(len(layers)) for c in range(C)]
    return [layers[i] for i in by_size], torch.tensor(order, dtype=torch.long, device=device)


def stack_weights(stack: WeightStack, C: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Per unit of the stack, its depthwise kernels (nC, 1, K, K) or pointwise weights (nC, C, 1, 1)."""
    sizes = [C * n for n in stack.sizes]
    return StackWeights.apply(stack.order, sizes, dtype, *[layer.weight for layer in stack.layers])
