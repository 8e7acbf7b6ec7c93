"""Data sets by name: files in their published layouts, and trees of image files."""
import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from input_pipeline import load, sets
from input_pipeline.search_parts import search_split


def one_error_line(error):
    assert str(error.value) and "\n" not in str(error.value)
    return str(error.value)


# ---- published sets

@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no internet\nhere")
    for name in ("CIFAR10", "CIFAR100", "SVHN", "FashionMNIST"):
        monkeypatch.setattr(getattr(torchvision.datasets, name), "download", refuse)
    monkeypatch.setattr(sets, "DEBIAN_FASHION_MNIST", "/nowhere")


@pytest.fixture
def any_md5(monkeypatch):
    def exists(path, md5=None):
        return Path(path).is_file()
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", exists)
    monkeypatch.setattr(torchvision.datasets.svhn, "check_integrity", exists)
    monkeypatch.setattr(torchvision.datasets.utils, "check_integrity", exists)


@pytest.mark.parametrize("name, file", [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python"),
                                        ("svhn", "train_32x32.mat"), ("fashion_mnist", "train-images-idx3-ubyte")])
def test_missing_files_are_named(name, file, tmp_path, offline):
    with pytest.raises(OSError) as error:
        load(name, str(tmp_path))
    message = one_error_line(error)
    assert file in message and str(tmp_path) in message and "no internet" in message


def write_cifar(folder, files, label_key, num_classes, meta):
    folder.mkdir()
    g, written = np.random.default_rng(0), []
    for name, n in files.items():
        pixels, labels = g.integers(256, size=(n, 3072), dtype=np.uint8), g.integers(num_classes, size=n).tolist()
        (folder / name).write_bytes(pickle.dumps({"data": pixels, label_key: labels}))
        written.append((pixels, labels))
    meta_name, meta_key = meta
    (folder / meta_name).write_bytes(pickle.dumps({meta_key: [f"class{i}" for i in range(num_classes)]}))
    return written


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_from_files_of_the_published_layout(name, tmp_path, any_md5):
    if name == "cifar10":
        *train, test = write_cifar(tmp_path / "cifar-10-batches-py", {**{f"data_batch_{i}": 4 for i in range(1, 6)},
                                   "test_batch": 3}, "labels", 10, ("batches.meta", "label_names"))
    else:
        *train, test = write_cifar(tmp_path / "cifar-100-python", {"train": 20, "test": 3}, "fine_labels", 100,
                                   ("meta", "fine_label_names"))
    got = load(name, str(tmp_path))
    pixels = np.concatenate([pixels for pixels, _ in train]).reshape(-1, 3, 32, 32)  # red, green, blue planes
    assert got.train_images.dtype == torch.uint8 and np.array_equal(got.train_images.numpy(), pixels)
    assert got.train_target.dtype == torch.int64 and got.train_target.tolist() == [y for _, ys in train for y in ys]
    assert np.array_equal(got.test_images.numpy().reshape(3, -1), test[0]) and got.test_target.tolist() == test[1]
    assert len(got.classes) == {"cifar10": 10, "cifar100": 100}[name] and got.flip
    spec = {"cifar10": ((.49139968, .48215827, .44653124), (.24703233, .24348505, .26158768)),
            "cifar100": ((.5071, .4867, .4408), (.2675, .2565, .2761))}[name]
    assert (got.mean, got.std) == spec
    assert load(name, str(tmp_path), 16).train_images.shape == (20, 3, 16, 16)


def test_svhn_from_mat_files(tmp_path, any_md5):
    from scipy.io import savemat
    images = np.random.default_rng(0).integers(256, size=(32, 32, 3, 6), dtype=np.uint8)
    for split in ("train", "test"):
        savemat(tmp_path / f"{split}_32x32.mat", {"X": images, "y": np.array([[1], [10], [3], [9], [5], [2]])})
    got = load("svhn", str(tmp_path))
    assert np.array_equal(got.train_images.numpy(), images.transpose(3, 2, 0, 1))
    assert got.train_target.tolist() == [1, 0, 3, 9, 5, 2] and got.train_target.dtype == torch.int64
    assert not got.flip and len(got.classes) == 10
    pixels = images.transpose(2, 0, 1, 3).reshape(3, -1) / 255
    np.testing.assert_allclose(got.mean, pixels.mean(1), atol=1e-5)
    np.testing.assert_allclose(got.std, pixels.std(1), atol=1e-5)


def write_fashion_mnist(folder, packed):
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(0).integers(256, size=(12, 28, 28), dtype=np.uint8)
    labels = (np.arange(12) % 10).astype(np.uint8)
    for split in ("train", "t10k"):
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            content = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()
            path = folder / f"{split}-{kind}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(content) if packed else content)
    return images, labels


@pytest.mark.parametrize("place, packed", [("FashionMNIST/raw", False), ("FashionMNIST/raw", True), ("", True),
                                           ("debian", True)])
def test_fashion_mnist_from_idx_files(place, packed, tmp_path, offline, monkeypatch):
    monkeypatch.setattr(sets, "DEBIAN_FASHION_MNIST", str(tmp_path / "debian"))
    images, labels = write_fashion_mnist(tmp_path / place, packed)
    got = load("fashion_mnist", str(tmp_path))
    assert got.train_images.shape == (12, 1, 32, 32) and got.train_target.tolist() == labels.tolist()
    assert np.array_equal(got.train_images[:, 0].numpy(), np.pad(images, ((0, 0), (2, 2), (2, 2))))
    np.testing.assert_allclose(got.mean[0], got.train_images.numpy().mean() / 255, atol=1e-5)
    assert np.array_equal(load("fashion_mnist", str(tmp_path), 28).test_images[:, 0].numpy(), images)
    assert load("fashion_mnist", str(tmp_path), 16).test_images.shape == (12, 1, 16, 16)


def test_damaged_idx_file_is_named(tmp_path, offline):
    write_fashion_mnist(tmp_path, packed=True)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError) as error:
        load("fashion_mnist", str(tmp_path))
    assert str(path) in one_error_line(error)


def write_idx(path, array):
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes())


@pytest.mark.parametrize("name, array", [
    ("train-labels-idx1", np.zeros(11)), ("train-labels-idx1", np.zeros((12, 1))), ("t10k-labels-idx1", np.zeros(0)),
    ("t10k-images-idx3", np.zeros((12, 20, 20))), ("t10k-images-idx3", np.zeros((12, 784))),
    ("train-images-idx3", np.zeros(12)), ("train-labels-idx1", np.full(12, 10))],
    ids=["fewer labels", "labels in columns", "none", "another size", "flat", "labels", "a label too large"])
def test_idx_files_of_another_size_are_refused(name, array, tmp_path, offline):
    write_fashion_mnist(tmp_path, packed=False)
    write_idx(tmp_path / f"{name}-ubyte", array.astype(np.uint8))
    with pytest.raises(ValueError) as error:
        load("fashion_mnist", str(tmp_path))
    assert str(tmp_path) in one_error_line(error) and "(N, 28, 28)" in str(error.value)


@pytest.mark.skipif(not Path(sets.DEBIAN_FASHION_MNIST).is_dir(), reason="needs the package dataset-fashion-mnist")
def test_real_fashion_mnist(tmp_path):
    got = load("fashion_mnist", str(tmp_path), 28)
    assert got.train_images.shape == (60000, 1, 28, 28) and got.test_images.shape == (10000, 1, 28, 28)
    assert got.train_target.bincount().tolist() == [6000] * 10 and got.test_target.bincount().tolist() == [1000] * 10
    assert got.mean[0] == pytest.approx(.2860, abs=1e-4) and got.std[0] == pytest.approx(.3530, abs=1e-4)


def test_digits():
    got, again = load("digits", ""), load("digits", "")
    assert got.train_images.shape == (1297, 1, 8, 8) and got.test_images.shape == (500, 1, 8, 8) and not got.flip
    assert all(map(torch.equal, got[:4], again[:4]))
    from sklearn.datasets import load_digits
    digits = load_digits()
    for target, share in ((got.train_target, 1297 / 1797), (got.test_target, 500 / 1797)):
        assert (target.bincount() - torch.from_numpy(np.bincount(digits.target)) * share).abs().max() < 1  # stratified
    both = torch.cat([got.train_images, got.test_images]).flatten(1).numpy()
    assert sorted(map(bytes, both)) == sorted(map(bytes, np.rint(digits.data * 255 / 16).astype(np.uint8)))
    assert all(len(target.unique()) == 10 for _, target in search_split(got, .5))
    assert load("digits", "", 32).train_images.shape == (1297, 1, 32, 32)


@pytest.mark.parametrize("name, size", [("mnist", None), ("digits", 7), ("folder", 0)])
def test_unknown_name_and_too_small_images_are_refused(name, size, tmp_path):
    with pytest.raises(ValueError) as error:
        load(name, str(tmp_path), size)
    one_error_line(error)


# ---- image folders

def write_tree(root, train=5, val=3, classes=("cat", "dog"), val_name="val", shape=(40, 52)):
    g = np.random.default_rng(0)
    for split, n in (("train", train), (val_name, val)):
        for c, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for i in range(n):
                pixels = g.integers(40, size=(*shape, 3), dtype=np.uint8) + np.uint8(100 * c)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


@pytest.mark.parametrize("val_name", ["val", "test"])
def test_folder(tmp_path, val_name):
    got = load("folder", str(write_tree(tmp_path, train=20, val_name=val_name)))
    assert got.train_images.shape == (40, 3, 32, 32) and got.test_images.shape == (6, 3, 32, 32)
    assert got.classes == ["cat", "dog"] and got.flip and len(got.mean) == 3
    bright = got.train_images.float().mean((1, 2, 3)) > 70  # the dogs
    assert torch.equal(bright.long(), got.train_target) and got.train_target.sum() == 20
    assert all(3 <= target.sum() <= 17 for _, target in search_split(got, .5))  # both classes in each half
    again = load("folder", str(tmp_path))
    assert all(map(torch.equal, got[:4], again[:4]))
    assert load("folder", str(tmp_path), 8).test_images.shape == (6, 3, 8, 8)


def test_folder_takes_the_centre_and_other_modes(tmp_path):
    write_tree(tmp_path, train=1, val=1)
    pixels = np.zeros((32, 64), np.uint8)
    pixels[:, 16:48] = np.arange(32)
    Image.fromarray(pixels).save(tmp_path / "val/cat/0.png")  # grey, 64 wide, 32 high
    got = load("folder", str(tmp_path))
    assert torch.equal(got.test_images[0], torch.arange(32).expand(3, 32, 32).to(torch.uint8))


def spoil(root, how):
    write_tree(root)
    if how == "no train":
        (root / "train").rename(root / "training")
        return FileNotFoundError, "train"
    if how == "no val":
        (root / "val").rename(root / "valid")
        return FileNotFoundError, "val"
    if how == "empty":
        (root / "train").rename(root / "old")
        (root / "train").mkdir()
        return FileNotFoundError, "class folders"
    if how == "class without images":
        for split in ("train", "val"):
            (root / split / "emu").mkdir()
            (root / split / "emu" / "notes.txt").write_text("none yet")
        return ValueError, "emu"
    if how == "class only in train":
        (root / "val/dog").rename(root / "val/dogs")
        return ValueError, "dog"
    if how == "class only in val":
        (root / "train/dog").rename(root / "dog")
        return ValueError, "dog"
    path = root / "train/dog/3.png"
    path.write_bytes(path.read_bytes()[:200] if how == "truncated image" else b"not an image")
    return ValueError, str(path)


BAD_TREES = ["no train", "no val", "empty", "class without images", "class only in train", "class only in val"]


@pytest.mark.parametrize("how", [*BAD_TREES, "truncated image", "corrupt image"])
def test_bad_folders_are_refused(how, tmp_path):
    kind, word = spoil(tmp_path, how)
    with pytest.raises(kind) as error:
        load("folder", str(tmp_path))
    assert word in one_error_line(error)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load("folder", str(tmp_path / "absent"))
    assert "absent" in one_error_line(error)
