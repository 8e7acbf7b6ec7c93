"""The published data sets, from their files or a download: each reader gives images (N, C, H, W) uint8 and labels (N,),
for training and for testing, and the class names."""
import gzip
import socket
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor

DEBIAN_FASHION_MNIST = "/usr/share/datasets/fashion-mnist"  # of the package dataset-fashion-mnist


def read_digits():
    from sklearn.datasets import load_digits  # here, because importing scikit-learn takes a second
    from sklearn.model_selection import train_test_split
    digits = load_digits()
    images = torch.from_numpy(digits.images * (255 / 16)).round().to(torch.uint8)[:, None]  # (N, 1, 8, 8), from 0..16
    target = torch.from_numpy(digits.target).long()
    # Fixed, and shuffled: the file is in the order of the writers, who belong in both halves of the search.
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
    """Open a torchvision data set, downloading it if need be; OSError says which files were expected where."""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(10)  # a machine without internet should hear so soon
    try:
        return getattr(torchvision.datasets, cls)(root, download=True, **split)
    except Exception as error:  # OSError, RuntimeError, UnpicklingError, ..., some over several lines
        reason = " ".join(str(error).split())[:200]
        raise OSError(f"{cls}: {Path(root, files)} is missing or damaged, and downloading it failed ({reason}): "
                      "put it there, or name the folder that holds it") from error
    finally:
        socket.setdefaulttimeout(timeout)


def read_fashion_mnist(root: str):
    """Read four idx files from torchvision's folder, `root` itself or Debian's package; else download them."""
    names = [f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    for folder in (Path(root, "FashionMNIST/raw"), Path(root), Path(DEBIAN_FASHION_MNIST)):
        paths = [path for name in names for path in sorted(folder.glob(name + "*"))[:1]]  # plain comes before .gz
        if len(paths) == 4:
            train, train_target, test, test_target = map(read_idx, paths)
            classes = torchvision.datasets.FashionMNIST.classes
            return train[:, None], train_target.long(), test[:, None], test_target.long(), classes
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
