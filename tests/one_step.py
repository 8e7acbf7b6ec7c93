"""Run by test_distributed under torchrun: one step of each kind on this rank's share of a fixed batch."""
import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))
import engine
import genotypes
import train_cifar
from architect import Architect
from harness import parallel
from model import NetworkCIFAR
from model_search import Network
from train_search import weight_step


def gradients(network: nn.Module) -> dict:
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def main(out: str) -> None:
    parallel.init_distributed(torch.device("cpu"))
    torch.manual_seed(1)
    images, target = torch.randn(8, 3, 32, 32, dtype=torch.float64), torch.randint(10, (8,))
    share = slice(parallel.rank(), None, parallel.world_size())
    images, target = images[share], target[share]
    candidates = [["none", "max_pool_3x3", "skip_connect", "sep_conv_3x3", "dil_conv_5x5"]] * 14
    found = {}
    for stem in ("cifar", "imagenet"):
        supernet = Network(4, 10, 3, candidates, candidates, stem=stem).double()
        supernet.eval()  # batch norm with its running statistics
        architect = Architect(supernet, 6e-4, 1e-3, grad_clip=1e9)  # no clipping: the gradients themselves
        architect.step(images, target)
        found |= {f"alpha step, {stem}: {name}": grad.clone() for name, grad in gradients(supernet).items()}
        weights = [p for name, p in supernet.named_parameters() if not name.startswith("alphas")]
        weight_step(supernet, torch.optim.SGD(weights, 0.025), images, target, grad_clip=1e9)
        found |= {f"weight step, {stem}: {name}": grad for name, grad in gradients(supernet).items()
                  if "alphas" not in name}

    network = NetworkCIFAR(4, 10, 3, True, genotypes.load("PDARTS")).double()
    args = train_cifar.get_args_parser().parse_args(["--grad_clip", "1e9"])
    trained, scaler = engine.prepare(network, args)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    optimizer = torch.optim.SGD(network.parameters(), 0.025)
    engine.train_one_epoch(trained, [(images, target)], optimizer, scaler, 0, engine.Meter("step", 1, 1), args)
    found |= {f"evaluation {name}": grad for name, grad in gradients(network).items()}
    torch.save(found, f"{out}.{parallel.rank()}of{parallel.world_size()}")


if __name__ == "__main__":
    main(sys.argv[1])
