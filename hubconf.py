"""torch.hub entry points for the evaluation networks: from GitHub or, with source="local", from a folder.

    network = torch.hub.load("OWNER/REPO", "pdarts_cifar", weights="runs/eval-try-TIME").eval()
In evaluation mode they return only the logits. docs/use.md explains the steps from a search to a prediction.
"""
import copy
import functools
import importlib
import os
import sys
from pathlib import Path

import torch

dependencies = ["numpy", "torch"]
HERE = Path(__file__).resolve().parent
SIZES = "genotype", "num_classes", "init_channels", "layers"


def _has_our_name(name: str) -> bool:
    first = HERE / name.split(".")[0]
    return first.with_suffix(".py").is_file() or (first / "__init__.py").is_file()


def _import(*names: str):
    """Import modules of this repository, whose plain names (model, utils, harness) the caller's modules may have, too.

    torch.hub runs this file without importing it as a module. In that case the caller's modules of these names leave
    sys.modules during the import and replace ours afterwards, so that the caller keeps them and later imports its own.
    """
    if getattr(sys.modules.get(__name__), "__file__", None) == __file__:  # imported from this repository
        return [importlib.import_module(name) for name in names]
    theirs = {name: sys.modules.pop(name) for name in list(sys.modules) if _has_our_name(name)}
    sys.path.insert(0, str(HERE))  # torch.hub removes it after loading
    try:
        return [importlib.import_module(name) for name in names]
    finally:
        sys.path.remove(str(HERE))
        for name in filter(_has_our_name, list(sys.modules)):
            # torch.compile looks a module up by its name, in some versions of torch.
            module = sys.modules.pop(name)
            module.__name__ = f"{__name__}.{name}"
            sys.modules.setdefault(module.__name__, module)
        sys.modules.update(theirs)


genotypes, model, records, weights_of = _import("genotypes", "model", "harness.records", "harness.weights")


class _Pickled:
    """Pickled as a call of torch.hub.load, since an unpickling process can't import the classes by their names."""

    def __reduce__(self):
        plain = {name: value for name, value in vars(self).items() if type(value) in (bool, int, float, list)}
        return functools.partial(torch.hub.load, source="local"), (
            str(HERE), "_unpickle", self.entry, self.arguments, self.state_dict(), plain)

    def __deepcopy__(self, memo):
        memo[id(self)] = twin = type(self).__new__(type(self))
        vars(twin).update(copy.deepcopy(vars(self), memo))
        return twin


class _Classifier(_Pickled):
    """images (B, 3, H, W) -> logits (B, num_classes); in training with an auxiliary head (logits, auxiliary logits)."""

    def forward(self, images):
        logits, logits_aux = super().forward(images)
        return logits if logits_aux is None else (logits, logits_aux)

    def read(self, path):
        """An image file as the input (1, 3, H, W) of a network that was loaded from a run. Raises ValueError."""
        if not hasattr(self, "resize"):
            raise ValueError("this network has no data.json that says how to resize: load it from a run, or train it "
                             "again")
        batches, folders = _import("input_pipeline.batches", "input_pipeline.folders")
        pixels = folders.square(folders.read_image(str(path))[0], self.resize, self.image_size)
        images = batches.normalise(pixels[None], *batches.normalisation(self, "cpu"))
        return images.to(self.classifier.weight.device)


class NetworkCIFAR(_Classifier, model.NetworkCIFAR):
    entry = "pdarts_cifar"


class NetworkImageNet(_Classifier, model.NetworkImageNet):
    entry = "pdarts_imagenet"


class FeatureInfo(list):
    """As timm's `feature_info`: of each map num_chs, reduction (its stride) and module (whose output it is)."""

    def channels(self) -> list[int]:
        return [info["num_chs"] for info in self]

    def reduction(self) -> list[int]:
        return [info["reduction"] for info in self]


class Backbone(_Pickled, model.NetworkImageNet):
    """images (B, 3, H, W) -> the feature maps before each reduction and the last one, those that `choose` names."""

    entry, gives_maps = "pdarts_imagenet", True

    def __init__(self, *args):
        super().__init__(*args)
        reductions = [i for i, cell in enumerate(self.cells) if cell.reduction]
        self.ends = [*reductions, len(self.cells)]  # of each map, the cell after it
        channels = [*(self.cells[i].preprocess1.op[1].in_channels for i in reductions), self.classifier.in_features]
        self.feature_info = FeatureInfo(
            {"num_chs": C, "reduction": 8 << i, "module": f"cells.{end - 1}" if end else "stem1"}
            for i, (C, end) in enumerate(zip(channels, self.ends)))
        del self.classifier

    def choose(self, out_indices) -> "Backbone":
        """Give only these maps, in this order, and drop the cells after them. Raises ValueError if one is missing."""
        count = len(self.ends)
        if not out_indices or not all(-count <= i < count for i in out_indices):
            raise ValueError(f"out_indices {tuple(out_indices)}: the network has {count} maps, use 0 to {count - 1}")
        self.out_indices = [i % count for i in out_indices]
        self.arguments += None, True, self.out_indices
        self.feature_info = FeatureInfo(self.feature_info[i] for i in self.out_indices)
        del self.cells[self.ends[max(self.out_indices)]:]
        return self

    def _classify(self, s0, s1):
        maps, _ = self._run_cells(s0, s1)
        return [maps[i] for i in self.out_indices]


def _unpickle(entry: str, arguments: tuple, state: dict, attributes: dict):
    network = globals()[entry](*arguments).train(attributes["training"])
    network.load_state_dict(state, assign=True)  # with their devices and types
    vars(network).update(attributes)
    return network


def pdarts_cifar(genotype="PDARTS", num_classes=10, init_channels=36, layers=20, auxiliary=False, weights=None):
    """The network for small images (section 4.3 of the paper): a torch.nn.Module, images (B, 3, H, W) -> logits.

    genotype: a Genotype, or as for train_cifar.py --arch (a published name, random:SEED, a run directory, a file, a
    text). weights: a file, as for --weights, or the directory of a finished run of train_cifar.py. A run directory sets
    genotype, num_classes, init_channels and layers, and the network gets the run's `classes` (names), `mean` and `std`
    (of RGB pixels in [0, 1]) and `image_size` as attributes. Raises ValueError if an argument is unknown, or if the
    arguments and the weights do not match.
    """
    asked = genotype, num_classes, init_channels, layers
    return _build(NetworkCIFAR, "eval", asked, pdarts_cifar.__defaults__, auxiliary, weights)


def pdarts_imagenet(genotype="PDARTS", num_classes=1000, init_channels=48, layers=14, auxiliary=False, weights=None,
                    features_only=False, out_indices=(0, 1, 2)):
    """The network for large images such as ImageNet's (section 4.4), trained by train_imagenet.py; as pdarts_cifar.

    features_only: without classifier and auxiliary head, images -> a list of feature maps, of strides 8, 16 and 32.
    out_indices: which of them; the network's `feature_info` describes them.
    """
    asked = genotype, num_classes, init_channels, layers
    if not features_only:
        return _build(NetworkImageNet, "imagenet", asked, pdarts_imagenet.__defaults__, auxiliary, weights)
    return _build(Backbone, "imagenet", asked, pdarts_imagenet.__defaults__, False, weights).choose(out_indices)


def _build(network_class, kind: str, asked: tuple, defaults: tuple, auxiliary: bool, weights):
    cells = [genotypes.load(os.path.expanduser(cell)) if isinstance(cell, (str, os.PathLike)) else cell
             for cell in (asked[0], defaults[0])]
    asked, defaults = (cells[0], *asked[1:]), (cells[1], *defaults[1:4])
    weights = weights and os.path.expanduser(weights)
    if weights is not None and os.path.isdir(weights):
        run_dir, weights = Path(weights), records.last_weights(weights)
        asked = _from_run(run_dir, weights_of.sizes(weights), kind, asked, defaults)
    genotype, num_classes, init_channels, layers = asked
    network = network_class(init_channels, num_classes, layers, auxiliary, genotype)
    network.arguments = str(genotype), num_classes, init_channels, layers, auxiliary
    if weights is not None:
        data = records.read_data(records.run_of(weights))  # {} for older runs
        for name in data.keys() & {"classes", "mean", "std", "image_size", "resize"}:
            setattr(network, name, data[name])
        weights_of.load(str(weights), network)
    return network


def _from_run(run_dir: Path, sizes: dict, kind: str, asked: tuple, defaults: tuple) -> tuple:
    """The genotype and sizes that a run sets, which `asked` must not contradict."""
    if sizes["kind"] != kind:
        right = {"eval": "pdarts_cifar", "imagenet": "pdarts_imagenet"}[sizes["kind"]]
        raise ValueError(f"{run_dir} is a run of kind {sizes['kind']}: use {right}")
    found = genotypes.load_file(run_dir), *(sizes[name] for name in SIZES[1:])
    for name, one, other, default in zip(SIZES, asked, found, defaults):
        if one not in (other, default):
            raise ValueError(f"{run_dir} has {name} {other}, not {one}: omit the argument")
    return found
