"""Batch statistics of the supernet's batch norms: recorded by the forward pass, reused by a recomputation.

Equal to what each nn.BatchNorm2d does by itself, but the running statistics are updated once per step, after the last
cell, and all in a few calls.
"""
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fast.functions import EPS, MOMENTUM


class NormStats(NamedTuple):
    """Batch statistics of n batch norms side by side; invstd is 1 / sqrt(var + eps)."""
    norms: list[list[nn.BatchNorm2d]]  # per branch, those with these statistics: several if edges share a pool
    mean: Tensor  # (nC)
    invstd: Tensor  # (nC)
    pixels: int  # B * H * W, over which they are computed


class BatchStats:
    """Batch statistics of a cell's batch norms, in the order in which a pass through the cell uses them.

    nodes: None, or the nodes (B, 4C, H, W) of the first pass, which a recomputation reuses, too.
    """

    def __init__(self):
        self.records: list[NormStats] = []
        self.position, self.nodes = 0, None

    def reuse(self) -> tuple[Tensor | None, Tensor | None]:
        """mean and invstd of the next batch norms in a recomputation; None, None in the first pass."""
        if self.position == len(self.records):
            return None, None
        record = self.records[self.position]
        return record.mean, record.invstd

    def record(self, norms: list[list[nn.BatchNorm2d]], z: Tensor, mean: Tensor, invstd: Tensor) -> Tensor:
        """Record the statistics of the next batch norms in the first pass; return their output z unchanged."""
        if self.position == len(self.records):
            self.records.append(NormStats(norms, mean, invstd, z.size(0) * z.size(2) * z.size(3)))
        self.position += 1
        return z


@torch.no_grad()
def update_stats(records: list[NormStats]) -> None:
    """Update the running statistics of all recorded batch norms, as nn.BatchNorm2d does."""
    norms, means, invstds, pixels = zip(*records)
    var = torch.cat(invstds).pow(-2) - EPS
    unbiased = [N / max(N - 1, 1) for N in pixels]  # as the running variance is
    torch._foreach_mul_(var.split([invstd.numel() for invstd in invstds]), unbiased)
    branches = [sharing for record in norms for sharing in record]  # per branch, the norms that use its statistics
    sizes = [sharing[0].num_features for sharing in branches]
    norms = [norm for sharing in branches for norm in sharing]
    for name, values in (("running_mean", torch.cat(means)), ("running_var", var)):
        targets = [value for value, sharing in zip(values.split(sizes), branches) for _ in sharing]
        torch._foreach_lerp_([getattr(norm, name) for norm in norms], targets, MOMENTUM)
    torch._foreach_add_([norm.num_batches_tracked for norm in norms], 1)
