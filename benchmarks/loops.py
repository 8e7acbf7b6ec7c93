"""The three scripts' own loops on random images, for gpu.py: their rates, and whether one of their steps waits."""
import argparse
import io
import sys
import time
import traceback
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

import engine
import genotypes
import train_cifar
import train_imagenet
import train_search
import utils
from input_pipeline import DataSet, imagenet, search_parts
from input_pipeline.batches import Batches
from input_pipeline.sets import CIFAR_STATS
from model import NetworkCIFAR, NetworkImageNet

ROOT = Path(__file__).parent.parent
REPORT_FREQ = 50  # steps between two readings of the meter: the loops here are shorter
WARM_UP, CHECKED = 2, 3  # steps before the check for waiting, and in it


class Loop(NamedTuple):
    batches: object  # the script's training batches
    train: object  # (batches, meter) -> the record of an epoch


def options_of(script, *options) -> argparse.Namespace:
    """A script's options, as from its command line."""
    sys.argv = [script.__file__, "--fast", "on", *map(str, options)]
    return script.parse_args()


def random_dataset(count: int, size: int) -> DataSet:
    """As many random images as CIFAR-10 would have: (count, 3, size, size)."""
    images, target = torch.randint(256, (count, 3, size, size), dtype=torch.uint8), torch.arange(count) % 10
    return DataSet(images, target, images, target, list("0123456789"), *CIFAR_STATS["cifar10"], flip=True)


def search(args: argparse.Namespace, amp: str, folder: Path) -> Loop:
    """A bilevel epoch of train_search.py in stage 1; its images are in memory."""
    options = options_of(train_search, "--dataset", "cifar10", "--cutout", "--amp", amp, "--device", args.device,
                         "--batch_size", args.batch_size, "--init_channels", args.channels, "--layers", args.cells[0])
    device = utils.pick_device(options.device, amp=amp)
    # Half of the images are for the weights.
    dataset = random_dataset(2 * args.loop_steps * args.batch_size, args.image_size)
    search_parts.load = lambda *_: dataset  # instead of the files of CIFAR-10
    run = SimpleNamespace(args=options, state=train_search.begin(options), keep=lambda **parts: None)
    stage, source = train_search.make_stages(options)[0], search_parts.open_data(options, device)
    architect, optimizer = train_search.build_stage(stage, run, source, device)

    def train(batches, meter):
        return train_search.search_epoch(stage, options.warmup_epochs, architect, optimizer,
                                         source._replace(train_batches=batches), meter, options)
    return Loop(source.train_batches, train)


def cifar(args: argparse.Namespace, amp: str, folder: Path) -> Loop:
    """An epoch of train_cifar.py; its images are in memory."""
    options = options_of(train_cifar, "--dataset", "cifar10", "--cutout", "--auxiliary", "--amp", amp, "--device",
                         args.device, "--batch_size", args.evaluation_batch_size, "--init_channels",
                         args.evaluation_channels, "--layers", args.evaluation_cells)
    device = utils.pick_device(options.device, amp=amp)
    dataset = random_dataset(args.loop_steps * options.batch_size, 32)
    batches = Batches(dataset.train_images, dataset.train_target, options.batch_size, dataset, device,
                      utils.derive_seed(options.seed), cutout=16)
    network = NetworkCIFAR(options.init_channels, 10, options.layers, True, genotypes.load(options.arch)).to(device)
    network.drop_path_prob = options.drop_path_prob / 2  # as in the middle of a run
    return Loop(batches, evaluation_training(network, options))


def image_net(args: argparse.Namespace, amp: str, folder: Path) -> Loop:
    """An epoch of train_imagenet.py; its images are streamed from files, which are written to `folder`."""
    write_images(folder, args.file_steps * args.imagenet_batch_size, args.distinct_files)
    options = options_of(train_imagenet, "--tmp_data_dir", folder, "--auxiliary", "--amp", amp, "--device",
                         args.device, "--batch_size", args.imagenet_batch_size, "--init_channels",
                         args.imagenet_channels, "--layers", args.imagenet_cells, "--workers", args.workers)
    device = utils.pick_device(options.device, amp=amp)
    loader, _, data = imagenet.loaders(options.tmp_data_dir, options.image_size, options.batch_size, options.workers,
                                       options.seed, device)
    network = NetworkImageNet(options.init_channels, len(data["classes"]), options.layers, True,
                              genotypes.load(options.arch))
    return Loop(loader, evaluation_training(network.to(device), options))


LOOPS = {"train_search.py": search, "train_cifar.py": cifar, "train_imagenet.py": image_net}


def evaluation_training(network: torch.nn.Module, options: argparse.Namespace):
    """`Loop.train` of the two scripts that train an evaluation network."""
    optimizer = utils.sgd(network.parameters(), options.learning_rate, options.momentum, options.weight_decay)
    trained, scaler = engine.prepare(network, options)
    return lambda batches, meter: engine.train_one_epoch(trained, batches, optimizer, scaler, 0, meter, options)


def write_images(folder: Path, count: int, distinct: int) -> None:
    """Write train/CLASS/* with `count` JPEG files of ImageNet's usual size, 500x375 and about 110 KB, and val/CLASS/*.

    Random blobs with some noise, which take as long to decode as photographs; only `distinct` of them differ.
    """
    random, contents = np.random.default_rng(0), []
    for _ in range(distinct):
        blobs = Image.fromarray(random.integers(256, size=(12, 16, 3), dtype=np.uint8)).resize((500, 375))
        noise = random.normal(0, 12, (375, 500, 3))
        buffer = io.BytesIO()
        Image.fromarray((np.asarray(blobs) + noise).clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        contents.append(buffer.getvalue())
    for split, number in (("train", count), ("val", 2)):
        for name in ("a", "b"):
            (folder / split / name).mkdir(parents=True, exist_ok=True)
        for i in range(number):
            (folder / split / "ab"[i % 2] / f"{i}.jpg").write_bytes(contents[i % distinct])


# ---- what is measured

def input_rate(loop: Loop, device: str) -> float:
    """Images per second that arrive on the device, without training."""
    def one_pass() -> int:
        count = sum(len(target) for _, target in loop.batches)
        if device == "cuda":
            torch.cuda.synchronize()
        return count
    one_pass()  # the workers start
    start = time.perf_counter()
    return one_pass() / (time.perf_counter() - start)


def loop_rate(loop: Loop) -> float:
    """Images per second of an epoch of training, as the script's own meter has it, after one to warm up."""
    for _ in range(2):
        meter = engine.Meter("epoch", len(loop.batches), REPORT_FREQ)
        loop.train(loop.batches, meter)
    return meter.timing["images_per_second"]


class EnoughError(Exception):
    """Ends a loop before its meter reads."""


def checked(batches, device: str):
    """Batches for a few steps, of which the last are errors if they wait for the device (torch finds it on CUDA)."""
    batches = iter(batches)
    for _ in range(WARM_UP):  # cudnn autotunes, and what is made once is made
        yield next(batches)
    if device == "cuda":
        warnings.filterwarnings("ignore", message="Synchronization debug mode")  # it is a prototype
        torch.cuda.set_sync_debug_mode("error")
    for _ in range(CHECKED):
        yield next(batches)
    raise EnoughError


def waits(script: str, amp: str, args: argparse.Namespace, folder: Path) -> dict:
    """Whether one of three steps of a script's loop, data included, waits for the device: error 0 or 1, and where."""
    loop, device = LOOPS[script](args, amp, folder), args.device
    try:
        loop.train(checked(loop.batches, device), engine.Meter("waits", WARM_UP + CHECKED + 1, REPORT_FREQ))
    except EnoughError:
        return {"error": 0.0} if device == "cuda" else {"note": "the loop runs; only a GPU tells whether it waits"}
    except RuntimeError as error:
        if "synchronizing" not in str(error):
            raise
        ours = [frame for frame in traceback.extract_tb(error.__traceback__)
                if Path(frame.filename).is_relative_to(ROOT) and "site-packages" not in frame.filename]
        place = f"{Path(ours[-1].filename).relative_to(ROOT)}:{ours[-1].lineno}"
        return {"error": 1.0, "note": f"{place} waits: {ours[-1].line}".replace("|", "/")}
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
