"""Batches of images in memory against plain per-image versions: augmentation, order, state, ranks, devices."""
import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from test_imagenet import loaders
from test_sets import one_error_line, write_tree

from input_pipeline import DataSet, batches, imagenet
from input_pipeline.batches import (
    Batches,
    batch_per_rank,
    eval_batches,
    normalisation,
    normalise,
    to_device,
    windows,
)


def random_set(n=96, channels=3, size=32, flip=True):
    g = torch.Generator().manual_seed(1)
    images = torch.randint(256, (n, channels, size, size), generator=g).to(torch.uint8)
    stats = ((.5, .4, .3), (.25, .2, .3)) if channels == 3 else ((.4,), (.3,))
    return DataSet(images, torch.arange(n), images[:11], torch.arange(11), ["a"], *stats, flip)


def make_batches(dataset, batch_size=24, **options):
    options = {"device": "cpu", "seed": 3, **options}
    return Batches(dataset.train_images, dataset.train_target, batch_size, dataset, **options)


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


def test_a_pass_that_had_ended_is_not_continued_by_the_longer_one_of_fewer_ranks():
    dataset = random_set(98)
    two, one = make_batches(dataset, world_size=2), make_batches(dataset)
    assert (len(two), len(one)) == (4, 5)
    list(two)
    one.load_state_dict(saved(two))
    targets = [target for _, target in one]
    assert [len(target) for target in targets] == [24, 24, 24, 24, 2]
    assert torch.equal(torch.cat(targets).sort().values, torch.arange(98))


@pytest.mark.parametrize("device, waits", [("cuda:1", False), ("mps", True)])
def test_a_copy_to_mps_waits_since_its_source_may_be_freed(device, waits):
    values = SimpleNamespace(device=torch.device("cpu"), pin_memory=lambda: values,
                             to=lambda device, non_blocking: not non_blocking)
    assert to_device(values, device) is waits


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
        train, val, data = imagenet.loaders(str(tmp_path), 32, batch_size, 0, 7, "cpu", 0, world_size, training=False)
        assert train is None and data["classes"] == ["cat", "dog"]
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
