"""ImageNet evaluation: schedules and loss against SPEC, and the script on a small tree of image folders."""
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from scripts import (
    MEASURED,
    ROOT,
    by_hand,
    children,
    epochs_done,
    error_line,
    figures,
    metrics,
    run,
    snapshot,
    start,
    the_run,
    together,
)
from torch import nn

import engine
import genotypes
import train_imagenet
from harness.runs import Run
from input_pipeline import imagenet
from model import NetworkImageNet

SCRIPT = "train_imagenet.py"
EPOCHS = 6  # the linear schedule needs more than 5
CLASSES = ("ant", "bee", "cow")
TINY = shlex.split("--init_channels 4 --layers 3 --image_size 32 --device cpu")
ONCE = [*TINY, "--epochs", 1, "--lr_scheduler", "cosine", "--batch_size", 8, "--workers", 0]
# What a person can do about it: every message has one of these words.
MEND = re.compile(r"did you mean|leave|omit|fix|set |reduce |give|use |names?[ :]|"
                  r"choose|lower|add |put |replace|make|must|say |check|lists")


# ---- schedules, loss (SPEC section 4)

def options(monkeypatch, *words):
    """The command line, parsed as the script does it."""
    monkeypatch.setattr("sys.argv", [SCRIPT, "--tmp_data_dir", "DIR", *map(str, words)])
    return train_imagenet.parse_args()


def linear(lr, e, E):
    return lr * (E - 5 - e) / (E - 5) if E - e > 5 else lr * (E - e) / (5 * (E - 5))


def cosine(lr, e, E):
    return lr * (1 + math.cos(math.pi * e / E)) / 2


def warmed_up(lr, e):
    return lr * (e + 1) / 5 if e < 5 else lr


@pytest.mark.parametrize("scheduler, formula", [("linear", linear), ("cosine", cosine)])
@pytest.mark.parametrize("batch, lr, warm_up", [
    ([], 0.5, True), (["--batch_size", 1024], 0.5, True), (["--batch_size", 256], 0.1, False),
    (["--batch_size", 257, "--learning_rate", 0.3], 0.3, True),
    (["--batch_size", 64, "--learning_rate", 0.2], 0.2, False)])
def test_learning_rate_follows_the_formulas_in_all_250_epochs(monkeypatch, scheduler, formula, batch, lr, warm_up):
    args = options(monkeypatch, *batch, "--lr_scheduler", scheduler)
    assert args.epochs == 250
    for e in range(250):
        expected = warmed_up(formula(lr, e, 250), e) if warm_up else formula(lr, e, 250)
        assert train_imagenet.learning_rate(args, e) == pytest.approx(expected, rel=1e-12, abs=1e-15), e


@pytest.mark.parametrize("epochs", [6, 7, 10, 11])
def test_learning_rate_of_short_runs_follows_the_formulas(monkeypatch, epochs):
    args = options(monkeypatch, "--epochs", epochs)
    for e in range(epochs):
        expected = warmed_up(linear(0.5, e, epochs), e)
        assert train_imagenet.learning_rate(args, e) == pytest.approx(expected, rel=1e-12)


def test_defaults_are_the_papers(monkeypatch):
    args = options(monkeypatch)
    assert (args.init_channels, args.layers, args.image_size, args.epochs) == (48, 14, 224, 250)
    assert (args.learning_rate, args.batch_size, args.lr_scheduler) == (pytest.approx(0.5), 1024, "linear")
    assert (args.momentum, args.weight_decay, args.grad_clip) == (0.9, 3e-5, 5)
    assert (args.label_smooth, args.auxiliary_weight, args.drop_path_prob, args.arch) == (0.1, 0.4, 0, "PDARTS")
    assert options(monkeypatch, "--batch_size", "256").learning_rate == pytest.approx(0.1)


class Constant(nn.Module):
    """A network that gives every image the same logits; the auxiliary head's are others."""
    logits = [1.0, 0.0, -2.0]
    logits_aux = [0.0, 0.5, 3.0]

    def __init__(self, C, num_classes, layers, auxiliary, genotype):
        super().__init__()
        self.classifier = nn.Linear(3, 1, bias=False)
        self.classifier.weight.data = torch.tensor([self.logits])
        self.auxiliary = auxiliary

    def forward(self, images):
        logits_aux = torch.tensor([self.logits_aux]) if self.auxiliary and self.training else None
        return tuple(x if x is None else x.expand(len(images), 3) for x in (self.classifier.weight, logits_aux))


def smoothed(logits, target, epsilon):
    """The published loss: -sum_c q_c log p_c with q = (1 - epsilon) onehot + epsilon / number of classes."""
    log_p = [z - math.log(sum(map(math.exp, logits))) for z in logits]
    return -sum(((1 - epsilon) * (c == target) + epsilon / len(logits)) * log_p[c] for c in range(len(logits)))


def write_images(root, train, val, classes=CLASSES, size=(40, 36)):
    """Image folders of noise: `train` and `val` images of each class, the first class having one more to train."""
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count + (split == "train" and name == classes[0])):
                Image.fromarray(random.integers(256, size=(*size, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return root


@pytest.mark.parametrize("words, epsilon", [("", 0.1), ("--label_smooth 0.4", 0.4), ("--label_smooth 0", 0)])
@pytest.mark.parametrize("auxiliary", [False, True])
def test_the_script_trains_on_the_smoothed_loss_and_tests_on_the_plain_one(
        monkeypatch, tmp_path, words, epsilon, auxiliary):
    """On a network of constant logits that learns nothing, at 3, 2 and 2 training images of the classes."""
    write_images(tmp_path, train=2, val=1, size=(8, 8))
    monkeypatch.setattr(train_imagenet, "NetworkImageNet", Constant)
    monkeypatch.setattr(engine, "log_start", lambda *args: None)
    monkeypatch.setattr(engine, "try_to_draw", lambda *args: None)
    monkeypatch.setattr(Run, "open", lambda kind, args, device, state: Run(kind, tmp_path, args, device, state))
    args = options(monkeypatch, *words.split(), *ONCE, "--learning_rate", 0, "--tmp_data_dir", tmp_path,
                   *(["--auxiliary", "--image_size", "193"] if auxiliary else []))
    train_imagenet.main(args)
    record, = metrics(tmp_path)
    counts = [3, 2, 2]
    assert record["test_loss"] == pytest.approx(sum(smoothed(Constant.logits, c, 0) for c in range(3)) / 3, rel=1e-5)
    assert (record["test_acc"], record["test_acc_top5"]) == pytest.approx((100 / 3, 100))
    expected = sum(n * (smoothed(Constant.logits, c, epsilon) + 0.4 * auxiliary *
                        smoothed(Constant.logits_aux, c, epsilon)) for c, n in enumerate(counts)) / 7
    assert record["train_loss"] == pytest.approx(expected, rel=1e-5)


def test_the_drop_path_probability_rises_linearly_if_it_is_not_zero(monkeypatch, tmp_path):
    write_images(tmp_path, train=2, val=1, size=(8, 8))
    rows = []
    for name in ("log_start", "train_one_epoch", "test", "report"):
        monkeypatch.setattr(engine, name, lambda *args, **kwargs: {})
    monkeypatch.setattr(Run, "open", lambda kind, args, device, state: Run(kind, tmp_path, args, device, state))
    monkeypatch.setattr(engine, "end_epoch", lambda run, network, record: rows.append(
        (network.drop_path_prob, record["drop_path_prob"], run.parts["optimizer"].param_groups[0]["lr"])))
    args = options(monkeypatch, *TINY, "--tmp_data_dir", tmp_path, "--drop_path_prob", 0.2, "--workers", 0)
    train_imagenet.main(args)
    assert rows == [pytest.approx((0.2 * e / 250, 0.2 * e / 250, warmed_up(linear(0.5, e, 250), e)), abs=1e-15)
                    for e in range(250)]


# ---- what runs start from

@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """ROOT/imagenet/{train,val}: 3 classes of 4 (one of 5) images to train and 2 to validate."""
    root = tmp_path_factory.mktemp("images")
    write_images(root / "imagenet", train=4, val=2)
    return root


def options_for(images, save, workers=0):
    """Two steps an epoch on 13 images of 40x36, cropped to 32x32."""
    return [*TINY, "--tmp_data_dir", images, "--batch_size", 8, "--epochs", EPOCHS, "--drop_path_prob", 0.2,
            "--report_freq", 1, "--seed", 3, "--workers", workers, "--save", save]


@pytest.fixture(scope="module")
def undisturbed(images, tmp_path_factory):
    """A run on images(), without workers, that nobody stopped: its run directory and how it ended."""
    save = tmp_path_factory.mktemp("undisturbed")
    outcome = run(SCRIPT, *options_for(images, save), "--note", "calm", change=figures)
    assert outcome.code == 0, outcome
    return the_run(save), outcome


@pytest.fixture(scope="module")
def stopped(images, tmp_path_factory):
    """The same run with two workers, stopped by SIGTERM."""
    return stop(images, tmp_path_factory.mktemp("stopped"), signal.SIGTERM)


def stop(images, save, number):
    """A run with two workers, stopped by a signal, to them too, after its first epoch: its directory and its end."""
    process = start(SCRIPT, *options_for(images, save, workers=2))
    process.wait_until(lambda: any(save.iterdir()) and epochs_done(the_run(save)) >= 1)
    workers = children(process.pid)
    assert len(workers) >= 2
    for pid in (*workers, process.pid):
        os.kill(pid, number)
    return the_run(save), process.wait()


def weights(path):
    return torch.load(path, weights_only=True)


def assert_same_result(run_dir, expected):
    """Everything that two runs computed is equal, bit for bit."""
    assert metrics(run_dir) == metrics(expected)
    for name in ("weights.pt", "best.pt"):
        one, other = weights(run_dir / name), weights(expected / name)
        assert list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one), name
    assert (run_dir / "genotype.json").read_bytes() == (expected / "genotype.json").read_bytes()
    assert not list(run_dir.glob("*.tmp"))


# ---- the best epoch chosen by images that are held out

def test_a_fraction_of_the_image_files_is_held_out(images, tmp_path):
    outcome = run(SCRIPT, *options_for(images, tmp_path), "--valid_portion", 0.25)
    assert outcome.code == 0, outcome
    *records, last = metrics(the_run(tmp_path))
    assert all("valid_acc" in record and "test_acc" not in record for record in records)
    for record in [*records, last]:  # one of the images of each of 3 classes
        assert record["valid_acc"] * 3 / 100 == pytest.approx(round(record["valid_acc"] * 3 / 100))
    best = max(record["valid_acc"] for record in [*records, last])
    assert f"chosen by its validation accuracy of {best:.2f}%" in outcome.err
    assert f"last {last['test_acc']:.2f}%" in outcome.err and f"best {last['best_test_acc']:.2f}%" in outcome.err
    assert f"validation accuracy last {last['valid_acc']:.2f} %" in (the_run(tmp_path) / "report.html").read_text()


@pytest.mark.parametrize("ranks", [1, 2])
def test_held_out_files_are_read_without_augmentation_and_never_trained_on(ranks, images):
    def loaders(rank, portion=0.25):
        return imagenet.loaders(str(images), 32, 4, 0, 7, "cpu", rank, ranks, valid_portion=portion)
    parts = [loaders(rank)[0] for rank in range(ranks)]
    everything = loaders(0, None)[0].dataset.samples
    trained = parts[0].dataset.samples
    held_out = [sample for part in parts for sample in part.held_out.dataset.samples]
    assert sorted(held_out + trained) == everything and [label for _, label in sorted(held_out)] == [0, 1, 2]
    first, again = ([batch for batch, _ in parts[0].held_out] for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, again))


# ---- what a run leaves

def test_a_run_directory_holds_log_options_metrics_checkpoint_cell_and_both_weights(undisturbed):
    run_dir, _ = undisturbed
    assert re.fullmatch(r"imagenet-calm-\d{8}-\d{6}", run_dir.name)
    assert {"log.txt", "args.json", "metrics.jsonl", "checkpoint.pt", "genotype.json", "weights.pt",
            "best.pt"} <= {path.name for path in run_dir.iterdir()}
    args = json.loads((run_dir / "args.json").read_text())["args"]
    assert (args["arch"], args["lr_scheduler"], args["label_smooth"]) == ("PDARTS", "linear", 0.1)
    assert genotypes.load(str(run_dir)) == genotypes.load("PDARTS")
    assert weights(run_dir / "weights.pt")["classifier.bias"].shape == (3,)


def test_metrics_have_one_object_per_epoch_with_all_fields(undisturbed):
    run_dir, _ = undisturbed
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == list(range(EPOCHS))
    for e, record in enumerate(records):
        assert {"epoch", "lr", "drop_path_prob", "train_loss", "train_acc", "test_loss", "test_acc", "test_acc_top5",
                *MEASURED} == set(record)
        assert all(math.isfinite(value) for value in record.values())
        assert record["lr"] == pytest.approx(linear(0.1 * 8 / 256, e, EPOCHS))  # no warm-up below 256
        assert record["drop_path_prob"] == pytest.approx(0.2 * e / EPOCHS)
        assert record["test_acc_top5"] == 100  # of 3 classes
        assert record["test_acc"] * 6 / 100 == pytest.approx(round(record["test_acc"] * 6 / 100))  # of 6 images
        assert record["images_per_second"] * record["seconds"] == pytest.approx(13)


def test_the_log_names_device_and_sizes_and_the_last_lines_last_and_best_accuracy(undisturbed):
    run_dir, outcome = undisturbed
    text = (run_dir / "log.txt").read_text()
    first, network = text.splitlines()[2], NetworkImageNet(4, 3, 3, False, genotypes.load("PDARTS"))
    assert "CPU" in first and f"{sum(p.numel() for p in network.parameters()):,} parameters" in first
    assert re.search(r"multiply-adds at 32x32.* published convention", first)
    assert re.findall(r"epoch 5 step (\d)", text) == ["1", "2"]
    accuracies = [record["test_acc"] for record in metrics(run_dir)]
    last_lines = "\n".join((outcome.out + outcome.err).splitlines()[-2:])
    assert f"last {accuracies[-1]:.2f}%" in last_lines and f"best {max(accuracies):.2f}%" in last_lines


def evaluated(images, path, *words):
    """What `--eval --weights path` prints: top-1, top-5, loss."""
    outcome = run(SCRIPT, *TINY, *words, "--tmp_data_dir", images, "--eval", "--weights", path,
                  "--save", path.parent / "none")
    assert outcome.code == 0, outcome
    assert not (path.parent / "none").exists()
    line, = [line for line in (outcome.out + outcome.err).splitlines() if "accuracy" in line]
    return re.findall(r"\d+\.\d+", line)


def test_eval_of_the_weights_reports_the_accuracy_of_the_run(images, undisturbed, tmp_path):
    run_dir, _ = undisturbed
    records = metrics(run_dir)
    best = max(records, key=lambda record: record["test_acc"])  # the first of equal ones
    last, best = ([f"{record['test_acc']:.2f}", f"{record['test_acc_top5']:.2f}", f"{record['test_loss']:.4f}"]
                  for record in (records[-1], best))
    assert evaluated(images, run_dir / "weights.pt", "--workers", 0) == last
    state = {f"module.{name}": value for name, value in weights(run_dir / "best.pt").items()}
    torch.save({"state_dict": state, "epoch": 250}, tmp_path / "theirs.pth.tar")
    theirs = evaluated(images / "imagenet", tmp_path / "theirs.pth.tar", "--batch_size", 5, "--workers", 2)
    assert theirs == best


def test_eval_refuses_weights_of_another_class_count(images, tmp_path):
    torch.save(NetworkImageNet(4, 1000, 3, False, genotypes.load("PDARTS")).state_dict(), tmp_path / "w.pt")
    message = assert_refused(1, "w.pt", "--eval", "--weights", tmp_path / "w.pt", images=images, save=tmp_path / "runs")
    assert "classifier" in message


# ---- other ways to train

def test_the_published_command_works_word_for_word_with_the_auxiliary_head_at_224x224(tmp_path):
    write_images(tmp_path / "DIR", train=1, val=1)  # without a folder `imagenet`
    published = "--tmp_data_dir DIR --save log_path --auxiliary --note note_of_this_run"
    outcome = run(SCRIPT, *shlex.split(published), "--init_channels", 4, "--layers", 3, "--epochs", 1,
                  "--lr_scheduler", "cosine", "--device", "cpu", "--workers", 1, cwd=tmp_path)
    assert outcome.code == 0, outcome
    run_dir = the_run(tmp_path / "log_path")
    assert run_dir.name.startswith("imagenet-note_of_this_run-") and "at 224x224" in outcome.err
    args, state = json.loads((run_dir / "args.json").read_text())["args"], weights(run_dir / "weights.pt")
    assert (args["batch_size"], args["learning_rate"], args["auxiliary"]) == (1024, pytest.approx(0.5), True)
    assert state["classifier.bias"].shape == state["auxiliary_head.classifier.bias"].shape == (3,)
    assert metrics(run_dir)[0]["lr"] == pytest.approx(0.5 / 5)  # warming up


def test_cosine_bf16_and_another_cell_reach_the_run(images, tmp_path):
    outcome = run(SCRIPT, *ONCE, *shlex.split(
        "--arch random:1 --amp bf16 --epochs 2 --learning_rate 0.3 --batch_size 300 --momentum 0.8 --weight_decay 1e-4 "
        "--grad_clip 4 --label_smooth 0.2 --auxiliary_weight 0.5"), "--tmp_data_dir", images, "--save", tmp_path)
    assert outcome.code == 0, outcome
    run_dir = the_run(tmp_path)
    assert [r["lr"] for r in metrics(run_dir)] == pytest.approx([warmed_up(cosine(0.3, e, 2), e) for e in range(2)])
    assert genotypes.load(str(run_dir)) == genotypes.load("random:1")
    group, = weights(run_dir / "checkpoint.pt")["optimizer"]["param_groups"]
    assert (group["momentum"], group["weight_decay"]) == (0.8, 1e-4)


def test_an_auxiliary_head_is_refused_on_images_too_small_for_it(images, tmp_path):
    assert_refused(1, "192", "--auxiliary", "--image_size", 192, images=images, save=tmp_path / "runs")


# ---- kill, stop, continue

def continuation(outcome, code=143):
    """The command that a stopped run names in its last line, without `python`."""
    assert outcome.code == code and "Traceback" not in outcome.err
    command = shlex.split(outcome.err.splitlines()[-1].split(": ")[-1])
    assert command[0] == "python"
    return command[1:]


def test_sigterm_ends_a_run_with_workers_with_status_143_and_a_command_that_continues_it(stopped, undisturbed):
    run_dir, outcome = stopped
    assert epochs_done(run_dir) < EPOCHS and not (run_dir / "weights.pt").exists()
    command = continuation(outcome)
    assert command[-2:] == ["--resume", str(run_dir)]
    outcome = run(*command)  # as it stands, nothing added
    assert outcome.code == 0, outcome
    assert_same_result(run_dir, undisturbed[0])  # whose images were read without workers


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGUSR2"])
def test_a_clusters_warning_to_all_processes_ends_a_run_likewise(name, images, undisturbed, tmp_path):
    number = signal.Signals[name]
    run_dir, outcome = stop(images, tmp_path, number)
    command = continuation(outcome, 128 + number)
    assert epochs_done(run_dir) < EPOCHS and f"stopped by {name}" in outcome.err
    assert run(*command).code == 0
    assert_same_result(run_dir, undisturbed[0])


def test_a_run_killed_at_any_moment_continues_to_the_same_result(images, undisturbed, tmp_path):
    process = start(SCRIPT, *options_for(images, tmp_path))
    process.wait_until(lambda: list(tmp_path.glob("*/args.json")))  # before there is anything to continue from
    for lines, seconds, workers in [(0, 0, 2), (1, 0.02, 0), (3, 0.01, 0)]:  # lines in metrics.jsonl, seconds after
        process.wait_until(lambda: epochs_done(the_run(tmp_path)) >= lines)  # noqa: B023
        time.sleep(seconds)
        process.signal(signal.SIGKILL)
        assert process.wait().code == -signal.SIGKILL
        done = epochs_done(the_run(tmp_path))
        assert not done or metrics(the_run(tmp_path)) == metrics(undisturbed[0])[:done]
        process = start(SCRIPT, "--tmp_data_dir", images, "--resume", the_run(tmp_path), "--workers", workers)
    outcome = process.wait()
    assert outcome.code == 0, outcome
    assert_same_result(the_run(tmp_path), undisturbed[0])


@pytest.mark.parametrize("option", ["--epochs 9", "--lr_scheduler cosine", "--label_smooth 0", "--image_size 64",
                                    "--batch_size 4"])
def test_options_that_would_change_the_run_are_refused_on_resume(images, undisturbed, option):
    run_dir, _ = undisturbed
    before = snapshot(run_dir)
    outcome = run(SCRIPT, "--tmp_data_dir", images, "--resume", run_dir, *option.split())
    assert option.split()[0] in error_line(outcome, code=2)
    assert outcome.err.count("\n") == 1 and snapshot(run_dir) == before


# ---- bad input

def assert_refused(code, value, *options, images, save):
    """One line that names the value and a mend, the exit status, and no run directory; the line."""
    outcome = run(SCRIPT, *ONCE, "--tmp_data_dir", images, *options, "--save", save)
    message = error_line(outcome, code)
    assert str(value) in message, message
    assert MEND.search(message.replace(str(value), "")), message
    assert sum(" per class" not in line for line in outcome.err.splitlines()) == 1, outcome.err  # what folders hold
    assert not save.exists() or not list(save.iterdir())
    return message


@pytest.mark.parametrize("options, value", [
    ("--lr_scheduler cosin", "cosin"), ("--lr_scheduler Linear", "Linear"), ("--lr_scheduler linear", "--lr_scheduler"),
    ("--label_smooth 1", "1"), ("--label_smooth nan", "nan"), ("--learning_rate -1", "-1"), ("--workers -1", "-1"),
    ("--image_size 31", "31"), ("--eval", "--weights"), ("--label_smoothing 0.1", "--label_smooth"),
    ("--lr_schedule linear", "--lr_scheduler")])
def test_a_command_line_that_makes_no_sense_is_refused(images, tmp_path, options, value):
    assert_refused(2, value, *options.split(), images=images, save=tmp_path / "runs")


def test_a_run_without_a_data_folder_is_a_usage_error(tmp_path):
    outcome = run(SCRIPT, *ONCE, "--save", tmp_path / "runs")
    assert "--tmp_data_dir" in error_line(outcome, code=2) and not (tmp_path / "runs").exists()


def test_an_unknown_cell_is_refused_with_the_near_ones(images, tmp_path):
    assert "PDARTS" in assert_refused(1, "PDART'", "--arch", "PDART", images=images, save=tmp_path / "runs")


def missing(root):
    shutil.rmtree(root)
    return root


def without_val(root):
    shutil.rmtree(root / "val")
    return root


def without_images(root):
    for path in (root / "train" / "bee").iterdir():
        path.unlink()
    return "bee"


def other_classes(root):
    (root / "val" / "cow").rename(root / "val" / "dog")
    return "cow"


def class_more(root):
    shutil.copytree(root / "val" / "cow", root / "val" / "dog")
    return "dog"


@pytest.mark.parametrize("damage", [missing, without_val, without_images, other_classes, class_more])
@pytest.mark.parametrize("place", ["", "imagenet"])
def test_folders_that_are_missing_or_differ_in_their_classes_are_refused_by_name(images, tmp_path, damage, place):
    root = shutil.copytree(images / "imagenet", tmp_path / "DIR" / place)
    value = damage(root)
    if damage is missing and place:
        value = tmp_path / "DIR"
    assert_refused(1, value, images=tmp_path / "DIR", save=tmp_path / "runs")


def test_a_validation_folder_may_lack_classes_and_the_run_says_which(images, tmp_path):
    root = shutil.copytree(images / "imagenet", tmp_path / "DIR")
    shutil.rmtree(root / "val" / "ant")
    outcome = run(SCRIPT, *ONCE, "--tmp_data_dir", root, "--save", tmp_path / "runs")
    assert outcome.code == 0, outcome
    assert f"{root / 'val'} lacks 1 of 3 training classes: ant\n" in outcome.err
    assert weights(the_run(tmp_path / "runs") / "weights.pt")["classifier.bias"].shape == (3,)
    record, = metrics(the_run(tmp_path / "runs"))
    assert record["test_acc"] * 4 / 100 == pytest.approx(round(record["test_acc"] * 4 / 100))  # of 4 images


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_corrupt_image_is_named_also_by_a_worker(images, tmp_path, split, workers):
    root = shutil.copytree(images / "imagenet", tmp_path / "DIR")
    path = root / split / "bee" / "1.png"
    path.write_bytes(path.read_bytes()[:60])
    outcome = run(SCRIPT, *ONCE, "--tmp_data_dir", root, "--workers", workers, "--save", tmp_path / "runs")
    message = error_line(outcome, code=1)
    assert f"{path}: " in message and MEND.search(message)


def test_a_line_break_in_the_name_of_a_corrupt_image_leaves_one_line(images, tmp_path):
    root = shutil.copytree(images / "imagenet", tmp_path / "DIR")
    (root / "train" / "bee" / "two\nlines.png").write_bytes(b"")
    outcome = run(SCRIPT, *ONCE, "--tmp_data_dir", root, "--save", tmp_path / "runs")
    assert "two lines.png: empty" in error_line(outcome, code=1) and "continue with" in outcome.err


def damage(path):
    """Cut an image's file off; what it held."""
    content = path.read_bytes()
    path.write_bytes(content[:60])
    return content


def continuation_after(outcome, path):
    """The command that a run names which has met a bad image, without `python`."""
    message = error_line(outcome, code=1)
    assert message.startswith(f"error: cannot read image {path}: ") and message.count("cannot read") == 1
    command = shlex.split(message.split("; continue with: ")[1])
    assert command[0] == "python"
    return command[1:]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("image, steps", [("train/cow/0.png", 0), ("train/ant/0.png", 1), ("val/bee/1.png", 2)])
def test_after_a_bad_image_the_run_goes_on_in_the_middle_of_its_epoch(
        images, undisturbed, tmp_path, image, steps, workers):
    root = shutil.copytree(images, tmp_path / "DIR")
    path = root / "imagenet" / image
    content = damage(path)
    outcome = run(SCRIPT, *options_for(root, tmp_path / "runs", workers))
    run_dir = the_run(tmp_path / "runs")
    state = weights(run_dir / "checkpoint.pt")
    assert (state["epoch"], state["meter"]["steps"]) == (0, steps) and "Traceback" not in outcome.err
    command = continuation_after(outcome, path)
    again = run(*command)  # not mended yet: the same, and nothing is lost
    assert continuation_after(again, path) == command and weights(run_dir / "checkpoint.pt")["meter"]["steps"] == steps
    path.write_bytes(content)
    outcome = run(*command)
    assert outcome.code == 0, outcome
    assert_same_result(run_dir, undisturbed[0])


def options_for_two(images, save):
    """Those of two processes, which share two epochs."""
    return [*options_for(images, save), "--epochs", 2, "--lr_scheduler", "cosine"]


@pytest.fixture(scope="module")
def calm(images, tmp_path_factory):
    """The run directory of two processes that nobody disturbed."""
    save = tmp_path_factory.mktemp("calm")
    outcomes = together(SCRIPT, *options_for_two(images, save), environments=by_hand(2))
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    return the_run(save)


@pytest.mark.parametrize("image", ["train/bee/1.png", "val/bee/1.png"])
def test_a_bad_image_of_one_process_stops_all_and_they_go_on_together(images, calm, tmp_path, image):
    root = shutil.copytree(images, tmp_path / "DIR")
    path = root / "imagenet" / image
    content = damage(path)
    first, second = together(SCRIPT, *options_for_two(root, tmp_path / "runs"), environments=by_hand(2))
    command = continuation_after(first, path)
    assert second.code == 1 and "error: " not in second.err, second  # one line, by rank 0
    path.write_bytes(content)
    outcomes = together(*command, environments=by_hand(2))
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    assert_same_result(the_run(tmp_path / "runs"), calm)


def test_eval_takes_one_image_at_a_time(images, undisturbed):
    run_dir, _ = undisturbed
    one = evaluated(images, run_dir / "weights.pt", "--batch_size", 1, "--workers", 0)
    assert one[:2] == evaluated(images, run_dir / "weights.pt", "--workers", 0)[:2]


def test_eval_with_a_bad_image_is_one_line_without_a_run_to_continue(images, undisturbed, tmp_path):
    root = shutil.copytree(images, tmp_path / "DIR")
    damage(root / "imagenet" / "val" / "bee" / "1.png")
    weights_file = undisturbed[0] / "weights.pt"
    message = assert_refused(1, "bee/1.png", "--eval", "--weights", weights_file, images=root, save=tmp_path / "runs")
    assert "continue" not in message


SMALL_SHM = 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"'  # in a namespace of its own, as in a container


def with_little_shared_memory(*command):
    return subprocess.run(["unshare", "-Urm", "sh", "-c", SMALL_SHM, "sh", *map(str, command)],
                          capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("unshare") or with_little_shared_memory("true").returncode != 0,
                    reason="no namespaces here")
def test_too_little_shared_memory_names_workers_and_shm_size(images, tmp_path):
    options = [*ONCE, "--image_size", 224, "--tmp_data_dir", images, "--workers", 1, "--save", tmp_path]
    done = with_little_shared_memory(sys.executable, ROOT / SCRIPT, *options)
    line = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "--workers" in line and "--shm-size" in line, done.stderr
    assert f"--resume {the_run(tmp_path)}" in line and "Traceback" not in done.stderr


@pytest.mark.parametrize("number, words", [(signal.SIGBUS, ["--workers", "--shm-size"]),
                                           (signal.SIGKILL, ["--workers", "memory"])])
def test_a_worker_that_dies_is_one_line_and_the_run_can_go_on(images, undisturbed, tmp_path, number, words):
    process = start(SCRIPT, *options_for(images, tmp_path, workers=2))
    process.wait_until(lambda: any(tmp_path.iterdir()) and epochs_done(the_run(tmp_path)) >= 1)
    os.kill(children(process.pid)[-1], number)
    outcome = process.wait()
    message = error_line(outcome, 1)
    assert all(word in message for word in words) and f"--resume {the_run(tmp_path)}" in message
    outcome = run(SCRIPT, "--resume", the_run(tmp_path), "--workers", 0)
    assert outcome.code == 0, outcome
    assert_same_result(the_run(tmp_path), undisturbed[0])


def test_one_image_per_process_is_refused_before_a_run_directory_is_made(images, tmp_path):
    assert_refused(1, "at least 2 per rank", "--batch_size", 1, images=images, save=tmp_path / "runs")


def test_a_folder_of_one_image_is_refused(tmp_path):
    write_images(tmp_path / "DIR", train=0, val=1, classes=["ant"])
    assert_refused(1, "only one class folder, ant", images=tmp_path / "DIR", save=tmp_path / "runs")


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(images, tmp_path):
    outcome = run(SCRIPT, *options_for(images, tmp_path), "--learning_rate", "1e30")
    message = error_line(outcome, code=1)
    assert re.search(r"epoch 0, step 2", message) and "--learning_rate" in message
    assert not list(tmp_path.rglob("*.pt"))
