"""The data of a search, in two splits (weights, alphas): of a dataset in memory, or of a tree of image files."""
from argparse import Namespace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

import utils
from harness import parallel
from input_pipeline import imagenet
from input_pipeline.batches import Batches, batch_per_rank, eval_batches
from input_pipeline.folders import first_five
from input_pipeline.sets import DataSet, describe_set, load
from input_pipeline.splits import Samples, split_ends, stratified_split


class SearchData(NamedTuple):
    train_batches: "Batches | FileBatches"  # for the weights
    valid_batches: "Batches | FileBatches"  # for the alphas
    validation: partial  # () -> a pass over the alphas' split, not augmented
    num_images: tuple[int, int]  # for the weights, for the alphas
    data: dict  # see sets.describe


class FileBatches:
    """Shuffled batches of augmented image files, streamed: like Batches, but positioned by `seek`.

    An image depends only on the seed, the pass and its index, not on the workers. Yields (B, 3, S, S) float32 and
    (B,); `batch_size` is per rank. ImageError names a bad file.
    """

    def __init__(self, samples: Samples, image_size: int, batch_size: int, workers: int, seed: int, device,
                 rank: int = 0, world_size: int = 1):
        self.loader = imagenet.training_loader(samples, image_size, batch_size, workers, seed, device, rank, world_size)
        self.number, self.stream = 0, None  # the next batch, counted over all passes; the current pass

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
            next(self.stream, None)  # lets the loader finish the pass
            self.stream = None
        return batch

    def seek(self, number: int) -> None:
        """Continue with the batch of this number, counted from 0 over all passes."""
        if number != self.number:
            self.number, self.stream = number, None

    def state_dict(self) -> dict:
        return {"images": len(self.loader.dataset)}

    def load_state_dict(self, state: dict):
        """Raises ValueError if the run began with another number of images."""
        if state["images"] != len(self.loader.dataset):
            raise ValueError(f"the saved run had {state['images']} images, not {len(self.loader.dataset)}: use its "
                             "data")


def seek(source: SearchData, stage: int, epoch: int, done: int, args: Namespace) -> None:
    """Continue a stage's epoch after `done` steps; in-memory batches resume from the checkpoint."""
    if not isinstance(source.train_batches, FileBatches):
        return
    steps, warmup = len(source.train_batches), args.warmup_epochs
    bilevel = (stage - 1) * (args.epochs - warmup) + max(0, epoch - warmup)  # epochs before this one, with alpha steps
    source.train_batches.seek(((stage - 1) * args.epochs + epoch) * steps + done)
    source.valid_batches.seek(bilevel * steps + (done if epoch >= warmup else 0))


def open_data(args: Namespace, device: torch.device) -> SearchData:
    """The data that the options select. Raises ValueError, OSError."""
    return (from_files if args.dataset == "imagenet" else in_memory)(args, device)


def in_memory(args: Namespace, device: torch.device) -> SearchData:
    """The two splits of a dataset in memory, in stored order."""
    ranks = parallel.rank(), parallel.world_size()
    with parallel.rank0_first():  # one process downloads
        dataset = load(args.dataset, args.tmp_data_dir, args.image_size)
    data, image_size = describe_set(dataset), dataset.train_images.size(-1)
    splits = search_split(dataset, args.train_portion, args.valid_portion)
    for (_, target), owner in zip(splits, ("weights", "alphas")) if args.dataset == "folder" else ():
        if missing := [name for label, name in enumerate(dataset.classes) if not (target == label).any()]:
            raise ValueError(f"the {len(target)} image(s) for the {owner} lack {len(missing)} class(es): "
                             f"{first_five(missing)}: add images, or change --train_portion")
    cutout = (args.cutout_length or image_size // 2) if args.cutout else 0
    weights, alphas = (Batches(*split, args.batch_size, dataset, device, utils.derive_seed(args.seed, i), cutout,
                               *ranks) for i, split in enumerate(splits))
    # Validation reads the images where the batches keep them, so that the host's copy is freed.
    validation = partial(eval_batches, alphas.images, alphas.target, args.batch_size, dataset._replace(
        train_images=None, train_target=None, test_images=None, test_target=None), device, *ranks)
    return SearchData(weights, alphas, validation, tuple(len(target) for _, target in splits), data)


def from_files(args: Namespace, device: torch.device) -> SearchData:
    """Two stratified splits of a tree of image files."""
    ranks = parallel.rank(), parallel.world_size()
    batch_size = batch_per_rank(args.batch_size, parallel.world_size())  # before listing a million files
    train, _, data = imagenet.open_folders(args.tmp_data_dir, args.image_size)
    splits = stratified_split(train.samples, train.classes, args.train_portion, args.valid_portion,
                              utils.derive_seed(args.seed, 2))
    for split, owners, portion in zip(splits, ("weights", "alphas"), ("--train_portion", "--valid_portion")):
        if len(split) < args.batch_size:
            raise ValueError(f"{len(split)} images for the {owners} are fewer than a batch of {args.batch_size}: use a "
                             f"larger {portion}, a smaller --batch_size, or more images")
    weights, alphas = (FileBatches(split, args.image_size, batch_size, args.workers,
                                   utils.derive_seed(args.seed, i), device, *ranks) for i, split in enumerate(splits))
    loader = imagenet.eval_loader(splits[1], args.image_size, batch_size, args.workers, device, *ranks,
                                  persistent=False)  # used in few epochs
    return SearchData(weights, alphas, partial(iter, loader), tuple(map(len, splits)), data)


def search_split(dataset: DataSet, train_portion: float, valid_portion: float | None = None):
    """Split the training set, in stored order, into (images, target) for the weights and for the alphas."""
    images, target = dataset.train_images, dataset.train_target
    n, end = split_ends(len(images), train_portion, valid_portion, "the training set")
    return (images[:n], target[:n]), (images[n:end], target[n:end])
