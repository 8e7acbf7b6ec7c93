"""The search supernet: every edge of every cell mixes its candidate operations with softmax weights (section 3.1).

`MixedOp.forward` and `Cell.forward` state the mathematics, candidate by candidate. Training takes `Cell.mix`, which
computes the same sums with the branches of one kind side by side (see fused.py): equal up to rounding.
"""
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fused import (
    EPS,
    MOMENTUM,
    Depthwise,
    Node,
    NormReLUDepthwise,
    PoolNorm,
    Stack,
    WeightedNorm,
    WeightedSum,
    average_pixels,
    fast_layout,
    normalise,
    undilate,
)
from operations import FactorizedReduce, ReLUConvBN, build, dropout

NODES = 4  # intermediate nodes: 2+3+4+5 = 14 edges


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

    def add(self, norms: list[nn.BatchNorm2d], y: Tensor, mean: Tensor, invstd: Tensor) -> Tensor:
        """Note the moments of the next norms, and how many pixels they are of; hand y (B, C, H, W) through."""
        if self.position == len(self.measured):
            self.measured.append((norms, mean, invstd, y.size(0) * y.size(2) * y.size(3)))
        self.position += 1
        return y


class MixedOp(nn.Module):
    """The candidates of one edge, mixed: (B, C, H, W) -> (B, C, H/stride, W/stride).

    pools: those of the state that the edge leaves, with their norms: the same on every such edge, which share them.
    """

    def __init__(self, C: int, stride: int, primitives: list[str], pools: dict[str, nn.Module]):
        super().__init__()
        self.primitives = primitives
        self.m_ops = nn.ModuleList()
        for primitive in primitives:
            op = nn.Identity() if primitive == "none" else build(primitive, C, stride, affine=False)
            if "pool" in primitive:
                op = pools.setdefault(primitive, nn.Sequential(op, nn.BatchNorm2d(C, affine=False)))
            self.m_ops.append(op)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return sum(weight * op(x) for primitive, op, weight in zip(self.primitives, self.m_ops, weights)
                   if primitive != "none")


class Cell(nn.Module):
    """A DAG over s0 = c_{k-2}, s1 = c_{k-1} and 4 nodes, concatenated: two (B, C_prev, H, W) -> (B, 4C, H', W')."""

    def __init__(self, C_prev_prev: int, C_prev: int, C: int, reduction: bool, reduction_prev: bool,
                 candidates: list[list[str]], side_by_side: int = 4):
        super().__init__()
        self.C = C
        preprocess = FactorizedReduce if reduction_prev else ReLUConvBN
        self.preprocess0 = preprocess(C_prev_prev, C, affine=False)
        self.preprocess1 = ReLUConvBN(C_prev, C, affine=False)
        self.cell_ops = nn.ModuleList()
        self.nodes: list[tuple[list[list[Branch]], list[Branch]]] = []  # per node: groups of convolutions, the rest
        pools = [{} for _ in range(2 + NODES)]
        for node in range(NODES):
            branches = []
            for state in range(2 + node):
                stride = 2 if reduction and state < 2 else 1
                edge, primitives = len(self.cell_ops), candidates[len(self.cell_ops)]
                self.cell_ops.append(MixedOp(C, stride, primitives, pools[state]))
                for o, (primitive, op) in enumerate(zip(primitives, self.cell_ops[edge].m_ops)):
                    layers = list(op.op) if "conv" in primitive else []
                    if primitive != "none":
                        branches.append(Branch(primitive, state, stride, op, layers, edge * len(primitives) + o))
            self.nodes.append((group_convolutions(branches, side_by_side),
                               [b for b in branches if not b.layers]))
        self.groups = [group for groups, _ in self.nodes for group in groups]
        self.register_buffer("kernel_order", channel_order(self.layers(1)), persistent=False)
        order = [b.index for group in self.groups for b in group] + [b.index for _, rest in self.nodes for b in rest]
        self.register_buffer("weight_order", torch.tensor(order, dtype=torch.long), persistent=False)

    def layers(self, i: int) -> list[nn.Module]:
        """Layer i of each (ReLU, depthwise, pointwise, norm) in the groups; a sep_conv's second after its first."""
        return [b.layers[i + half] for group in self.groups for half in halves(group) for b in group]

    def stacks(self, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
        """Per half of a group, its depthwise and pointwise weights: (nC, 1, K, K), (nC, C, 1, 1)."""
        if not self.groups:
            return []
        sizes = [self.C * len(group) for group in self.groups for _ in halves(group)]
        kernels = sorted((layer.weight for layer in self.layers(1)), key=lambda weight: weight.size(-1))
        return list(zip(Stack.apply(self.kernel_order, sizes, dtype, *kernels),
                        Stack.apply(None, sizes, dtype, *[layer.weight for layer in self.layers(2)])))

    def scales(self, weights: Tensor) -> tuple[Tensor, ...]:
        """Per group, its mixing weights, each C times: (nC)."""
        return weights.repeat_interleave(self.C).split([self.C * len(group) for group in self.groups] or 1)

    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor) -> Tensor:
        """The cell as the paper has it. weights: (14, K)."""
        states = [self.preprocess0(s0), self.preprocess1(s1)]  # (B, C, H, W) each
        edges = iter(zip(self.cell_ops, weights))
        for _ in range(NODES):
            states.append(sum(op(state, weight) for state, (op, weight) in zip(list(states), edges)))
        return torch.cat(states[2:], dim=1)  # (B, 4C, H', W')

    def mix(self, s0: Tensor, s1: Tensor, weights: Tensor, skip_dropout: float, moments: Moments,
            to_relu: bool = True) -> tuple[Tensor, ...]:
        """The same 4 nodes, (B, C, H', W') each, branches side by side, before they are concatenated.

        s0, s1: after the ReLU that they are used through; so are the nodes, if asked.
        weights: in `weight_order`. Leaves the running statistics alone.
        """
        moments.position = 0
        states = [moments.add(*project(op, s)) for op, s in ((self.preprocess0, s0), (self.preprocess1, s1))]
        relus = [F.relu(state) for state in states]
        pooled, undilated = {}, {}  # shared, as the ReLUs, by a state's edges
        n = sum(map(len, self.groups))
        scales, convolutions = iter(self.scales(weights[:n])), iter(self.stacks(states[0].dtype))
        weights = iter(weights[n:].split([len(rest) for _, rest in self.nodes]))
        known = [None] * NODES if moments.nodes is None else moments.nodes.chunk(NODES, dim=1)
        for (groups, rest), known_node in zip(self.nodes, known):
            maps = []
            for b in rest:
                if isinstance(b.op, nn.Identity):  # section 3.3: dropout on the identity only
                    y = dropout(states[b.state], skip_dropout)
                elif isinstance(b.op, FactorizedReduce):
                    y = moments.add(*project(b.op, relus[b.state]))
                elif b.op in pooled:
                    y = pooled[b.op]
                else:
                    y = moments.add([b.op[1]], *PoolNorm.apply(states[b.state], b.primitive[:3], b.stride,
                                                                 *moments.known()))
                    pooled[b.op] = y
                maps.append(y)
            w = next(weights)
            # First, so that its backward pass runs last, and its gradients do not wait while the groups' run.
            parts = [WeightedSum.apply(w, known_node is not None, *maps)] if maps else []
            parts += [mix_group(group, relus, undilated, convolutions, next(scales), moments) for group in groups]
            node, relu = Node.apply(known_node, *parts)  # (B, C, H', W')
            states.append(node)
            relus.append(relu)
        return tuple(relus[2:] if to_relu else states[2:])

    def mix_twice(self, s0: Tensor, s1: Tensor, weights: Tensor, skip_dropout: float, moments: Moments) -> Tensor:
        """The same without the ReLUs before and behind; keeps only s0 and s1, the backward pass computes it again."""
        def mix(s0, s1, weights):
            return self.mix(F.relu(s0), F.relu(s1), weights, skip_dropout, moments, to_relu=False)

        # Reentrant: the first pass builds no graph, so a recomputation may keep other tensors than it would.
        nodes = checkpoint(mix, s0, s1, weights, use_reentrant=True, preserve_rng_state=skip_dropout > 0)
        out = torch.cat(nodes, dim=1)
        moments.nodes = out.detach()  # the next cells keep them anyway
        return out


def group_convolutions(branches: list[Branch], limit: int) -> list[list[Branch]]:
    """The convolutions among a node's branches, in even groups of one kind and stride, small kernels first."""
    groups = []
    convolutions = [b for b in branches if b.layers]
    for kind, stride in sorted({(b.primitive[:3], b.stride) for b in convolutions}):
        same = [b for b in convolutions if b.primitive.startswith(kind) and b.stride == stride]
        same.sort(key=lambda b: b.primitive)
        count = -(-len(same) // limit)
        groups += [same[i * len(same) // count:(i + 1) * len(same) // count] for i in range(count)]
    return groups


def halves(group: list[Branch]) -> tuple[int, ...]:
    """Where (ReLU, depthwise, pointwise, norm) begin in the group's operations: a sep_conv has them twice."""
    return (0, 4) if group[0].primitive.startswith("sep") else (0,)


def channel_order(depthwise: list[nn.Conv2d]) -> Tensor:
    """Where each channel of these kernels lies once they are sorted by size."""
    by_size = sorted(range(len(depthwise)), key=lambda i: depthwise[i].kernel_size)
    C = depthwise[0].out_channels if depthwise else 0
    return torch.tensor([by_size.index(i) * C + c for i in range(len(depthwise)) for c in range(C)], dtype=torch.long)


def mix_group(group: list[Branch], relus: list[Tensor], undilated: dict, convolutions, scale: Tensor,
              moments: Moments) -> Tensor:
    """The weighted sum of the group's branches, (B, C, H', W').

    undilated: of the states that a dilated convolution has left already. convolutions: depthwise and pointwise weights
    of each half.
    """
    order, stride, dilation = list(dict.fromkeys(b.state for b in group)), group[0].stride, 1
    states, which = [relus[state] for state in order], [order.index(b.state) for b in group]
    if group[0].primitive.startswith("dil"):
        for state in order:
            if state not in undilated:
                undilated[state] = undilate(relus[state], stride)
        states, (stride, *_), (dilation, *_) = zip(*[undilated[state] for state in order])
    kernel, pointwise = next(convolutions)  # (nC, 1, K, K), (nC, C, 1, 1)
    d = Depthwise.apply(crop(kernel, group), stride, dilation, which, *states)
    for half in halves(group)[1:]:
        kernel, pointwise_next = next(convolutions)
        d = moments.add([b.layers[half - 1] for b in group],
                        *NormReLUDepthwise.apply(d, pointwise, crop(kernel, group), *moments.known()))
        pointwise = pointwise_next  # d: (B, nC, H', W')
    B = relus[0].size(0)
    return moments.add([b.layers[-1] for b in group], *WeightedNorm.apply(d, scale, pointwise, B, *moments.known()))


def crop(kernel: Tensor, group: list[Branch]) -> Tensor:
    """A group of 3x3 kernels only, without the rims that `Stack` gave it."""
    rim = (kernel.size(-1) - group[-1].layers[1].kernel_size[0]) // 2
    return F.pad(kernel, [-rim] * 4) if rim else kernel


def project(op: ReLUConvBN | FactorizedReduce, x: Tensor) -> tuple:
    """`op` without its ReLU, by the batch's moments -> its norm (in a list), its output, mean, invstd."""
    if isinstance(op, FactorizedReduce):
        return [op.bn], *normalise(op.project(x))
    return [op.op[2]], *normalise(op.op[1](x))


@torch.no_grad()
def move_statistics(measured: list) -> None:
    """Move the running statistics of all norms in the `measured` of `Moments` towards this batch's."""
    norms, means, invstds, pixels = zip(*measured)
    norms = [norm for group in norms for norm in group]
    sizes = [norm.num_features for norm in norms]
    var = torch.cat(invstds).pow(-2) - EPS
    unbiased = [N / max(N - 1, 1) for N in pixels]  # as the running variance is
    torch._foreach_mul_(var.split([invstd.numel() for invstd in invstds]), unbiased)
    torch._foreach_lerp_([norm.running_mean for norm in norms], torch.cat(means).split(sizes), MOMENTUM)
    torch._foreach_lerp_([norm.running_var for norm in norms], var.split(sizes), MOMENTUM)
    torch._foreach_add_([norm.num_batches_tracked for norm in norms], 1)


class Network(nn.Module):
    """The supernet of one stage, with its alphas.

    C: initial channels. normal, reduce: the candidate names of each of the 14 edges, the same number K on every edge.
    skip_dropout: rate of the dropout on stride-1 skip-connects; set the attribute anew each epoch.
    grad_checkpoint: set it to keep only the cells' outputs for the backward pass, which computes each cell again.
    forward: images (B, 3, H, W) -> logits (B, num_classes).
    """

    def __init__(self, C: int, num_classes: int, layers: int, normal: list[list[str]], reduce: list[list[str]],
                 skip_dropout: float = 0.0):
        super().__init__()
        self.skip_dropout = skip_dropout
        self.grad_checkpoint = False
        self.alphas_normal = nn.Parameter(1e-3 * torch.randn(len(normal), len(normal[0])))
        self.alphas_reduce = nn.Parameter(1e-3 * torch.randn(len(reduce), len(reduce[0])))
        self.stem = nn.Sequential(nn.Conv2d(3, 3 * C, 3, padding=1, bias=False), nn.BatchNorm2d(3 * C))
        C_first, C_prev_prev, C_prev, reduction_prev = C, 3 * C, 3 * C, False
        self.cells = nn.ModuleList()
        self.reductions = [i in (layers // 3, 2 * layers // 3) for i in range(layers)]
        for reduction in self.reductions:
            if reduction:
                C *= 2
            candidates = reduce if reduction else normal
            side_by_side = 4 * C // C_first  # more would overflow the cache
            self.cells.append(Cell(C_prev_prev, C_prev, C, reduction, reduction_prev, candidates, side_by_side))
            C_prev_prev, C_prev, reduction_prev = C_prev, NODES * C, reduction
        self.classifier = nn.Linear(C_prev, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        weights = [F.softmax(alphas, dim=-1) for alphas in (self.alphas_normal, self.alphas_reduce)]  # (14, K) each
        s0 = s1 = self.stem(fast_layout(images))  # (B, 3C, H, W)
        if self.training:
            s1 = self.mix(s1, weights)
        else:
            for cell, reduction in zip(self.cells, self.reductions):
                s0, s1 = s1, cell(s0, s1, weights[reduction])  # (B, 4C, H, W), H and W halved twice
        return self.classifier(average_pixels(s1))  # (B, num_classes)

    def mix(self, stem: Tensor, weights: list[Tensor]) -> Tensor:
        """The cells' output in training, (B, 4C, H, W), by `Cell.mix`; moves the running statistics, once."""
        ordered, measured = {}, []  # all cells of a kind have one order
        s0 = s1 = stem if self.grad_checkpoint else F.relu(stem)  # cells use nothing else of it
        for cell, reduction in zip(self.cells, self.reductions):
            if reduction not in ordered:
                ordered[reduction] = weights[reduction].flatten()[cell.weight_order]
            moments = Moments()
            args = s0, s1, ordered[reduction], self.skip_dropout, moments
            if self.grad_checkpoint:
                out = cell.mix_twice(*args)
            else:
                out = torch.cat(cell.mix(*args, to_relu=cell is not self.cells[-1]), dim=1)
            s0, s1 = s1, out
            measured += moments.measured
        move_statistics(measured)
        return s1
