"""Datasets by name, as tensors in memory: the published ones from their files or a download, or a folder of images."""
import gzip
import hashlib
import socket
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harness import records
from input_pipeline.folders import read_folder

DATASETS = ("cifar10", "cifar100", "fashion_mnist", "svhn", "digits", "folder")
CIFAR_STATS = {"cifar10": ((.49139968, .48215827, .44653124), (.24703233, .24348505, .26158768)),
               "cifar100": ((.5071, .4867, .4408), (.2675, .2565, .2761))}
FASHION_CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
                   "Ankle boot")
DEBIAN_FASHION_MNIST = "/usr/share/datasets/fashion-mnist"  # of the package dataset-fashion-mnist


class DataSet(NamedTuple):
    train_images: Tensor  # (N, C, H, W) uint8 on the CPU, C = 3, or 1 for grey
    train_target: Tensor  # (N,) int64
    test_images: Tensor
    test_target: Tensor
    classes: list[str]
    mean: tuple[float, ...]  # per channel, of pixels in [0, 1]
    std: tuple[float, ...]
    flip: bool  # whether a horizontally flipped image keeps its label
    resize: int | None = None  # see `describe`
    digest: str | None = None  # of the file names of a folder, otherwise of the stored images and labels
    test_files: list[str] | None = None  # of a folder


def load(name: str, root: str, image_size: int | None = None) -> DataSet:
    """Load a dataset, resized to `image_size` (None: its own, where 28x28 Fashion-MNIST is zero-padded to 32x32).

    Raises ValueError or OSError, in one line, for an unknown name, a size below 8, and missing or damaged files.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown dataset {name!r}: choose from {', '.join(DATASETS)}")
    if image_size is not None and image_size < 8:
        raise ValueError(f"image size {image_size} leaves less than 2x2 pixels after two reductions: use 8 or more")
    if name == "digits":
        parts = read_digits()
    elif name == "fashion_mnist":
        parts = read_fashion_mnist(root)
    elif name != "folder":
        parts = read_torchvision(name, root)
    else:
        parts = read_folder(root, image_size or 32)
    train, train_target, test, test_target, classes, *more = parts
    more = more or [hashlib.sha256(b"".join(hashlib.sha256(part.contiguous().numpy()).digest()
                                              for part in parts[:4])).hexdigest()]
    resize = image_size or train.shape[-1]
    if name == "fashion_mnist" and image_size in (None, 32):
        resize = 28
        train, test = F.pad(train, (2, 2, 2, 2)), F.pad(test, (2, 2, 2, 2))
    if image_size not in (None, train.shape[-1]):
        from torchvision.transforms import v2
        train, test = (torch.cat([v2.functional.resize(part, [image_size, image_size], antialias=True)
                                  for part in images.split(1000)]) for images in (train, test))
    if name in CIFAR_STATS:
        mean, std = CIFAR_STATS[name]
    else:
        stats = [torch.std_mean(channel / 255, correction=0) for channel in train.unbind(1)]
        mean, std = tuple(m.item() for _, m in stats), tuple(s.item() or 1. for s, _ in stats)
    flip = name not in ("digits", "svhn")
    targets = train_target.long(), test_target.long()
    return DataSet(train, targets[0], test, targets[1], list(classes), mean, std, flip, resize, *more)


def describe(classes: list[str], mean, std, image_size: int, resize: int, labels=(), digest: str = "") -> dict:
    """What data.json holds: the metadata that a prediction needs, and what tells the dataset from others.

    mean, std: per channel, of pixels in [0, 1]; written for RGB, in which grey images have three equal channels.
    image_size, resize: see `folders.square`. labels: of the training images, to count each class. digest: see DataSet.
    """
    counts = Counter(labels)
    return {"classes": list(classes), "mean": [*mean] * (3 // len(mean)), "std": [*std] * (3 // len(std)),
            "image_size": image_size, "resize": resize, "images": [counts[i] for i in range(len(classes))],
            "digest": digest}


def describe_set(dataset: DataSet) -> dict:
    return describe(dataset.classes, dataset.mean, dataset.std, dataset.train_images.shape[-1], dataset.resize,
                    dataset.train_target.tolist(), dataset.digest)


def as_in_run(dataset: DataSet, weights) -> DataSet:
    """A dataset whose test images are normalised as in the run that a file of weights lies in, if it lies in one."""
    data = records.use_data(weights, describe_set(dataset))
    images = dataset.test_images.expand(-1, 3, -1, -1).contiguous()  # the channels of an expanded one can't be pinned
    return dataset._replace(test_images=images, mean=data["mean"], std=data["std"])


# ---- readers: images (N, C, H, W) uint8 and labels (N,), for training and for testing, and the class names

def read_digits():
    from sklearn.datasets import load_digits  # here, because importing scikit-learn takes a second
    from sklearn.model_selection import train_test_split
    digits = load_digits()
    images = torch.from_numpy(digits.images * (255 / 16)).round().to(torch.uint8)[:, None]  # (N, 1, 8, 8), from 0..16
    target = torch.from_numpy(digits.target).long()
    # A fixed shuffle: the file is ordered by writer, and each writer belongs in both splits of a search.
    train, test = train_test_split(np.arange(len(target)), test_size=500, stratify=digits.target, random_state=0)
    return images[train], target[train], images[test], target[test], map(str, range(10))


def read_torchvision(name: str, root: str):
    if name == "svhn":
        train, test = (download("SVHN", root, f"{split}_32x32.mat", split=split) for split in ("train", "test"))
        parts = train.data, train.labels, test.data, test.labels  # (N, C, H, W)
        return *map(torch.as_tensor, parts), map(str, range(10))
    folder = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[name]
    train, test = (download(name.upper(), root, f"{folder}/", train=flag) for flag in (True, False))
    parts = train.data.transpose(0, 3, 1, 2), train.targets, test.data.transpose(0, 3, 1, 2), test.targets
    return *(torch.tensor(np.ascontiguousarray(part)) for part in parts), train.classes


def download(cls: str, root: str, files: str, **split):
    """Open a torchvision dataset, downloading it if necessary. Raises OSError, which names the expected files."""
    import torchvision
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(10)  # a machine without internet should fail soon
    try:
        return getattr(torchvision.datasets, cls)(root, download=True, **split)
    except Exception as error:  # OSError, RuntimeError, UnpicklingError, ..., some over several lines
        reason = " ".join(str(error).split())[:200]
        raise OSError(f"{cls}: {Path(root, files)} is missing or damaged, and downloading it failed ({reason}): "
                      "put it there, or use the folder that holds it") from error
    finally:
        socket.setdefaulttimeout(timeout)


def read_fashion_mnist(root: str):
    """Read the four idx files from torchvision's folder, `root` itself or Debian's package; else download them."""
    names = [f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    for folder in (Path(root, "FashionMNIST/raw"), Path(root), Path(DEBIAN_FASHION_MNIST)):
        paths = [path for name in names for path in sorted(folder.glob(name + "*"))[:1]
                 if path.is_file()]  # plain comes before .gz
        if len(paths) == 4:
            train, train_target, test, test_target = map(read_idx, paths)
            for images, target in ((train, train_target), (test, test_target)):
                if images.shape != (*target.shape, 28, 28) or not len(target) or target.max() > 9:
                    raise ValueError(f"{folder} has images {tuple(images.shape)} with labels {tuple(target.shape)}: "
                                     "use files of (N, 28, 28) and (N,) with labels from 0 to 9")
            return train[:, None], train_target.long(), test[:, None], test_target.long(), FASHION_CLASSES
    download("FashionMNIST", root, "FashionMNIST/raw/train-images-idx3-ubyte")
    return read_fashion_mnist(root)


def read_idx(path: Path) -> Tensor:
    """Read an idx file of bytes, plain or gzipped: its 4th byte counts the dimensions, big-endian sizes follow."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            content = file.read()
        shape = np.frombuffer(content, ">i4", count=content[3], offset=4)
        return torch.tensor(np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape))
    except Exception as error:  # gzip.BadGzipFile, zlib.error, EOFError, ValueError, IndexError
        raise ValueError(f"cannot read {path} ({error}): replace the file") from error
