"""Batches of a dataset in memory, shuffled and augmented on the device; imagenet.py streams larger ones."""
import torch
from torch import Tensor

from input_pipeline.sets import DataSet


def batch_per_rank(batch_size: int, world_size: int) -> int:
    """Per-rank training batch size. Raises ValueError if it is not a whole number, or less than 2."""
    if batch_size < 1 or batch_size % world_size:
        raise ValueError(f"global batch size {batch_size} can't be split evenly over {world_size} rank(s): use a "
                         f"multiple of {world_size}, at least {2 * world_size}")
    if batch_size == world_size:
        raise ValueError(f"global batch size {batch_size} is one image per rank, but batch norm needs at least 2 per "
                         f"rank: use {2 * world_size} or more")
    return batch_size // world_size


def to_device(values: Tensor, device) -> Tensor:
    """Copy to a device; to a GPU from pinned memory, so that no step waits for the device."""
    kind = torch.device(device).type
    if kind == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    # On MPS, torch before 2.13 may copy what has been freed since, if it does not wait (pytorch issue 189690).
    return values.to(device, non_blocking=kind != "mps")


def normalisation(dataset: DataSet, device) -> tuple[Tensor, Tensor]:
    """What `normalise` subtracts and multiplies by, (C, 1, 1) each; made once, since each costs a copy."""
    mean, std = (torch.tensor(stat).view(-1, 1, 1) for stat in (dataset.mean, dataset.std))  # float32
    return to_device(255 * mean, device), to_device(1 / (255 * std), device)


def normalise(images: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Map (B, C, H, W) uint8 to float32 (x / 255 - mean) / std, in the fewest passes over memory."""
    return images.float().sub_(shift).mul_(scale)


def for_convolutions(images: Tensor) -> Tensor:
    """(B, 1 or 3, H, W) -> (B, 3, H, W), grey as 3 equal channels; on a CPU in channels_last, which is faster there."""
    images = images.expand(-1, 3, -1, -1)
    return images.contiguous(memory_format=torch.channels_last) if images.device.type == "cpu" else images


def windows(flat: Tensor, start: Tensor, length: int) -> Tensor:
    """Copy `flat[s:s + length]` for each s of `start` into a (B, length) tensor."""
    if flat.device.type == "cpu":  # one memcpy per window, far faster than a gather; MPS would materialise the view
        return flat.unfold(0, length, 1).index_select(0, start)
    return flat[start[:, None] + torch.arange(length, device=start.device)]


def fits_on_device(size: int, device) -> bool:
    """Whether a device has room for `size` bytes of images, and as much again for the network."""
    return torch.device(device).type != "cuda" or 2 * size <= torch.cuda.mem_get_info(device)[0]


class Batches:
    """Shuffled, augmented batches of a dataset on the device, or on the host if it is too large for that.

    `for images, target in batches` is one epoch, or the rest of a resumed one. Takes (N, C, H, W) uint8 and (N,),
    yields (B, 3, H, W) float32 and (B,). `batch_size` is global, over all ranks: each rank samples the augmentation of
    the whole batch, then uses its part of it. Raises ValueError like `batch_per_rank`, and for too few images.
    """

    def __init__(self, images: Tensor, target: Tensor, batch_size: int, dataset: DataSet, device, seed: int,
                 cutout: int = 0, rank: int = 0, world_size: int = 1):
        batch_per_rank(batch_size, world_size)
        self.batch_size, self.flip, self.device, self.cutout = batch_size, dataset.flip, device, cutout
        self.normalisation = normalisation(dataset, device)
        self.rank, self.world_size = rank, world_size
        # Deviation: drop a last batch of fewer than 2 images per rank, as batch norm can't train on it.
        self.steps = len(images) // batch_size + (len(images) % batch_size // world_size >= 2)
        if not self.steps:
            raise ValueError(f"{len(images)} images are too few to train on with {world_size} rank(s): add images")
        self.channels, self.size = images.shape[1], images.shape[-1]
        self.pad = self.size // 8  # 4 at 32x32
        # Zero padding above and left of a channel is enough: in flat memory, it also follows the previous row or
        # channel. So every crop is a window of it, `pitch` per row; the tail completes the last image's crops.
        self.pitch = self.size + self.pad
        N, C, P = len(images), self.channels, self.pitch
        size = N * C * P * P + 2 * self.pad * (P + 1)
        self.resident = fits_on_device(size, device)
        self.flat = torch.zeros(size, dtype=torch.uint8, device=device if self.resident else "cpu")
        self.images = self.flat[:N * C * P * P].view(N, C, P, P)[:, :, self.pad:, self.pad:]  # not augmented
        for part, source in zip(self.images.split(1000), images.split(1000)):  # in parts, to save memory
            part.copy_(source)
        self.target = target.to(device)
        self.generator = torch.Generator().manual_seed(seed)  # on the CPU: the same numbers on every device
        self.order, self.position = torch.arange(len(images)), self.steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self):
        yield self.next()  # of a new shuffle, unless a pass has begun
        while self.position < self.steps:
            yield self.next()

    def next(self) -> tuple[Tensor, Tensor]:
        """The next batch of an endless stream, one shuffled pass after another."""
        if self.position >= self.steps:
            self.order, self.position = torch.randperm(len(self.order), generator=self.generator), 0
        index = self.order[self.position * self.batch_size:][:self.batch_size]
        self.position += 1
        return self.augment(self.sample(index))

    def sample(self, index: Tensor) -> Tensor:
        """Sample for the whole batch; return this rank's image, crop row and column, flip and cutout centre, (6, B)."""
        crop = torch.randint(2 * self.pad + 1, (2, len(index)), generator=self.generator)
        flip = torch.randint(2, (1, len(index)), generator=self.generator) * self.flip
        centre = torch.randint(self.size, (2, len(index)), generator=self.generator)
        return torch.cat([index[None], crop, flip, centre])[:, self.rank::self.world_size]

    def crop(self, index: Tensor, top: Tensor, left: Tensor) -> Tensor:
        C, S, P = self.channels, self.size, self.pitch
        start, length = index * (C * P * P) + top * P + left, C * P * P
        crops = to_device(windows(self.flat, start, length), self.device)
        return crops.view(-1, C, P, P)[:, :, :S, :S]

    def augment(self, sampled: Tensor) -> tuple[Tensor, Tensor]:
        """Crop, flip, normalise and cut out all images at once, with the parameters `sampled` (6, B)."""
        on_device = to_device(sampled, self.device)
        x = self.crop(*(on_device if self.resident else sampled)[:3])  # (B, C, H, W) uint8
        index, _, _, flip, row, column = on_device
        B, S = len(index), self.size
        if self.flip:  # selecting whole images, plain or flipped, is 5 times as fast as torch.where
            x = torch.cat([x, x.flip(3)]).index_select(0, torch.arange(B, device=x.device) + B * flip)
        x = normalise(x, *self.normalisation)  # float32
        if self.cutout:  # the published square: from centre - L // 2 up to, not including, centre + L // 2
            at, half = torch.arange(S, device=x.device), self.cutout // 2
            rows, columns = ((at >= c[:, None] - half) & (at < c[:, None] + half) for c in (row, column))  # (B, S)
            x.mul_((~(rows[:, None, :, None] & columns[:, None, None, :])).float())
        return for_convolutions(x), self.target.index_select(0, index)

    def state_dict(self) -> dict:
        return {"generator": self.generator.get_state(), "order": self.order, "position": self.position,
                "steps": self.steps}

    def load_state_dict(self, state: dict):
        """Resume exactly where `state` was saved. Raises ValueError if the number of images differs."""
        if len(state["order"]) != len(self.order):
            raise ValueError(f"the saved run had {len(state['order'])} images, not {len(self.order)}: use its data")
        self.generator.set_state(state["generator"].cpu())
        self.order, self.position = state["order"].cpu(), state["position"]
        if self.position >= state.get("steps", self.steps):  # the pass had ended; on fewer ranks it may be longer
            self.position = self.steps


def eval_batches(images: Tensor, target: Tensor, batch_size: int, dataset: DataSet, device, rank=0, world_size=1):
    """Yield (B, 3, H, W) float32, normalised but not augmented, and (B,) targets: every sample once over all ranks."""
    images, target, step = images[rank::world_size], target[rank::world_size], max(1, batch_size // world_size)
    statistics = normalisation(dataset, device)
    for i in range(0, len(images), step):
        x = normalise(to_device(images[i:i + step], device), *statistics)
        yield for_convolutions(x), to_device(target[i:i + step], device)
