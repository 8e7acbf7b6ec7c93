"""The alphas' side of the bilevel problem: first-order steps, without unrolling the weights (section 3.1)."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import utils
from harness import parallel


class Architect:
    """Adam on the alphas of a supernet, with their gradient norm clipped; the weights do not change."""

    def __init__(self, model: nn.Module, learning_rate: float, weight_decay: float, grad_clip: float):
        self.model = model
        self.alphas = [model.alphas_normal, model.alphas_reduce]
        self.start = [alpha.detach().clone() for alpha in self.alphas]  # warm-up leaves them so
        self.weights = [p for p in model.parameters() if p.requires_grad and all(p is not a for a in self.alphas)]
        self.grad_clip = grad_clip
        self.optimizer = torch.optim.Adam(self.alphas, learning_rate, betas=(0.5, 0.999), weight_decay=weight_decay,
                                          fused=True)
        self.scaler = torch.amp.GradScaler(model.alphas_normal.device.type, enabled=False)  # replaced for fp16

    def step(self, images: Tensor, target: Tensor) -> Tensor:
        """One alpha update on a batch (B, 3, H, W), (B,) of the held-out split -> loss ()."""
        for weight in self.weights:
            weight.requires_grad_(False)  # first order: only the alphas need gradients
        loss = F.cross_entropy(self.model(images), target)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        for weight in self.weights:
            weight.requires_grad_(True)
        parallel.average_gradients(self.alphas)  # all ranks must hold the same alphas
        utils.clipped_step(self.optimizer, self.scaler, self.grad_clip)
        return loss.detach()
