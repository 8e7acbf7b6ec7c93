"""Pointwise convolutions of n branches side by side: equal to F.conv2d of 1x1 kernels with groups=n, and its gradients.

Where oneDNN is slow, they are computed as matrix products. n, the number of branches, follows from the shapes.
"""
import torch
import torch.nn.functional as F
from torch import Tensor

from fast import pixels
from fast.depthwise import conv_backward


def pointwise(d: Tensor, weight: Tensor) -> Tensor:
    """d (B, nC, H, W), weight (nC', C, 1, 1) -> (B, nC', H, W)."""
    if pixels.on_cpu(d) and d.size(2) == d.size(3) == 1:
        return _matmul(d, weight.unflatten(0, (_num_branches(d, weight), -1)).flatten(2).transpose(1, 2))
    return F.conv2d(d, weight, groups=_num_branches(d, weight))


def pointwise_backward(g: Tensor, d: Tensor, weight: Tensor,
                       needs_weight_grad: bool = True) -> tuple[Tensor, Tensor | None]:
    """Gradients of `pointwise` with regard to d and, if needed, weight; if not, only the shape of d is used."""
    n, HW = _num_branches(d, weight), d.size(2) * d.size(3)
    if not pixels.on_cpu(d):
        return conv_backward(g, d, weight, groups=n, mask=(True, needs_weight_grad))
    if HW == 1:
        g_d = _matmul(g, weight.unflatten(0, (n, -1)).flatten(2))
    else:
        g_d, _ = conv_backward(g, d, weight, groups=n, mask=(True, False))
    if not needs_weight_grad:
        return g_d, None
    if HW < 64:
        return g_d, torch.bmm(_as_matrices(g, n, True), _as_matrices(d, n)).view_as(weight)
    return g_d, conv_backward(g, d, weight, groups=n, mask=(False, True))[1]  # two calls are faster than one for both


def _num_branches(d: Tensor, weight: Tensor) -> int:
    return d.size(1) // weight.size(1)


def _as_matrices(x: Tensor, n: int, transposed: bool = False) -> Tensor:
    """(B, nC, H, W) -> (n, BHW, C), or transposed (n, C, BHW): a view if x is channels-last."""
    x = x.contiguous(memory_format=torch.channels_last)
    C, BHW = x.size(1) // n, x.numel() // x.size(1)
    if transposed:
        return x.as_strided((n, C, BHW), (C, 1, n * C))
    return x.as_strided((n, BHW, C), (C, n * C, 1))


def _matmul(x: Tensor, matrices: Tensor) -> Tensor:
    """x (B, nC, 1, 1) times (n, C, C') -> (B, nC', 1, 1)."""
    return torch.bmm(_as_matrices(x, len(matrices)), matrices).transpose(0, 1).flatten(1)[..., None, None]
