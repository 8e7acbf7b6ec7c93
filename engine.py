"""Epochs: the meter that every loop feeds, the evaluation scripts' training epoch, and everyone's evaluation."""
import contextlib
import json
import math
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import utils
from utils import log


def cosine(high: float, low: float, epoch: int, epochs: int) -> float:
    """The cosine learning rate of `epoch` (from 0): `high` in epoch 0, close to `low` in the last."""
    return low + (high - low) * (1 + math.cos(math.pi * epoch / epochs)) / 2


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Use this learning rate from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


class Meter:
    """Loss and accuracy of an epoch: a bar on a terminal, elsewhere a log line every `report_freq` steps.

    The steps' numbers stay on the device and are read only when they are reported, so that no step waits for one.
    """

    def __init__(self, label: str, steps: int | None, report_freq: int):
        self.label, self.total, self.report_freq = label, steps, report_freq
        self.unread: list[Tensor] = []  # one (loss * B, top-1, top-5 hits) a step
        self.sums = [0.0, 0.0, 0.0]  # of the steps that were read
        self.images = self.steps = 0
        self.start, self.compiled = time.perf_counter(), utils.compile_seconds()
        self.bar = tqdm(total=steps, desc=label, leave=False, disable=utils.rank() > 0 or not sys.stderr.isatty())

    def rest_of(self, batches):
        """The epoch's batches, which after a stop in its evaluation are all behind it."""
        return batches if self.steps < self.total else ()

    def update(self, loss: Tensor, logits: Tensor, target: Tensor) -> None:
        """Count a step: loss () is the mean over a batch with logits (B, num_classes), target (B,)."""
        hits = logits.topk(min(5, logits.size(1)))[1] == target[:, None]  # (B, 5)
        self.unread.append(torch.stack([loss * target.numel(), hits[:, 0].sum(), hits.sum()]))
        self.images += target.numel()
        self.steps += 1
        self.bar.update()
        if self.steps % self.report_freq == 0:
            self._read()
            loss, top1, top5 = (value / self.images for value in self.sums)
            self.bar.set_postfix(loss=f"{loss:.4f}", top1=f"{100 * top1:.2f}")
            if self.bar.disable:
                log.info(f"{self.label} step {self.steps} loss {loss:.4f} "
                         f"top1 {100 * top1:.2f} top5 {100 * top5:.2f}")
        # Processes can't agree to stop in an evaluation: one may have a batch more than another.
        if self.total is not None or utils.world_size() == 1:
            utils.stop_if_asked()

    def _read(self) -> None:
        rows = torch.stack(self.unread)  # (steps, 3)
        bad = (~rows[:, 0].isfinite()).nonzero().flatten().tolist()
        if bad:
            step = self.steps - len(rows) + bad[0] + 1
            raise ValueError(f"the loss is not finite at {self.label}, step {step}: lower --learning_rate or use "
                             "--amp off; the last checkpoint is kept")
        for row in rows.tolist():  # one by one: when they are read is all one
            self.sums = [a + b for a, b in zip(self.sums, row, strict=True)]
        self.unread = []

    def finish(self) -> tuple[float, float, float]:
        """The epoch's (loss, top-1 %, top-5 %) over all processes. Raises ValueError where a loss was not finite."""
        self.bar.close()
        state, compiling = self.state_dict(), utils.compile_seconds() - self.compiled
        loss, top1, top5, images = state["sums"]
        self.timing = {"seconds": state["seconds"], "images_per_second": images / (state["seconds"] - compiling)}
        if compiling > 0:
            self.timing["compile_seconds"] = compiling  # of the seconds
        return loss / images, 100 * top1 / images, 100 * top5 / images

    def state_dict(self) -> dict:
        """The steps so far of all processes, to go on with in the middle of an epoch. Raises as `finish`."""
        if self.unread:
            self._read()
        sums = utils.sum_over_ranks(torch.tensor([*self.sums, self.images], dtype=torch.float64))
        return {"sums": sums.tolist(), "steps": self.steps, "seconds": time.perf_counter() - self.start}

    def load_state_dict(self, state: dict) -> None:
        """Go on from there."""
        if utils.rank() == 0:  # it counts for all
            *self.sums, self.images = state["sums"]
        self.steps = state["steps"]
        self.start -= state["seconds"]
        self.bar.update(self.steps)


def save(run_dir: Path, state: dict, parts: dict) -> None:
    """Write checkpoint.pt: a run's state and that of its parts, by name. All processes call it. Raises OSError."""
    state = state | {name: part.state_dict() for name, part in parts.items()}
    if utils.rank() == 0:
        utils.save_checkpoint(run_dir, state)


@contextlib.contextmanager
def epoch_meter(label: str, steps: int, args, run_dir: Path, state: dict, parts: dict):
    """The meter of an epoch: a signal in the middle of it saves everything, where a resumed run goes on."""
    meter = Meter(label, steps, args.report_freq)
    if "meter" in state:
        meter.load_state_dict(state.pop("meter"))
    try:
        yield meter
    except utils.Stopped:
        check_finite(parts["network"], label)
        save(run_dir, state, parts | {"meter": meter})
        utils.wait_for_all()
        raise


def log_start(run_dir: Path, args, device: torch.device, network: nn.Module, image_size: int) -> None:
    """Say what is trained, where and how large it is."""
    small, large = (utils.count_parameters(network, auxiliary) for auxiliary in (False, True))
    plain, published = (utils.count_multiply_adds(network, image_size, published) / 1e6 for published in (False, True))
    log.info(f"{run_dir}: --arch {args.arch} on {utils.world_size()} x {utils.describe_device(device)}; {small:,} "
             f"parameters, {large:,} with the auxiliary head; {plain:.1f}M multiply-adds at {image_size}x{image_size}, "
             f"{published:.1f}M in the published convention")


def prepare(network: nn.Module, device: torch.device, args) -> tuple[nn.Module, torch.amp.GradScaler]:
    """The network to train with, compiled and distributed as asked, and its gradient scaler; save `network` itself."""
    utils.share_rank0(network)
    scaler = utils.set_precision(network, device, args.amp)
    if args.compile:
        network.compile()  # in place: state_dict keys stay
    if utils.world_size() == 1:
        return network, scaler
    # Some cells have nodes that lead nowhere: static_graph lets their weights go without a gradient.
    return DistributedDataParallel(network, static_graph=True), scaler


def train_one_epoch(network: nn.Module, batches, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler,
                    epoch: int, meter: Meter, args, label_smoothing: float = 0.0) -> dict:
    """One pass over (images (B, 3, H, W), target (B,)) batches, or what is left of it -> the epoch's record.

    The loss is the cross entropy, plus `args.auxiliary_weight` times the auxiliary head's. Raises ValueError where it
    is not finite.
    """
    device = optimizer.param_groups[0]["params"][0].device
    for images, target in meter.rest_of(batches):
        utils.seed_everything(args.seed, 1 + epoch, meter.steps)
        images, target = images.to(device, non_blocking=True), target.to(device, non_blocking=True)
        logits, logits_aux = network(images)
        loss = F.cross_entropy(logits, target, label_smoothing=label_smoothing)
        if logits_aux is not None:
            loss = loss + args.auxiliary_weight * F.cross_entropy(logits_aux, target, label_smoothing=label_smoothing)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        utils.clipped_step(optimizer, scaler, args.grad_clip)
        meter.update(loss.detach(), logits.detach(), target)
    loss, top1, _ = meter.finish()
    utils.share_rank0(network, buffers_only=True)  # batch norm statistics differ between ranks
    return {"train_loss": loss, "train_acc": top1, **meter.timing, "peak_memory_mb": utils.peak_memory_mb(device)}


def check_finite(network: nn.Module, label: str) -> None:
    """Raise ValueError where the last step of an epoch, which no loss has seen, has spoilt the weights."""
    if not all(bool(p.isfinite().all()) for p in network.parameters()):
        raise ValueError(f"the weights are not finite after {label}: lower --learning_rate or use --amp off; the last "
                         "checkpoint is kept")


def finish_epoch(state: dict, record: dict, parts: dict, run_dir: Path) -> None:
    """Log an epoch; write best.pt where its test accuracy is the best yet, then checkpoint.pt and metrics.jsonl."""
    check_finite(parts["network"], f"epoch {record['epoch']}")
    state["epoch"] += 1
    state["metrics"].append(record)
    log.info(json.dumps(record))
    if utils.rank() == 0 and record["test_acc"] > state["best_acc"]:
        state |= {"best_acc": record["test_acc"], "best_epoch": record["epoch"]}
        utils.save_weights(run_dir / "best.pt", parts["network"])
    save(run_dir, state, parts)
    if utils.rank() == 0:
        utils.write_metrics(run_dir, state["metrics"])


def restore(run_dir: Path, kind: str, parts: dict) -> dict:
    """The state of a run, at its start or from its checkpoint, which is loaded into `parts`."""
    state = utils.load_checkpoint(run_dir, kind) or {
        "kind": kind, "epoch": 0, "metrics": [], "best_acc": -1.0, "best_epoch": None}
    for name, part in parts.items():
        if name in state:
            utils.load_part(name, part, state.pop(name))
    if utils.rank() == 0 and state["metrics"]:
        utils.write_metrics(run_dir, state["metrics"])  # a kill may have come before it
    return state


def report(state: dict, network: nn.Module, run_dir: Path) -> None:
    """Write the last epoch's weights and say what the run reached."""
    last = state["metrics"][-1]
    if utils.rank() == 0:
        utils.save_weights(run_dir / "weights.pt", network)
    hours = sum(record["seconds"] for record in state["metrics"]) * utils.world_size() / 3600
    log.info(f"{run_dir}: test accuracy last {last['test_acc']:.2f}% (epoch {last['epoch']}, weights.pt), "
             f"best {state['best_acc']:.2f}% (epoch {state['best_epoch']}, best.pt); {hours:.2f} device-hours")


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
    for images, target in batches:
        logits = network(images.to(device, non_blocking=True))
        target = target.to(device, non_blocking=True)
        logits = logits[0] if isinstance(logits, tuple) else logits  # an evaluation network: (logits, None)
        meter.update(F.cross_entropy(logits, target), logits, target)
    network.train()
    return meter.finish()
