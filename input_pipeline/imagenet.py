"""The ImageNet pipeline: workers read, crop and flip image files, which are streamed to the device."""
import contextlib
import os
import signal
import sys
import threading
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from harness import parallel
from harness.log import log
from input_pipeline.batches import batch_per_rank, for_convolutions, to_device
from input_pipeline.folders import Folder, digest_names, image_folders, read_image, square
from input_pipeline.sets import describe
from input_pipeline.splits import hold_out

STATS = (.485, .456, .406), (.229, .224, .225)


class ImageFiles(Dataset):
    """Image files as (image (3, H, W) uint8, label, whether it had transparency)."""

    def __init__(self, samples: list[tuple[str, int]], transform):
        self.samples, self.transform = samples, transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int):
        path, label = self.samples[index]
        image, transparent = read_image(path)
        return self.transform(image), label, transparent


class SeededFiles(ImageFiles):
    """Image files whose augmentation depends only on (seed, epoch, index).

    Persistent workers are not reseeded each epoch, so a resumed run would otherwise get other crops than an
    uninterrupted one.
    """

    seed = 0

    def __getitem__(self, key: tuple[int, int]):
        with torch.random.fork_rng(devices=[]):  # without workers, this must not advance the network's generator
            seed = np.random.SeedSequence([self.seed, *key]).generate_state(1, np.uint64)
            torch.default_generator.manual_seed(int(seed[0]))  # torch.manual_seed would also seed the GPU
            return super().__getitem__(key[1])


class EpochSampler(DistributedSampler):
    """A distributed sampler of (epoch, index) that skips the first `start` of its indices."""

    start = 0

    def __iter__(self):
        return iter([(self.epoch, index) for index in super().__iter__()][self.start:])


class Loader(DataLoader):
    """A loader of image files that yields (B, 3, H, W) float32, normalised, and (B,) labels on a device.

    The workers return uint8, which takes a quarter of the shared memory. The first pass with images that had
    transparency logs their number.
    """

    logged = False
    held_out: "Loader | None" = None  # of a training loader: the images kept for validation

    def __init__(self, dataset: ImageFiles, device, **options):
        super().__init__(dataset, **options)
        self.device = device
        self.statistics = [torch.tensor(stat, device=device).view(-1, 1, 1) for stat in STATS]  # once, not per step

    def __iter__(self):
        images_read = transparent = 0
        with without_signals():
            batches = super().__iter__()
        for images, target, flags in batches:
            images_read, transparent = images_read + len(flags), transparent + int(flags.sum())
            images = to_input(to_device(images, self.device), *self.statistics)
            yield for_convolutions(images), to_device(target, self.device)
        if transparent and not self.logged:
            log.info(f"{transparent} of the {images_read} images read had transparency: composited on white")
            self.logged = True


def to_input(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Map (B, 3, H, W) uint8 to float32 (x / 255 - mean) / std, bit-identical to torchvision."""
    return images.float().mul_(1 / 255).sub_(mean).div_(std)


CAN_WAIT = hasattr(signal, "sigwaitinfo") and hasattr(signal, "pthread_sigmask")  # not on macOS, not on Windows


@contextlib.contextmanager
def without_signals():
    """Block signals; workers that start in this block inherit that until they call `outlive_signals`."""
    if not CAN_WAIT:
        yield
        return
    resource_tracker.ensure_running()  # otherwise it starts with the first worker, and unblocks them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, parallel.SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def outlive_signals(main: int, worker: int):
    """Make a data-loading worker ignore signals, except those of its main process, whose process id is `main`.

    A terminal or a cluster sends them to all processes, but the main process must be able to finish the step.
    """
    def wait():
        while signal.sigwaitinfo(signals).si_pid != main:  # its parent may be a server that starts processes
            pass
        os._exit(0)

    # Should the main process end first, the thread that passes it a worker's images would print a traceback.
    sys.excepthook = lambda *error: None
    signals = set(parallel.SIGNALS)
    if CAN_WAIT:
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        threading.Thread(target=wait, daemon=True).start()


def open_folders(root: str, image_size: int) -> tuple[Folder, Folder, dict]:
    """Training and validation images of ROOT/imagenet or ROOT, and their description. Raises as `image_folders`."""
    train, val = image_folders(Path(root, "imagenet") if Path(root, "imagenet/train").is_dir() else Path(root))
    return train, val, describe(train.classes, *STATS, image_size, resize_side(image_size),
                                (label for _, label in train.samples), digest_names(train, val))


def loaders(root: str, image_size: int, batch_size: int, workers: int, seed: int, device, rank: int = 0,
            world_size: int = 1, training: bool = True, valid_portion: float | None = None
            ) -> tuple[Loader | None, Loader, dict]:
    """Training and validation loader of ROOT/imagenet or ROOT, and their `sets.describe`; call `set_epoch` every epoch.

    `batch_size` is global, over all ranks. Without `training` there is no training loader, and any size is allowed.
    With valid_portion, the training loader has a loader `held_out`. Raises as `image_folders`, `batch_per_rank` and
    `hold_out`; ImageError names a bad file.
    """
    batch = batch_per_rank(batch_size, world_size) if training else max(1, batch_size // world_size)
    train, val, data = open_folders(root, image_size)
    val_loader = eval_loader(val.samples, image_size, batch, workers, device, rank, world_size)
    if not training:
        return None, val_loader, data
    samples, held_out = hold_out(train.samples, train.classes, valid_portion)
    train_loader = training_loader(samples, image_size, batch, workers, seed, device, rank, world_size, jitter=True)
    if held_out:
        train_loader.held_out = eval_loader(held_out, image_size, batch, workers, device, rank, world_size)
    return train_loader, val_loader, data


def training_loader(samples: list[tuple[str, int]], image_size: int, batch_size: int, workers: int, seed: int, device,
                    rank: int = 0, world_size: int = 1, jitter: bool = False) -> Loader:
    """Shuffled random crops and horizontal flips, (B, 3, image_size, image_size); call `set_epoch` every epoch.

    `batch_size` is per rank. Raises ValueError for too few images.
    """
    from torchvision.transforms import v2
    files = SeededFiles(samples, v2.Compose([
        v2.RandomResizedCrop(image_size), v2.RandomHorizontalFlip(),
        *([v2.ColorJitter(.4, .4, .4, .2)] if jitter else []), v2.PILToTensor()]))
    files.seed = seed
    sampler = EpochSampler(files, world_size, rank, seed=seed)
    # Deviation, as in Batches: a last batch of a single image is dropped.
    loader = Loader(files, device, batch_size=batch_size, sampler=sampler, drop_last=len(sampler) % batch_size == 1,
                    persistent_workers=workers > 0, **_workers(workers, device))
    if not len(loader):
        raise ValueError(f"{len(files)} training images are too few for {world_size} rank(s): add images")
    return loader


def resize_side(image_size: int) -> int:
    """The shorter side to which an image is resized before its centre is cut: 256 for 224, as published."""
    return image_size * 256 // 224


def eval_loader(samples: list[tuple[str, int]], image_size: int, batch_size: int, workers: int, device, rank: int = 0,
                world_size: int = 1, persistent: bool = True) -> Loader:
    """Centre crops of all images, each once over all ranks; `batch_size` is per rank.

    persistent: whether the workers wait for the next pass.
    """
    cut = partial(square, resize=resize_side(image_size), crop=image_size)
    loader = Loader(ImageFiles(samples[rank::world_size], cut), device, batch_size=batch_size,
                    persistent_workers=persistent and workers > 0, **_workers(workers, device))
    loader.of_all_ranks = ImageFiles(samples, cut)
    return loader


def _workers(workers: int, device) -> dict:
    # A separate generator: a loader draws from it at each start, and a resumed run has more starts.
    return {"num_workers": workers, "prefetch_factor": 4 if workers else None, "generator": torch.Generator(),
            "pin_memory": torch.device(device).type == "cuda", "worker_init_fn": partial(outlive_signals, os.getpid())}


def set_epoch(loader: DataLoader, epoch: int, step: int = 0):
    """Set the epoch of the next pass over a training loader (its shuffling and augmentation), and its first batch."""
    loader.sampler.set_epoch(epoch)
    loader.sampler.start = step * loader.batch_size
