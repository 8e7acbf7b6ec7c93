"""Batches of a dataset in memory, shuffled and augmented on the device; imagenet.py streams larger ones."""
from functools import partial

import torch
from torch import Tensor

from input_pipeline.sets import DataSet


def batch_per_rank(batch_size: int, world_size: int) -> int:
    """Each process's part of a training batch; ValueError where it is not even, or less than 2 images."""
    if batch_size < 1 or batch_size % world_size:
        raise ValueError(f"batch size {batch_size} cannot be shared by {world_size} process(es): use a multiple of it, "
                         f"from {2 * world_size} on")
    if batch_size == world_size:
        raise ValueError(f"batch size {batch_size} is one image per process, too few for batch norm, at least 2 per "
                         f"process: use {2 * world_size} or more")
    return batch_size // world_size


def normalise(images: Tensor, dataset: DataSet) -> Tensor:
    """Map (B, C, H, W) uint8 to float32 (x / 255 - mean) / std, in the fewest passes over memory."""
    mean, std = (images.new_tensor(stat, dtype=torch.float32).view(-1, 1, 1) for stat in (dataset.mean, dataset.std))
    return images.float().sub_(255 * mean).mul_(1 / (255 * std))


def for_convolutions(images: Tensor) -> Tensor:
    """(B, 1 or 3, H, W) -> (B, 3, H, W), grey as 3 equal channels; on a CPU in channels-last memory: it is quicker."""
    images = images.expand(-1, 3, -1, -1)
    return images.contiguous(memory_format=torch.channels_last) if images.device.type == "cpu" else images


def windows(flat: Tensor, start: Tensor, length: int) -> Tensor:
    """Copy `flat[s:s + length]` for each s of `start` into a (B, length) tensor."""
    if flat.device.type == "cpu":  # one memcpy per window, far faster than a gather; MPS would build the whole view
        return flat.unfold(0, length, 1).index_select(0, start)
    return flat[start[:, None] + torch.arange(length, device=start.device)]


def copy_from_host(flat: Tensor, start: Tensor, length: int, device) -> Tensor:
    """The same out of the host's memory; where that is pinned, no copy waits for another."""
    runs = torch.empty(len(start), length, dtype=flat.dtype, device=device)
    for run, first in zip(runs, start.tolist()):
        run.copy_(flat[first:first + length], non_blocking=True)
    return runs


def fits(size: int, device) -> bool:
    """Whether a device has room for `size` bytes of images, and as much again for the network."""
    return torch.device(device).type != "cuda" or 2 * size <= torch.cuda.mem_get_info(device)[0]


class Batches:
    """Shuffled, augmented batches of a set kept on the device, or in pinned memory where it is too large for that:
    `for images, target in batches` is one epoch, or the rest of one that has begun.

    Takes (N, C, H, W) uint8 and (N,), yields (B, 3, H, W) float32 and (B,). `batch_size` is the total over all ranks:
    each draws for the whole batch, then takes its share. ValueError if that is not even, of a single image, or if
    there are too few images.
    """

    def __init__(self, images: Tensor, target: Tensor, batch_size: int, dataset: DataSet, device, seed: int,
                 cutout: int = 0, rank: int = 0, world_size: int = 1):
        batch_per_rank(batch_size, world_size)
        self.batch_size, self.dataset, self.device, self.cutout = batch_size, dataset, device, cutout
        self.rank, self.world_size = rank, world_size
        # Deviation: a last batch of less than two images per process is left out, batch norm cannot train on it.
        self.steps = len(images) // batch_size + (len(images) % batch_size // world_size >= 2)
        if not self.steps:
            raise ValueError(f"{len(images)} images are too few to train on, with {world_size} process(es): add images")
        self.channels, self.size = images.shape[1], images.shape[-1]
        self.pad = self.size // 8  # 4 at 32x32
        # Zeros above and left of a channel are enough: in flat memory they also follow the row, or the channel, before.
        # So every crop starts a run of this memory, `pitch` to the row; the tail lets the last image's crops run over.
        self.pitch = self.size + self.pad
        N, C, P = len(images), self.channels, self.pitch
        size = N * C * P * P + 2 * self.pad * (P + 1)
        self.resident = fits(size, device)
        pin = not self.resident and torch.cuda.is_available()
        self.flat = torch.zeros(size, dtype=torch.uint8, device=device if self.resident else "cpu", pin_memory=pin)
        padded = self.flat[:N * C * P * P].view(N, C, P, P)
        for part, source in zip(padded.split(1000), images.split(1000)):  # no second copy of all images
            part[:, :, self.pad:, self.pad:] = source
        self.target = target.to(device)
        self.generator = torch.Generator().manual_seed(seed)  # on the CPU: the same numbers for every device
        self.order, self.position = torch.arange(len(images)), self.steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self):
        yield self.next()  # of a fresh shuffle, where none has begun
        while self.position < self.steps:
            yield self.next()

    def next(self) -> tuple[Tensor, Tensor]:
        """The next batch of an endless stream, one shuffled pass after another."""
        if self.position >= self.steps:
            self.order, self.position = torch.randperm(len(self.order), generator=self.generator), 0
        index = self.order[self.position * self.batch_size:][:self.batch_size]
        self.position += 1
        return self.augment(self.draw(index))

    def draw(self, index: Tensor) -> Tensor:
        """Draw for a whole batch; return this rank's image, crop row and column, flip and cutout centre, (6, B)."""
        crop = torch.randint(2 * self.pad + 1, (2, len(index)), generator=self.generator)
        flip = torch.randint(2, (1, len(index)), generator=self.generator) * self.dataset.flip
        centre = torch.randint(self.size, (2, len(index)), generator=self.generator)
        return torch.cat([index[None], crop, flip, centre])[:, self.rank::self.world_size]

    def crop(self, index: Tensor, top: Tensor, left: Tensor) -> Tensor:
        C, S, P = self.channels, self.size, self.pitch
        start, length = index * (C * P * P) + top * P + left, C * P * P
        copy = windows if self.resident else partial(copy_from_host, device=self.device)
        return copy(self.flat, start, length).view(-1, C, P, P)[:, :, :S, :S]

    def augment(self, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Crop, flip, normalise and cut out, for all images at once, as `draws` (6, B) says."""
        moved = draws.to(self.device)
        x = self.crop(*(moved if self.resident else draws)[:3])  # (B, C, H, W) uint8
        index, _, _, flip, row, column = moved
        B, S = len(index), self.size
        if self.dataset.flip:  # picking whole images from plain and mirrored ones is 5 times as fast as torch.where
            x = torch.cat([x, x.flip(3)]).index_select(0, torch.arange(B, device=x.device) + B * flip)
        x = normalise(x, self.dataset)  # float32
        if self.cutout:  # the published square: from centre - L // 2 up to, not including, centre + L // 2
            at, half = torch.arange(S, device=x.device), self.cutout // 2
            rows, columns = ((at >= c[:, None] - half) & (at < c[:, None] + half) for c in (row, column))  # (B, S)
            x.mul_((~(rows[:, None, :, None] & columns[:, None, None, :])).float())
        return for_convolutions(x), self.target.index_select(0, index)

    def state_dict(self) -> dict:
        return {"generator": self.generator.get_state(), "order": self.order, "position": self.position}

    def load_state_dict(self, state: dict):
        """Continue exactly where `state` was taken; ValueError if it is of another number of images."""
        if len(state["order"]) != len(self.order):
            raise ValueError(f"the saved run had {len(state['order'])} images, not {len(self.order)}: use its data")
        self.generator.set_state(state["generator"].cpu())
        self.order, self.position = state["order"].cpu(), state["position"]


def eval_batches(images: Tensor, target: Tensor, batch_size: int, dataset: DataSet, device, rank=0, world_size=1):
    """Yield (B, 3, H, W) float32, only normalised, and (B,) targets: over all ranks, every sample exactly once."""
    images, target, step = images[rank::world_size], target[rank::world_size], max(1, batch_size // world_size)
    for i in range(0, len(images), step):
        x = normalise(images[i:i + step].to(device), dataset)
        yield for_convolutions(x), target[i:i + step].to(device)
