"""The search supernet: every edge of every cell mixes its candidate operations with softmax weights (section 3.1).

This is the definition, candidate by candidate. Training takes the same sums from fast/, in less time and memory, unless
`network.fast` is set to False; evaluation mode always runs what stands here.
"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fast
from genotypes import NODES
from operations import FactorizedReduce, ReLUConvBN, build, cifar_stem, global_average_pool, imagenet_stems


def candidate(primitive: str, C: int, stride: int) -> nn.Module:
    """A candidate operation as the supernet has it: a pool has a batch norm behind it, and no norm is affine."""
    if primitive == "none":
        return nn.Identity()  # a place in the list, so that keys have the published numbers; never applied
    op = build(primitive, C, stride, affine=False)
    return nn.Sequential(op, nn.BatchNorm2d(C, affine=False)) if "pool" in primitive else op


class MixedOp(nn.Module):
    """The candidates of one edge, mixed: (B, C, H, W), weights (K) -> (B, C, H/stride, W/stride)."""

    def __init__(self, C: int, stride: int, primitives: list[str]):
        super().__init__()
        self.primitives = primitives
        self.m_ops = nn.ModuleList(candidate(primitive, C, stride) for primitive in primitives)

    def forward(self, x: Tensor, weights: Tensor, skip_dropout: float) -> Tensor:
        mixed = 0
        for primitive, op, weight in zip(self.primitives, self.m_ops, weights):
            if primitive == "none":
                continue  # zeros
            y = op(x)
            if isinstance(op, nn.Identity):  # section 3.3: dropout on the identity only
                y = F.dropout(y, skip_dropout, self.training)
            mixed = mixed + weight * y
        return mixed


class Cell(nn.Module):
    """A DAG over s0 = c_{k-2}, s1 = c_{k-1} and 4 nodes, concatenated: two (B, C_prev, H, W) -> (B, 4C, H', W')."""

    def __init__(self, C_prev_prev: int, C_prev: int, C: int, reduction: bool, reduction_prev: bool,
                 candidates: list[list[str]]):
        super().__init__()
        self.reduction = reduction
        preprocess = FactorizedReduce if reduction_prev else ReLUConvBN
        self.preprocess0 = preprocess(C_prev_prev, C, affine=False)
        self.preprocess1 = ReLUConvBN(C_prev, C, affine=False)
        edges = [state for node in range(NODES) for state in range(2 + node)]  # the state that each edge leaves
        self.cell_ops = nn.ModuleList(MixedOp(C, 2 if reduction and state < 2 else 1, primitives)
                                      for state, primitives in zip(edges, candidates))

    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor, skip_dropout: float = 0.0) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]  # (B, C, H, W) each
        edges = iter(zip(self.cell_ops, weights))  # weights: (14, K)
        for _ in range(NODES):
            states.append(sum(op(state, w, skip_dropout) for state, (op, w) in zip(list(states), edges)))
        return torch.cat(states[2:], dim=1)  # (B, 4C, H', W')


class Network(nn.Module):
    """The supernet of one stage, with its alphas: images (B, 3, H, W) -> logits (B, num_classes).

    C: initial channels. normal, reduce: the candidate names of each of the 14 edges, the same number K on every edge.
    skip_dropout: rate of the dropout on stride-1 skip-connects; set the attribute anew each epoch.
    stem: "cifar", or for large images "imagenet": that of the evaluation network, which leaves an eighth of the size.
    """

    fast = True  # train by fast/, which computes the same
    grad_checkpoint = False  # there: keep only the cells' outputs for the backward pass, which computes each cell again

    def __init__(self, C: int, num_classes: int, layers: int, normal: list[list[str]], reduce: list[list[str]],
                 skip_dropout: float = 0.0, stem: str = "cifar"):
        super().__init__()
        self.skip_dropout, self.large_images = skip_dropout, stem == "imagenet"
        self.alphas_normal = nn.Parameter(1e-3 * torch.randn(len(normal), len(normal[0])))
        self.alphas_reduce = nn.Parameter(1e-3 * torch.randn(len(reduce), len(reduce[0])))
        if self.large_images:
            self.stem0, self.stem1 = imagenet_stems(C)
        else:
            self.stem = cifar_stem(3 * C)
        C_prev_prev = C_prev = C if self.large_images else 3 * C
        reduction_prev = self.large_images
        self.cells = nn.ModuleList()
        for i in range(layers):
            reduction = i in (layers // 3, 2 * layers // 3)
            C = 2 * C if reduction else C
            candidates = reduce if reduction else normal
            self.cells.append(Cell(C_prev_prev, C_prev, C, reduction, reduction_prev, candidates))
            C_prev_prev, C_prev, reduction_prev = C_prev, NODES * C, reduction
        self.classifier = nn.Linear(C_prev, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        weights = [F.softmax(alphas, dim=-1) for alphas in (self.alphas_normal, self.alphas_reduce)]  # (14, K) each
        if self.large_images:
            s0 = self.stem0(images)  # (B, C, H/4, W/4)
            s1 = self.stem1(s0)  # (B, C, H/8, W/8)
        else:
            s0 = s1 = self.stem(images)  # (B, 3C, H, W)
        if self.training and self.fast:
            s1 = fast.mix_cells(self, s0, s1, weights)  # the loop below, in less time and memory
        else:
            for cell in self.cells:
                s0, s1 = s1, cell(s0, s1, weights[cell.reduction], self.skip_dropout)  # (B, 4C, H, W)
        return self.classifier(global_average_pool(s1))  # (B, num_classes)
