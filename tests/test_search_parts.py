"""The two parts of a search: halves in memory, samples of a tree of files, and batches streamed from them."""
from argparse import Namespace
from collections import Counter

import pytest
import torch
from scripts import write_images
from test_batches import random_set
from test_sets import one_error_line

from input_pipeline import search_parts
from input_pipeline.imagenet import open_folders
from input_pipeline.search_parts import search_split


def test_search_split_is_the_stored_order():
    dataset = random_set(11)
    (images, target), (rest, rest_target) = search_split(dataset, .5)  # floor(5.5) = 5, as published
    assert torch.equal(torch.cat([images, rest]), dataset.train_images) and len(images) == 5
    assert torch.equal(target, torch.arange(5)) and torch.equal(rest_target, torch.arange(5, 11))
    for portion in (0, 1, 1.5, -.1):
        with pytest.raises(ValueError) as error:
            search_split(dataset, portion)
        one_error_line(error)


# ---- samples

def tree(counts: dict[str, int]) -> tuple[list, list]:
    return [(f"{name}/{i}", label) for label, (name, n) in enumerate(counts.items()) for i in range(n)], list(counts)


@pytest.mark.parametrize("portions, expected", [
    ((0.1, 0.025), {"a": (130, 32), "b": (80, 20)}), ((0.5, None), {"a": (650, 650), "b": (400, 400)}),
    ((0.5, 0.5), {"a": (650, 650), "b": (400, 400)})])
def test_samples_are_disjoint_and_hold_an_equal_share_of_every_class(portions, expected):
    samples, classes = tree({"a": 1300, "b": 800})
    parts = search_parts.stratified_split(samples, classes, *portions, seed=1)
    assert not set(parts[0]) & set(parts[1]) and set(parts[0] + parts[1]) <= set(samples)
    for which, part in enumerate(parts):
        assert len(set(part)) == len(part)
        assert Counter(label for _, label in part) == {label: expected[name][which]
                                                       for label, name in enumerate(classes)}
    assert parts == search_parts.stratified_split(samples, classes, *portions, seed=1)
    assert set(parts[0]) != set(search_parts.stratified_split(samples, classes, *portions, seed=2)[0])


@pytest.mark.parametrize("portions, text", [
    ((0.01, None), "--train_portion 0.01 leaves no image of class b \\(it has 9\\) for the weights"),
    ((0.9, 0.1), "--valid_portion 0.1 leaves no image of class b \\(it has 9\\) for the alphas")])
def test_a_class_without_an_image_is_named(portions, text):
    with pytest.raises(ValueError, match=text):
        search_parts.stratified_split(*tree({"a": 100, "b": 9}), *portions, seed=0)


@pytest.mark.parametrize("labels, portions, owner, classes", [
    ([0, 1, 2] * 4 + [0, 1] * 6, (.5, None), "alphas", "1 class(es): cow"),
    ([0, 1] * 6 + [0, 1, 2] * 4, (.5, None), "weights", "1 class(es): cow"),
    ([0] * 12 + [1, 2] * 6, (.5, None), "weights", "2 class(es): bee, cow"),
    ([0, 1, 2] * 8, (.5, .1), "alphas", "1 class(es): cow")])
def test_a_part_in_memory_without_a_class_is_refused(labels, portions, owner, classes, monkeypatch):
    dataset = random_set(24)._replace(train_target=torch.tensor(labels), classes=["ant", "bee", "cow"])
    monkeypatch.setattr(search_parts, "load", lambda *options: dataset)
    args = Namespace(dataset="folder", tmp_data_dir="", image_size=None, train_portion=portions[0],
                     valid_portion=portions[1], cutout=False, batch_size=4, seed=0)
    with pytest.raises(ValueError) as error:
        search_parts.in_memory(args, torch.device("cpu"))
    assert f"image(s) for the {owner} lack {classes}: " in one_error_line(error)
    monkeypatch.setattr(search_parts, "load", lambda *options: dataset._replace(
        train_target=torch.arange(24) % 3))
    args.valid_portion = None
    assert search_parts.in_memory(args, torch.device("cpu")).data["images"] == [8, 8, 8]


# ---- streamed batches

@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = write_images(tmp_path_factory.mktemp("files"), val=1)
    return open_folders(str(folder), 32)[0].samples  # 24


def stream(samples, number=0, workers=0, **place):
    batches = search_parts.FileBatches(samples, 32, 10 // place.get("world_size", 1), workers, 7, "cpu", **place)
    batches.seek(number)
    return batches


def test_a_stream_goes_on_anywhere_as_if_it_had_not_stopped(samples):
    whole = stream(samples)
    assert len(whole) == 3 and [len(target) for _, target in whole] == [10, 10, 4]
    expected = [whole.next() for _ in range(6)]  # passes 1 and 2
    assert not torch.equal(expected[0][0], expected[3][0])
    for number, workers in ((4, 0), (6, 2), (8, 0)):
        batches = stream(samples, number, workers)
        for images, target in expected[number - 3:]:
            again = batches.next()
            assert torch.equal(again[0], images) and torch.equal(again[1], target)
    batches = stream(samples, 4)
    assert [len(target) for _, target in batches] == [10, 4]  # the rest of the pass


def test_two_processes_share_the_batches_of_one(samples):
    one, two = stream(samples), [stream(samples, rank=rank, world_size=2) for rank in range(2)]
    for _ in range(2):
        images, _ = one.next()
        shares = [batches.next()[0] for batches in two]
        together = torch.cat(shares)
        assert len(images) == len(together) == 10
        assert {image.sum().item() for image in images} == {image.sum().item() for image in together}


def test_another_number_of_images_is_refused(samples):
    with pytest.raises(ValueError, match="had 24 images, not 20"):
        stream(samples[:20]).load_state_dict(stream(samples).state_dict())
