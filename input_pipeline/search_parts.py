"""What a search trains on: two halves of a set in memory, or two samples of a tree of image files."""
from argparse import Namespace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import utils
from harness import parallel
from input_pipeline import imagenet
from input_pipeline.batches import Batches, batch_per_rank, eval_batches
from input_pipeline.sets import DataSet, load

Samples = list[tuple[str, int]]  # (path, label)


class SearchData(NamedTuple):
    train_batches: "Batches | FileBatches"  # for the weights
    valid_batches: "Batches | FileBatches"  # for the alphas
    validation: partial  # () -> a pass over the alphas' images as they are
    num_images: tuple[int, int]  # for the weights, for the alphas
    classes: list[str]
    image_size: int


class FileBatches:
    """Shuffled batches of augmented image files, streamed: as Batches, but where they go on is told by `seek`.

    An image depends on the seed, the pass and its number alone, whatever the workers. Yields (B, 3, S, S) float32 and
    (B,); `batch_size` is the total over all ranks. ImageError names a bad file.
    """

    def __init__(self, samples: Samples, image_size: int, batch_size: int, workers: int, seed: int, device,
                 rank: int = 0, world_size: int = 1):
        self.loader = imagenet.training_loader(samples, image_size, batch_size, workers, seed, device, rank, world_size)
        self.number, self.stream = 0, None  # of the next batch, in an endless row of passes; a pass that has begun

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self):
        yield self.next()
        while self.number % len(self):
            yield self.next()

    def next(self) -> tuple[Tensor, Tensor]:
        """The next batch of an endless stream, one shuffled pass after another."""
        epoch, step = divmod(self.number, len(self))
        if self.stream is None:
            imagenet.set_epoch(self.loader, epoch, step)
            self.stream = iter(self.loader)
        batch = next(self.stream)
        self.number += 1
        if step + 1 == len(self):
            next(self.stream, None)  # lets the loader see its end
            self.stream = None
        return batch

    def seek(self, number: int) -> None:
        """Go on with the batch of this number, counted from 0 over all passes."""
        if number != self.number:
            self.number, self.stream = number, None

    def state_dict(self) -> dict:
        return {"images": len(self.loader.dataset)}

    def load_state_dict(self, state: dict):
        """ValueError if the run began with another number of images."""
        if state["images"] != len(self.loader.dataset):
            raise ValueError(f"the saved run had {state['images']} images, not {len(self.loader.dataset)}: use its "
                             "data")


def seek(source: SearchData, stage: int, epoch: int, done: int, args: Namespace) -> None:
    """Go on in a stage's epoch of which so many steps are done; batches in memory know their place by a checkpoint."""
    if not isinstance(source.train_batches, FileBatches):
        return
    steps, resting = len(source.train_batches), args.warmup_epochs
    learning = (stage - 1) * (args.epochs - resting) + max(0, epoch - resting)  # epochs before this one
    source.train_batches.seek(((stage - 1) * args.epochs + epoch) * steps + done)
    source.valid_batches.seek(learning * steps + (done if epoch >= resting else 0))


def open_data(args: Namespace, device: torch.device) -> SearchData:
    """The data that the options name. Raises ValueError, OSError."""
    batch_per_rank(args.batch_size, parallel.world_size())  # before a million files are listed
    return from_files(args, device) if args.dataset == "imagenet" else in_memory(args, device)


def in_memory(args: Namespace, device: torch.device) -> SearchData:
    """The halves of a set that fits the device, split in stored order."""
    place = parallel.rank(), parallel.world_size()
    with parallel.rank0_first():  # one process downloads
        dataset = load(args.dataset, args.tmp_data_dir, args.image_size)
    parts = search_split(dataset, args.train_portion, args.valid_portion)
    image_size = dataset.train_images.size(-1)
    cutout = (args.cutout_length or image_size // 2) if args.cutout else 0
    weights, alphas = (Batches(*part, args.batch_size, dataset, device, utils.derive_seed(args.seed, half), cutout,
                                    *place) for half, part in enumerate(parts))
    validation = partial(eval_batches, *parts[1], args.batch_size, dataset, device, *place)
    return SearchData(weights, alphas, validation, tuple(len(target) for _, target in parts), dataset.classes,
                      image_size)


def from_files(args: Namespace, device: torch.device) -> SearchData:
    """Samples of a tree of image files, of equal shares of every class."""
    place = parallel.rank(), parallel.world_size()
    train, _ = imagenet.folders(args.tmp_data_dir)
    parts = draw_samples(train.samples, train.classes, args.train_portion, args.valid_portion,
                         utils.derive_seed(args.seed, 2))
    for part, owners, portion in zip(parts, ("weights", "alphas"), ("--train_portion", "--valid_portion")):
        if len(part) < args.batch_size:
            raise ValueError(f"{len(part)} images for the {owners} are fewer than a batch of {args.batch_size}: give a "
                             f"larger {portion}, a smaller --batch_size, or more images")
    weights, alphas = (FileBatches(part, args.image_size, args.batch_size, args.workers,
                                   utils.derive_seed(args.seed, half), device, *place)
                       for half, part in enumerate(parts))
    loader = imagenet.eval_loader(parts[1], args.image_size, args.batch_size, args.workers, device, *place,
                                  persistent=False)  # needed in few epochs
    return SearchData(weights, alphas, partial(iter, loader), tuple(map(len, parts)), train.classes, args.image_size)


def part_ends(count: int, train_portion: float, valid_portion: float | None, what: str) -> tuple[int, int]:
    """Where, of `count` images, those for the weights end, and those for the alphas after them: all, or a share.

    Raises ValueError, which names `what` the images are, where either gets none.
    """
    n = int(count * train_portion)
    end = count if valid_portion is None else n + int(count * valid_portion)
    if not 0 < n < end:
        option, value = ("--train_portion", train_portion) if valid_portion is None or not n else (
            "--valid_portion", valid_portion)
        raise ValueError(f"{option} leaves {what}, of {count} images, without any for the "
                         f"{'alphas' if n else 'weights'}: change {value}, or add images")
    return n, end


def search_split(dataset: DataSet, train_portion: float, valid_portion: float | None = None):
    """Split the training set, in stored order, into (images, target) for the weights and for the alphas."""
    images, target = dataset.train_images, dataset.train_target
    n, end = part_ends(len(images), train_portion, valid_portion, "the training set")
    return (images[:n], target[:n]), (images[n:end], target[n:end])


def draw_samples(samples: Samples, classes: list[str], train_portion: float, valid_portion: float | None,
                 seed: int) -> tuple[Samples, Samples]:
    """Two disjoint samples, these shares of every class, drawn by the seed; without the second share all of the rest.

    Raises ValueError where a class gets none.
    """
    random, parts, of_class = np.random.default_rng(seed), ([], []), [[] for _ in classes]
    for sample in samples:
        of_class[sample[1]].append(sample)
    for name, own in zip(classes, of_class):
        n, end = part_ends(len(own), train_portion, valid_portion, f"class {name}")
        order = random.permutation(len(own))
        for part, chosen in zip(parts, (order[:n], order[n:end])):
            part += [own[i] for i in chosen]
    return parts
