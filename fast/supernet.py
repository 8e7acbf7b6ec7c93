"""The supernet's cells in training: equal to model_search.Cell, with the branches of one kind side by side.

A node's convolutions of one kind and stride form groups: one depthwise convolution, one pointwise convolution and one
batch norm serve all branches of a group. A ReLU or a pool of a state is computed once for all edges that leave it.
Running statistics are updated once per step, after the last cell.
"""
import contextlib
import weakref

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import operations
from fast import pixels
from fast.batch_stats import BatchStats, update_stats
from fast.depthwise import Depthwise
from fast.functions import NormReLUDepthwise, PoolNorm, SumReLU, WeightedNorm, WeightedSum, normalise
from fast.groups import Branch, Group, UnitWeights, plan_nodes, plan_stacks, stack_weights
from fast.pixels import alternate_pixels, fast_memory_format, same_random_numbers, undilate
from genotypes import NODES
from operations import FactorizedReduce, ReLUConvBN


class States:
    """A cell's states (s0, s1, then the nodes), (B, C, H, W) each, with their ReLUs and pools, computed once each."""

    def __init__(self, s0: Tensor, s1: Tensor):
        self.values, self.relus = [s0, s1], [F.relu(s0), F.relu(s1)]
        self.pools: dict[tuple[int, str], Tensor] = {}  # by state and kind, after their batch norm
        self._undilated: dict[int, tuple[Tensor, int, int]] = {}

    def add(self, node: Tensor, relu: Tensor) -> None:
        self.values.append(node)
        self.relus.append(relu)

    def undilated(self, state: int, stride: int) -> tuple[Tensor, int, int]:
        """`undilate` of the state's ReLU."""
        if state not in self._undilated:
            self._undilated[state] = undilate(self.relus[state], stride)
        return self._undilated[state]


def project(op: ReLUConvBN | FactorizedReduce, x: Tensor) -> tuple:
    """Apply `op` to an already rectified x -> arguments of BatchStats.record: batch norms, output, mean, invstd."""
    if isinstance(op, FactorizedReduce):
        pixels, shifted = alternate_pixels(x)
        return [[op.bn]], *normalise(torch.cat([op.conv_1(pixels), op.conv_2(shifted)], dim=1))
    return [[op.op[2]]], *normalise(op.op[1](x))


def dropout(x: Tensor, drop_prob: float) -> Tensor:
    """operations.dropout, but a new rate does not recompile it."""
    if not torch.compiler.is_compiling():
        return operations.dropout(x, drop_prob)
    keep_prob = 1.0 - drop_prob
    return x * ((torch.rand_like(x, dtype=torch.float32) < keep_prob) / keep_prob).to(x.dtype)


def apply_single(branch: Branch, states: States, skip_dropout: float, stats: BatchStats) -> Tensor:
    """The output (B, C, H', W') of a branch that is not in a group."""
    op, x = branch.op, states.values[branch.state]
    if branch.kind == "skip":  # section 3.3: dropout on the identity only
        return dropout(x, skip_dropout)
    if branch.kind == "reduce":
        return stats.record(*project(op, states.relus[branch.state]))
    if branch.kind == "own":
        return op(x)
    pool = branch.state, branch.kind
    if pool not in states.pools:
        normed = PoolNorm.apply(x, branch.kind, branch.stride, *stats.reuse())
        states.pools[pool] = stats.record([branch.pool_norms], *normed)
    return states.pools[pool]


def mix_group(group: Group, weights: list[UnitWeights], scale: Tensor, states: States, stats: BatchStats) -> Tensor:
    """The weighted sum (B, C, H', W') of a group's n branches; scale (nC): the mixing weight of each, C times."""
    inputs, stride, dilation = [states.relus[state] for state in group.states], group.stride, 1
    if group.dilated:
        undilated = [states.undilated(state, group.stride) for state in group.states]
        inputs, (stride, *_), (dilation, *_) = zip(*undilated)
    d = Depthwise.apply(weights[0].kernels, stride, dilation, group.sources, *inputs)  # (B, nC, H', W')
    for unit, first, second in zip(group.units, weights, weights[1:]):  # a sep_conv: from its first unit to its second
        d = stats.record(unit.norms, *NormReLUDepthwise.apply(d, first.pointwise, second.kernels, *stats.reuse()))
    B, pointwise = states.values[0].size(0), weights[-1].pointwise
    return stats.record(group.units[-1].norms, *WeightedNorm.apply(d, scale, pointwise, B, *stats.reuse()))


def split_list(items: list, lengths: list[int]) -> list[list]:
    """Consecutive parts of the list, of these lengths."""
    return [items[sum(lengths[:i]):sum(lengths[:i + 1])] for i in range(len(lengths))]


class FastCell:
    """A model_search.Cell as it is trained: its branches in groups of at most `limit`."""

    def __init__(self, cell: nn.Module, limit: int, device: torch.device):
        self.preprocess0, self.preprocess1 = cell.preprocess0, cell.preprocess1
        self.nodes = plan_nodes(cell, limit)
        self.groups = [group for node in self.nodes for group in node.groups]
        units = [unit for group in self.groups for unit in group.units]
        self.depthwise_stacks, self.pointwise_stack = plan_stacks(units, device)
        grouped = [branch for group in self.groups for branch in group.branches]
        singles = [branch for node in self.nodes for branch in node.singles]
        self.recomputable = all(branch.kind != "own" for branch in singles)
        self.num_grouped = len(grouped)
        order = [branch.weight_index for branch in grouped + singles]
        self.weight_order = torch.tensor(order, dtype=torch.long, device=device)

    def group_inputs(self, group_weights: Tensor, C: int, dtype: torch.dtype) -> list[list[tuple]]:
        """Per node, for each of its groups: the first three arguments of `mix_group`."""
        if not self.groups:
            return [[]] * NODES
        scales = group_weights.repeat_interleave(C).split([C * len(group.branches) for group in self.groups])
        kernels = {}  # by unit
        for stack in self.depthwise_stacks:
            kernels.update(zip(stack.units, stack_weights(stack, C, dtype)))
        pointwise = stack_weights(self.pointwise_stack, C, dtype)
        per_unit = [UnitWeights(kernels[i], weight) for i, weight in enumerate(pointwise)]
        per_group = split_list(per_unit, [len(group.units) for group in self.groups])
        return split_list(list(zip(self.groups, per_group, scales)), [len(node.groups) for node in self.nodes])

    def mix(self, s0: Tensor, s1: Tensor, group_weights: Tensor, single_weights: Tensor, skip_dropout: float,
            stats: BatchStats, return_relus: bool = True) -> tuple[Tensor, ...]:
        """The 4 nodes, (B, C, H', W') each, or their ReLUs; s0, s1 are rectified.

        Example: stage 1, B=96, C=16, 32x32 pixels, on a CPU (groups of 2). Node 0 of a normal cell sums 5 parts:
          6 singles (max pool, avg pool, skip-connect of s0, and of s1), 6 x (96, 16, 32, 32)
            WeightedSum:       weights (6)                                      -> (96, 16, 32, 32)
          dil_conv_3x3 of s0 and of s1 (dil_conv_5x5 likewise): undilated ReLUs, 2 x (384, 16, 16, 16)
            Depthwise:         kernels (32, 1, 3, 3)                            -> (384, 32, 16, 16)
            WeightedNorm:      pointwise (32, 16, 1, 1), scale (32)             -> (96, 16, 32, 32)
          sep_conv_3x3 of s0 and of s1 (sep_conv_5x5 likewise): ReLUs, 2 x (96, 16, 32, 32)
            Depthwise:         kernels (32, 1, 3, 3)                            -> (96, 32, 32, 32)
            NormReLUDepthwise: pointwise (32, 16, 1, 1), kernels (32, 1, 3, 3)  -> (96, 32, 32, 32)
            WeightedNorm:      pointwise (32, 16, 1, 1), scale (32)             -> (96, 16, 32, 32)
        SumReLU of the parts: the node and its ReLU, (96, 16, 32, 32) each. Later nodes take it as a state.

        group_weights, single_weights: the mixing weights of the branches in groups, and of the others, in the order of
        `weight_order`. Records batch statistics, but does not update the running ones.
        """
        stats.position = 0
        s0, s1 = [stats.record(*project(op, s)) for op, s in ((self.preprocess0, s0), (self.preprocess1, s1))]
        states = States(s0, s1)  # (B, C, H, W) each
        # What each node needs: its groups with their weights, the weights of its singles, its sum if known.
        groups = self.group_inputs(group_weights, s0.size(1), s0.dtype)
        weights = single_weights.split([len(node.singles) for node in self.nodes])
        first_pass = [None] * NODES if stats.nodes is None else stats.nodes.chunk(NODES, dim=1)
        for node, node_groups, w, known_sum in zip(self.nodes, groups, weights, first_pass):
            outputs = [apply_single(branch, states, skip_dropout, stats) for branch in node.singles]
            # First, so that its backward pass runs last, and its gradients do not wait while those of the groups run.
            parts = [WeightedSum.apply(w, known_sum is not None, *outputs)] if outputs else []
            parts += [mix_group(*group, states, stats) for group in node_groups]
            states.add(*SumReLU.apply(known_sum, *parts))  # (B, C, H', W') each
        return tuple((states.relus if return_relus else states.values)[2:])

    def mix_checkpointed(self, s0: Tensor, s1: Tensor, group_weights: Tensor, single_weights: Tensor,
                         skip_dropout: float, stats: BatchStats) -> Tensor:
        """The cell's output (B, 4C, H', W') with activation checkpointing: saves only s0 and s1, recomputes the rest.

        s0, s1 and the output are not rectified: each is one tensor that the neighbouring cells save, too. A cell with
        an unknown operation, which may have a state or draw random numbers, is not recomputed: it saves everything.
        """
        if not self.recomputable:
            weights = group_weights, single_weights, skip_dropout, stats
            return torch.cat(self.mix(F.relu(s0), F.relu(s1), *weights, return_relus=False), dim=1)
        random_state = pixels.random_module(s0.device).get_rng_state() if skip_dropout > 0 else None

        def mix(s0, s1, *weights):
            recomputes = stats.nodes is not None and skip_dropout > 0
            with same_random_numbers(s0.device, random_state) if recomputes else contextlib.nullcontext():
                return self.mix(F.relu(s0), F.relu(s1), *weights, skip_dropout, stats, return_relus=False)

        # Reentrant: the first pass builds no graph, so the recomputation may save other tensors than it would.
        nodes = checkpoint(mix, s0, s1, group_weights, single_weights, use_reentrant=True, preserve_rng_state=False)
        out = torch.cat(nodes, dim=1)
        stats.nodes = out.detach()  # no extra memory: the next cells save it anyway
        return out


_fast_cells = weakref.WeakKeyDictionary()  # by network


def fast_cells(network: nn.Module) -> list[FastCell]:
    """The network's cells, prepared for its device at their first use."""
    device = network.alphas_normal.device
    if network not in _fast_cells or _fast_cells[network][0].weight_order.device != device:
        # Branches per group: more would overflow a CPU's cache; a GPU needs few launches.
        _fast_cells[network], limit = [], 2 if pixels.on_cpu(network.alphas_normal) else 4
        for cell in network.cells:
            limit = 2 * limit if cell.reduction else limit
            _fast_cells[network].append(FastCell(cell, limit, device))
    return _fast_cells[network]


def mix_cells(network: nn.Module, s0: Tensor, s1: Tensor, weights: list[Tensor]) -> Tensor:
    """The loop over the cells of model_search.Network: its stems' outputs, two (14, K) -> (B, 4C, H/4, W/4)."""
    def enter(s: Tensor) -> Tensor:  # the cells use nothing else of s0 and s1
        return fast_memory_format(s) if network.grad_checkpoint else F.relu(fast_memory_format(s))

    one_stem = s0 is s1
    s0 = enter(s0)
    s1 = s0 if one_stem else enter(s1)
    ordered, records, cells = {}, [], fast_cells(network)
    for cell, reduction in zip(cells, (cell.reduction for cell in network.cells)):
        if reduction not in ordered:  # all cells of a kind have the same order
            ordered[reduction] = weights[reduction].flatten()[cell.weight_order].tensor_split([cell.num_grouped])
        stats = BatchStats()
        args = s0, s1, *ordered[reduction], network.skip_dropout, stats
        if network.grad_checkpoint:
            out = cell.mix_checkpointed(*args)
        else:
            out = torch.cat(cell.mix(*args, return_relus=cell is not cells[-1]), dim=1)
        s0, s1 = s1, out
        records += stats.records
    update_stats(records)
    return s1


def compile_cells(network: nn.Module) -> None:
    """Compile each cell separately, after a reset: cells of one shape share their graphs."""
    torch.compiler.reset()
    # Per shape of a cell: two kinds of step, each with a recomputation, and a dropout rate that turns out to vary.
    torch._dynamo.config.recompile_limit = 8 * len(network.cells)
    for cell in fast_cells(network):
        cell.mix = torch.compile(cell.mix)
