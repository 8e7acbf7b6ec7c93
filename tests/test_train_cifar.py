"""CIFAR evaluation: the schedule against SPEC, and the script as people run and stop it."""
import json
import math
import os
import re
import shlex
import shutil
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from scripts import (
    MEASURED,
    ROOT,
    behind,
    by_hand,
    epochs_done,
    error_line,
    figures,
    metrics,
    run,
    snapshot,
    start,
    the_run,
    together,
    write_images,
)
from test_train_search import ANY_CIFAR, write_cifar
from test_weights import missing, no_weights, numbers_for_names, of_a_supernet, of_another_cell, prefixed

import engine
import genotypes
import train_cifar
import utils
from harness.runs import Run
from input_pipeline import load
from model import NetworkCIFAR

EPOCHS = 6  # of the runs on images()
TINY = shlex.split("--init_channels 2 --layers 3 --device cpu")
ONCE = [*TINY, "--epochs", 1]
# What a person can do about it: every message has one of these words.
MEND = re.compile(r"did you mean|leave|omit|fix|set |reduce |give|use |names?[ :]|"
                  r"choose|lower|add |put |replace|make|must|check|train |go ")


# ---- schedule (SPEC section 3)

def test_learning_rate_and_drop_path_follow_the_formulas_in_all_600_epochs(monkeypatch, tmp_path):
    """The script's own loop, with nothing trained: what an epoch would have started with."""
    rows = []

    def end_epoch(run, network, record):
        group, = run.parts["optimizer"].param_groups
        rows.append((group["lr"], network.drop_path_prob))
        assert (record["epoch"], record["lr"], record["drop_path_prob"]) == (len(rows) - 1, *rows[-1])
        assert (group["momentum"], group["weight_decay"]) == (0.9, 3e-4)

    for name in ("log_start", "train_one_epoch", "test", "report"):
        monkeypatch.setattr(engine, name, lambda *args: {})
    monkeypatch.setattr(engine, "end_epoch", end_epoch)
    monkeypatch.setattr(Run, "open", lambda kind, args, device, state: Run(kind, tmp_path, args, device, state))
    monkeypatch.setattr("sys.argv", ["train_cifar.py", "--init_channels", "2", "--layers", "1", "--device", "cpu"])
    train_cifar.main(train_cifar.parse_args())
    assert rows == [pytest.approx((0.025 * (1 + math.cos(math.pi * e / 600)) / 2, 0.3 * e / 600), abs=1e-15)
                    for e in range(600)]
    assert rows[0] == (0.025, 0)


def test_defaults_are_the_papers():
    args = train_cifar.get_args_parser().parse_args([])
    assert (args.init_channels, args.layers, args.epochs, args.batch_size) == (36, 20, 600, 128)
    assert (args.learning_rate, args.momentum, args.weight_decay, args.grad_clip) == (0.025, 0.9, 3e-4, 5)
    assert (args.auxiliary_weight, args.drop_path_prob, args.arch) == (0.4, 0.3, "PDARTS")


# ---- what runs start from

@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), val=5)


def folder_options(images, save):
    return ["--dataset", "folder", "--tmp_data_dir", images, "--image_size", 8, "--batch_size", 8, "--save", save]


def options_for(images, save):
    """Three steps an epoch in which everything random takes part: crops, flips, cutout, drop path."""
    return [*TINY, *folder_options(images, save), "--cutout", "--epochs", EPOCHS, "--seed", 4]


@pytest.fixture(scope="module")
def undisturbed(images, tmp_path_factory):
    """The run directory of a run on images() that nobody stopped."""
    save = tmp_path_factory.mktemp("undisturbed")
    outcome = run("train_cifar.py", *options_for(images, save))
    assert outcome.code == 0, outcome
    return the_run(save)


@pytest.fixture(scope="module")
def stopped(images, tmp_path_factory):
    """The same run stopped by SIGTERM after its first epoch: its run directory and how it ended."""
    save = tmp_path_factory.mktemp("stopped")
    script = start("train_cifar.py", *options_for(images, save))
    script.wait_until(lambda: any(save.iterdir()) and epochs_done(the_run(save)) >= 1)
    script.signal(signal.SIGTERM)
    return the_run(save), script.wait()


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Three epochs on digits: the run directory and how it ended."""
    save = tmp_path_factory.mktemp("digits")
    outcome = run("train_cifar.py", *TINY, "--epochs", 3, "--batch_size", 325, "--report_freq", 2, "--save", save,
                  change=figures)
    assert outcome.code == 0, outcome
    return the_run(save), outcome


def saved(path):
    return torch.load(path, weights_only=True)


def assert_same_tensors(one, other):
    assert list(one) == list(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


def assert_same_result(run_dir, expected):
    """Everything that two runs computed is equal, bit for bit."""
    assert metrics(run_dir) == metrics(expected)
    for name in ("weights.pt", "best.pt"):
        assert_same_tensors(saved(run_dir / name), saved(expected / name))
    one, other = (saved(path / "checkpoint.pt") for path in (run_dir, expected))
    assert_same_tensors(one["network"], other["network"])
    momenta = [state["optimizer"]["state"] for state in (one, other)]
    assert all(torch.equal(momenta[0][i]["momentum_buffer"], momenta[1][i]["momentum_buffer"]) for i in momenta[1])
    assert (run_dir / "genotype.json").read_bytes() == (expected / "genotype.json").read_bytes()
    assert not list(run_dir.glob("*.tmp"))


def without_log(run_dir):
    """The files of a run that an error must leave as they are."""
    return {name: content for name, content in snapshot(run_dir).items() if name != "log.txt"}


# ---- what a run leaves

def test_a_run_directory_holds_log_options_metrics_checkpoint_cell_and_both_weights(digits):
    run_dir, _ = digits
    assert re.fullmatch(r"eval-try-\d{8}-\d{6}", run_dir.name)
    assert {"log.txt", "args.json", "metrics.jsonl", "checkpoint.pt", "genotype.json", "weights.pt",
            "best.pt"} <= {path.name for path in run_dir.iterdir()}
    record = json.loads((run_dir / "args.json").read_text())
    assert (record["args"]["dataset"], record["args"]["epochs"], record["args"]["arch"]) == ("digits", 3, "PDARTS")
    assert record["versions"]["torch"] == torch.__version__ and "CPU" in record["device"].upper()
    assert genotypes.load(str(run_dir)) == genotypes.load("PDARTS")


def test_metrics_have_one_object_per_epoch_with_all_fields(digits):
    run_dir, _ = digits
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [0, 1, 2]
    for e, record in enumerate(records):
        assert {"epoch", "lr", "drop_path_prob", "train_loss", "train_acc", "test_loss", "test_acc", "test_acc_top5",
                *MEASURED} == set(record)
        assert all(math.isfinite(value) for value in record.values())
        assert record["lr"] == pytest.approx(0.025 * (1 + math.cos(math.pi * e / 3)) / 2)
        assert record["drop_path_prob"] == pytest.approx(0.3 * e / 3)
        assert all(record[name] > 0 for name in ("train_loss", "test_loss", *MEASURED))
        assert 0 <= record["test_acc"] <= record["test_acc_top5"] <= 100
        assert 5 * record["test_acc"] == pytest.approx(round(5 * record["test_acc"]), abs=1e-9)  # of 500 images
        assert record["images_per_second"] * record["seconds"] == pytest.approx(1297)


def test_the_log_names_device_sizes_and_a_line_every_report_freq_steps(digits):
    run_dir, outcome = digits
    text = (run_dir / "log.txt").read_text()
    first = text.splitlines()[0]
    network = NetworkCIFAR(2, 10, 3, False, genotypes.load("PDARTS"))
    assert "CPU" in first and f"{sum(p.numel() for p in network.parameters()):,} parameters" in first
    assert re.search(r"multiply-adds.* published convention", first)
    assert re.findall(r"epoch 0 step (\d)", text) == ["2", "4"]  # 1297 images at 325 a step
    assert all(line.split(" ", 2)[2] in outcome.err for line in text.splitlines())


@pytest.mark.parametrize("arch, first, second", [
    (str(genotypes.load("random:4")), r"--arch pasted-[0-9a-f]{8} on 1 x ", ""),
    ("p-darts", "--arch p-darts on 1 x ", ""), ("darts", "darts: taken as DARTS_V2$", "--arch darts on 1 x ")])
def test_the_log_names_the_cell_shortly_and_holds_what_was_said_before_there_was_a_run(
        images, tmp_path, arch, first, second):
    outcome = run("train_cifar.py", *options_for(images, tmp_path), "--epochs", 1, "--arch", arch)
    assert outcome.code == 0, outcome
    text = (the_run(tmp_path) / "log.txt").read_text()
    lines = [line for line in text.splitlines() if " per class" not in line]  # without what the folders hold
    assert re.search(first, lines[0]) and re.search(second, lines[1]) and "Genotype(" not in lines[0] + outcome.err
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in lines)
    assert [line[20:] for line in text.splitlines()] == outcome.err.splitlines()  # each once, as on the screen


def labelled(outcome):
    """(last, best) test accuracy of the last lines printed."""
    text = "\n".join((outcome.out + outcome.err).splitlines()[-2:])
    return re.search(r"last ([\d.]+)%", text).group(1), re.search(r"best ([\d.]+)%", text).group(1)


def test_the_last_lines_have_last_and_best_accuracy_labelled(digits):
    run_dir, outcome = digits
    accuracies = [record["test_acc"] for record in metrics(run_dir)]
    assert labelled(outcome) == (f"{accuracies[-1]:.2f}", f"{max(accuracies):.2f}")


def evaluated(run_dir, path, *options):
    """What `--eval --weights path` prints for the digits run: accuracy, top-5, loss."""
    outcome = run("train_cifar.py", *TINY, *options, "--eval", "--weights", path, cwd=run_dir)
    assert outcome.code == 0, outcome
    line, = [line for line in (outcome.out + outcome.err).splitlines() if "accuracy" in line]
    return re.findall(r"\d+\.\d+", line)


def test_eval_of_the_weights_reports_the_accuracy_of_the_run(digits, tmp_path):
    run_dir, _ = digits
    records, before = metrics(run_dir), snapshot(run_dir.parent)
    best = max(records, key=lambda record: record["test_acc"])  # the first of equal ones
    rows = {name: [f"{record['test_acc']:.2f}", f"{record['test_acc_top5']:.2f}", f"{record['test_loss']:.4f}"]
            for name, record in (("weights.pt", records[-1]), ("best.pt", best))}
    assert evaluated(run_dir, "weights.pt") == rows["weights.pt"]
    assert evaluated(run_dir, run_dir / "checkpoint.pt", "--arch", run_dir) == rows["weights.pt"]
    torch.save({"state_dict": prefixed(saved(run_dir / "best.pt"))}, tmp_path / "theirs.pth.tar")
    assert evaluated(run_dir, tmp_path / "theirs.pth.tar", "--batch_size", "77") == rows["best.pt"]
    assert snapshot(run_dir.parent) == before  # a test leaves nothing


@pytest.mark.parametrize("make", [of_a_supernet, of_another_cell, no_weights, missing, numbers_for_names])
def test_eval_refuses_other_weights_with_one_line_and_status_1(make, tmp_path):
    word = make(tmp_path / "weights.pt")
    outcome = run("train_cifar.py", *TINY, "--eval", "--weights", tmp_path / "weights.pt", "--save", tmp_path / "runs")
    message = error_line(outcome, code=1)
    assert word in message and MEND.search(message) or word == "no such file"
    assert outcome.err.count("\n") == 1 and not (tmp_path / "runs").exists()


# ---- the best epoch chosen by images that are held out

@pytest.fixture(scope="module")
def held_out(images, tmp_path_factory):
    """A run that keeps a quarter of images() for validation, stopped once; and the same run with two ranks."""
    def save(name):
        return tmp_path_factory.mktemp(name)
    options = [*TINY, "--epochs", 3, "--seed", 4, "--valid_portion", 0.25]
    calm, late, two = save("calm"), save("late"), save("two")
    assert run("train_cifar.py", *options, *folder_options(images, calm)).code == 0
    script = start("train_cifar.py", *options, *folder_options(images, late))
    script.wait_until(lambda: any(late.iterdir()) and epochs_done(the_run(late)) >= 2)
    script.signal(signal.SIGTERM)
    if script.wait().code:
        assert run("train_cifar.py", "--resume", the_run(late)).code == 0
    ends = together("train_cifar.py", *options, *folder_options(images, two), environments=by_hand(2))
    assert [outcome.code for outcome in ends] == [0, 0], ends
    return the_run(calm), the_run(late), the_run(two)


def test_every_record_has_validation_and_only_the_last_one_the_test(held_out):
    for run_dir in held_out[::2]:
        *records, last = metrics(run_dir)
        assert all("valid_acc" in record and "valid_loss" in record and "test_acc" not in record for record in records)
        assert {"valid_acc", "test_acc", "test_loss", "test_acc_top5", "best_test_acc"} <= set(last)
        for record in [*records, last]:  # of 3 images per class
            assert record["valid_acc"] * 6 / 100 == pytest.approx(round(record["valid_acc"] * 6 / 100))


def test_what_was_stopped_ends_as_what_was_not(held_out):
    calm, late, _ = held_out
    assert_same_result(late, calm)


@pytest.mark.parametrize("which", [0, 2], ids=["one process", "two"])
def test_the_last_record_has_the_test_accuracy_of_both_weights(which, held_out, images):
    run_dir = held_out[which]
    last = metrics(run_dir)[-1]
    for name, key in (("weights.pt", "test_acc"), ("best.pt", "best_test_acc")):
        outcome = run("train_cifar.py", *TINY, *folder_options(images, run_dir), "--eval", "--weights", run_dir / name)
        assert f"{last[key]:.2f}% test accuracy" in outcome.err, outcome


def test_best_epoch_is_validations_and_the_test_set_is_opened_once(monkeypatch, tmp_path):
    """Accuracies are made up: what is evaluated, by which weights, and which are the best."""
    evaluated = []
    network = torch.nn.Linear(1, 1)
    kept = SimpleNamespace(args=SimpleNamespace(epochs=4), path=tmp_path, metrics=[],
                           state=engine.Best(), end_epoch=lambda record: kept.metrics.append(record))
    accuracies = {"valid": iter((50.0, 80.0, 80.0, 70.0)), "test": iter((60.0, 61.0))}

    def evaluate(network, batches, label):
        evaluated.append((batches, network.weight.item()))
        return 1.0, next(accuracies[batches]), 100.0

    monkeypatch.setattr(engine, "evaluate", evaluate)
    meter = SimpleNamespace(elapsed=lambda: 1.0)
    for epoch in range(4):
        network.weight.data.fill_(epoch)
        record = {"epoch": epoch} | engine.judge(kept, network, lambda: "valid", lambda: "test", epoch, meter)
        engine.end_epoch(kept, network, record)
    assert evaluated == [("valid", 0), ("valid", 1), ("valid", 2), ("valid", 3), ("test", 3), ("test", 1)]
    assert network.weight.item() == 3  # the last weights are kept
    assert (kept.state.best_epoch, kept.state.best_acc) == (1, 80)
    assert (kept.metrics[-1]["test_acc"], kept.metrics[-1]["best_test_acc"]) == (60, 61)


def test_the_held_out_images_are_neither_trained_on_nor_changed_by_the_seed(monkeypatch, tmp_path):
    found = []
    for name in ("log_start", "train_one_epoch", "end_epoch", "report"):
        monkeypatch.setattr(engine, name, lambda *args: {})
    monkeypatch.setattr(engine, "judge", lambda run, network, valid, test, *rest: found.append(
        (run.parts["batches"].images, torch.cat([images for images, _ in valid()]))) or {})
    monkeypatch.setattr(Run, "open", lambda kind, args, device, state: Run(kind, tmp_path, args, device, state))
    for seed in "12":
        monkeypatch.setattr("sys.argv", ["train_cifar.py", *map(str, ONCE), "--valid_portion", ".1", "--seed", seed])
        train_cifar.main(train_cifar.parse_args())
    (train, first), (_, second) = found
    assert torch.equal(first, second)
    everything = load("digits", "").train_images
    assert len(train) + len(first) == len(everything) and 120 <= len(first) <= 129
    # Together they are the training set: nothing is in both (equal digits are told apart by counting them).
    scale = (first[:, :1] - first.min()) / (first.max() - first.min()) * 255
    both = torch.cat([train, scale.round().to(torch.uint8)])
    assert torch.equal(both.flatten(1).unique(dim=0, return_counts=True)[1],
                       everything.flatten(1).unique(dim=0, return_counts=True)[1])


def test_a_portion_that_leaves_a_class_without_an_image_is_refused(images, tmp_path):
    outcome = run("train_cifar.py", *ONCE, *folder_options(images, tmp_path), "--valid_portion", 0.05)
    assert "--valid_portion 0.05 leaves no image of class bear (it has 12)" in error_line(outcome, code=1)
    assert not list(tmp_path.iterdir())


# ---- which cell

def test_arch_takes_a_search_run_and_a_random_cell(images, tmp_path):
    cell = genotypes.load("DARTS_V1")
    (tmp_path / "search-try-20300102-030405").mkdir()
    genotypes.save(cell, tmp_path / "search-try-20300102-030405" / "genotype.json")
    found = {}
    for arch in (tmp_path / "search-try-20300102-030405", "random:0"):  # names and files: see other tests
        save = tmp_path / f"runs{len(found)}"
        outcome = run("train_cifar.py", *ONCE, *folder_options(images, save), "--arch", arch)
        assert outcome.code == 0, outcome
        run_dir = the_run(save)
        found[str(arch)] = genotypes.load(str(run_dir))
        network = NetworkCIFAR(2, 2, 3, False, found[str(arch)])
        network.load_state_dict(saved(run_dir / "weights.pt"))  # what was trained is what is recorded
    drawn = found.pop("random:0")
    assert all(genotype == cell for genotype in found.values())
    assert drawn == genotypes.load("random:0") and drawn not in genotypes.PUBLISHED.values()


def assert_refused(code, value, *options, save):
    """One line that names the value and a mend, the exit status, and no run directory; the line."""
    outcome = run("train_cifar.py", *ONCE, *options, "--save", save)
    message = error_line(outcome, code)
    assert value in message, message
    assert MEND.search(message.replace(value, "")), message
    assert sum(" per class" not in line for line in outcome.err.splitlines()) == 1, outcome.err  # what folders hold
    assert not save.exists() or not list(save.iterdir())
    return message


def test_an_unknown_name_lists_the_near_ones(tmp_path):
    for name, near in (("PDART", {"PDARTS"}), ("DrNAS", {"DrNAS_cifar10", "DrNAS_imagenet"})):
        message = assert_refused(1, f"'{name}'", "--arch", name, save=tmp_path / "runs")
        assert near <= set(re.findall(r"\w+", message.split("similar names:")[1]))


def test_a_name_is_never_executed(tmp_path):
    assert_refused(1, "mkdir", "--arch", f"__import__('os').mkdir({str(tmp_path / 'executed')!r})",
                   save=tmp_path / "runs")
    assert not (tmp_path / "executed").exists()


def genotype_text(**changes):
    record = {"normal": [["sep_conv_3x3", 0], ["skip_connect", 1]] * 4, "normal_concat": [2, 3, 4, 5],
              "reduce": [["max_pool_3x3", 0], ["max_pool_3x3", 1]] * 4, "reduce_concat": [2, 3, 4, 5]}
    return json.dumps(record | changes)


@pytest.mark.parametrize("content, word", [
    (genotype_text(normal=[["sep_conv_9x9", 0], ["skip_connect", 1]] * 4), "sep_conv_9x9"),
    (genotype_text(reduce=[["max_pool_3x3", 0], ["max_pool_3x3", 2]] * 4), "reduce"),
    (genotype_text(reduce=[["max_pool_3x3", -1], ["max_pool_3x3", 1]] * 4), "reduce"),
    (genotype_text(normal=[["skip_connect", 1]] * 7), "normal"),
    (genotype_text(normal_concat=[2, 3, 4, 6]), "normal_concat"),
    (genotype_text(normal=None), "normal"),
    ("[" * 100_000, "cell.json"), ("{", "cell.json"), ("", "cell.json"), ("[]", "cell.json"), ("\0", "cell.json"),
], ids=["operation", "state", "negative", "length", "concat", "null", "deep", "no JSON", "empty", "list", "zero"])
def test_a_genotype_file_with_errors_is_refused_by_name(tmp_path, content, word):
    (tmp_path / "cell.json").write_text(content)
    outcome = run("train_cifar.py", *ONCE, "--arch", tmp_path / "cell.json", "--save", tmp_path / "runs")
    message = error_line(outcome, code=1)
    assert word in message and "cell.json" in message and outcome.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_run_directory_of_an_unfinished_search_is_refused(tmp_path):
    (tmp_path / "search").mkdir()
    assert_refused(1, str(tmp_path / "search"), "--arch", tmp_path / "search", save=tmp_path / "runs")


# ---- channels within a budget

def test_the_most_channels_within_a_budget_are_trained_logged_and_recorded(images, tmp_path):
    options = ["--layers", 3, "--device", "cpu", "--epochs", 1, *folder_options(images, tmp_path)]
    outcome = run("train_cifar.py", *options, "--max_multiply_adds", 0.4)
    assert outcome.code == 0, outcome
    channels = json.loads((the_run(tmp_path) / "args.json").read_text())["args"]["init_channels"]
    counts = [utils.count_multiply_adds(NetworkCIFAR(width, 2, 3, False, genotypes.load("PDARTS")), 8, published=True)
              for width in (channels, channels + 4)]
    assert channels % 4 == 0 and counts[0] <= 0.4e6 < counts[1]
    assert f"{channels} channels" in outcome.err
    NetworkCIFAR(channels, 2, 3, False, genotypes.load("PDARTS")).load_state_dict(
        saved(the_run(tmp_path) / "weights.pt"))


@pytest.mark.parametrize("channels", [2, 36], ids=["another", "the default"])
def test_a_budget_excludes_a_number_of_channels(channels, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train_cifar.py", "--max_multiply_adds", "9", "--init_channels", str(channels)])
    with pytest.raises(SystemExit) as exit:
        train_cifar.parse_args()
    assert exit.value.code == 2 and "--init_channels is unused: omit one" in capsys.readouterr().err


def test_a_budget_that_4_channels_exceed_is_refused(images, tmp_path):
    outcome = run("train_cifar.py", "--device", "cpu", *folder_options(images, tmp_path), "--max_multiply_adds", 0.01)
    assert "--max_multiply_adds 0.01" in error_line(outcome, code=1) and not list(tmp_path.iterdir())


# ---- other ways to train

def test_auxiliary_and_cutout_train_on_32x32_images_and_keep_the_head_in_the_weights(images, tmp_path):
    outcome = run("train_cifar.py", *ONCE, *folder_options(images, tmp_path), "--image_size", 32, "--auxiliary",
                  "--cutout")
    assert outcome.code == 0, outcome
    state = saved(the_run(tmp_path) / "weights.pt")
    assert any(name.startswith("auxiliary_head.") for name in state)
    network = NetworkCIFAR(2, 2, 3, True, genotypes.load("PDARTS"))
    network.load_state_dict(state)
    plain = sum(p.numel() for name, p in network.named_parameters() if not name.startswith("auxiliary_head."))
    whole = sum(p.numel() for p in network.parameters())
    assert f"{plain:,} parameters" in outcome.err and f"{whole:,} with the auxiliary head" in outcome.err


@pytest.mark.parametrize("size", [8, 28])
def test_an_auxiliary_head_is_refused_on_images_too_small_for_it(images, tmp_path, size):
    assert_refused(1, f"{size}x{size}", "--auxiliary", *folder_options(images, tmp_path / "runs")[:-2],
                   "--image_size", size, save=tmp_path / "runs")


def test_bf16_runs_on_the_cpu(images, tmp_path):
    outcome = run("train_cifar.py", *ONCE, *folder_options(images, tmp_path), "--amp", "bf16")
    assert outcome.code == 0, outcome
    record, = metrics(the_run(tmp_path))
    assert math.isfinite(record["train_loss"])
    assert all(value.dtype in (torch.float32, torch.int64) for value in saved(the_run(tmp_path) / "best.pt").values())


EAGER = """
import torch
compile = torch.nn.Module.compile
torch.nn.Module.compile = lambda module: (print("compiled"), compile(module, backend="eager", fullgraph=True))
"""


@pytest.mark.slow
def test_compiling_changes_neither_the_result_nor_the_names_of_the_weights(images, tmp_path):
    """With a backend that needs no C++ compiler."""
    options = ["--init_channels", 2, "--layers", 1, "--device", "cpu", "--epochs", 1]
    program = behind(EAGER, tmp_path)
    for save, script in (("plain", ["train_cifar.py"]), ("compiled", [program, ROOT / "train_cifar.py", "--compile"])):
        outcome = run(*script, *options, *folder_options(images, tmp_path / save), "--batch_size", 12)
        assert outcome.code == 0, outcome
        assert ("compiled" in outcome.out) == (save == "compiled")
        record = json.loads((the_run(tmp_path / save) / "metrics.jsonl").read_text())
        assert record.get("compile_seconds", 0) < record["seconds"]
        assert ("compile_seconds" in record) == (save == "compiled")
    plain, compiled = (saved(the_run(tmp_path / save) / "weights.pt") for save in ("plain", "compiled"))
    assert list(plain) == list(compiled)
    for name in plain:
        torch.testing.assert_close(compiled[name], plain[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name, classes, extra", [("cifar10", 10, ""), ("cifar100", 100, "--cifar100")])
def test_the_published_command_works_word_for_word(tmp_path, name, classes, extra):
    published = "--tmp_data_dir DIR --auxiliary --cutout --save log_path --note note_of_this_run"
    write_cifar(tmp_path / "DIR", classes, count=8)
    outcome = run(behind(ANY_CIFAR, tmp_path), ROOT / "train_cifar.py", *shlex.split(published), *shlex.split(extra),
                  *ONCE, cwd=tmp_path)
    assert outcome.code == 0, outcome
    run_dir = the_run(tmp_path / "log_path")
    assert run_dir.name.startswith("eval-note_of_this_run-")
    args = json.loads((run_dir / "args.json").read_text())["args"]
    assert (args["dataset"], args["arch"], args["auxiliary"], args["cutout"]) == (name, "PDARTS", True, True)
    state = saved(run_dir / "weights.pt")
    assert state["classifier.bias"].shape == state["auxiliary_head.classifier.bias"].shape == (classes,)


OTHER_PUBLISHED = """--workers 4 --batch_size 12 --learning_rate 0.02 --momentum 0.8 --weight_decay 1e-4 --report_freq 1
    --epochs 2 --init_channels 3 --layers 2 --drop_path_prob 0.2 --seed 3 --grad_clip 4 --cutout --cutout_length 3
    --auxiliary --auxiliary_weight 0.5 --arch DARTS_V2"""


def test_the_other_published_options_reach_the_run(images, tmp_path):
    outcome = run("train_cifar.py", *OTHER_PUBLISHED.split(), "--device", "cpu", "--dataset", "folder",
                  "--tmp_data_dir", images, "--image_size", 32, "--save", tmp_path)
    assert outcome.code == 0, outcome
    run_dir = the_run(tmp_path)
    group, = saved(run_dir / "checkpoint.pt")["optimizer"]["param_groups"]
    assert (group["momentum"], group["weight_decay"], group["lr"]) == (0.8, 1e-4, pytest.approx(0.01))
    assert [record["lr"] for record in metrics(run_dir)] == pytest.approx([0.02, 0.01])
    assert [record["drop_path_prob"] for record in metrics(run_dir)] == pytest.approx([0, 0.1])
    assert saved(run_dir / "weights.pt")["stem.0.weight"].shape[0] == 3 * 3
    assert re.findall(r"epoch 1 step (\d)", (run_dir / "log.txt").read_text()) == ["1", "2"]


# ---- kill, stop, continue

def test_a_run_killed_at_any_moment_continues_to_the_same_result(images, undisturbed, tmp_path):
    script = start("train_cifar.py", *options_for(images, tmp_path))
    script.wait_until(lambda: list(tmp_path.glob("*/args.json")))  # before there is anything to continue from
    for lines, seconds in [(0, 0), (1, 0.02), (3, 0)]:  # lines in metrics.jsonl, seconds after
        script.wait_until(lambda: epochs_done(the_run(tmp_path)) >= lines)  # noqa: B023
        time.sleep(seconds)
        script.signal(signal.SIGKILL)
        assert script.wait().code == -signal.SIGKILL
        done = epochs_done(the_run(tmp_path))
        assert not done or metrics(the_run(tmp_path)) == metrics(undisturbed)[:done]
        script = start("train_cifar.py", "--resume", the_run(tmp_path))
    outcome = script.wait()
    assert outcome.code == 0, outcome
    assert_same_result(the_run(tmp_path), undisturbed)
    accuracies = [record["test_acc"] for record in metrics(undisturbed)]
    assert labelled(outcome) == (f"{accuracies[-1]:.2f}", f"{max(accuracies):.2f}")


def test_sigterm_ends_a_run_with_status_143_and_a_command_that_continues_it(stopped, undisturbed, tmp_path):
    run_dir, outcome = stopped
    assert outcome.code == 143 and "Traceback" not in outcome.err
    assert epochs_done(run_dir) < EPOCHS and not (run_dir / "weights.pt").exists()
    command = shlex.split(outcome.err.splitlines()[-1].split(": ")[-1])
    assert command[0] == "python" and command[-2:] == ["--resume", str(run_dir)]
    shutil.copytree(run_dir, tmp_path / "run")
    assert run(*command[1:-1], tmp_path / "run").code == 0
    assert_same_result(tmp_path / "run", undisturbed)


def test_a_finished_run_can_be_resumed_and_stays_as_it_is(undisturbed, tmp_path):
    run_dir = shutil.copytree(undisturbed, tmp_path / "run")
    (run_dir / "weights.pt").unlink()
    outcome = run("train_cifar.py", "--resume", run_dir)
    assert outcome.code == 0, outcome
    assert_same_result(run_dir, undisturbed)


def test_a_run_continues_without_the_file_its_cell_came_from(images, tmp_path):
    """It has the cell in its own genotype.json."""
    genotypes.save(genotypes.load("DARTS_V1"), tmp_path / "mine.json")
    script = start("train_cifar.py", *options_for(images, tmp_path / "runs"), "--arch", "mine.json", cwd=tmp_path)
    script.wait_until(lambda: list(tmp_path.glob("runs/*/metrics.jsonl")))
    script.signal(signal.SIGKILL)
    script.wait()
    os.replace(tmp_path / "mine.json", tmp_path / "gone.json")
    outcome = run("train_cifar.py", "--resume", the_run(tmp_path / "runs"))
    assert outcome.code == 0, outcome
    assert genotypes.load(str(the_run(tmp_path / "runs"))) == genotypes.load("DARTS_V1")
    assert len(metrics(the_run(tmp_path / "runs"))) == EPOCHS


@pytest.mark.parametrize("option", ["--epochs 9", "--layers 4", "--arch DARTS_V2", "--auxiliary", "--drop_path_prob 0",
                                    "--seed 5", "--cutout_length 2"])
def test_options_that_would_change_the_run_are_refused_on_resume(stopped, option):
    run_dir, _ = stopped
    before = snapshot(run_dir)
    outcome = run("train_cifar.py", "--resume", run_dir, *option.split())
    message = error_line(outcome, code=2)
    assert option.split()[0] in message and MEND.search(message)
    assert outcome.err.count("\n") == 1 and snapshot(run_dir) == before


def test_resume_on_a_folder_of_other_classes_is_refused(images, stopped, tmp_path):
    """--tmp_data_dir may change, for data sets move; this one is another."""
    root, run_dir = shutil.copytree(images, tmp_path / "images"), shutil.copytree(stopped[0], tmp_path / "run")
    for split in ("train", "val"):
        shutil.copytree(root / split / "cat", root / split / "dog")
    before = without_log(run_dir)
    outcome = run("train_cifar.py", "--resume", run_dir, "--tmp_data_dir", root)
    error_line(outcome, code=1)
    assert without_log(run_dir) == before


def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_offered(stopped, tmp_path):
    run_dir = shutil.copytree(stopped[0], tmp_path / "run")
    content = (run_dir / "checkpoint.pt").read_bytes()
    shutil.copy(run_dir / "checkpoint.pt", run_dir / "previous.pt")
    (run_dir / "checkpoint.pt").write_bytes(content[:-100])
    before = without_log(run_dir)
    message = error_line(run("train_cifar.py", "--resume", run_dir), code=1)
    assert str(run_dir / "checkpoint.pt") in message and "previous.pt" in message
    assert without_log(run_dir) == before


def test_a_run_of_another_script_is_refused(stopped):
    run_dir, _ = stopped
    before = snapshot(run_dir)
    message = error_line(run("train_search.py", "--resume", run_dir), code=1)
    assert str(run_dir) in message and "eval" in message and snapshot(run_dir) == before


# ---- bad input

@pytest.mark.parametrize("options, right", [
    ("--auxilary", "--auxiliary"), ("--drop_path 0.3", "--drop_path_prob"), ("--weight w.pt", "--weights"),
    ("--cut_out", "--cutout")])
def test_a_mistyped_option_is_an_error_that_names_the_right_one(tmp_path, options, right):
    outcome = run("train_cifar.py", *ONCE, *options.split(), "--save", tmp_path / "runs")
    assert right in re.findall(r"--\w+", error_line(outcome, code=2).split("did you mean")[1])
    assert outcome.err.count("\n") == 1 and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("options, value", [
    ("--epochs 0", "0"), ("--layers -1", "-1"), ("--drop_path_prob 1", "1"), ("--drop_path_prob nan", "nan"),
    ("--auxiliary_weight -1", "-1"), ("--amp fp8", "fp8"), ("--dataset mnist", "mnist"),
    ("--cifar100 --dataset digits", "--cifar100"), ("--eval", "--weights"), ("--weights w.pt", "--eval")])
def test_a_command_line_that_makes_no_sense_is_refused(tmp_path, options, value):
    assert_refused(2, value, *options.split(), save=tmp_path / "runs")


@pytest.mark.parametrize("options, value", [
    ("--image_size 7", "7"), ("--device gpu", "gpu"), ("--dataset folder --tmp_data_dir nowhere", "nowhere"),
    ("--arch random:x", "random:x")])
def test_what_cannot_be_used_is_refused(tmp_path, options, value):
    assert_refused(1, value, *options.split(), save=tmp_path / "runs")


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(images, tmp_path):
    outcome = run("train_cifar.py", *options_for(images, tmp_path), "--learning_rate", "1e30")
    message = error_line(outcome, code=1)
    assert re.search(r"epoch 0, step [23]", message) and "--learning_rate" in message
    assert not list(tmp_path.rglob("*.pt"))
