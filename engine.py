"""An epoch of training, an evaluation, the meter that both feed, and what the evaluation scripts share."""
import json
import math
import shlex
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import genotypes
import utils
from genotypes import Genotype
from harness import parallel, weights
from harness.files import write_file
from harness.log import log
from harness.runs import Run, in_words
from input_pipeline.folders import ImageError
from reporting.page import draw_run


def cosine(high: float, low: float, epoch: int, epochs: int) -> float:
    """The cosine learning rate of `epoch` (from 0): `high` in epoch 0, close to `low` in the last."""
    return low + (high - low) * (1 + math.cos(math.pi * epoch / epochs)) / 2


class Meter:
    """Loss and accuracy of an epoch: a bar on a terminal, elsewhere a log line every `report_freq` steps.

    The steps' numbers stay on the device and are read only when they are reported, so that no step waits for one.
    seconds_left(fraction, elapsed): an estimate of the time until the run ends, to be shown.
    """

    def __init__(self, label: str, steps: int | None, report_freq: int, seconds_left=None):
        self.label, self.total, self.report_freq, self.seconds_left = label, steps, report_freq, seconds_left
        self.unread: list[Tensor] = []  # one (loss * B, top-1, top-5 hits) per step
        self.sums = [0.0, 0.0, 0.0]  # of the steps that were read
        self.images = self.steps = 0
        self.start, self.compiled = time.perf_counter(), utils.compile_seconds()
        self.bar = tqdm(total=steps, desc=label, leave=False, disable=parallel.rank() > 0 or not sys.stderr.isatty())

    def elapsed(self) -> float:
        return time.perf_counter() - self.start

    def rest_of(self, batches):
        """The batches of the epoch, or of its rest; none if it was stopped in its evaluation."""
        return parallel.in_step(batches, ImageError) if self.steps < self.total else ()

    def update(self, loss: Tensor, logits: Tensor, target: Tensor) -> None:
        """Count a step: loss () is the mean over a batch with logits (B, num_classes), target (B,)."""
        hits = logits.topk(min(5, logits.size(1)))[1] == target[:, None]  # (B, 5)
        self.unread.append(torch.stack([loss * target.numel(), hits[:, 0].sum(), hits.sum()]))
        self.images += target.numel()
        self.steps += 1
        self.bar.update()
        if self.steps % self.report_freq == 0:
            self._report()
        # Processes can't agree to stop in an evaluation: one may have a batch more than another.
        if self.total is not None or parallel.world_size() == 1:
            parallel.stop_if_asked()

    def _report(self) -> None:
        self._read()
        loss, top1, top5 = (value / self.images for value in self.sums)
        shown, eta = f"loss {loss:.4f} top1 {100 * top1:.2f}", ""
        if self.seconds_left:
            eta = f", ETA {in_words(self.seconds_left(self.steps / self.total, self.elapsed()))}"
        self.bar.set_postfix_str(shown + eta)
        if self.bar.disable:
            log.info(f"{self.label} step {self.steps} {shown} top5 {100 * top5:.2f}{eta}")

    def _read(self) -> None:
        rows = torch.stack(self.unread)  # (steps, 3)
        bad = (~rows[:, 0].isfinite()).nonzero().flatten().tolist()
        if bad:
            step = self.steps - len(rows) + bad[0] + 1
            raise ValueError(f"the loss is not finite at {self.label}, step {step}: lower --learning_rate or use "
                             "--amp off; the last checkpoint is kept")
        for row in rows.tolist():  # one by one, so that the sum does not depend on when they are read
            self.sums = [a + b for a, b in zip(self.sums, row, strict=True)]
        self.unread = []

    def finish(self) -> tuple[float, float, float]:
        """The epoch's (loss, top-1 %, top-5 %) over all processes. Raises ValueError if a loss was not finite."""
        self.bar.close()
        state, compiling = self.state_dict(), utils.compile_seconds() - self.compiled
        loss, top1, top5, images = state["sums"]
        self.timing = {"seconds": state["seconds"], "images_per_second": images / (state["seconds"] - compiling)}
        if compiling > 0:
            self.timing["compile_seconds"] = compiling  # of the seconds
        return loss / images, 100 * top1 / images, 100 * top5 / images

    def state_dict(self) -> dict:
        """The steps so far of all processes, from which an epoch is resumed. Raises as `finish`."""
        if self.unread:
            self._read()
        sums = parallel.sum_over_ranks(torch.tensor([*self.sums, self.images], dtype=torch.float64))
        return {"sums": sums.tolist(), "steps": self.steps, "seconds": self.elapsed()}

    def load_state_dict(self, state: dict) -> None:
        if parallel.rank() == 0:  # it counts for all
            *self.sums, self.images = state["sums"]
        self.steps = state["steps"]
        self.start -= state["seconds"]
        self.bar.update(self.steps)


# ---- what the evaluation scripts share, in the order of a run

@dataclass
class Best:
    """The best epoch of an evaluation run so far."""
    best_acc: float = -1.0  # test accuracy, %
    best_epoch: int | None = None


def open_run(kind: str, network: nn.Module, genotype: Genotype, about: dict, args) -> Run:
    """The run that trains `network`: its directory with genotype.json and data.json, and a line on what is trained.

    about: the dataset, as `sets.describe` gives it. --init_weights are loaded first. Raises OSError, ValueError.
    """
    device = network.classifier.weight.device
    if args.init_weights and not (args.resume and Path(args.resume, "checkpoint.pt").exists()):
        weights.start_from(args.init_weights, network)
    run = Run.open(kind, args, utils.describe_device(device), Best())
    if parallel.rank() == 0:
        genotypes.save(genotype, run.path / "genotype.json")
        if not (run.path / "data.json").exists():  # wrong data on --resume must not change it
            write_file(run.path / "data.json", json.dumps(about).encode())
    log_start(run, network, about["image_size"])
    return run


def log_start(run: Run, network: nn.Module, image_size: int) -> None:
    """Log what is trained, where, and how large it is."""
    device = network.classifier.weight.device
    small, large = (utils.count_parameters(network, auxiliary) for auxiliary in (False, True))
    plain, published = (utils.count_multiply_adds(network, image_size, published) / 1e6 for published in (False, True))
    log.info(f"{run.path}: --arch {genotypes.label(run.args.arch)} on {parallel.world_size()} x "
             f"{utils.describe_device(device)}; {small:,} parameters, {large:,} with the auxiliary head; "
             f"{plain:.1f}M multiply-adds at {image_size}x{image_size}, {published:.1f}M in the published convention")


def prepare(network: nn.Module, args) -> tuple[nn.Module, torch.amp.GradScaler]:
    """The network to train with, compiled and distributed as asked, and its gradient scaler; save `network` itself."""
    parallel.broadcast(network)
    scaler = utils.set_precision(network, args.amp)
    if args.compile:
        network.compile()  # in place: state_dict keys stay
    if parallel.world_size() == 1:
        return network, scaler
    # Some cells have nodes that lead nowhere: static_graph lets their weights go without a gradient.
    return DistributedDataParallel(network, static_graph=True), scaler


def train_one_epoch(network: nn.Module, batches, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler,
                    epoch: int, meter: Meter, args) -> dict:
    """One pass over (images (B, 3, H, W), target (B,)) batches, or the rest of one -> the epoch's record.

    The loss is the cross entropy, smoothed by ImageNet's `args.label_smooth`, plus `args.auxiliary_weight` times the
    auxiliary head's. Raises ValueError if it is not finite.
    """
    cross_entropy = partial(F.cross_entropy, label_smoothing=getattr(args, "label_smooth", 0.0))
    device = optimizer.param_groups[0]["params"][0].device
    for images, target in meter.rest_of(batches):
        # Reseeding each step makes a resumed run equal an uninterrupted one.
        utils.seed_everything(args.seed, 1 + epoch, meter.steps)
        images, target = images.to(device, non_blocking=True), target.to(device, non_blocking=True)
        # The auxiliary head helps to train the lower cells.
        logits, logits_aux = network(images)
        loss = cross_entropy(logits, target)
        if logits_aux is not None:
            loss = loss + args.auxiliary_weight * cross_entropy(logits_aux, target)
        # The gradients are scaled only for fp16; they are clipped after they have been unscaled.
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        utils.clipped_step(optimizer, scaler, args.grad_clip)
        meter.update(loss.detach(), logits.detach(), target)
    loss, top1, _ = meter.finish()
    parallel.broadcast(network, buffers_only=True)  # batch norm statistics differ between ranks
    return {"train_loss": loss, "train_acc": top1, **meter.timing, "peak_memory_mb": utils.peak_memory_mb(device)}


def test(network: nn.Module, batches, label: str) -> dict:
    """The test set's part of an epoch's record."""
    loss, top1, top5 = evaluate(network, batches, label)
    return {"test_loss": loss, "test_acc": top1, "test_acc_top5": top5}


@torch.no_grad()
def evaluate(network: nn.Module, batches, label: str) -> tuple[float, float, float]:
    """The network's (loss, top-1 %, top-5 %) on (images (B, 3, H, W), target (B,)) batches, over all processes."""
    network.eval()
    device = network.classifier.weight.device
    meter = Meter(label, steps=None, report_freq=1000)
    error = None
    try:
        for images, target in batches:
            logits = network(images.to(device, non_blocking=True))
            target = target.to(device, non_blocking=True)
            logits = logits[0] if isinstance(logits, tuple) else logits  # an evaluation network: (logits, None)
            meter.update(F.cross_entropy(logits, target), logits, target)
    except ImageError as caught:
        error = caught
    parallel.stop_if_failed(error)  # the others are at the end of theirs
    network.train()
    return meter.finish()


def end_epoch(run: Run, network: nn.Module, record: dict) -> None:
    """Write best.pt if an epoch's test accuracy is the best yet, then the epoch itself."""
    weights.check_finite(network, f"epoch {record['epoch']}")
    if parallel.rank() == 0 and record["test_acc"] > run.state.best_acc:
        run.state.best_acc, run.state.best_epoch = record["test_acc"], record["epoch"]
        weights.save(run.path / "best.pt", network)
    run.end_epoch(record)


def report(run: Run, network: nn.Module) -> None:
    """Write the last epoch's weights, draw the run, log its accuracy and the export command."""
    last, best = run.metrics[-1], run.state
    if parallel.rank() == 0:
        weights.save(run.path / "weights.pt", network)
        log.info(f"pictures: {draw_run(run.path)}")
    log.info(f"{run.path}: test accuracy last {last['test_acc']:.2f}% (epoch {last['epoch']}, weights.pt), "
             f"best {best.best_acc:.2f}% (epoch {best.best_epoch}, best.pt); {run.device_hours():.2f} device-hours")
    command = ["python", "export.py", str(run.path), "--onnx", str(run.path / "network.onnx")]
    log.info(f"export it: {shlex.join(command)}")


def test_weights(network: nn.Module, batches, args) -> None:
    """What --eval does: log how good --weights are on the test set. Raises ValueError if they do not match."""
    weights.load(args.weights, network)
    log.info("{test_acc:.2f}% test accuracy, {test_acc_top5:.2f}% top-5, loss {test_loss:.4f}".format(
        **test(network, batches, "test")))
