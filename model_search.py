"""The search supernet: every edge of every cell mixes its candidate operations with softmax weights (section 3.1)."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from operations import FactorizedReduce, ReLUConvBN, build

NODES = 4                                                                  # intermediate nodes: 2+3+4+5 = 14 edges


class MixedOp(nn.Module):
    """The candidates of one edge, mixed: (B, C, H, W) -> (B, C, H/stride, W/stride)."""

    def __init__(self, C: int, stride: int, primitives: list[str]):
        super().__init__()
        self.primitives = primitives
        self.m_ops = nn.ModuleList()
        for primitive in primitives:
            op = nn.Identity() if primitive == "none" else build(primitive, C, stride, affine=False)
            if "pool" in primitive:
                op = nn.Sequential(op, nn.BatchNorm2d(C, affine=False))
            self.m_ops.append(op)

    def forward(self, x: Tensor, weights: Tensor, skip_dropout: float) -> Tensor:
        mixed = 0
        for primitive, op, weight in zip(self.primitives, self.m_ops, weights):
            if primitive == "none":                                        # zeros: costs nothing
                continue
            y = op(x)
            if isinstance(op, nn.Identity):                                # section 3.3: dropout on the identity only
                y = F.dropout(y, skip_dropout, self.training)
            mixed = mixed + weight * y
        return mixed


class Cell(nn.Module):
    """A DAG over s0 = c_{k-2}, s1 = c_{k-1} and 4 nodes, concatenated: two (B, C_prev, H, W) -> (B, 4C, H', W')."""

    def __init__(self, C_prev_prev: int, C_prev: int, C: int, reduction: bool, reduction_prev: bool,
                 candidates: list[list[str]]):
        super().__init__()
        preprocess = FactorizedReduce if reduction_prev else ReLUConvBN
        self.preprocess0 = preprocess(C_prev_prev, C, affine=False)
        self.preprocess1 = ReLUConvBN(C_prev, C, affine=False)
        self.cell_ops = nn.ModuleList()
        for node in range(NODES):
            for state in range(2 + node):
                stride = 2 if reduction and state < 2 else 1
                self.cell_ops.append(MixedOp(C, stride, candidates[len(self.cell_ops)]))

    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor, skip_dropout: float) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]              # (B, C, H, W) each
        edge = 0
        for _ in range(NODES):
            node = 0
            for state in states:
                node = node + self.cell_ops[edge](state, weights[edge], skip_dropout)
                edge += 1
            states.append(node)                                            # (B, C, H', W')
        return torch.cat(states[2:], dim=1)                                # (B, 4C, H', W')


class Network(nn.Module):
    """The supernet of one stage, with its alphas.

    C: initial channels. normal, reduce: the candidate names of each of the 14 edges, the same number K on every edge.
    skip_dropout: rate of the dropout on stride-1 skip-connects; set the attribute anew each epoch.
    forward: images (B, 3, H, W) -> logits (B, num_classes).
    """

    def __init__(self, C: int, num_classes: int, layers: int, normal: list[list[str]], reduce: list[list[str]],
                 skip_dropout: float = 0.0):
        super().__init__()
        self.skip_dropout = skip_dropout
        self.alphas_normal = nn.Parameter(1e-3 * torch.randn(len(normal), len(normal[0])))
        self.alphas_reduce = nn.Parameter(1e-3 * torch.randn(len(reduce), len(reduce[0])))
        self.stem = nn.Sequential(nn.Conv2d(3, 3 * C, 3, padding=1, bias=False), nn.BatchNorm2d(3 * C))
        C_prev_prev, C_prev, reduction_prev = 3 * C, 3 * C, False
        self.cells = nn.ModuleList()
        self.reductions = [i in (layers // 3, 2 * layers // 3) for i in range(layers)]
        for reduction in self.reductions:
            if reduction:
                C *= 2
            candidates = reduce if reduction else normal
            self.cells.append(Cell(C_prev_prev, C_prev, C, reduction, reduction_prev, candidates))
            C_prev_prev, C_prev, reduction_prev = C_prev, NODES * C, reduction
        self.classifier = nn.Linear(C_prev, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        weights_normal = F.softmax(self.alphas_normal, dim=-1)             # (14, K)
        weights_reduce = F.softmax(self.alphas_reduce, dim=-1)
        s0 = s1 = self.stem(images)                                        # (B, 3C, H, W)
        for cell, reduction in zip(self.cells, self.reductions):
            weights = weights_reduce if reduction else weights_normal
            s0, s1 = s1, cell(s0, s1, weights, self.skip_dropout)          # (B, 4C, H, W), H and W halved twice
        return self.classifier(s1.mean(dim=(2, 3)))                        # (B, num_classes)
