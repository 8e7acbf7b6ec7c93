"""Epochs: the meter that every loop feeds, everyone's evaluation, and how the evaluation scripts train."""
import contextlib
import json
import math
import shlex
import sys
import time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import genotypes
import parallel
import runs
import utils
import visualize
import weights
from folders import ImageError
from runs import log


def cosine(high: float, low: float, epoch: int, epochs: int) -> float:
    """The cosine learning rate of `epoch` (from 0): `high` in epoch 0, close to `low` in the last."""
    return low + (high - low) * (1 + math.cos(math.pi * epoch / epochs)) / 2


def time_to_come(costs: list[float], seconds: list[float], fraction: float = 0.0, elapsed: float = 0.0) -> float:
    """Seconds that the rest of a run will take, as its last 5 epochs did, or its first one so far.

    costs: of all its epochs, relative to each other; seconds: what those before this one took. Of this epoch `fraction`
    is done, in `elapsed` seconds.
    """
    n, begun = len(seconds), fraction * costs[len(seconds)]
    pace = sum(seconds[-5:]) / sum(costs[:n][-5:]) if n else elapsed / begun
    return (sum(costs[n:]) - begun) * pace


def in_words(seconds: float) -> str:
    """A time as a person says it: 40 s, 12 min, 3 h 05 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


class Meter:
    """Loss and accuracy of an epoch: a bar on a terminal, elsewhere a log line every `report_freq` steps.

    The steps' numbers stay on the device and are read only when they are reported, so that no step waits for one.
    to_come(fraction, elapsed): seconds to the end of the run, for those who wait.
    """

    def __init__(self, label: str, steps: int | None, report_freq: int, to_come=None):
        self.label, self.total, self.report_freq, self.to_come = label, steps, report_freq, to_come
        self.unread: list[Tensor] = []  # one (loss * B, top-1, top-5 hits) a step
        self.sums = [0.0, 0.0, 0.0]  # of the steps that were read
        self.images = self.steps = 0
        self.start, self.compiled = time.perf_counter(), utils.compile_seconds()
        self.bar = tqdm(total=steps, desc=label, leave=False, disable=parallel.rank() > 0 or not sys.stderr.isatty())

    def rest_of(self, batches):
        """The epoch's batches, which after a stop in its evaluation are all behind it."""
        return parallel.in_step(batches, ImageError) if self.steps < self.total else ()

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
            shown = f"loss {loss:.4f} top1 {100 * top1:.2f}"
            rest = ""
            if self.to_come:
                seconds = self.to_come(self.steps / self.total, time.perf_counter() - self.start)
                rest = f", {in_words(seconds)} to come"
            self.bar.set_postfix_str(shown + rest)
            if self.bar.disable:
                log.info(f"{self.label} step {self.steps} {shown} top5 {100 * top5:.2f}{rest}")
        # Processes can't agree to stop in an evaluation: one may have a batch more than another.
        if self.total is not None or parallel.world_size() == 1:
            parallel.stop_if_asked()

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
        sums = parallel.sum_over_ranks(torch.tensor([*self.sums, self.images], dtype=torch.float64))
        return {"sums": sums.tolist(), "steps": self.steps, "seconds": time.perf_counter() - self.start}

    def load_state_dict(self, state: dict) -> None:
        """Go on from there."""
        if parallel.rank() == 0:  # it counts for all
            *self.sums, self.images = state["sums"]
        self.steps = state["steps"]
        self.start -= state["seconds"]
        self.bar.update(self.steps)


@contextlib.contextmanager
def epoch_meter(label: str, steps: int, args, run_dir: Path, state: dict, parts: dict, costs: list[float]):
    """The meter of an epoch: a signal or a bad image in it saves everything, where a resumed run goes on.

    costs: of all epochs of the run, relative to each other.
    """
    to_come = partial(time_to_come, costs, [record["seconds"] for record in state["metrics"]])
    meter = Meter(label, steps, args.report_freq, to_come)
    runs.restore(state, {"meter": meter})
    try:
        yield meter
        log.info(f"{label} is done, {in_words(to_come(1.0, time.perf_counter() - meter.start))} to come")
    except parallel.Stopped:
        check_finite(parts["network"], label)
        runs.save_checkpoint(run_dir, state, parts | {"meter": meter})
        parallel.wait_for_all()
        raise


def log_start(run_dir: Path, args, device: torch.device, network: nn.Module, image_size: int) -> None:
    """Say what is trained, where and how large it is."""
    small, large = (utils.count_parameters(network, auxiliary) for auxiliary in (False, True))
    plain, published = (utils.count_multiply_adds(network, image_size, published) / 1e6 for published in (False, True))
    log.info(f"{run_dir}: --arch {genotypes.label(args.arch)} on {parallel.world_size()} x "
             f"{utils.describe_device(device)}; {small:,} parameters, {large:,} with the auxiliary head; "
             f"{plain:.1f}M multiply-adds at {image_size}x{image_size}, {published:.1f}M in the published convention")


def prepare(network: nn.Module, device: torch.device, args) -> tuple[nn.Module, torch.amp.GradScaler]:
    """The network to train with, compiled and distributed as asked, and its gradient scaler; save `network` itself."""
    parallel.share_rank0(network)
    scaler = utils.set_precision(network, device, args.amp)
    if args.compile:
        network.compile()  # in place: state_dict keys stay
    if parallel.world_size() == 1:
        return network, scaler
    # Some cells have nodes that lead nowhere: static_graph lets their weights go without a gradient.
    return DistributedDataParallel(network, static_graph=True), scaler


def train_one_epoch(network: nn.Module, batches, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler,
                    epoch: int, meter: Meter, args) -> dict:
    """One pass over (images (B, 3, H, W), target (B,)) batches, or what is left of it -> the epoch's record.

    The loss is the cross entropy, smoothed by ImageNet's `args.label_smooth`, plus `args.auxiliary_weight` times the
    auxiliary head's. Raises ValueError where it is not finite.
    """
    cross_entropy = partial(F.cross_entropy, label_smoothing=getattr(args, "label_smooth", 0.0))
    device = optimizer.param_groups[0]["params"][0].device
    for images, target in meter.rest_of(batches):
        utils.seed_everything(args.seed, 1 + epoch, meter.steps)
        images, target = images.to(device, non_blocking=True), target.to(device, non_blocking=True)
        logits, logits_aux = network(images)
        loss = cross_entropy(logits, target)
        if logits_aux is not None:
            loss = loss + args.auxiliary_weight * cross_entropy(logits_aux, target)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        utils.clipped_step(optimizer, scaler, args.grad_clip)
        meter.update(loss.detach(), logits.detach(), target)
    loss, top1, _ = meter.finish()
    parallel.share_rank0(network, buffers_only=True)  # batch norm statistics differ between ranks
    return {"train_loss": loss, "train_acc": top1, **meter.timing, "peak_memory_mb": utils.peak_memory_mb(device)}


def check_finite(network: nn.Module, label: str) -> None:
    """Raise ValueError where the last step of an epoch, which no loss has seen, has spoilt the weights."""
    if not all(bool(p.isfinite().all()) for p in network.parameters()):
        raise ValueError(f"the weights are not finite after {label}: lower --learning_rate or use --amp off; the last "
                         "checkpoint is kept")


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


def finish_epoch(state: dict, record: dict, parts: dict, run_dir: Path) -> None:
    """Write best.pt where an epoch's test accuracy is the best yet, then the epoch itself."""
    check_finite(parts["network"], f"epoch {record['epoch']}")
    if parallel.rank() == 0 and record["test_acc"] > state["best_acc"]:
        state |= {"best_acc": record["test_acc"], "best_epoch": record["epoch"]}
        runs.save_weights(run_dir / "best.pt", parts["network"])
    runs.end_epoch(run_dir, state, record, parts)


def report(state: dict, network: nn.Module, run_dir: Path) -> None:
    """Write the last epoch's weights, draw the run, say what it reached and how to take the network away."""
    last = state["metrics"][-1]
    if parallel.rank() == 0:
        runs.save_weights(run_dir / "weights.pt", network)
        log.info(f"pictures: {visualize.draw_run(run_dir)}")
    hours = sum(record["seconds"] for record in state["metrics"]) * parallel.world_size() / 3600
    log.info(f"{run_dir}: test accuracy last {last['test_acc']:.2f}% (epoch {last['epoch']}, weights.pt), "
             f"best {state['best_acc']:.2f}% (epoch {state['best_epoch']}, best.pt); {hours:.2f} device-hours")
    command = ["python", "export.py", str(run_dir), "--onnx", str(run_dir / "network.onnx")]
    log.info(f"export it: {shlex.join(command)}")


def test_weights(network: nn.Module, batches, args) -> None:
    """What --eval does: say how good --weights are on the test set. Raises ValueError where they don't fit."""
    weights.load(args.weights, network)
    log.info("{test_acc:.2f}% test accuracy, {test_acc_top5:.2f}% top-5, loss {test_loss:.4f}".format(
        **test(network, batches, "test")))


def train(kind: str, network: nn.Module, genotype: genotypes.Genotype, about: dict, batches, test_batches,
          learning_rate, args, set_epoch=None) -> None:
    """A whole run: open or resume its directory, train and test every epoch, say what was reached.

    about: the data set, as `data.describe` gives it. test_batches() gives a pass over the test set,
    learning_rate(args, epoch) that of an epoch from 0. set_epoch(epoch, step), for batches that can't be saved in a
    checkpoint, tells them where to begin.
    """
    device = network.classifier.weight.device
    if args.init_weights and not (args.resume and Path(args.resume, "checkpoint.pt").exists()):  # which has all
        weights.start_from(args.init_weights, network)
    run_dir = runs.open_run_dir(kind, args, device)
    if parallel.rank() == 0:
        genotypes.save(genotype, run_dir / "genotype.json")
        if not (run_dir / "data.json").exists():  # data that don't fit a resumed run must not change it
            runs.write_file(run_dir / "data.json", json.dumps(about).encode())
    log_start(run_dir, args, device, network, about["image_size"])
    optimizer = torch.optim.SGD(network.parameters(), args.learning_rate, args.momentum, weight_decay=args.weight_decay,
                                fused=True)
    trained, scaler = prepare(network, device, args)
    parts = {"network": network, "optimizer": optimizer, "scaler": scaler}
    if set_epoch is None:
        parts["batches"] = batches
    state = runs.load_state(run_dir, kind, best_acc=-1.0, best_epoch=None)
    runs.restore(state, parts)
    write_scalars = runs.scalar_writer(args, run_dir, done=state["epoch"])
    for epoch in range(state["epoch"], args.epochs):
        optimizer.param_groups[0]["lr"] = lr = learning_rate(args, epoch)
        network.drop_path_prob = args.drop_path_prob * epoch / args.epochs
        record = {"epoch": epoch, "lr": lr, "drop_path_prob": network.drop_path_prob}
        with epoch_meter(f"epoch {epoch}", len(batches), args, run_dir, state, parts,
                         costs=[1.0] * args.epochs) as meter:
            if set_epoch:
                set_epoch(epoch, meter.steps)
            record |= train_one_epoch(trained, batches, optimizer, scaler, epoch, meter, args)
            record |= test(network, test_batches(), f"epoch {epoch} test")
        finish_epoch(state, record, parts, run_dir)
        write_scalars(epoch, record)
    report(state, network, run_dir)
