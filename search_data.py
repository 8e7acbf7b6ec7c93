"""What a search trains on: two halves of a set in memory, or two samples of a tree of image files."""
from argparse import Namespace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import data
import imagenet
import parallel
import utils
from genotypes import NODES
from progressive import EDGES, Stage

Samples = list[tuple[str, int]]  # (path, label)


class SearchData(NamedTuple):
    train_batches: "data.Batches | FileBatches"  # for the weights
    valid_batches: "data.Batches | FileBatches"  # for the alphas
    validation: partial  # () -> a pass over the alphas' images as they are
    num_images: tuple[int, int]  # for the weights, for the alphas
    classes: list[str]
    image_size: int


class FileBatches:
    """Shuffled batches of augmented image files, streamed: as data.Batches, but where they go on is told by `seek`.

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


def least_bytes(stage: Stage, size: float, grad_checkpoint: bool) -> float:
    """Bytes of memory that an image of size x size pixels, behind the stem, takes in a weight step, at the least.

    One float32 map for each candidate of each edge; with `grad_checkpoint` those of the first cell and all cells'
    outputs. Measured were 1.3 to 1.9 times as many.
    """
    reductions = stage.layers // 3, 2 * stage.layers // 3
    cells = [0.5 ** sum(i >= at for at in reductions) for i in range(stage.layers)]  # half the numbers after each
    maps = EDGES * stage.num_candidates * cells[0] + NODES * sum(cells) if grad_checkpoint else (
        EDGES * stage.num_candidates * sum(cells))
    return 4 * stage.channels * size**2 * maps


def check_size(stage: Stage, image_size: int, args: Namespace, device: torch.device) -> None:
    """Raise ValueError where images are too small for the stem, or so large that the stage can't fit the device."""
    if args.stem == "imagenet" and image_size < 32:
        raise ValueError(f"--stem imagenet needs images of 32x32 or more, not {image_size}x{image_size}: give "
                         "--stem cifar, or a larger --image_size")
    memory = utils.device_memory(device)
    share = data.share(args.batch_size, parallel.world_size()) / (1 if args.amp == "off" else 2)
    size = image_size / (8 if args.stem == "imagenet" else 1)
    needed = share * least_bytes(stage, size, args.grad_checkpoint)
    if memory is not None and needed > memory:
        instead = [hint for hint, helps in (("--stem imagenet", args.stem == "cifar" and image_size >= 32),
                                            ("--grad_checkpoint", not args.grad_checkpoint)) if helps]
        raise ValueError(f"stage {stage.number} needs at least {needed / 2**30:.0f} GiB of memory at "
                         f"{image_size}x{image_size} with --stem {args.stem}, and there are {memory / 2**30:.1f}: give "
                         f"{', '.join([*instead, 'a smaller --batch_size or --image_size'])}")


def open_data(args: Namespace, device: torch.device) -> SearchData:
    """The data that the options name. Raises ValueError, OSError."""
    data.share(args.batch_size, parallel.world_size())  # before a million files are listed
    return from_files(args, device) if args.dataset == "imagenet" else in_memory(args, device)


def in_memory(args: Namespace, device: torch.device) -> SearchData:
    """The halves of a set that fits the device, split in stored order."""
    place = parallel.rank(), parallel.world_size()
    with parallel.rank0_first():  # one process downloads
        dataset = data.load(args.dataset, args.tmp_data_dir, args.image_size)
    parts = data.search_split(dataset, args.train_portion, args.valid_portion)
    image_size = dataset.train_images.size(-1)
    cutout = (args.cutout_length or image_size // 2) if args.cutout else 0
    weights, alphas = (data.Batches(*part, args.batch_size, dataset, device, utils.derive_seed(args.seed, half), cutout,
                                    *place) for half, part in enumerate(parts))
    validation = partial(data.eval_batches, *parts[1], args.batch_size, dataset, device, *place)
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


def draw_samples(samples: Samples, classes: list[str], train_portion: float, valid_portion: float | None,
                 seed: int) -> tuple[Samples, Samples]:
    """Two disjoint samples, these shares of every class, drawn by the seed; without the second share all of the rest.

    Raises ValueError where a class gets none.
    """
    random, parts, of_class = np.random.default_rng(seed), ([], []), [[] for _ in classes]
    for sample in samples:
        of_class[sample[1]].append(sample)
    for name, own in zip(classes, of_class):
        n, end = data.part_ends(len(own), train_portion, valid_portion, f"class {name}")
        order = random.permutation(len(own))
        for part, chosen in zip(parts, (order[:n], order[n:end])):
            part += [own[i] for i in chosen]
    return parts
