"""The evaluation networks: a found cell stacked 20 times for CIFAR, 14 times for ImageNet (sections 4.3, 4.4)."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fused import average_pixels, fast_layout
from genotypes import Genotype
from operations import FactorizedReduce, ReLUConvBN, build, drop_path


class Cell(nn.Module):
    """A cell: s0 (B, C_prev_prev, ., .), s1 (B, C_prev, H, W), both after ReLU -> (B, len(concat) * C, H', W')."""

    def __init__(self, genotype: Genotype, C_prev_prev: int, C_prev: int, C: int, reduction: bool,
                 reduction_prev: bool):
        super().__init__()
        preprocess = FactorizedReduce if reduction_prev else ReLUConvBN
        self.preprocess0 = preprocess(C_prev_prev, C)
        self.preprocess1 = ReLUConvBN(C_prev, C)
        genes = genotype.reduce if reduction else genotype.normal
        self.concat = genotype.reduce_concat if reduction else genotype.normal_concat
        self.sources = [state for _, state in genes]
        self._ops = nn.ModuleList(build(op, C, 2 if reduction and state < 2 else 1) for op, state in genes)

    def forward(self, s0: Tensor, s1: Tensor, drop_prob: float) -> Tensor:
        states = [_apply(self.preprocess0, s0, s0), _apply(self.preprocess1, s1, s1)]  # (B, C, H, W) each
        activated = {}  # one ReLU of a state serves all its edges
        for i, (op, source) in enumerate(zip(self._ops, self.sources)):
            x = states[source]
            if self.training and hasattr(op, "after_relu") and source not in activated:
                activated[source] = F.relu(x)
            y = _apply(op, x, activated.get(source))
            if self.training and drop_prob > 0 and not isinstance(op, nn.Identity):
                y = drop_path(y, drop_prob)
            if i % 2 == 0:
                states.append(y)  # a node sums two edges
            else:
                states[-1] = states[-1] + y
        return torch.cat([states[i] for i in self.concat], dim=1)


def _apply(op: nn.Module, x: Tensor, activated: Tensor | None) -> Tensor:
    """op(x), in training from activated = relu(x) where the operation begins with a ReLU."""
    return op.after_relu(activated) if op.training and hasattr(op, "after_relu") else op(x)


class AuxiliaryHead(nn.Module):
    """A second classifier on the features after two thirds of the cells, for training only: (B, C, H, W) -> logits.

    The published sizes end in 1x1 here (8x8 features with stride 3, 7x7 with stride 2); larger ones are averaged.
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
        return self.classifier(average_pixels(self.features(x)))  # (B, num_classes)


class _Body(nn.Module):
    """What both networks share: the stacked cells, the classifier, the auxiliary head, drop path."""

    def _stack(self, C_prev_prev: int, C_prev: int, C: int, num_classes: int, layers: int, genotype: Genotype,
               reduction_prev: bool, auxiliary_stride: int | None) -> None:
        self.drop_path_prob = 0.0
        self.auxiliary_cell = 2 * layers // 3
        self.cells = nn.ModuleList()
        for i in range(layers):
            reduction = i in (layers // 3, 2 * layers // 3)
            C = 2 * C if reduction else C
            cell = Cell(genotype, C_prev_prev, C_prev, C, reduction, reduction_prev)
            self.cells.append(cell)
            C_prev_prev, C_prev, reduction_prev = C_prev, len(cell.concat) * C, reduction
            if i == self.auxiliary_cell and auxiliary_stride:
                self.auxiliary_head = AuxiliaryHead(C_prev, num_classes, auxiliary_stride)
        self.classifier = nn.Linear(C_prev, num_classes)

    def _head(self, s0: Tensor, s1: Tensor) -> tuple[Tensor, Tensor | None]:
        logits_aux = None
        for i, cell in enumerate(self.cells):
            s0, s1 = s1, cell(s0, s1, self.drop_path_prob)
            if i + 1 < len(self.cells):
                s1 = F.relu_(s1)  # all that takes it begins with a ReLU
            if i == self.auxiliary_cell and self.training and hasattr(self, "auxiliary_head"):
                logits_aux = self.auxiliary_head(s1)  # (B, num_classes)
        return self.classifier(average_pixels(s1)), logits_aux  # (B, num_classes)


class NetworkCIFAR(_Body):
    """The CIFAR network: images (B, 3, H, W) -> (logits (B, num_classes), auxiliary logits in training or None).

    Set `drop_path_prob` anew each epoch.
    """

    def __init__(self, C: int, num_classes: int, layers: int, auxiliary: bool, genotype: Genotype):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 3 * C, 3, padding=1, bias=False), nn.BatchNorm2d(3 * C))
        self._stack(3 * C, 3 * C, C, num_classes, layers, genotype, False, 3 if auxiliary else None)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        x = F.relu_(self.stem(fast_layout(images)))  # (B, 3C, H, W)
        return self._head(x, x)


class NetworkImageNet(_Body):
    """The ImageNet network: images (B, 3, H, W) -> (logits (B, num_classes), auxiliary logits in training or None).

    Set `drop_path_prob` anew each epoch.
    """

    def __init__(self, C: int, num_classes: int, layers: int, auxiliary: bool, genotype: Genotype):
        super().__init__()
        self.stem0 = nn.Sequential(
            nn.Conv2d(3, C // 2, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(C // 2),
            nn.ReLU(inplace=True),
            nn.Conv2d(C // 2, C, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(C),
        )
        self.stem1 = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(C, C, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(C),
        )
        self._stack(C, C, C, num_classes, layers, genotype, True, 2 if auxiliary else None)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        s0 = F.relu_(self.stem0(fast_layout(images)))  # (B, C, H/4, W/4)
        s1 = F.relu_(self.stem1(s0))  # (B, C, H/8, W/8)
        return self._head(s0, s1)
