"""An epoch of training, an evaluation, the meter that both update, and the shared steps of the evaluation scripts."""
import inspect
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
from harness import parallel, records, weights
from harness.files import write_file
from harness.log import log
from harness.process import change
from harness.runs import Run, in_words
from input_pipeline.folders import ImageError
from reporting import classes as per_class
from reporting.page import try_to_draw
from reporting.tables import align


def cosine(high: float, low: float, epoch: int, epochs: int) -> float:
    """The cosine learning rate of `epoch` (from 0): `high` in epoch 0, close to `low` in the last."""
    return low + (high - low) * (1 + math.cos(math.pi * epoch / epochs)) / 2


class Meter:
    """Loss and accuracy of an epoch: a progress bar on a terminal, otherwise a log line every `report_freq` steps.

    Each step's values stay on the device and are read only when they are reported, so that no step waits for a copy.
    seconds_left(fraction, elapsed): the estimated seconds until the run ends, reported as ETA.
    """

    def __init__(self, label: str, steps: int | None, report_freq: int, seconds_left=None):
        self.label, self.total, self.report_freq, self.seconds_left = label, steps, report_freq, seconds_left
        self.unread: list[Tensor] = []  # one (loss * B, top-1, top-5 hits) per step
        self.sums = [0.0, 0.0, 0.0]  # over the steps read so far
        self.images = self.steps = 0
        self.start, self.compiled = time.perf_counter(), utils.compile_seconds()
        self.bar = tqdm(total=steps, desc=label, leave=False, disable=parallel.rank() > 0 or not sys.stderr.isatty())

    def elapsed(self) -> float:
        return time.perf_counter() - self.start

    def remaining(self, batches):
        """The remaining batches of the epoch; none if it was stopped in its evaluation."""
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
        # Ranks can't agree to stop in an evaluation, where one may have one batch more.
        if self.total is not None or parallel.world_size() == 1:
            parallel.stop_if_asked()
        else:
            parallel.note_step()

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
        for row in rows.tolist():  # one by one, so that the sum does not depend on how many are read at once
            self.sums = [a + b for a, b in zip(self.sums, row, strict=True)]
        self.unread = []

    def finish(self) -> tuple[float, float, float]:
        """The epoch's (loss, top-1 %, top-5 %) over all ranks. Raises ValueError if a loss was not finite."""
        self.bar.close()
        state, compiling = self.state_dict(), utils.compile_seconds() - self.compiled
        loss, top1, top5, images = state["sums"]
        self.timing = {"seconds": state["seconds"], "images_per_second": images / (state["seconds"] - compiling)}
        if compiling > 0:
            self.timing["compile_seconds"] = compiling  # part of "seconds"
        return loss / images, 100 * top1 / images, 100 * top5 / images

    def state_dict(self) -> dict:
        """The sums so far over all ranks, from which an epoch is resumed. Raises ValueError like `finish`."""
        if self.unread:
            self._read()
        sums = parallel.sum_over_ranks(torch.tensor([*self.sums, self.images], dtype=torch.float64))
        return {"sums": sums.tolist(), "steps": self.steps, "total": self.total, "seconds": self.elapsed(),
                "processes": parallel.world_size()}

    def load_state_dict(self, state: dict) -> None:
        if parallel.rank() == 0:  # the saved sums are over all ranks
            *self.sums, self.images = state["sums"]
        # What had ended stays so, though on fewer ranks the epoch may have one step more.
        self.steps = self.total if state["steps"] >= state.get("total", self.total) else state["steps"]
        # Device-seconds count: what two processes did in a second counts as two seconds of one.
        self.start -= state["seconds"] * state.get("processes", parallel.world_size()) / parallel.world_size()
        self.bar.update(self.steps)


# ---- the shared steps of the evaluation scripts, in the order of a run

@dataclass
class Best:
    """The best epoch of an evaluation run so far."""
    best_acc: float = -1.0  # test accuracy, %; with --valid_portion validation accuracy
    best_epoch: int | None = None


def open_run(kind: str, network: nn.Module, genotype: Genotype, data: dict, args) -> Run:
    """Open the run that trains `network`: write genotype.json and data.json, and log what is trained.

    data: from `sets.describe`. --init_weights are loaded first. Raises OSError, ValueError.
    """
    device = network.classifier.weight.device
    if args.init_weights and not (args.resume and Path(args.resume, "checkpoint.pt").exists()):
        weights.start_from(args.init_weights, network)
    run = Run.open(kind, args, utils.describe_device(device), Best())
    if parallel.rank() == 0:
        write_file(run.path / "genotype.json", genotypes.to_json(genotype))
    keep_data(run, data)
    log_start(run, network, data["image_size"])
    return run


def keep_data(run: Run, data: dict) -> None:
    """Write data.json in a new run. Raises ValueError if a resumed one began with other data."""
    if other := records.compare_data(run.path, data):
        raise ValueError(f"{run.path} began with other data (other {other} in data.json): resume it with its own")
    if parallel.rank() == 0 and not (run.path / "data.json").exists():
        write_file(run.path / "data.json", json.dumps(data).encode())


def log_start(run: Run, network: nn.Module, image_size: int) -> None:
    """Log what is trained, where, and how large it is."""
    small, large = (utils.count_parameters(network, auxiliary) for auxiliary in (False, True))
    plain, published = (utils.count_multiply_adds(network, image_size, published) / 1e6 for published in (False, True))
    log.info(f"{run.path}: --arch {genotypes.label(run.args.arch)} on {parallel.world_size()} x "
             f"{run.device}; {run.args.init_channels} channels, {small:,} parameters, {large:,} with the auxiliary "
             f"head; {plain:.1f}M multiply-adds at {image_size}x{image_size}, {published:.1f}M in the published "
             "convention")


def prepare(network: nn.Module, args) -> tuple[nn.Module, torch.amp.GradScaler]:
    """The module to train, compiled and wrapped as asked, and its gradient scaler; checkpoint `network` itself."""
    network.fast = utils.use_fast(args.fast, network.classifier.weight.device)
    parallel.broadcast(network)
    scaler = utils.set_precision(network, args.amp)
    if args.compile:
        # Its graph splitter fails on several buckets (pytorch issue 196227).
        change(torch._dynamo.config, "optimize_ddp", False)
        network.compile()  # in place: state_dict keys stay
    if parallel.world_size() == 1:
        return network, scaler
    # Some cells have unused nodes: static_graph allows their weights to have no gradient.
    for p in network.parameters():
        p.register_hook(partial(_match_strides, p.stride()))
    # Buffers are broadcast once per epoch, not in each step; the argument has a new name in later versions of torch.
    renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    buffers = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    return DistributedDataParallel(network, static_graph=True, gradient_as_bucket_view=True, **buffers), scaler


def _match_strides(strides: tuple[int, ...], grad: Tensor) -> Tensor:
    """The gradient with its weight's strides, else DDP warns. For a 1x1 kernel they change without a copy."""
    return grad if grad.stride() == strides else grad.contiguous().flatten().view_as(grad)


def train_one_epoch(network: nn.Module, batches, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler,
                    epoch: int, meter: Meter, args) -> dict:
    """One pass over (images (B, 3, H, W), target (B,)) batches, or the rest of a resumed one -> the epoch's record.

    The loss is the cross entropy, smoothed by ImageNet's `args.label_smooth`, plus `args.auxiliary_weight` times that
    of the auxiliary head. Raises ValueError if it is not finite.
    """
    cross_entropy = partial(F.cross_entropy, label_smoothing=getattr(args, "label_smooth", 0.0))
    device = optimizer.param_groups[0]["params"][0].device
    for images, target in meter.remaining(batches):
        # Reseeding each step makes a resumed run equal an uninterrupted one.
        utils.seed_everything(args.seed, 1 + epoch, meter.steps)
        images, target = images.to(device, non_blocking=True), target.to(device, non_blocking=True)
        # The auxiliary head helps to train the lower cells.
        logits, logits_aux = network(images)  # (B, num_classes), the same or None
        loss = cross_entropy(logits, target)
        if logits_aux is not None:
            loss = loss + args.auxiliary_weight * cross_entropy(logits_aux, target)
        # The loss is scaled only for fp16; the gradients are unscaled before they are clipped.
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        utils.clipped_step(optimizer, scaler, args.grad_clip)
        # The meter reads the values later, so that the device does not wait here.
        meter.update(loss.detach(), logits.detach(), target)
    loss, top1, _ = meter.finish()
    parallel.broadcast(network, buffers_only=True)  # batch norm statistics differ between ranks
    return {"train_loss": loss, "train_acc": top1, **meter.timing, "peak_memory_mb": utils.peak_memory_mb(device)}


def test(network: nn.Module, batches, label: str, rows: list | None = None) -> dict:
    """Evaluate on the test set -> the fields that it adds to an epoch's record; rows: see `evaluate`."""
    loss, top1, top5 = evaluate(network, batches, label, *([] if rows is None else [rows]))
    return {"test_loss": loss, "test_acc": top1, "test_acc_top5": top5}


def validate(network: nn.Module, batches, label: str, meter: Meter) -> dict:
    """Evaluate on the held-out split -> the fields that it adds to an epoch's record; `meter` is the epoch's.

    Deviation: without augmentation, while the published code augments.
    """
    loss, top1, _ = evaluate(network, batches, f"{label} validation")
    return {"valid_loss": loss, "valid_acc": top1, "seconds": meter.elapsed()}


def judge(run: Run, network: nn.Module, valid_batches, test_batches, epoch: int, meter: Meter) -> dict:
    """Evaluate after an epoch -> the fields that it adds to the record. Both batches: () -> a pass, or the first None.

    As published, on the test set. With held-out images, on these, and only after the last epoch on the test set: with
    the last weights, and with those of the best epoch.
    """
    label = f"epoch {epoch}"
    if valid_batches is None:
        return test(network, test_batches(), f"{label} test")
    found = validate(network, valid_batches(), label, meter)
    if epoch + 1 == run.args.epochs:
        found |= test(network, test_batches(), f"{label} test")
        best_so_far = found["valid_acc"] > max([record["valid_acc"] for record in run.metrics], default=-1.0)
        found["best_test_acc"] = found["test_acc"] if best_so_far else test_best(run, network, test_batches())
    return found


def test_best(run: Run, network: nn.Module, batches) -> float:
    """The test accuracy in % of best.pt. The network keeps its weights, also if it is stopped."""
    last = {name: value.clone() for name, value in network.state_dict().items()}
    try:
        if parallel.rank() == 0:
            weights.load(str(run.path / "best.pt"), network)
        parallel.broadcast(network)
        return test(network, batches, "best.pt test")["test_acc"]
    finally:
        network.load_state_dict(last)


@torch.no_grad()
def evaluate(network: nn.Module, batches, label: str, rows: list | None = None) -> tuple[float, float, float]:
    """The network's (loss, top-1 %, top-5 %) on (images (B, 3, H, W), target (B,)) batches, over all ranks.

    rows: a list to extend by each batch's (B, 3) classes, predicted classes and their probabilities, of this rank.
    """
    network.eval()
    device = network.classifier.weight.device
    meter = Meter(label, steps=None, report_freq=1000)
    error = None
    try:
        for images, target in batches:
            images, target = images.to(device, non_blocking=True), target.to(device, non_blocking=True)
            # A supernet returns logits (B, num_classes), an evaluation network (logits, None).
            logits = network(images)
            logits = logits[0] if isinstance(logits, tuple) else logits
            # Every sample counts once: the meter sums over samples and, when it finishes, over ranks.
            meter.update(F.cross_entropy(logits, target), logits, target)
            if rows is not None:
                rows.append(torch.stack([part.float() for part in (target, *logits.softmax(1).max(1)[::-1])], 1))
    except ImageError as caught:
        error = caught
    parallel.stop_if_failed(error)  # a rank with a bad image stops all, after the others' last batches
    network.train()
    return meter.finish()


def end_epoch(run: Run, network: nn.Module, record: dict) -> None:
    """Write best.pt if an epoch's accuracy is the best so far, then the epoch's record and checkpoint."""
    weights.check_finite(network, f"epoch {record['epoch']}")
    accuracy = record[f"{records.judged_by([record])}_acc"]
    if parallel.rank() == 0 and accuracy > run.state.best_acc:
        run.state.best_acc, run.state.best_epoch = accuracy, record["epoch"]
        weights.save(run.path / "best.pt", network)
    run.end_epoch(record)


def predict(network: nn.Module, batches) -> tuple[dict, Tensor]:
    """The fields of `test`, and each test image's class, prediction and probability, (N, 3), in stored order."""
    found = test(network, batches, "test", rows := [torch.empty(0, 3)])
    return found, parallel.gather(torch.cat([part.cpu() for part in rows]))


def report(run: Run, network: nn.Module, batches, classes: list[str], files, picture) -> None:
    """Write the last epoch's weights and its predictions, draw the run, log its accuracy and the export command.

    files, picture: see `reporting.classes.write`.
    """
    (last, best), state = records.test_accuracies(run.metrics), run.state
    held_out = records.judged_by(run.metrics) == "valid"
    chosen = f", chosen by its validation accuracy of {state.best_acc:.2f}%" if held_out else ""
    if parallel.rank() == 0:
        weights.save(run.path / "weights.pt", network)
    _, rows = predict(network, batches)
    if parallel.rank() == 0:
        if measured := per_class.write(run.path, classes, files, picture, rows.tolist()):
            log.info(f"balanced: {measured['balanced_accuracy']:.2f}% (mean of the classes, weights.pt)")
        try_to_draw(run.path)
    log.info(f"{run.path}: test accuracy last {last:.2f}% (epoch {run.metrics[-1]['epoch']}, weights.pt), best "
             f"{best:.2f}% (epoch {state.best_epoch}, best.pt{chosen}); {run.device_hours():.2f} device-hours")
    command = ["python", "export.py", str(run.path), "--onnx", str(run.path / "network.onnx")]
    log.info(f"export it: {shlex.join(command)}")


def test_weights(network: nn.Module, batches, args, classes: list[str], files) -> None:
    """Implements --eval: log the test accuracy of --weights, by class, too, and write --predictions.

    Raises ValueError if the weights do not match the network, OSError if the file can't be written.
    """
    weights.load(args.weights, network)
    found, rows = predict(network, batches)
    log.info("{test_acc:.2f}% test accuracy, {test_acc_top5:.2f}% top-5, loss {test_loss:.4f}".format(**found))
    if parallel.rank() == 0 and len(classes) <= per_class.MOST_CLASSES:
        print(align(per_class.tabulate(per_class.measure(classes, rows.tolist()))))
    if parallel.rank() == 0 and args.predictions:
        per_class.write_predictions(Path(args.predictions), classes, files, rows.tolist())
