"""Data sets, augmentation and loaders, against SPEC sections 2 to 4 and plain per-image versions."""
import gzip
import io
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).parents[1]))
from input_pipeline import DataSet, batches, imagenet, load, sets
from input_pipeline.batches import (
    Batches,
    batch_per_rank,
    eval_batches,
    normalisation,
    normalise,
    windows,
)
from input_pipeline.search_parts import search_split


def random_set(n=96, channels=3, size=32, flip=True):
    g = torch.Generator().manual_seed(1)
    images = torch.randint(256, (n, channels, size, size), generator=g).to(torch.uint8)
    stats = ((.5, .4, .3), (.25, .2, .3)) if channels == 3 else ((.4,), (.3,))
    return DataSet(images, torch.arange(n), images[:11], torch.arange(11), ["a"], *stats, flip)


def make_batches(dataset, batch_size=24, **options):
    options = {"device": "cpu", "seed": 3, **options}
    return Batches(dataset.train_images, dataset.train_target, batch_size, dataset, **options)


def one_error_line(error):
    assert str(error.value) and "\n" not in str(error.value)
    return str(error.value)


# ---- augmentation

def augment_one(image, top, left, flip, row, column, dataset, cutout):
    """The published transforms, one image at a time: pad, crop, flip, to [0, 1], normalise, cut out."""
    size, pad = image.shape[-1], image.shape[-1] // 8
    padded = np.pad(image.numpy(), ((0, 0), (pad, pad), (pad, pad)))
    x = padded[:, top:top + size, left:left + size]
    x = x[:, :, ::-1] if flip else x
    x = (x / 255 - np.array(dataset.mean)[:, None, None]) / np.array(dataset.std)[:, None, None]
    if cutout:
        y1, y2 = np.clip([row - cutout // 2, row + cutout // 2], 0, size)
        x1, x2 = np.clip([column - cutout // 2, column + cutout // 2], 0, size)
        x[:, y1:y2, x1:x2] = 0
    return torch.from_numpy(np.broadcast_to(x, (3, size, size)).copy()).float()


@pytest.mark.parametrize("channels, size, flip, cutout", [
    (3, 32, True, 0), (3, 32, True, 16), (3, 32, True, 7), (1, 32, True, 16), (1, 8, False, 4), (3, 20, True, 0)])
def test_batch_equals_plain_per_image_version(channels, size, flip, cutout):
    dataset = random_set(96, channels, size, flip)
    batches = make_batches(dataset, 96, cutout=cutout)
    for _ in range(3):  # 288 images: the corners of the padded image, and the last image of the set, come up
        draws = batches.sample(torch.randperm(96))
        images, target = batches.augment(draws)
        assert images.shape == (96, 3, size, size) and images.dtype == torch.float32
        assert torch.equal(target, dataset.train_target[draws[0]])
        expected = [augment_one(dataset.train_images[i], *rest, dataset, cutout) for i, *rest in draws.T.tolist()]
        torch.testing.assert_close(images, torch.stack(expected), rtol=0, atol=2e-6)


def test_every_crop_of_first_and_last_image():
    dataset, size = random_set(5), 32
    batches = make_batches(dataset, 5)
    top, left = torch.cartesian_prod(torch.arange(9), torch.arange(9)).T
    for index in (0, 4):
        other = torch.zeros_like(top)
        images, _ = batches.augment(torch.stack([other + index, top, left, other, other, other]))
        padded = torch.nn.functional.pad(dataset.train_images[index], (4, 4, 4, 4))
        for image, y, x in zip(images, top, left, strict=True):
            crop = padded[:, y:y + size, x:x + size]
            torch.testing.assert_close(image, normalise(crop[None], *normalisation(dataset, "cpu"))[0], rtol=0, atol=0)


def chi_square(counts):
    expected = counts.sum() / counts.numel()
    return ((counts - expected) ** 2 / expected).sum().item()


def test_crop_offsets_uniform_flips_half_centres_uniform():
    draws = make_batches(random_set(8100, channels=1), 8100).sample(torch.arange(8100))
    crops = torch.bincount(draws[1] * 9 + draws[2], minlength=81)
    assert len(crops) == 81 and chi_square(crops) < 150  # 80 degrees of freedom: mean 80, deviation 12.6
    assert abs(draws[3].float().mean() - .5) < .03  # deviation .0056
    for centre in draws[4:]:
        counts = torch.bincount(centre, minlength=32)
        assert len(counts) == 32 and chi_square(counts) < 75  # 31 degrees of freedom: mean 31, deviation 7.9
    assert make_batches(random_set(100, flip=False), 100).sample(torch.arange(100))[3].sum() == 0


def test_crop_offsets_seen_in_pixels():
    # One bright pixel at (16, 16) comes to row 12..20, and to column 12..20, or 11..19 where mirrored.
    image = torch.zeros(1, 32, 32, dtype=torch.uint8)
    image[0, 16, 16] = 255
    dataset = random_set(8100)._replace(train_images=image.expand(8100, 1, 32, 32), mean=(0.,), std=(1.,))
    images, _ = make_batches(dataset, 8100).next()
    rows, columns = images[:, 0].flatten(1).argmax(1) // 32, images[:, 0].flatten(1).argmax(1) % 32
    assert rows.min() == 12 and rows.max() == 20 and columns.min() == 11 and columns.max() == 20
    assert chi_square(torch.bincount(rows - 12, minlength=9)) < 35  # 8 degrees of freedom
    expected = torch.tensor([.5, *[1.] * 8, .5]) / 9  # each end: from one half of the images
    assert ((torch.bincount(columns - 11, minlength=10) / 8100 - expected).abs() < .02).all()


def test_cutout_areas_have_the_published_distribution():
    dataset = random_set(6400)._replace(train_images=torch.full((6400, 1, 32, 32), 255, dtype=torch.uint8),
                                        mean=(0.,), std=(1.,))
    batches = make_batches(dataset, 6400, cutout=16)
    draws = batches.sample(torch.arange(6400))
    draws[1:3] = 4  # the middle crop: no padding in sight
    areas = (batches.augment(draws)[0][:, 0] == 0).sum((1, 2))
    side = [min(c + 8, 32) - max(c - 8, 0) for c in range(32)]  # 8..16
    expected = torch.zeros(257)
    for a in side:
        for b in side:
            expected[a * b] += 1 / 1024
    measured = torch.bincount(areas, minlength=257) / 6400
    assert areas.min() == 64 and areas.max() == 256
    assert (measured[expected == 0] == 0).all()
    assert (measured - expected).abs().max() < .03 and (measured.cumsum(0) - expected.cumsum(0)).abs().max() < .03


# ---- order, state, ranks

def test_an_epoch_is_every_image_once_in_a_fresh_order():
    batches = make_batches(random_set(100))
    epochs = [[target for _, target in batches] for _ in range(2)]
    assert [len(target) for target in epochs[0]] == [24, 24, 24, 24, 4] and len(batches) == 5
    first, second = (torch.cat(epoch) for epoch in epochs)
    assert torch.equal(first.sort().values, torch.arange(100)) and torch.equal(second.sort().values, torch.arange(100))
    assert not torch.equal(first, second)


def test_next_restarts_when_exhausted():
    batches = make_batches(random_set(50), 20)
    passes = [torch.cat([batches.next()[1] for _ in range(3)]) for _ in range(2)]
    for one in passes:
        assert torch.equal(one.sort().values, torch.arange(50))
    assert not torch.equal(*passes)


@pytest.mark.parametrize("n, world_size, steps", [(97, 1, 4), (98, 1, 5), (98, 2, 4), (99, 2, 4), (100, 2, 5)])
def test_last_batch_with_less_than_two_images_per_rank_is_left_out(n, world_size, steps):
    batches = make_batches(random_set(n), world_size=world_size)
    assert len(batches) == len(list(batches)) == steps


def saved(batches):
    file = io.BytesIO()
    torch.save(batches.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_resume_is_bit_identical_for_epochs_and_for_the_stream():
    dataset = random_set(100)
    for steps_before in (0, 3, 5, 7):
        batches, resumed = make_batches(dataset, cutout=8), make_batches(dataset, cutout=8, seed=99)
        for _ in range(steps_before):
            batches.next()
        resumed.load_state_dict(saved(batches))
        for _ in range(8):
            assert all(map(torch.equal, batches.next(), resumed.next()))
    list(batches)
    resumed.load_state_dict(saved(batches))
    for expected, got in zip(batches, resumed, strict=True):
        assert all(map(torch.equal, expected, got))


def test_state_of_another_set_is_refused():
    with pytest.raises(ValueError) as error:
        make_batches(random_set(50)).load_state_dict(make_batches(random_set(60)).state_dict())
    assert "60" in one_error_line(error) and "50" in str(error.value)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_see_the_batch_of_one_process(world_size):
    dataset = random_set(102)
    whole = make_batches(dataset, cutout=8)
    ranks = [make_batches(dataset, cutout=8, rank=r, world_size=world_size) for r in range(world_size)]
    for (images, target), *parts in zip(whole, *ranks, strict=True):
        merged_images, merged_target = torch.empty_like(images), torch.empty_like(target)
        for rank, (x, y) in enumerate(parts):
            merged_images[rank::world_size], merged_target[rank::world_size] = x, y
        assert torch.equal(images, merged_images) and torch.equal(target, merged_target)


@pytest.mark.parametrize("batch_size, world_size, n", [(25, 2, 100), (0, 1, 100), (24, 1, 1), (24, 3, 5)])
def test_impossible_batches_are_refused(batch_size, world_size, n):
    with pytest.raises(ValueError) as error:
        make_batches(random_set(n), batch_size, world_size=world_size)
    one_error_line(error)


@pytest.mark.parametrize("world_size", [1, 2, 8])
def test_one_image_per_process_is_refused_by_number(world_size, tmp_path):
    write_tree(tmp_path)
    for make in (lambda size: batch_per_rank(size, world_size), lambda size: loaders(tmp_path, 0, size, 0, world_size),
                 lambda size: make_batches(random_set(50), size, world_size=world_size)):
        with pytest.raises(ValueError) as error:
            make(world_size)
        message = one_error_line(error)
        assert f"batch size {world_size} " in message and f"use {2 * world_size} or more" in message
        assert "at least 2 per rank" in message and "batch norm" in message
        make(2 * world_size)  # as it says


def test_one_image_per_process_can_be_evaluated(tmp_path):
    write_tree(tmp_path)
    for batch_size, world_size in ((1, 1), (2, 2), (1, 2), (5, 2)):
        train, val, classes = imagenet.loaders(str(tmp_path), 32, batch_size, 0, 7, "cpu", 0, world_size,
                                                    training=False)
        assert train is None and classes == ["cat", "dog"]
        assert sum(len(target) for _, target in val) == 6 // world_size


@pytest.mark.parametrize("channels, size, flip", [(3, 32, True), (1, 8, False), (1, 20, True)])
def test_images_that_do_not_fit_the_device_give_the_same_batches(channels, size, flip, monkeypatch):
    dataset = random_set(100, channels, size, flip)
    resident = make_batches(dataset, cutout=4)
    monkeypatch.setattr(batches, "fits_on_device", lambda size, device: False)
    carried = make_batches(dataset, cutout=4)
    assert resident.resident and not carried.resident and carried.flat.device.type == "cpu"
    for _ in range(7):
        assert all(map(torch.equal, resident.next(), carried.next()))


def test_images_fit_a_gpu_that_has_room_for_twice_as_much(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 9000))  # free, all
    fits = batches.fits_on_device
    assert fits(500, "cuda") and fits(500, torch.device("cuda", 1)) and not fits(501, "cuda")
    assert fits(10 ** 15, "cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_images_that_do_not_fit_a_gpu_come_from_the_host(monkeypatch):
    resident = make_batches(random_set(100), device="cuda")
    monkeypatch.setattr(batches, "fits_on_device", lambda size, device: False)
    carried = make_batches(random_set(100), device="cuda")
    assert carried.flat.device.type == "cpu"
    for _ in range(7):
        assert all(map(torch.equal, resident.next(), carried.next()))


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("n", [2, 10, 11, 12])
def test_evaluation_counts_every_sample_once(world_size, n):
    dataset = random_set(n)
    images, target = dataset.train_images, dataset.train_target
    seen = []
    for rank in range(world_size):
        for x, y in eval_batches(images, target, 4, dataset, "cpu", rank, world_size):
            expected = torchvision.transforms.functional.normalize(images[y] / 255, dataset.mean, dataset.std)
            torch.testing.assert_close(x, expected, rtol=0, atol=2e-6)
            seen += y.tolist()
    assert sorted(seen) == list(range(n))


def test_grey_evaluation_batches_have_three_channels():
    dataset = random_set(5, channels=1)
    (x, _), = eval_batches(dataset.train_images, dataset.train_target, 8, dataset, "cpu")
    assert x.shape == (5, 3, 32, 32) and torch.equal(x[:, 0], x[:, 2])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_gives_the_same_batches():
    on_cpu, on_gpu = (make_batches(random_set(100), cutout=8, device=device) for device in ("cpu", "cuda"))
    for expected, got in zip(on_cpu, on_gpu, strict=True):
        torch.testing.assert_close(got[0].cpu(), expected[0], rtol=0, atol=2e-6)
        assert torch.equal(got[1].cpu(), expected[1])


def test_gather_of_other_devices_equals_the_windows_of_the_cpu():
    flat, start = torch.randint(256, (1000,)).to(torch.uint8), torch.tensor([0, 3, 900])

    class Elsewhere:  # the same memory, said to be on another device
        device = SimpleNamespace(type="cuda")

        def __getitem__(self, index):
            return flat[index]
    assert torch.equal(windows(Elsewhere(), start, 100), windows(flat, start, 100))


def test_search_split_is_the_stored_order():
    dataset = random_set(11)
    (images, target), (rest, rest_target) = search_split(dataset, .5)  # floor(5.5) = 5, as published
    assert torch.equal(torch.cat([images, rest]), dataset.train_images) and len(images) == 5
    assert torch.equal(target, torch.arange(5)) and torch.equal(rest_target, torch.arange(5, 11))
    for portion in (0, 1, 1.5, -.1):
        with pytest.raises(ValueError) as error:
            search_split(dataset, portion)
        one_error_line(error)


# ---- data sets by name

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


# ---- ImageNet

def loaders(root, workers=0, batch_size=4, rank=0, world_size=1):
    return imagenet.loaders(str(root), 32, batch_size, workers, 7, "cpu", rank, world_size)


def epoch_of(loader, epoch):
    imagenet.set_epoch(loader, epoch)
    return [(x.clone(), y.clone()) for x, y in loader]


def same(one, other):
    return len(one) == len(other) and all(all(map(torch.equal, *pair)) for pair in zip(one, other, strict=True))


@pytest.mark.parametrize("place", ["", "imagenet"])
def test_imagenet_epochs_depend_on_seed_and_epoch_only(place, tmp_path):
    write_tree(tmp_path / place)
    unbroken, resumed, in_process = loaders(tmp_path, 2)[0], loaders(tmp_path, 2)[0], loaders(tmp_path, 0)[0]
    epochs = [epoch_of(unbroken, e) for e in range(3)]
    assert unbroken.persistent_workers and not same(epochs[0], epochs[1]) and not same(epochs[1], epochs[2])
    assert same(epoch_of(resumed, 2), epochs[2])  # a fresh process that starts at epoch 2
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    assert same(epoch_of(in_process, 2), epochs[2])  # whatever the number of workers
    assert torch.equal(torch.rand(1), expected)  # and the network's own generator stays put
    assert epochs[0][0][0].shape == (4, 3, 32, 32) and sum(len(y) for _, y in epochs[0]) == 10
    crops = [imagenet.loaders(str(tmp_path), 32, 4, 0, 7, "cpu")[0].dataset[0, i][0] for i in (0, 1)]
    assert not torch.equal(*crops)  # each image draws its own crop


@pytest.mark.parametrize("workers", [0, 2])
def test_imagenet_batches_equal_to_the_bit_those_normalised_image_by_image(workers, tmp_path):
    write_tree(tmp_path)
    to_input = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
                v2.Normalize((.485, .456, .406), (.229, .224, .225))]
    augment = v2.Compose([v2.RandomResizedCrop(32), v2.RandomHorizontalFlip(), v2.ColorJitter(.4, .4, .4, .2),
                          *to_input])
    train, val, _ = loaders(tmp_path, workers)
    for epoch in range(2):
        batches = epoch_of(train, epoch)
        for (x, y), keys in zip(batches, torch.tensor(list(train.sampler)).split(4), strict=True):
            for image, label, key in zip(x, y, keys.tolist()):
                path, expected_label = train.dataset.samples[key[1]]
                torch.manual_seed(int(np.random.SeedSequence([7, *key]).generate_state(1, np.uint64)[0]))
                assert torch.equal(image, augment(Image.open(path))) and label == expected_label
    centre = v2.Compose([v2.Resize(36), v2.CenterCrop(32), *to_input])
    got = torch.cat([x for x, _ in val])
    assert torch.equal(got, torch.stack([centre(Image.open(path)) for path, _ in val.dataset.samples]))


def test_imagenet_images_travel_as_bytes(tmp_path):
    write_tree(tmp_path)
    for loader, key in zip(loaders(tmp_path)[:2], ((0, 1), 1)):
        image, label, transparent = loader.dataset[key]
        assert image.dtype == torch.uint8 and image.shape == (3, 32, 32) and image.type() == "torch.ByteTensor"
        assert (label, transparent) == (0, False)
        x, y = next(iter(loader))
        assert x.dtype == torch.float32 and type(x) is torch.Tensor and y.dtype == torch.int64


@pytest.mark.parametrize("workers, world_size", [(0, 1), (0, 2), (0, 3), (2, 1)])
def test_imagenet_validation_is_exact(workers, world_size, tmp_path):
    write_tree(tmp_path, train=6, val=3, classes=("a", "b", "c"), shape=(32, 32))
    (tmp_path / "val/c/2.png").unlink()  # 8 samples: uneven over 3 ranks
    batches = [b for rank in range(world_size) for b in loaders(tmp_path, workers, 6, rank, world_size)[1]]
    got = torch.cat([x for x, _ in batches])
    paths = sorted((tmp_path / "val").glob("*/*.png"))
    assert sorted(torch.cat([y for _, y in batches]).tolist()) == [0, 0, 0, 1, 1, 1, 2, 2]
    resize = torchvision.transforms.Compose([  # 256 / 224 * 32 = 36
        torchvision.transforms.Resize(36), torchvision.transforms.CenterCrop(32), torchvision.transforms.ToTensor(),
        torchvision.transforms.Normalize((.485, .456, .406), (.229, .224, .225))])
    for path in paths:
        expected = resize(Image.open(path))
        assert sum(torch.allclose(x, expected, atol=1e-5) for x in got) == 1


def test_imagenet_ranks_share_each_epoch(tmp_path):
    write_tree(tmp_path)  # 10 training images
    parts = [loaders(tmp_path, 0, 4, rank, 2)[0] for rank in range(2)]
    for loader in parts:
        imagenet.set_epoch(loader, 1)
    keys = [list(loader.sampler) for loader in parts]
    assert sorted(keys[0] + keys[1]) == [(1, i) for i in range(10)]
    assert [loader.batch_size for loader in parts] == [2, 2]
    assert [len(y) for _, y in parts[0]] == [2, 2]  # the fifth image alone is left out


def test_imagenet_bad_input(tmp_path):
    write_tree(tmp_path / "good")
    with pytest.raises(ValueError, match="batch size 5"):
        loaders(tmp_path / "good", batch_size=5, world_size=2)
    for how in BAD_TREES:
        kind, word = spoil(tmp_path / how, how)
        with pytest.raises(kind) as error:
            loaders(tmp_path / how)
        assert word in one_error_line(error)


@pytest.mark.parametrize("workers", [0, 2])
def test_imagenet_names_the_corrupt_image(workers, tmp_path):
    kind, word = spoil(tmp_path, "corrupt image")
    with pytest.raises(kind) as error:
        epoch_of(loaders(tmp_path, workers)[0], 0)
    assert word in one_error_line(error) and str(error.value).startswith("cannot read image")
