"""Errors of the networks against vectors of the published code (tests/golden/README.md): in float64, on a device."""
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import genotypes
from architect import Architect
from model import NetworkCIFAR, NetworkImageNet
from model_search import Network
from train_search import weight_step

FOLDER = Path(__file__).parent.parent / "tests/golden"
SUPERNETS = {"supernet_8ops": 5, "supernet_5ops": 5, "supernet_3ops": 6, "bilevel_5ops": 5}  # number of cells
EVALUATION = {"cifar_pdarts": (NetworkCIFAR, 4, 10, 6, True, "PDARTS"),
              "cifar_darts_v2": (NetworkCIFAR, 6, 100, 5, False, "DARTS_V2"),
              "imagenet_pdarts": (NetworkImageNet, 8, 20, 6, True, "PDARTS")}
# name: (network.fast, network.grad_checkpoint)
VARIANTS = {"definition": (False, False), "fast": (True, False), "fast, checkpointed": (True, True)}


class Vectors:
    """A vector file on a device, and the errors of the tensors compared with it."""

    def __init__(self, name: str, device: str):
        self.arrays, self.device, self.errors = np.load(FOLDER / f"{name}.npz"), device, []

    def __getitem__(self, key: str) -> Tensor:
        value = torch.from_numpy(self.arrays[key]).to(self.device)
        return value.double() if value.is_floating_point() else value

    def with_prefix(self, prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): self[key] for key in self.arrays.files if key.startswith(prefix)}

    def compare(self, actual: Tensor, expected: Tensor) -> None:
        self.errors.append((actual.detach() - expected).abs().max() / expected.abs().max())

    def compare_norms(self, tensors: dict[str, Tensor], prefix: str) -> None:
        for name, norm in self.with_prefix(prefix).items():
            self.compare(tensors[name].norm(), norm)


def largest_error(name: str, variant: str, device: str) -> float:
    """The largest error over a vector file, each error relative to the largest entry of its tensor."""
    vectors = Vectors(name, device)
    if name in EVALUATION:
        network_class, *sizes, cell = EVALUATION[name]
        network, compare = network_class(*sizes, genotypes.load(cell)), compare_evaluation_network
    else:
        candidates = json.loads(str(vectors.arrays["candidates"]))
        network = Network(4, 10, SUPERNETS[name], candidates["normal"], candidates["reduce"])
        compare = compare_bilevel_steps if name == "bilevel_5ops" else compare_supernet
    network.double().to(device).load_state_dict(vectors.with_prefix("state/"))
    network.fast, network.grad_checkpoint = VARIANTS[variant]
    compare(network, vectors)
    return float(torch.stack(vectors.errors).max())  # NaN counts as the largest


def compare_supernet(network: nn.Module, vectors: Vectors) -> None:
    logits = network(vectors["input"])
    loss = F.cross_entropy(logits, vectors["target"])
    loss.backward()
    for actual, name in ((logits, "logits_train"), (loss, "loss"), (network.alphas_normal.grad, "grad_alphas_normal"),
                         (network.alphas_reduce.grad, "grad_alphas_reduce")):
        vectors.compare(actual, vectors[name])
    vectors.compare_norms({name: p.grad for name, p in network.named_parameters()}, "gradnorm/")
    vectors.compare(network.eval()(vectors["input"]), vectors["logits_eval_after"])


def compare_evaluation_network(network: nn.Module, vectors: Vectors) -> None:
    vectors.compare(network.eval()(vectors["input"])[0], vectors["logits_eval"])
    logits, logits_aux = network.train()(vectors["input"])
    loss = F.cross_entropy(logits, vectors["target"])
    if logits_aux is not None:
        vectors.compare(logits_aux, vectors["logits_aux"])
        loss = loss + 0.4 * F.cross_entropy(logits_aux, vectors["target"])
    loss.backward()
    vectors.compare(logits, vectors["logits_train"])
    vectors.compare(loss, vectors["loss"])
    vectors.compare_norms({name: p.grad for name, p in network.named_parameters()}, "gradnorm/")


def compare_bilevel_steps(network: nn.Module, vectors: Vectors) -> None:
    """Compare four bilevel steps, each of which updates the alphas, then the weights."""
    architect = Architect(network, 6e-4, 1e-3, 5.0)
    optimizer = torch.optim.SGD(architect.weights, float(vectors["learning_rate"]), 0.9, weight_decay=3e-4, fused=True)
    batches = {name: vectors[name] for name in ("alpha_images", "alpha_target", "weight_images", "weight_target")}
    expected = {name: vectors[name] for name in ("alpha_loss", "weight_loss", "alphas_normal", "alphas_reduce")}
    for t in range(4):
        alpha_images, alpha_target, images, target = (batch[t] for batch in batches.values())
        # A dictionary is evaluated in order: the alphas' step is taken before the weights'.
        actual = {"alpha_loss": architect.step(alpha_images, alpha_target),
                  "weight_loss": weight_step(network, optimizer, images, target, 5.0)[0],
                  "alphas_normal": network.alphas_normal, "alphas_reduce": network.alphas_reduce}
        # Every step is compared, because an error in the first one would spread to all later ones.
        for name, value in actual.items():
            vectors.compare(value, expected[name][t])
    state = network.state_dict()
    vectors.compare_norms(state, "norm_after/")
    for name in ("classifier.weight", "stem.0.weight"):
        vectors.compare(state[name], vectors[f"after/{name}"])
