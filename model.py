"""The evaluation networks: a cell stacked 20 times for CIFAR, 14 times for ImageNet (sections 4.3, 4.4).

This is the reference implementation, operation by operation. Training computes the cells in fast/, in less time and
memory, unless `network.fast` is set to False; evaluation mode always runs this code.
"""
import torch
from torch import Tensor, nn

import fast
from genotypes import Genotype
from operations import (
    FactorizedReduce,
    ReLUConvBN,
    build,
    cifar_stem,
    drop_path,
    global_average_pool,
    imagenet_stems,
)


class Cell(nn.Module):
    """A cell of a genotype: s0 (B, C_prev_prev, ., .), s1 (B, C_prev, H, W) -> (B, len(concat) * C, H', W')."""

    def __init__(self, genotype: Genotype, C_prev_prev: int, C_prev: int, C: int, reduction: bool,
                 reduction_prev: bool):
        super().__init__()
        self.reduction = reduction
        preprocess = FactorizedReduce if reduction_prev else ReLUConvBN
        self.preprocess0 = preprocess(C_prev_prev, C)
        self.preprocess1 = ReLUConvBN(C_prev, C)
        genes = genotype.reduce if reduction else genotype.normal
        self.concat = genotype.reduce_concat if reduction else genotype.normal_concat
        self.sources = [state for _, state in genes]
        self._ops = nn.ModuleList(build(op, C, 2 if reduction and state < 2 else 1) for op, state in genes)

    def forward(self, s0: Tensor, s1: Tensor, drop_prob: float) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]  # (B, C, H, W) each
        for i, (op, source) in enumerate(zip(self._ops, self.sources)):
            y = op(states[source])  # (B, C, H', W')
            # Drop path regularises all operations but the identity.
            if self.training and drop_prob > 0 and type(op) is not nn.Identity:
                y = drop_path(y, drop_prob)
            # A node sums two edges, which are neighbours in the genotype.
            if i % 2 == 0:
                first = y
            else:
                states.append(first + y)
        return torch.cat([states[i] for i in self.concat], dim=1)  # (B, len(concat) * C, H', W')


class AuxiliaryHead(nn.Module):
    """A second classifier after two thirds of the cells, only for training: (B, C, H, W) -> (B, num_classes).

    At the published sizes `features` ends at 1x1 (8x8 inputs with stride 3, 7x7 with stride 2); larger ones are
    averaged (deviation: the published code fails on them).
    """

    def __init__(self, C: int, num_classes: int, pool_stride: int):
        super().__init__()
        self.features = nn.Sequential(
            nn.ReLU(),
            nn.AvgPool2d(5, pool_stride, padding=0, count_include_pad=False),
            nn.Conv2d(C, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(inplace=True),
            nn.Conv2d(128, 768, 2, bias=False),
            nn.BatchNorm2d(768),
            nn.ReLU(inplace=True),
        )
        self.classifier = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)  # (B, 768, 1, 1) at the published sizes
        return self.classifier(global_average_pool(x))  # (B, num_classes)


class _Body(nn.Module):
    """The common part of both networks: the stacked cells, the classifier, the auxiliary head, drop path."""

    fast = True  # train with fast/, which computes the same
    gives_maps = False  # the feature maps leave the network, so fast/ must not reuse their memory

    def _stack(self, C_prev_prev: int, C_prev: int, C: int, num_classes: int, layers: int, genotype: Genotype,
               reduction_prev: bool, auxiliary_stride: int | None) -> None:
        self.drop_path_prob = 0.0
        self.auxiliary_cell, self.auxiliary_head = 2 * layers // 3, None
        self.cells = nn.ModuleList()
        for i in range(layers):
            # Reduction cells at a third and two thirds of the depth halve H and W and double the channels.
            reduction = i in (layers // 3, 2 * layers // 3)
            C = 2 * C if reduction else C
            cell = Cell(genotype, C_prev_prev, C_prev, C, reduction, reduction_prev)
            self.cells.append(cell)
            C_prev_prev, C_prev, reduction_prev = C_prev, len(cell.concat) * C, reduction
            if i == self.auxiliary_cell and auxiliary_stride:
                self.auxiliary_head = AuxiliaryHead(C_prev, num_classes, auxiliary_stride)
        self.classifier = nn.Linear(C_prev, num_classes)

    def _run_cells(self, s0: Tensor, s1: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """The maps before each reduction and the last one, (B, C_prev, H, W) each, and the auxiliary logits."""
        if self.training and self.fast:
            return fast.train_cells(self, s0, s1)  # the loop below, in less time and memory
        maps, logits_aux = [], None
        # Each cell reads the outputs of the two cells before it, whose sizes may differ.
        for i, cell in enumerate(self.cells):
            maps += [s1] if cell.reduction else []
            s0, s1 = s1, cell(s0, s1, self.drop_path_prob)  # (B, C_prev, H, W)
            if i == self.auxiliary_cell and self.training and self.auxiliary_head:
                logits_aux = self.auxiliary_head(s1)
        return [*maps, s1], logits_aux

    def _classify(self, s0: Tensor, s1: Tensor) -> tuple[Tensor, Tensor | None]:
        maps, logits_aux = self._run_cells(s0, s1)
        return self.classifier(global_average_pool(maps[-1])), logits_aux  # (B, num_classes) each


class NetworkCIFAR(_Body):
    """The CIFAR network: images (B, 3, H, W) -> (logits (B, num_classes), auxiliary logits in training or None).

    The attribute `drop_path_prob` is to be updated each epoch.
    """

    def __init__(self, C: int, num_classes: int, layers: int, auxiliary: bool, genotype: Genotype):
        super().__init__()
        self.stem = cifar_stem(3 * C)
        self._stack(3 * C, 3 * C, C, num_classes, layers, genotype, False, 3 if auxiliary else None)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        s0 = s1 = self.stem(images)  # (B, 3C, H, W)
        return self._classify(s0, s1)


class NetworkImageNet(_Body):
    """The ImageNet network: images (B, 3, H, W) -> (logits (B, num_classes), auxiliary logits in training or None).

    The attribute `drop_path_prob` is to be updated each epoch.
    """

    def __init__(self, C: int, num_classes: int, layers: int, auxiliary: bool, genotype: Genotype):
        super().__init__()
        self.stem0, self.stem1 = imagenet_stems(C)
        self._stack(C, C, C, num_classes, layers, genotype, True, 2 if auxiliary else None)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        s0 = self.stem0(images)  # (B, C, H/4, W/4)
        s1 = self.stem1(s0)  # (B, C, H/8, W/8)
        return self._classify(s0, s1)
