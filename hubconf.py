"""The evaluation networks for programs of others, by torch.hub: from GitHub or, with source="local", from a folder.

    network = torch.hub.load("OWNER/REPO", "pdarts_cifar", weights="runs/eval-try-TIME").eval()
In evaluation mode they return logits alone. docs/use.md leads from a search to a prediction.
"""
import importlib
import json
import os
import sys
from pathlib import Path

dependencies = ["numpy", "PIL", "torch", "torchvision", "tqdm"]
HERE = Path(__file__).resolve().parent
SIZES = "genotype", "num_classes", "init_channels", "layers"


def _has_our_name(name: str) -> bool:
    first = HERE / name.split(".")[0]
    return first.with_suffix(".py").is_file() or (first / "__init__.py").is_file()


def _import(*names: str):
    """Modules of this repository, whose plain names (model, utils, harness) may be those of the caller's own modules.

    torch.hub runs this file without importing it as a module. Then modules of these names are set aside meanwhile, and
    ours leave sys.modules again: what the caller has imported stays, and what it imports later is its own.
    """
    if getattr(sys.modules.get(__name__), "__file__", None) == __file__:  # imported from this repository
        return [importlib.import_module(name) for name in names]
    theirs = {name: sys.modules.pop(name) for name in list(sys.modules) if _has_our_name(name)}
    try:
        return [importlib.import_module(name) for name in names]
    finally:
        for name in filter(_has_our_name, list(sys.modules)):
            del sys.modules[name]
        sys.modules.update(theirs)


genotypes, model, records, weights_of = _import("genotypes", "model", "harness.records", "harness.weights")


def _alone(output: tuple):
    """The logits, and in training with an auxiliary head the pair of logits and auxiliary logits."""
    logits, logits_aux = output
    return logits if logits_aux is None else (logits, logits_aux)


class NetworkCIFAR(model.NetworkCIFAR):
    """images (B, 3, H, W) -> logits (B, num_classes); in training with an auxiliary head (logits, auxiliary logits)."""

    def forward(self, images):
        return _alone(super().forward(images))


class NetworkImageNet(model.NetworkImageNet):
    """images (B, 3, H, W) -> logits (B, num_classes); in training with an auxiliary head (logits, auxiliary logits)."""

    def forward(self, images):
        return _alone(super().forward(images))


def pdarts_cifar(genotype="PDARTS", num_classes=10, init_channels=36, layers=20, auxiliary=False, weights=None):
    """The network for small images, of section 4.3 of the paper: a torch.nn.Module, images (B, 3, H, W) -> logits.

    genotype: whatever train_cifar.py --arch takes (a published name, random:SEED, a run directory, a file, a text), or
    a Genotype. weights: a file, as --weights takes it, or the directory of a finished run of train_cifar.py. Then
    genotype, num_classes, init_channels and layers follow from the run, and the network has its `classes` (names),
    `mean` and `std` (of RGB pixels in [0, 1]) and `image_size` as attributes. Raises ValueError where something is
    unknown, or doesn't fit.
    """
    asked = genotype, num_classes, init_channels, layers
    return _build(NetworkCIFAR, "eval", asked, pdarts_cifar.__defaults__, auxiliary, weights)


def pdarts_imagenet(genotype="PDARTS", num_classes=1000, init_channels=48, layers=14, auxiliary=False, weights=None):
    """The network for ImageNet and the like, of section 4.4; everything else as pdarts_cifar, by train_imagenet.py."""
    asked = genotype, num_classes, init_channels, layers
    return _build(NetworkImageNet, "imagenet", asked, pdarts_imagenet.__defaults__, auxiliary, weights)


def _build(network_class, kind: str, asked: tuple, defaults: tuple, auxiliary: bool, weights):
    cells = [genotypes.load(str(cell)) if isinstance(cell, (str, os.PathLike)) else cell
             for cell in (asked[0], defaults[0])]
    asked, defaults, about = (cells[0], *asked[1:]), (cells[1], *defaults[1:4]), {}
    if weights is not None and os.path.isdir(weights):
        run_dir, weights = Path(weights), records.last_weights(weights)
        asked, about = _follow(run_dir, weights_of.sizes(weights), kind, asked, defaults)
    genotype, num_classes, init_channels, layers = asked
    network = network_class(init_channels, num_classes, layers, auxiliary, genotype)
    for name, value in about.items():
        setattr(network, name, value)
    if weights is not None:
        weights_of.load(str(weights), network)
    return network


def _follow(run_dir: Path, sizes: dict, kind: str, asked: tuple, defaults: tuple) -> tuple[tuple, dict]:
    """What a run directory says in place of what was asked for, which must not contradict it, and its data set."""
    if sizes["kind"] != kind:
        right = {"eval": "pdarts_cifar", "imagenet": "pdarts_imagenet"}[sizes["kind"]]
        raise ValueError(f"{run_dir} is a run of kind {sizes['kind']}: use {right}")
    found = genotypes.load(str(run_dir)), *(sizes[name] for name in SIZES[1:])
    for name, one, other, default in zip(SIZES, asked, found, defaults):
        if one not in (other, default):
            raise ValueError(f"{name} of {run_dir} is another ({other}, not {one}): leave it out")
    path = run_dir / "data.json"  # not in older runs
    return found, json.loads(path.read_text()) if path.exists() else {}
