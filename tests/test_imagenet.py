"""Streamed images: batches against torchvision's transforms, epochs, ranks and what cannot be read."""
import multiprocessing
import os
import signal
import time
from multiprocessing import connection, resource_sharer

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from test_sets import BAD_TREES, one_error_line, spoil, write_tree
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from harness import parallel
from input_pipeline import imagenet

# What starts the workers: fork, or Python 3.14's default, or what macOS and Windows do.
WORKERS = pytest.mark.parametrize("workers", [0, "fork", "forkserver", pytest.param("spawn", marks=pytest.mark.slow)],
                                  indirect=True)


@pytest.fixture
def workers(request):
    """0 workers, or 2 that this method starts."""
    method = multiprocessing.get_start_method(allow_none=True)
    if request.param:
        multiprocessing.set_start_method(request.param, force=True)
    yield 2 if request.param else 0
    multiprocessing.set_start_method(method, force=True)


def loaders(root, workers=0, batch_size=4, rank=0, world_size=1):
    return imagenet.loaders(str(root), 32, batch_size, workers, 7, "cpu", rank, world_size)


def epoch_of(loader, epoch):
    imagenet.set_epoch(loader, epoch)
    return [(x.clone(), y.clone()) for x, y in loader]


def same(one, other):
    return len(one) == len(other) and all(all(map(torch.equal, *pair)) for pair in zip(one, other, strict=True))


@WORKERS
def test_imagenet_epochs_depend_on_seed_and_epoch_only(workers, tmp_path):
    write_tree(tmp_path / ("imagenet" if workers else ""))
    unbroken, resumed = (loaders(tmp_path, workers)[0] for _ in range(2))
    in_process = loaders(tmp_path, 0)[0]
    epochs = [epoch_of(unbroken, e) for e in range(3)]
    assert unbroken.persistent_workers == (workers > 0)
    assert not same(epochs[0], epochs[1]) and not same(epochs[1], epochs[2])
    assert same(epoch_of(resumed, 2), epochs[2])  # a fresh process that starts at epoch 2
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    assert same(epoch_of(in_process, 2), epochs[2])  # whatever the number of workers
    assert torch.equal(torch.rand(1), expected)  # and the network's own generator stays put
    assert epochs[0][0][0].shape == (4, 3, 32, 32) and sum(len(y) for _, y in epochs[0]) == 10
    crops = [imagenet.loaders(str(tmp_path), 32, 4, 0, 7, "cpu")[0].dataset[0, i][0] for i in (0, 1)]
    assert not torch.equal(*crops)  # each image draws its own crop


@WORKERS
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


@WORKERS
def test_imagenet_validation_is_exact(workers, tmp_path):
    write_tree(tmp_path, train=6, val=3, classes=("a", "b", "c"), shape=(32, 32))
    (tmp_path / "val/c/2.png").unlink()  # 8 samples: uneven over 3 ranks
    for world_size in (1,) if workers else (1, 2, 3):
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


@WORKERS
def test_imagenet_names_the_corrupt_image(workers, tmp_path):
    kind, word = spoil(tmp_path, "corrupt image")
    with pytest.raises(kind) as error:
        epoch_of(loaders(tmp_path, workers)[0], 0)
    assert word in one_error_line(error) and str(error.value).startswith("cannot read image")
    error.value.with_traceback(None)  # its frames keep the workers: who collects them later waits 10 s
    del error


def abandoned_worker() -> None:
    """A worker whose main process hangs up instead of fetching an image."""
    imagenet.outlive_signals(os.getppid(), 0)
    address, _ = resource_sharer.DupFd(os.dup(1))._id
    connection.Client(address, authkey=multiprocessing.current_process().authkey).close()
    time.sleep(0.3)


def test_a_worker_that_its_main_process_leaves_prints_nothing(capfd):
    worker = multiprocessing.get_context("fork").Process(target=abandoned_worker)
    worker.start()
    worker.join()
    assert worker.exitcode == 0 and capfd.readouterr() == ("", "")


@pytest.mark.skipif(not imagenet.CAN_WAIT, reason="needs sigwaitinfo")
def test_workers_start_with_signals_blocked(monkeypatch):
    """A worker that is not forked imports torch for seconds, in which a signal to all processes would kill it."""
    def mask():
        return signal.pthread_sigmask(signal.SIG_BLOCK, [])
    before, masks = mask(), []
    monkeypatch.setattr(DataLoader, "__iter__", lambda self: iter([masks.append(mask())][:0]))
    assert list(imagenet.eval_loader([("image.png", 0)], 8, 1, 0, "cpu")) == []
    assert masks[0] >= {*parallel.SIGNALS} and mask() == before
