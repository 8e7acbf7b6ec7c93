"""The search supernet: every edge of every cell mixes its candidate operations with softmax weights (section 3.1).

This is the reference implementation, candidate by candidate. Training computes the same sums in fast/, in less time and
memory, unless `network.fast` is set to False; evaluation mode always runs this code.
"""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fast
import operations
from genotypes import NODES
from operations import TABLE, FactorizedReduce, ReLUConvBN, build, cifar_stem, global_average_pool, imagenet_stems


def candidate(primitive: str, C: int, stride: int) -> nn.Module:
    """A candidate operation of the supernet: batch norms are not affine, and one follows each pool."""
    if primitive == "none":
        return nn.Identity()  # never applied; it keeps the published numbering of the keys
    op = build(primitive, C, stride, affine=False)
    return nn.Sequential(op, nn.BatchNorm2d(C, affine=False)) if TABLE[primitive].is_pool else op


class MixedOp(nn.Module):
    """The candidates of one edge, mixed: (B, C, H, W), weights (K) -> (B, C, H/stride, W/stride)."""

    def __init__(self, C: int, stride: int, primitives: list[str]):
        super().__init__()
        self.primitives = primitives
        self.m_ops = nn.ModuleList(candidate(primitive, C, stride) for primitive in primitives)

    def forward(self, x: Tensor, weights: Tensor, skip_dropout: float) -> Tensor:
        mixed = 0
        for primitive, op, weight in zip(self.primitives, self.m_ops, weights):
            # `none` adds only zeros; its weight still lowers the others' in the softmax.
            if primitive == "none":
                continue
            y = op(x)  # (B, C, H/stride, W/stride)
            # Dropout, on the identity only, keeps skip-connects from dominating early (section 3.3).
            if type(op) is nn.Identity and self.training:
                y = operations.dropout(y, skip_dropout)
            mixed = mixed + weight * y
        return mixed


class Cell(nn.Module):
    """A DAG of s0 = c_{k-2}, s1 = c_{k-1} and 4 concatenated nodes: two (B, C_prev, H, W) -> (B, 4C, H', W')."""

    def __init__(self, C_prev_prev: int, C_prev: int, C: int, reduction: bool, reduction_prev: bool,
                 candidates: list[list[str]]):
        super().__init__()
        self.reduction = reduction
        preprocess = FactorizedReduce if reduction_prev else ReLUConvBN
        self.preprocess0 = preprocess(C_prev_prev, C, affine=False)
        self.preprocess1 = ReLUConvBN(C_prev, C, affine=False)
        edges = [state for node in range(NODES) for state in range(2 + node)]  # each edge's source state
        self.cell_ops = nn.ModuleList(MixedOp(C, 2 if reduction and state < 2 else 1, primitives)
                                      for state, primitives in zip(edges, candidates))

    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor, skip_dropout: float = 0.0) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]  # (B, C, H, W) each
        edges = iter(zip(self.cell_ops, weights))  # weights: (14, K)
        # A node sums one edge per earlier state, so each takes one edge more than the node before it.
        for _ in range(NODES):
            states.append(sum(op(state, w, skip_dropout) for state, (op, w) in zip(list(states), edges)))
        return torch.cat(states[2:], dim=1)  # (B, 4C, H', W')


class Network(nn.Module):
    """The supernet of one stage, with its alphas: images (B, 3, H, W) -> logits (B, num_classes).

    C: initial channels. normal, reduce: the candidate names of each of the 14 edges, the same number K on every edge.
    skip_dropout: rate of the dropout on stride-1 skip-connects; update this attribute each epoch.
    stem: "cifar", or for large images "imagenet": NetworkImageNet's, which reduces H and W to an eighth.
    """

    fast = True  # train with fast/, which computes the same
    grad_checkpoint = False  # activation checkpointing in fast/: save only the cells' outputs, recompute the rest

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
            # Reduction cells at a third and two thirds of the depth halve H and W and double the channels.
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
        # Each cell reads the outputs of the two cells before it, whose sizes may differ.
        if self.training and self.fast:
            s1 = fast.mix_cells(self, s0, s1, weights)  # the loop below, in less time and memory
        else:
            for cell in self.cells:
                s0, s1 = s1, cell(s0, s1, weights[cell.reduction], self.skip_dropout)  # (B, 4C, H, W)
        return self.classifier(global_average_pool(s1))  # (B, num_classes)
