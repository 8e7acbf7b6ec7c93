"""The supernet's cells in training: equal to model_search.Cell, with the branches of one kind side by side.

A node's convolutions of one kind and stride are a group, one depthwise, one pointwise and one norm for all of them; a
pool or a ReLU of a state is computed once for all edges that leave it. Running statistics move once, behind the cells.
"""
import weakref
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fast import pixels
from fast.depthwise import Depthwise
from fast.functions import (
    EPS,
    MOMENTUM,
    Node,
    NormReLUDepthwise,
    PoolNorm,
    Stack,
    WeightedNorm,
    WeightedSum,
    normalise,
)
from fast.pixels import alternate_pixels, fast_layout, undilate
from genotypes import NODES
from operations import DilConv, FactorizedReduce, ReLUConvBN, SepConv


class Branch(NamedTuple):
    """One candidate of one edge: `op`, named `primitive`, takes `state` to the node."""
    primitive: str
    state: int
    stride: int
    op: nn.Module
    layers: list[nn.Module]  # of a convolution, else empty
    index: int  # of its mixing weight among all 14 * K


class Moments:
    """Batch moments of a cell's norms, in order of use: measured by the first pass, known to a recomputation.

    nodes: also known to a recomputation, (B, 4C, H, W).
    """

    def __init__(self):
        self.measured, self.position, self.nodes = [], 0, None

    def known(self) -> tuple:
        """mean, invstd of the next norms, or None, None."""
        return self.measured[self.position][1:3] if self.position < len(self.measured) else (None, None)

    def add(self, norms: list[list[nn.BatchNorm2d]], y: Tensor, mean: Tensor, invstd: Tensor) -> Tensor:
        """Note the moments of the next norms, and how many pixels they are of; hand y (B, nC, H, W) through.

        norms: per branch, those that have its moments: several where edges share a pool.
        """
        if self.position == len(self.measured):
            self.measured.append((norms, mean, invstd, y.size(0) * y.size(2) * y.size(3)))
        self.position += 1
        return y


def mix_cells(network: nn.Module, s0: Tensor, s1: Tensor, weights: list[Tensor]) -> Tensor:
    """The loop over the cells of model_search.Network: its stems' outputs, two (14, K) -> (B, 4C, H/4, W/4)."""
    entering = {s: fast_layout(s) if network.grad_checkpoint else F.relu(fast_layout(s)) for s in (s0, s1)}
    s0, s1 = entering[s0], entering[s1]  # one where there is one stem; cells use nothing else of them
    ordered, measured, cells = {}, [], fast_cells(network)
    for cell, reduction in zip(cells, (cell.reduction for cell in network.cells)):
        if reduction not in ordered:  # all cells of a kind have one order
            of_groups = sum(map(len, cell.groups))
            ordered[reduction] = weights[reduction].flatten()[cell.weight_order].tensor_split([of_groups])
        moments = Moments()
        args = s0, s1, *ordered[reduction], network.skip_dropout, moments
        if network.grad_checkpoint:
            out = cell.mix_twice(*args)
        else:
            out = torch.cat(cell.mix(*args, to_relu=cell is not cells[-1]), dim=1)
        s0, s1 = s1, out
        measured += moments.measured
    move_statistics(measured)
    return s1


def compile_cells(network: nn.Module) -> None:
    """Compile each cell by itself, forgetting the networks compiled before: cells of one shape share their graphs."""
    torch.compiler.reset()
    # Per shape of a cell: two kinds of step, each with a recomputation, and a dropout rate that turns out to vary.
    torch._dynamo.config.recompile_limit = 8 * len(network.cells)
    for cell in fast_cells(network):
        cell.mix = torch.compile(cell.mix)


_fast_cells = weakref.WeakKeyDictionary()


def fast_cells(network: nn.Module) -> list["FastCell"]:
    """The network's cells, prepared for its device at their first use."""
    device = network.alphas_normal.device
    if network not in _fast_cells or _fast_cells[network][0].weight_order.device != device:
        # Branches side by side: more would overflow a CPU's cache; a GPU wants few launches.
        _fast_cells[network], limit = [], 2 if pixels.on_cpu(network.alphas_normal) else 4
        for cell in network.cells:
            limit = 2 * limit if cell.reduction else limit
            _fast_cells[network].append(FastCell(cell, limit, device))
    return _fast_cells[network]


class FastCell:
    """How a model_search.Cell is computed: its branches in groups, and where their weights lie.

    limit: of the branches side by side.
    """

    def __init__(self, cell: nn.Module, limit: int, device: torch.device):
        self.preprocess0, self.preprocess1 = cell.preprocess0, cell.preprocess1
        self.nodes: list[tuple[list[list[Branch]], list[Branch]]] = []  # per node: groups of convolutions, the rest
        self.pool_norms: dict[tuple[int, str], list[nn.BatchNorm2d]] = {}  # per state and pool: those of all edges
        edges = iter(enumerate(cell.cell_ops))
        for node in range(NODES):
            branches = []
            for state, (edge, mixed) in zip(range(2 + node), edges):
                stride = 2 if cell.reduction and state < 2 else 1
                for o, (primitive, op) in enumerate(zip(mixed.primitives, mixed.m_ops)):
                    if primitive == "none":
                        continue
                    layers = list(op.op) if type(op) in (SepConv, DilConv) else []
                    branches.append(Branch(primitive, state, stride, op, layers, edge * len(mixed.primitives) + o))
                    if "pool" in primitive:
                        self.pool_norms.setdefault((state, primitive), []).append(op[1])
            self.nodes.append((group_convolutions(branches, limit), [b for b in branches if not b.layers]))
        self.groups = [group for groups, _ in self.nodes for group in groups]
        depthwise = [[b.layers[half + 1] for b in group] for group in self.groups for half in halves(group)]
        self.kernel_sizes = [kernel_size(layers[-1]) for layers in depthwise]  # of each half, its largest
        self.kernels: dict[int, tuple] = {}  # of the halves of a size: their lengths, their layers, and in which order
        for k in set(self.kernel_sizes):
            alike = [layers for layers in depthwise if kernel_size(layers[-1]) == k]
            self.kernels[k] = [len(layers) for layers in alike], *sort_by_size(sum(alike, []), device)
        order = [b.index for group in self.groups for b in group] + [b.index for _, rest in self.nodes for b in rest]
        self.weight_order = torch.tensor(order, dtype=torch.long, device=device)

    def layers(self, i: int) -> list[nn.Module]:
        """Layer i of each (ReLU, depthwise, pointwise, norm) in the groups; a sep_conv's second after its first."""
        return [b.layers[i + half] for group in self.groups for half in halves(group) for b in group]

    def stacks(self, C: int, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
        """Per half of a group, its depthwise and pointwise weights: (nC, 1, K, K), (nC, C, 1, 1)."""
        if not self.groups:
            return []
        def stack(lengths, layers, order):
            return Stack.apply(order, [C * n for n in lengths], dtype, *[layer.weight for layer in layers])

        kernels = {k: iter(stack(*alike)) for k, alike in self.kernels.items()}
        pointwise = stack([len(group) for group in self.groups for _ in halves(group)], self.layers(2), None)
        return [(next(kernels[k]), weight) for k, weight in zip(self.kernel_sizes, pointwise)]

    def mix(self, s0: Tensor, s1: Tensor, weights: Tensor, rest_weights: Tensor, skip_dropout: float, moments: Moments,
            to_relu: bool = True) -> tuple[Tensor, ...]:
        """The 4 nodes, (B, C, H', W') each, before they are concatenated.

        s0, s1: after the ReLU that they are used through; so are the nodes, if asked.
        weights: those of the groups, in `weight_order`, and of the rest. Leaves the running statistics alone.
        """
        moments.position = 0
        states = [moments.add(*project(op, s)) for op, s in ((self.preprocess0, s0), (self.preprocess1, s1))]
        relus = [F.relu(state) for state in states]
        pooled, undilated = {}, {}  # shared, as the ReLUs, by a state's edges
        C = states[0].size(1)
        scales = iter(weights.repeat_interleave(C).split([C * len(group) for group in self.groups] or 1))
        convolutions = iter(self.stacks(C, states[0].dtype))
        rest_weights = iter(rest_weights.split([len(rest) for _, rest in self.nodes]))
        known = [None] * NODES if moments.nodes is None else moments.nodes.chunk(NODES, dim=1)
        for (groups, rest), known_node in zip(self.nodes, known):
            maps = [self.apply(b, states, relus, pooled, skip_dropout, moments) for b in rest]
            w = next(rest_weights)
            # First, so that its backward pass runs last, and its gradients do not wait while the groups' run.
            parts = [WeightedSum.apply(w, known_node is not None, *maps)] if maps else []
            parts += [mix_group(group, relus, undilated, convolutions, next(scales), moments) for group in groups]
            node, relu = Node.apply(known_node, *parts)  # (B, C, H', W')
            states.append(node)
            relus.append(relu)
        return tuple(relus[2:] if to_relu else states[2:])

    def apply(self, b: Branch, states: list[Tensor], relus: list[Tensor], pooled: dict, skip_dropout: float,
              moments: Moments) -> Tensor:
        """A branch that is no convolution of ours: a skip-connect, or a pool unless `pooled` has it of its state."""
        if isinstance(b.op, nn.Identity):  # section 3.3: dropout on the identity only
            return dropout(states[b.state], skip_dropout)
        if isinstance(b.op, FactorizedReduce):
            return moments.add(*project(b.op, relus[b.state]))
        if "pool" not in b.primitive:  # an operation that is not known here, by its definition
            return b.op(states[b.state])
        pool = b.state, b.primitive
        if pool not in pooled:
            y = PoolNorm.apply(states[b.state], b.primitive[:3], b.stride, *moments.known())
            pooled[pool] = moments.add([self.pool_norms[pool]], *y)
        return pooled[pool]

    def mix_twice(self, s0: Tensor, s1: Tensor, weights: Tensor, rest_weights: Tensor, skip_dropout: float,
                  moments: Moments) -> Tensor:
        """The same without the ReLUs before and behind; keeps only s0 and s1, the backward pass computes it again."""
        def mix(s0, s1, *weights):
            return self.mix(F.relu(s0), F.relu(s1), *weights, skip_dropout, moments, to_relu=False)

        # Reentrant: the first pass builds no graph, so a recomputation may keep other tensors than it would.
        nodes = checkpoint(mix, s0, s1, weights, rest_weights, use_reentrant=True, preserve_rng_state=skip_dropout > 0)
        out = torch.cat(nodes, dim=1)
        moments.nodes = out.detach()  # the next cells keep them anyway
        return out


def group_convolutions(branches: list[Branch], limit: int) -> list[list[Branch]]:
    """The convolutions among a node's branches, in even groups of one kind and stride, small kernels first."""
    groups = []
    convolutions = [b for b in branches if b.layers]
    for kind, stride in sorted({(type(b.op).__name__, b.stride) for b in convolutions}):
        same = [b for b in convolutions if (type(b.op).__name__, b.stride) == (kind, stride)]
        same.sort(key=lambda b: kernel_size(b.layers[1]))
        count = -(-len(same) // limit)
        groups += [same[i * len(same) // count:(i + 1) * len(same) // count] for i in range(count)]
    return groups


def halves(group: list[Branch]) -> tuple[int, ...]:
    """Where (ReLU, depthwise, pointwise, norm) begin in the group's operations: a sep_conv has them twice."""
    return (0, 4) if isinstance(group[0].op, SepConv) else (0,)


def kernel_size(layer: nn.Conv2d) -> int:
    return layer.kernel_size[0]


def sort_by_size(depthwise: list[nn.Conv2d], device: torch.device) -> tuple[list[nn.Conv2d], Tensor | None]:
    """These kernels, the smallest first, and where each of their channels lies then; None: where it was."""
    by_size = sorted(range(len(depthwise)), key=lambda i: kernel_size(depthwise[i]))
    if by_size == list(range(len(depthwise))):
        return depthwise, None
    C = depthwise[0].out_channels
    order = [by_size.index(i) * C + c for i in range(len(depthwise)) for c in range(C)]
    return [depthwise[i] for i in by_size], torch.tensor(order, dtype=torch.long, device=device)


def mix_group(group: list[Branch], relus: list[Tensor], undilated: dict, convolutions, scale: Tensor,
              moments: Moments) -> Tensor:
    """The weighted sum of the group's branches, (B, C, H', W').

    undilated: of the states that a dilated convolution has left already. convolutions: depthwise and pointwise weights
    of each half. scale: the mixing weights, each C times.
    """
    order, stride, dilation = list(dict.fromkeys(b.state for b in group)), group[0].stride, 1
    states, which = [relus[state] for state in order], [order.index(b.state) for b in group]
    if isinstance(group[0].op, DilConv):
        for state in order:
            if state not in undilated:
                undilated[state] = undilate(relus[state], stride)
        states, (stride, *_), (dilation, *_) = zip(*[undilated[state] for state in order])
    kernel, pointwise = next(convolutions)  # (nC, 1, K, K), (nC, C, 1, 1)
    d = Depthwise.apply(kernel, stride, dilation, which, *states)
    for half in halves(group)[1:]:
        kernel, pointwise_next = next(convolutions)
        d = moments.add([[b.layers[half - 1]] for b in group],
                        *NormReLUDepthwise.apply(d, pointwise, kernel, *moments.known()))
        pointwise = pointwise_next  # d: (B, nC, H', W')
    B = relus[0].size(0)
    return moments.add([[b.layers[-1]] for b in group], *WeightedNorm.apply(d, scale, pointwise, B, *moments.known()))


def project(op: ReLUConvBN | FactorizedReduce, x: Tensor) -> tuple:
    """`op` without its ReLU, by the batch's moments -> its norm (as Moments.add takes it), its output, mean, invstd."""
    if isinstance(op, FactorizedReduce):
        pixels, shifted = alternate_pixels(x)
        return [[op.bn]], *normalise(torch.cat([op.conv_1(pixels), op.conv_2(shifted)], dim=1))
    return [[op.op[2]]], *normalise(op.op[1](x))


def dropout(x: Tensor, drop_prob: float) -> Tensor:
    """Dropout whose rate may change without being compiled anew."""
    if not torch.compiler.is_compiling():
        return F.dropout(x, drop_prob)
    keep_prob = 1.0 - drop_prob
    return x * ((torch.rand_like(x) < keep_prob) / keep_prob).to(x.dtype)


@torch.no_grad()
def move_statistics(measured: list) -> None:
    """Move the running statistics of all norms in the `measured` of `Moments` towards this batch's."""
    norms, means, invstds, pixels = zip(*measured)
    var = torch.cat(invstds).pow(-2) - EPS
    unbiased = [N / max(N - 1, 1) for N in pixels]  # as the running variance is
    torch._foreach_mul_(var.split([invstd.numel() for invstd in invstds]), unbiased)
    norms = [owners for branches in norms for owners in branches]  # per branch, see `Moments.add`
    sizes = [owners[0].num_features for owners in norms]
    for name, values in (("running_mean", torch.cat(means)), ("running_var", var)):
        targets = [value for value, owners in zip(values.split(sizes), norms) for _ in owners]
        torch._foreach_lerp_([getattr(norm, name) for owners in norms for norm in owners], targets, MOMENTUM)
    torch._foreach_add_([norm.num_batches_tracked for owners in norms for norm in owners], 1)
