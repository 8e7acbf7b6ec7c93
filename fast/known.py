"""Which operations fast/ computes: exactly those of operations.py. Any other, even a subclass, runs its own forward."""
from torch import nn

from fast.functions import EPS, MOMENTUM
from operations import DilConv, FactorizedReduce, SepConv

LAYERS = [nn.ReLU, nn.Conv2d, nn.Conv2d, nn.BatchNorm2d]  # once, in a SepConv twice


def is_convolution(op: nn.Module, affine: bool, kernels: tuple[int, ...] = (3, 5, 7)) -> bool:
    """Whether op is as operations.py makes a SepConv or DilConv with one of these kernels, or a FactorizedReduce.

    affine: whether its batch norms are. An operation with hooks must be called, so it is none of these.
    """
    if type(op) not in (SepConv, DilConv, FactorizedReduce) or op._forward_hooks:
        return False
    layers = [op.relu, op.conv_1, op.conv_2, op.bn] if type(op) is FactorizedReduce else list(op.op)
    return ([type(layer) for layer in layers] == LAYERS * (2 if type(op) is SepConv else 1)
            and (type(op) is FactorizedReduce or layers[1].kernel_size[0] in kernels)
            and all(is_norm(norm, affine) for norm in layers[3::4]))


def is_norm(norm: nn.Module, affine: bool) -> bool:
    """Whether a layer is a batch norm with torch's default settings, but `affine`."""
    return type(norm) is nn.BatchNorm2d and (
        norm.affine, norm.eps, norm.momentum, norm.track_running_stats) == (affine, EPS, MOMENTUM, True)


def kind(op: nn.Module, stride: int) -> str:
    """How a candidate of the supernet is computed: as "skip", "reduce", "convolution", "max", "avg" or "own" code."""
    if type(op) is nn.Identity:
        return "skip"
    if is_convolution(op, affine=False, kernels=(3, 5)):
        return "reduce" if type(op) is FactorizedReduce else "convolution"
    for name, pool in (("max", nn.MaxPool2d(3, stride, padding=1)),
                       ("avg", nn.AvgPool2d(3, stride, padding=1, count_include_pad=False))):
        if (type(op) is nn.Sequential and type(op[0]) is type(pool) and len(op) == 2 and is_norm(op[1], affine=False)
                and all(getattr(op[0], setting) == getattr(pool, setting) for setting in pool.__constants__)):
            return name
    return "own"
