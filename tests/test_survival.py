"""Nothing is lost: kills, full disks, NaN, too little memory, senseless command lines, hostile files."""
import hashlib
import os
import pickle
import re
import shlex
import shutil
import signal
import sys
from functools import partial

import kill_loop
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kill_loop import OPTIONS, assert_nothing_torn, assert_same_result
from scripts import ROOT, epochs_done, error_line, metrics, run, snapshot, the_run

import train_cifar
import train_imagenet
import train_search
from harness import checkpoints, cli
from harness.log import log
from input_pipeline.batches import batch_per_rank

SEARCH, CIFAR = "train_search.py", "train_cifar.py"
MEND = re.compile(r"free|space|leave|omit|fix|set |reduce |give|use |name |choose|"
                  r"lower|make|permi|writ|try |check|--resume")


# ---- what the tests start from

BEHIND = """
import os, runpy, signal, sys
end = list
{}
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    end()
"""


def run_behind(folder, code, values, script, *options):
    """Run a script behind `code`, which is written to `folder` and finds `values` in sys.argv."""
    path = folder / "behind.py"
    path.write_text(BEHIND.format(code))
    return run(path, *values, ROOT / script, *options)


SIGNALLED_AFTER = """
name, count, number, sys.argv = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
def replace(source, target, rename=os.replace):
    global count
    rename(source, target)
    count -= (written := str(target).endswith(name))
    if written and count == 0:
        os.kill(os.getpid(), number)
os.replace = replace
"""


@pytest.fixture(scope="module")
def stopped(data, search, training, tmp_path_factory):
    """script -> (a run stopped shortly before its end, what it comes to)."""
    runs = {}
    for script, expected in ((SEARCH, search), (CIFAR, training)):
        save = tmp_path_factory.mktemp("stopped")
        outcome = run_behind(tmp_path_factory.mktemp("code"), SIGNALLED_AFTER,
                             ["metrics.jsonl", 7, int(signal.SIGTERM)], script, *OPTIONS[script], *data, "--save", save)
        assert outcome.code == 128 + signal.SIGTERM, outcome
        runs[script] = the_run(save), expected
    return runs


@pytest.fixture
def copy(stopped, tmp_path):
    """copy(script) -> (a copy of the stopped run, what it comes to)."""
    return lambda script: (shutil.copytree(stopped[script][0], tmp_path / "run"), stopped[script][1])


@pytest.fixture
def run_as(tmp_path):
    """run_as(code, values, script, *options): see `run_behind`."""
    return partial(run_behind, tmp_path)


def resumed(script, run_dir):
    outcome = run(script, "--resume", run_dir)
    assert outcome.code == 0, outcome


def one_line(outcome, code=1):
    """The error line; before it only lines of the log, and nothing that logging itself complained about."""
    assert "Logging error" not in outcome.err, outcome.err
    message = error_line(outcome, code)
    assert MEND.search(message), message
    return message


# ---- kills

@pytest.mark.slow
@pytest.mark.parametrize("script, kills", [(SEARCH, 5), (CIFAR, 8)])
def test_a_run_killed_at_random_moments_ends_as_if_undisturbed(script, kills, data, request, tmp_path):
    """`python tests/kill_loop.py` does so with 30 kills of each."""
    expected = request.getfixturevalue("search" if script == SEARCH else "training")
    places = kill_loop.kill_at_random(script, data, expected, tmp_path, kills, seed=1)
    assert places.total() == kills


def assert_survives_a_kill_after(files, script, options, expected, save, run_as):
    """Kill a run right after the nth time that a file is written, for one (file, n) after another, and resume it."""
    run_dir = None
    for name, count in files:
        where = ["--resume", run_dir] if run_dir else [*options, "--save", save]
        outcome = run_as(SIGNALLED_AFTER, [name, count, int(signal.SIGKILL)], script, *where)
        assert outcome.code == -signal.SIGKILL, (name, outcome)
        run_dir = the_run(save)
        assert_nothing_torn(run_dir, script, expected)
    resumed(script, run_dir)
    assert_same_result(run_dir, expected)


STOPS_AT = """
from harness import parallel
count, number, sys.argv = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
def stop_if_asked(ask=parallel.stop_if_asked):
    global count
    count -= 1
    if count == 0:
        os.kill(os.getpid(), number)
    ask()
parallel.stop_if_asked = stop_if_asked
"""


@pytest.mark.slow
@pytest.mark.parametrize("script, steps, every, also, number", [
    (SEARCH, 2, 5, [], signal.SIGUSR1), (SEARCH, 2, 13, ["--grad_checkpoint", "--amp", "bf16"], signal.SIGUSR2),
    (CIFAR, 6, 5, [], signal.SIGTERM)])
def test_a_run_stopped_every_few_steps_goes_on_in_the_middle_of_its_epochs(
        script, steps, every, also, number, data, run_as, tmp_path):
    options = [*OPTIONS[script], *data, "--batch_size", 4, "--epochs", 3, *also]
    expected = kill_loop.undisturbed(script, options, tmp_path / "undisturbed")
    where, stops = [*options, "--save", tmp_path / "stopped"], []
    while (outcome := run_as(STOPS_AT, [every, int(number)], script, *where)).code:
        assert outcome.code == 128 + number, outcome
        run_dir = the_run(tmp_path / "stopped")
        assert_nothing_torn(run_dir, script, expected)
        where = ["--resume", run_dir]
        stops.append(checkpoints.load(run_dir, kill_loop.KIND[script])["meter"]["steps"])
    assert {1, steps} <= set(stops)  # in the training and the test of an epoch
    for done in (run_dir, expected):
        (done / "previous.pt").unlink()  # where the last stop was
    assert_same_result(run_dir, expected)


@pytest.fixture(scope="module")
def short_training(data, tmp_path_factory):
    """A training of three epochs: its options and its run directory."""
    options = [*OPTIONS[CIFAR], *data, "--epochs", 3]
    return options, kill_loop.undisturbed(CIFAR, options, tmp_path_factory.mktemp("short"))


@pytest.mark.slow
@pytest.mark.parametrize("files", [
    [("args.json", 1), ("genotype.json", 1), ("best.pt", 1), ("checkpoint.pt", 1), ("previous.pt", 2)],
    [("checkpoint.pt", 3)], [("metrics.jsonl", 1), ("metrics.jsonl", 2)], [("weights.pt", 1), ("curves.svg", 1)]],
    ids=["all along", "the last checkpoint", "metrics", "at the end"])
def test_a_training_killed_between_two_files_ends_as_if_undisturbed(files, short_training, run_as, tmp_path):
    options, expected = short_training
    assert_survives_a_kill_after(files, CIFAR, options, expected, tmp_path / "killed", run_as)


@pytest.fixture(scope="module")
def short_search(data, tmp_path_factory):
    """A search of one epoch a stage: its options and its run directory."""
    options = [*OPTIONS[SEARCH], *data, "--epochs", 1, "--warmup_epochs", 0]
    return options, kill_loop.undisturbed(SEARCH, options, tmp_path_factory.mktemp("short"))


@pytest.mark.slow
@pytest.mark.parametrize("files", [
    [("args.json", 1), ("metrics.jsonl", 1), ("curves.png", 1), ("metrics.jsonl", 2), ("genotypes.json", 1)],
    [("checkpoint.pt", 1), ("alphas-normal.svg", 1), ("checkpoint.pt", 2), ("genotype.json", 1)]],
    ids=["metrics without alphas", "a checkpoint without metrics"])
def test_a_search_killed_between_two_files_ends_as_if_undisturbed(files, short_search, run_as, tmp_path):
    """With one epoch a stage, every kill after a checkpoint is at a stage's end."""
    options, expected = short_search
    assert_survives_a_kill_after(files, SEARCH, options, expected, tmp_path / "killed", run_as)


# ---- files that follow from the checkpoint

DAMAGE = {
    "garbage": lambda path: path.write_bytes(b"\xff\x00{" * 20),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "text": lambda path: path.write_text("[" * 100_000),
    "empty": lambda path: path.write_bytes(b""),
    "deleted": lambda path: path.unlink(),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("script, name", [(SEARCH, "metrics.jsonl"), (SEARCH, "alphas.npz"), (CIFAR, "metrics.jsonl")])
def test_a_damaged_file_that_follows_from_the_checkpoint_is_written_anew(script, name, damage, copy):
    run_dir, expected = copy(script)
    DAMAGE[damage](run_dir / name)
    resumed(script, run_dir)
    assert_same_result(run_dir, expected)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["garbage", "truncated", "deleted"])
@pytest.mark.parametrize("script", [SEARCH, CIFAR])
def test_a_finished_run_mends_what_follows_from_its_checkpoint(script, damage, request, tmp_path):
    expected = request.getfixturevalue("search" if script == SEARCH else "training")
    run_dir = shutil.copytree(expected, tmp_path / "run")
    for name in {"metrics.jsonl", "alphas.npz"} & set(os.listdir(run_dir)):
        DAMAGE[damage](run_dir / name)
    resumed(script, run_dir)
    assert_same_result(run_dir, expected)


@pytest.mark.parametrize("script, kept", [(SEARCH, {"checkpoint.pt"}), (CIFAR, {"checkpoint.pt", "best.pt"})])
def test_a_run_goes_on_from_its_options_and_its_checkpoint_alone(script, kept, copy):
    run_dir, expected = copy(script)
    for path in list(run_dir.iterdir()):
        if path.name not in {"args.json", *kept}:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    resumed(script, run_dir)
    assert_same_result(run_dir, expected)


@pytest.mark.parametrize("script, name", [(SEARCH, "metrics.jsonl"), (SEARCH, "alphas.npz"), (CIFAR, "metrics.jsonl")])
def test_a_directory_in_the_way_of_such_a_file_is_named_in_one_line(script, name, copy):
    run_dir, expected = copy(script)
    (run_dir / name).unlink()
    (run_dir / name).mkdir()
    assert str(run_dir / name) in one_line(run(script, "--resume", run_dir))
    (run_dir / name).rmdir()
    resumed(script, run_dir)
    assert_same_result(run_dir, expected)


@pytest.mark.parametrize("damage", ["garbage", "truncated", "text"])
@pytest.mark.parametrize("script", ["compare.py", "visualize.py"])
def test_damaged_metrics_are_refused_in_one_line_by_what_reads_them(script, damage, training, tmp_path):
    run_dir = shutil.copytree(training, tmp_path / "run")
    DAMAGE[damage](run_dir / "metrics.jsonl")
    before = snapshot(run_dir)
    outcome = run(script, run_dir)
    assert str(run_dir / "metrics.jsonl") in one_line(outcome) and "--resume" in outcome.err and not outcome.out
    assert snapshot(run_dir) == before


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_alphas_are_refused_in_one_line_by_what_draws_them(damage, search, tmp_path):
    run_dir = shutil.copytree(search, tmp_path / "run")
    DAMAGE[damage](run_dir / "alphas.npz")
    outcome = run("visualize.py", run_dir)
    assert str(run_dir / "alphas.npz") in one_line(outcome) and "--resume" in outcome.err and not outcome.out


# ---- a disk that is full, a directory that can't be written to

FULL = """
import resource, subprocess
name, count, sys.argv = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
screen = os.dup(2)
cat = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=screen)  # what is printed goes to a pipe, not a file
os.dup2(cat.stdin.fileno(), 2)
def full(event, args):
    global count
    if event == "open" and "w" in str(args[1]) and os.path.basename(str(args[0])).startswith(name):
        count -= 1
        if count == 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
sys.addaudithook(full)
def end():
    sys.stderr.flush()
    os.dup2(screen, 2)
    cat.stdin.close()
    cat.wait()
"""


def assert_full_disk_is_reported(script, name, count, where, run_as):
    """No file grows beyond 100 bytes from the nth time that this one is written to: the log does not either."""
    outcome = run_as(FULL, [name, count], script, *where)
    message = one_line(outcome)
    assert name in message, message
    return message


@pytest.mark.parametrize("name, count", [
    ("genotype.json", 1), ("best.pt", 1), ("checkpoint.pt", 1), ("checkpoint.pt", 2), ("previous.pt", 1),
    ("metrics.jsonl", 2), ("weights.pt", 1)])
def test_a_full_disk_stops_a_training_in_one_line_and_loses_nothing(name, count, short_training, run_as, tmp_path):
    options, expected = short_training
    message = assert_full_disk_is_reported(CIFAR, name, count, [*options, "--save", tmp_path / "full"], run_as)
    run_dir = the_run(tmp_path / "full")
    assert str(run_dir) in message
    assert not list(run_dir.rglob("*.tmp"))
    assert_nothing_torn(run_dir, CIFAR, expected)
    epochs = {"genotype.json": 0, "best.pt": 0, "checkpoint.pt": count - 1, "previous.pt": 1, "metrics.jsonl": 2}
    state = checkpoints.load(run_dir, "eval") or {"epoch": 0}
    assert state["epoch"] == epochs.get(name, 3)
    resumed(CIFAR, run_dir)
    assert_same_result(run_dir, expected)


@pytest.mark.parametrize("name", ["curves.svg", "report.html"])
def test_a_full_disk_costs_a_training_its_pictures_only(name, short_training, run_as, tmp_path):
    options, expected = short_training
    outcome = run_as(FULL, [name, 1], CIFAR, *options, "--save", tmp_path / "full")
    run_dir = the_run(tmp_path / "full")
    assert outcome.code == 0 and f"no pictures: can't write {run_dir}" in outcome.err, outcome
    assert not list(run_dir.rglob("*.tmp"))
    assert run("visualize.py", run_dir).code == 0
    assert_same_result(run_dir, expected)


@pytest.mark.parametrize("name", ["checkpoint.pt", "alphas.npz"])
def test_a_full_disk_stops_a_search_in_one_line_and_loses_nothing(name, copy, run_as):
    run_dir, expected = copy(SEARCH)
    before = epochs_done(run_dir)
    message = assert_full_disk_is_reported(SEARCH, name, 1, ["--resume", run_dir], run_as)
    assert str(run_dir) in message
    assert not list(run_dir.rglob("*.tmp"))
    assert_nothing_torn(run_dir, SEARCH, expected)
    assert len(checkpoints.load(run_dir, "search")["metrics"]) >= before
    resumed(SEARCH, run_dir)
    assert_same_result(run_dir, expected)


@pytest.mark.parametrize("script", [SEARCH, CIFAR])
def test_a_full_disk_at_the_start_leaves_no_half_made_run_directory(script, data, run_as, tmp_path):
    save = tmp_path / "full"
    outcome = run_as(FULL, ["args.json", 1], script, *OPTIONS[script], *data, "--save", save)
    assert str(save) in one_line(outcome)
    assert not save.exists() or not list(save.iterdir())


READ_ONLY = """
import ctypes, struct
sys.argv = sys.argv[1:]  # without capabilities root is like anyone
ctypes.CDLL(None).capset(struct.pack("Ii", 0x20080522, 0), bytes(24))
"""


@pytest.mark.parametrize("script", [SEARCH, CIFAR])
def test_a_read_only_directory_stops_a_run_in_one_line_and_loses_nothing(script, copy, run_as):
    run_dir, expected = copy(script)
    before = {name: content for name, content in snapshot(run_dir).items() if name != "log.txt"}
    run_dir.chmod(0o555)
    try:
        outcome = run_as(READ_ONLY, [], script, "--resume", run_dir)
    finally:
        run_dir.chmod(0o755)
    message = one_line(outcome)
    assert str(run_dir) in message
    assert {name: content for name, content in snapshot(run_dir).items() if name != "log.txt"} == before
    resumed(script, run_dir)
    assert_same_result(run_dir, expected)


def test_a_read_only_run_is_drawn_elsewhere(training, run_as, tmp_path):
    run_dir = shutil.copytree(training, tmp_path / "run")
    for path in (run_dir / "pictures", run_dir):
        path.chmod(0o555)
    try:
        assert f"can't write {run_dir}/pictures/" in one_line(run_as(READ_ONLY, [], "visualize.py", run_dir))
        assert run_as(READ_ONLY, [], "visualize.py", run_dir, "--out", tmp_path / "out").code == 0
    finally:
        for path in (run_dir, run_dir / "pictures"):
            path.chmod(0o755)


@pytest.mark.skipif(sys.platform != "linux", reason="capabilities and modes of files are Linux's")
@pytest.mark.parametrize("script", [SEARCH, CIFAR])
def test_a_run_directory_whose_log_cannot_be_written_is_refused_on_resume(script, copy, run_as):
    run_dir, _ = copy(script)
    (run_dir / "log.txt").chmod(0o444)
    before = snapshot(run_dir)
    outcome = run_as(READ_ONLY, [], script, "--resume", run_dir)
    assert "log.txt" in one_line(outcome)
    assert snapshot(run_dir) == before


# ---- gradients that are not finite, too little memory

NAN = """
import torch.nn.functional as F
count, sys.argv = int(sys.argv[1]), sys.argv[2:]
def cross_entropy(*args, original=F.cross_entropy, **options):  # the loss is finite, its gradient is not
    global count
    loss = original(*args, **options)
    count -= loss.requires_grad
    if count == 0 and loss.requires_grad:
        loss.register_hook(lambda grad: grad * float("nan"))
    return loss
F.cross_entropy = cross_entropy
"""
# The nth loss: a search has a weight step in epoch 0, the alphas' and the weights' in epochs 1, 2; a training has 3.


@pytest.mark.parametrize("script, nth, place", [
    (SEARCH, 2, "stage 1 epoch 1"), (SEARCH, 3, "stage 1 epoch 1"), (CIFAR, 4, "epoch 1"), (CIFAR, 5, "epoch 1"),
    (CIFAR, 6, "epoch 1")], ids=["alphas", "last of a search's epoch", "first", "second", "last of an epoch"])
def test_a_gradient_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(
        script, nth, place, data, search, short_training, run_as, tmp_path):
    options, expected = short_training if script == CIFAR else ([*OPTIONS[SEARCH], *data], search)
    outcome = run_as(NAN, [nth], script, *options, "--save", tmp_path / "runs")
    message = one_line(outcome)
    assert re.search(rf"finite.* {place}\b", message) and "--learning_rate" in message and "checkpoint" in message
    run_dir = the_run(tmp_path / "runs")
    assert_nothing_torn(run_dir, script, expected)
    state = checkpoints.load(run_dir, kill_loop.KIND[script])
    assert len(state["metrics"]) == 1 and epochs_done(run_dir) == 1
    for path in run_dir.glob("*.pt"):
        weights = torch.load(path, weights_only=True)
        weights = weights.get("network", weights)
        assert all(value.isfinite().all() for value in weights.values()), path
    if script == CIFAR:  # a search takes long
        resumed(script, run_dir)
        assert_same_result(run_dir, expected)


@pytest.fixture
def run_here(monkeypatch, capsys):
    """run_here(main, parse, *options): cli.run in this process; (exit status or 0, what it printed)."""
    def call(main, parse, *options):
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, options)])
        handlers, level = log.handlers[:], log.level
        capsys.readouterr()
        code = 0
        try:
            cli.run(main, parse)
        except SystemExit as ended:
            code = ended.code
        finally:
            log.handlers[:], log.level = handlers, level
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        out, err = capsys.readouterr()
        return code, out, err
    return call


CUDA_MEMORY = """CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.10 GiB of which 2 MiB
is free. Including non-PyTorch memory, this process has 79.09 GiB memory in use."""


@pytest.mark.parametrize("module", [train_search, train_cifar, train_imagenet])
@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError(CUDA_MEMORY), MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried "
                 "to allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)")],
    ids=["CUDA", "Python", "CPU"])
def test_out_of_memory_is_one_line_with_a_batch_size_to_try(module, error, run_here):
    def main(args):
        raise error
    code, out, err = run_here(main, module.parse_args, "--batch_size", 64, *REQUIRED[module])
    assert code == 1 and err.count("\n") == 1 and not out and "memory" in err
    size = int(re.search(r"--batch_size (\d+)", err).group(1))
    assert 1 <= size < 64
    if module is train_search:
        assert "--grad_checkpoint" in err


def test_out_of_memory_with_one_image_a_step_does_not_ask_for_the_same_again(run_here):
    def main(args):
        raise torch.OutOfMemoryError(CUDA_MEMORY)
    code, _, err = run_here(main, train_search.parse_args, "--batch_size", 1)
    assert code == 1 and "memory" in err and "--batch_size 1 " not in err


@pytest.mark.parametrize("options, processes, proposed", [
    ([3], 1, 2), ([2], 1, None), ([64], 8, 32), ([24], 8, 16), ([16], 8, None), ([20], 2, 10), ([6], 2, 4),
    ([2, "--eval", "--weights", "w"], 1, 1), ([1, "--eval", "--weights", "w"], 1, None)])
def test_out_of_memory_proposes_no_batch_that_is_refused(options, processes, proposed, run_here, monkeypatch):
    def main(args):
        raise torch.OutOfMemoryError(CUDA_MEMORY)
    monkeypatch.setattr("harness.launchers.world_size", lambda: processes)
    code, _, err = run_here(main, train_cifar.parse_args, "--batch_size", *options)
    assert code == 1 and err.count("\n") == 1 and "memory" in err
    assert [int(size) for size in re.findall(r"--batch_size (\d+)", err)] == [proposed] * (proposed is not None)
    if proposed and "--eval" not in options:
        assert batch_per_rank(proposed, processes) >= 2  # it is taken


@pytest.mark.parametrize("script", [SEARCH, CIFAR])
def test_one_image_per_process_is_refused_before_a_run_directory_is_made(script, data, tmp_path):
    outcome = run(script, *OPTIONS[script], *data, "--batch_size", 1, "--save", tmp_path / "runs")
    assert "at least 2 per rank" in one_line(outcome) and not (tmp_path / "runs").exists()


def test_an_error_that_no_person_can_mend_keeps_its_traceback(run_here):
    def main(args):
        raise RuntimeError("a bug")
    with pytest.raises(RuntimeError, match="a bug"):
        run_here(main, train_search.parse_args)


# ---- senseless command lines

REQUIRED = {train_search: [], train_cifar: [], train_imagenet: ["--tmp_data_dir", "none"]}
TEXT = st.text(st.characters(exclude_characters="\0"), max_size=8)  # NUL can't be in an argument
NUMBERS = (st.integers() | st.integers(-10, 100) | st.floats() | st.sampled_from([
    10 ** 37, 10 ** 39, 10 ** 400, "1e308", "1e400", "-0", "+1", "1_000", " 7 ", "٣", "0x10", "1,5", "nan", "-inf",
    "9" * 5000, "0.5", "1e-400"])).map(str)
WORDS = st.sampled_from([
    "", " ", "-", "--", "---", "off", "fp16", "cuda", "cpu", "digits", "cifar10", "PDARTS", "random:0", "/", "..",
    "/dev/null", "a\nb", "a\r\n--epochs", "\u2028", "\udcff", "\x1b[31m", "%s", "%(prog)s", "{}", "x" * 5000, "@file",
    "é", "日本", "--epochs", "linear", "cosine", "none"])
VALUES = NUMBERS | WORDS | TEXT


def suiting(action, run_dirs):
    """The words after an option that it can do with, most of them."""
    if action.nargs == 0:
        return st.just([])
    if action.dest == "resume":
        return st.lists(st.sampled_from(run_dirs), min_size=1, max_size=1)
    values = st.sampled_from(sorted(action.choices)) if action.choices else \
        st.sampled_from(["0.5", "30", "40"] if "rate" in action.dest else ["26", "30", "40"]) if action.type else VALUES
    return st.lists(values, min_size=1, max_size=1)


@st.composite
def command_line(draw, module, run_dirs):
    """Up to five options, some mistyped, with values that suit them or do not; lists repeated any number of times."""
    line = list(REQUIRED[module]) if draw(st.integers(0, 3)) else []
    actions = [action for action in module.get_args_parser()._actions if action.option_strings]
    for _ in range(draw(st.integers(0, 5))):
        action = draw(st.sampled_from(actions))
        name = draw(st.sampled_from(action.option_strings))
        words = [name, *draw(suiting(action, run_dirs))]
        match draw(st.integers(0, 9)):
            case 0:  # a typo
                i = draw(st.integers(1, len(name)))
                words[0] = name[:i] + draw(st.sampled_from(["", "x", "-", "é", "\n", " "])) + name[i + 1:]
            case 1 | 2:
                words = [name, draw(VALUES)]
            case 3:
                words = [f"{name}={draw(VALUES)}"]
            case 4:
                words = [draw(VALUES)]
            case 5:
                words *= draw(st.integers(2, 5))
        line += words
    return line


@pytest.fixture(scope="module")
def run_dirs(stopped, tmp_path_factory):
    """Run directories, good and bad, that a fuzzed --resume may name."""
    folder = tmp_path_factory.mktemp("run_dirs")
    for name, content in (("nested", "[" * 100_000), ("list", "[]"), ("bytes", "\xff"), ("empty", ""),
                          ("no args", '{"kind": "search"}'), ("other kind", '{"kind": [1], "args": {}}')):
        (folder / name).mkdir()
        (folder / name / "args.json").write_text(content, encoding="latin-1")
    return [*(str(run_dir) for run_dir, _ in stopped.values()), *map(str, sorted(folder.iterdir()))]


@pytest.mark.parametrize("module", list(REQUIRED), ids=lambda module: module.__name__)
def test_any_command_line_is_parsed_or_refused_in_one_line(module, run_dirs, run_here, tmp_path, monkeypatch):
    """200 of them: exit status 2, or 1 where --resume names no run of this kind; nothing is written."""
    monkeypatch.chdir(tmp_path)
    before = [snapshot(run_dir) for run_dir in run_dirs]
    parsed = []

    @settings(max_examples=200, derandomize=True, database=None, deadline=None,
              suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
    @given(line=command_line(module, run_dirs))
    def check(line):
        count = len(parsed)
        code, out, err = run_here(parsed.append, module.parse_args, *line)
        assert "Traceback" not in out + err
        if len(parsed) > count:
            assert code == 0 and not out + err
            assert_sensible(parsed[-1])
        elif code == 0:
            assert out.startswith("usage: ") and not err and ("-h" in line or "--help" in line)
        else:
            assert code == 2 or code == 1 and any("--resume" in word for word in line), (code, err)
            assert not out and len(err.splitlines()) == 1 and "error: " in err, err

    check()
    assert len(parsed) > 10  # both ways were tried
    assert not list(tmp_path.iterdir()) and [snapshot(run_dir) for run_dir in run_dirs] == before


@pytest.mark.parametrize("content", [
    "[" * 100_000, "\xff", '{"kind": "search"}', '{"kind": 1, "args": 2}'], ids=["nested", "bytes", "no args", "odd"])
def test_resume_of_a_damaged_args_json_is_refused_in_one_line(content, run_here, tmp_path):
    (tmp_path / "args.json").write_text(content, encoding="latin-1")
    code, out, err = run_here(lambda args: None, train_search.parse_args, "--resume", tmp_path)
    assert code in (1, 2) and not out and len(err.splitlines()) == 1 and str(tmp_path) in err


def assert_sensible(args):
    """Every option is of its type and in its range."""
    for name, value in vars(args).items():
        for number in value if isinstance(value, list) else [value]:
            if type(number) in (int, float):
                assert 0 <= number < 1e38, name
    assert args.epochs >= 1 and args.batch_size >= 1 and args.report_freq >= 1 and args.amp in ("off", "bf16", "fp16")
    if hasattr(args, "add_layers"):
        assert len(args.dropout_rate) == 3 and args.warmup_epochs < args.epochs
        assert len(args.add_layers) in (2, 3) and len(args.add_width) in (2, 3)


# ---- weights that are none

class Malicious:
    """Code that runs when it is unpickled: makes a directory."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def evaluate(weights, data, save, *options):
    return run(CIFAR, *OPTIONS[CIFAR], *data, "--eval", "--weights", weights, "--save", save, *options)


def assert_refused(weights, data, tmp_path, *options):
    """One line that names the file, exit status 1, and no run directory."""
    outcome = evaluate(weights, data, tmp_path / "runs", *options)
    message = error_line(outcome, 1)
    said = [line for line in outcome.err.splitlines() if " per class" not in line]  # without what the folders hold
    assert str(weights) in message and len(said) == 1 and not outcome.out, outcome
    assert not (tmp_path / "runs").exists()
    return message


@pytest.mark.parametrize("name", ["weights.pt", "best.pt", "checkpoint.pt"])
def test_weights_of_a_run_test_as_the_run_did(name, training, data, tmp_path):
    outcome = evaluate(training / name, data, tmp_path / "runs")
    assert outcome.code == 0 and not (tmp_path / "runs").exists(), outcome
    accuracy = [record["test_acc"] for record in metrics(training)]
    assert f"{max(accuracy) if name == 'best.pt' else accuracy[-1]:.2f}% test accuracy" in outcome.err


@pytest.mark.parametrize("place", ["alone", "beside the weights", "instead of a tensor", "as a name"])
@pytest.mark.parametrize("form", ["pickle", "legacy", "zip"])
def test_code_in_a_weights_file_is_never_executed(form, place, training, data, tmp_path):
    path, canary = tmp_path / "weights.pt", tmp_path / "executed"
    weights = torch.load(training / "weights.pt", weights_only=True)
    content = {"alone": lambda code: code,
               "beside the weights": lambda code: {"state_dict": weights, "args": code},
               "instead of a tensor": lambda code: {**weights, "classifier.bias": code},
               "as a name": lambda code: {**weights, code: weights["classifier.bias"]}}[place](Malicious(canary))
    if form == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    assert_refused(path, data, tmp_path)
    assert not canary.exists()


@pytest.mark.parametrize("part", ["checkpoint.pt", "previous.pt"])
@pytest.mark.parametrize("form", ["pickle", "legacy", "zip"])
def test_code_in_a_training_checkpoint_is_never_executed(form, part, copy, tmp_path):
    """Neither with --resume nor with the checkpoint before, which the error offers; also where its hash is right."""
    run_dir, _ = copy(CIFAR)
    path, canary = run_dir / "checkpoint.pt", tmp_path / "executed"
    hostile = {"kind": "eval", "epoch": Malicious(canary)}
    if part == "previous.pt":
        path = run_dir / part
    if form == "pickle":
        path.write_bytes(pickle.dumps(hostile))
    else:
        torch.save(hostile, path, _use_new_zipfile_serialization=form == "zip")
    path.write_bytes(path.read_bytes() + hashlib.sha256(path.read_bytes()).digest())
    if part == "previous.pt":
        (run_dir / "checkpoint.pt").write_bytes(b"damaged")
        message = one_line_of_resume(run_dir)
        assert shlex.join(["mv", str(path), str(run_dir / "checkpoint.pt")]) in message
        path.rename(run_dir / "checkpoint.pt")
    assert str(run_dir / "checkpoint.pt") in one_line_of_resume(run_dir)
    assert not canary.exists()


def one_line_of_resume(run_dir):
    return error_line(run(CIFAR, "--resume", run_dir), 1)


@pytest.mark.parametrize("options", [
    ["--arch", "random:2"], ["--init_channels", 3], ["--layers", 4], ["--dataset", "digits"]],
    ids=["cell", "channels", "layers", "classes"])
def test_weights_of_another_network_are_refused(options, training, data, tmp_path):
    shutil.copy(training / "weights.pt", tmp_path)  # a run would name the classes that differ
    assert "--arch" in assert_refused(tmp_path / "weights.pt", data, tmp_path, *options)


@pytest.mark.parametrize("name", ["checkpoint.pt", "previous.pt"])
def test_weights_of_a_supernet_are_refused(name, search, data, tmp_path):
    assert "supernet" in assert_refused(search / name, data, tmp_path)


def without_an_entry(weights):
    return {key: value for key, value in weights.items() if key != "classifier.bias"}


@pytest.mark.parametrize("content", [
    lambda weights: [], lambda weights: {}, lambda weights: 3, lambda weights: torch.zeros(2), without_an_entry,
    lambda weights: {**weights, "extra": torch.zeros(1)}, lambda weights: {**weights, "classifier.bias": 3},
    lambda weights: {0: torch.zeros(1)}, lambda weights: {"state_dict": {"network": 3}},
    lambda weights: {"state_dict": None}, lambda weights: {**weights, 0: torch.zeros(1)},
    lambda weights: {**weights, "classifier.bias": torch.zeros(3)}],
    ids=["list", "nothing", "number", "tensor", "entry missing", "entry too many", "entry no tensor", "names no text",
         "nested", "None", "a name no text", "entry of another shape"])
def test_a_file_without_these_weights_is_refused(content, training, data, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(content(torch.load(training / "weights.pt", weights_only=True)), path)
    assert_refused(path, data, tmp_path)


@pytest.mark.parametrize("damage", [
    lambda content: content[:len(content) // 2], lambda content: content[:-1], lambda content: content[:10],
    lambda content: b"", lambda content: b"text", lambda content: content[:100] + bytes(100) + content[200:]],
    ids=["half", "a byte less", "ten bytes", "empty", "text", "zeros"])
def test_truncated_weights_are_refused(damage, training, data, tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(damage((training / "weights.pt").read_bytes()))
    assert_refused(path, data, tmp_path)


@pytest.mark.parametrize("path", ["missing.pt", "."])
def test_weights_that_are_no_file_are_refused(path, data, tmp_path):
    assert_refused(tmp_path / path, data, tmp_path)
