"""A process can run often: what a run changes is put back, however it ends; one process at a time resumes a run."""
import gc
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
from functools import partial
from multiprocessing import forkserver, resource_tracker

import kill_loop
import pytest
import torch
from scripts import ROOT, behind, children, epochs_done, error_line, run, start, the_run
from tqdm import tqdm

import engine
import train_cifar
import train_imagenet
from harness import parallel
from harness.log import log, log_to_file
from harness.process import Stopped, at_end, change, restored

CIFAR = "train_cifar.py"


def words(data, save, *options) -> list[str]:
    return [*map(str, kill_loop.OPTIONS[CIFAR] + [*data, "--epochs", 1, "--save", save, *options])]


def imagenet_words(root, save) -> list[str]:
    tiny = "--image_size 32 --init_channels 2 --layers 1 --batch_size 4 --epochs 1 --lr_scheduler cosine --workers 1"
    return [*tiny.split(), "--device", "cpu", "--tmp_data_dir", str(root), "--save", str(save)]


def settings() -> dict:
    """What a run could change in this process."""
    gc.collect()
    for thread in threading.enumerate():  # torch closes its workers' queues, and does not wait for their threads
        if thread.name == "QueueFeederThread":
            thread.join(timeout=20)
    return {"signals": [signal.getsignal(number) for number in parallel.SIGNALS], "noted": list(parallel._signals),
            "log": (log.handlers[:], log.level), "threads": {thread.name for thread in threading.enumerate()},
            "children": children(os.getpid()), "precision": torch.get_float32_matmul_precision(),
            "tf32": torch.backends.cudnn.allow_tf32, "autotuning": torch.backends.cudnn.benchmark,
            "deterministic": torch.get_deterministic_debug_mode(), "bars": tqdm.monitor_interval,
            "fill": torch.utils.deterministic.fill_uninitialized_memory,
            "environment": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
            "files": {path for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}") and
                      (path := os.readlink(f"/proc/self/fd/{name}")).endswith("log.txt")}}


@pytest.fixture
def notebook(monkeypatch):
    """A process with settings and handlers of its own, which must be as they were after the test."""
    for server in (resource_tracker, forkserver):  # Python starts them once a process, and never ends them
        server.ensure_running()
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(engine, "try_to_draw", lambda run_dir: None)
    previous = {signal.SIGUSR1: signal.signal(signal.SIGUSR1, print),
                # Ignored if the tests run in the background, or under nohup.
                signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
                signal.SIGHUP: signal.signal(signal.SIGHUP, signal.SIG_DFL)}
    torch.set_float32_matmul_precision("medium")
    before = settings()
    yield
    after = settings()
    for number, handler in previous.items():
        signal.signal(number, handler)
    torch.set_float32_matmul_precision("highest")
    assert {name: value for name, value in after.items() if value != before[name]} == {}


# ---- a process can run often

def test_two_runs_in_a_process_have_logs_of_their_own(notebook, data, tmp_path):
    args = train_cifar.parse_args(words(data, tmp_path, "--deterministic", "--tf32"))
    given = vars(args).copy()
    for seed in (1, 2):
        args.seed = seed
        train_cifar.main(args)  # the same options again: a new run, not the last one resumed
        assert vars(args) == given | {"seed": seed}
    logs = [path.read_text() for path in sorted(tmp_path.glob("*/log.txt"))]
    assert len(logs) == 2 and all(text.count("epoch 0 done") == text.count("export it") == 1 for text in logs)


def stop_at_first_step(monkeypatch, number=signal.SIGINT):
    def update(meter, *args, original=engine.Meter.update):
        os.kill(os.getpid(), number)
        original(meter, *args)
    monkeypatch.setattr(engine.Meter, "update", update)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_after_a_signal_the_next_run_works(number, notebook, data, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch, pytest.raises(Stopped, match=f"stopped by {number.name}"):
        stop_at_first_step(patch, number)
        train_cifar.main(train_cifar.parse_args(words(data, tmp_path)))
    err = capsys.readouterr().err
    assert f"{number.name}: the run ends after this step" in err and "the unfinished epoch is lost" in err
    train_cifar.main(train_cifar.parse_args(["--resume", str(the_run(tmp_path))]))
    assert epochs_done(the_run(tmp_path)) == 1


def test_a_second_ctrl_c_is_the_processes_own(notebook, data, tmp_path, monkeypatch):
    stop_at_first_step(monkeypatch)
    monkeypatch.setattr(parallel, "stop_if_asked", partial(os.kill, os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        train_cifar.main(train_cifar.parse_args(words(data, tmp_path)))


def test_workers_end_with_a_stopped_run(notebook, tmp_path, monkeypatch):
    root = kill_loop.write_images(tmp_path / "images", val=2)
    stop_at_first_step(monkeypatch)
    args = train_imagenet.parse_args(imagenet_words(root, tmp_path / "runs"))
    with pytest.raises(Stopped) as stopped:
        train_imagenet.main(args)
    assert stopped.value.args[0] == 128 + signal.SIGINT  # its frames are kept, as a notebook does


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3), RuntimeError("a bug")])
def test_what_was_changed_is_put_back_however_a_run_ends(error, notebook):
    @restored()
    def main():
        change(torch.backends.cudnn, "benchmark", not torch.backends.cudnn.benchmark)
        parallel.catch_signals()
        parallel.remember(signal.SIGTERM, None)
        raise error
    for _ in range(2):
        with pytest.raises(type(error)):
            main()


def test_a_run_in_a_thread_leaves_signals_to_the_main_thread(notebook, data, tmp_path):
    args = train_cifar.parse_args(words(data, tmp_path))
    thread = threading.Thread(target=train_cifar.main, args=[args])
    thread.start()
    thread.join()
    assert (the_run(tmp_path) / "weights.pt").exists()


def test_settings_of_torchs_newer_interface_do_not_stop_a_run(data, tmp_path):
    code = "import torch; torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = 'tf32'"
    assert run(behind(code, tmp_path), ROOT / CIFAR, *words(data, tmp_path / "runs")).code == 0


def test_outside_a_run_nothing_is_put_back():
    at_end(pytest.fail)
    with restored():
        pass


# ---- signals and screens of a script

def test_nohup_keeps_ignoring_a_closed_terminal(data, tmp_path):
    process = start(behind("import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)", tmp_path), ROOT / CIFAR,
                    *words(data, tmp_path / "runs", "--epochs", 60))
    process.wait_until(lambda: list(tmp_path.glob("runs/*/metrics.jsonl")))
    process.signal(signal.SIGHUP)
    done = epochs_done(the_run(tmp_path / "runs"))
    process.wait_until(lambda: epochs_done(the_run(tmp_path / "runs")) > done + 1)
    process.signal(signal.SIGTERM)
    assert process.wait().code == 128 + signal.SIGTERM


SCREENS = {"closed": "os.close(2); sys.stderr = None",
           "a pipe that nothing reads": "r, w = os.pipe(); os.close(r); os.dup2(w, 2)",
           "a full device": "os.dup2(os.open('/dev/full', os.O_WRONLY), 2)",
           "neither": "os.close(1); os.close(2); sys.stdout = sys.stderr = None"}


@pytest.mark.parametrize("name", SCREENS)
def test_a_screen_that_cannot_be_written_to_ends_no_run(name, data, tmp_path):
    path = behind(f"import os; {SCREENS[name]}", tmp_path)
    assert run(path, ROOT / CIFAR, *words(data, tmp_path / "runs")).code == 0
    text = (the_run(tmp_path / "runs") / "log.txt").read_text()
    assert "export it: " in text and ("nothing can be printed any more" in text) == ("sys" not in SCREENS[name])


# ---- one process at a time

@pytest.fixture
def running(data, tmp_path):
    """A run and its process, which is stopped afterwards."""
    process = start(CIFAR, *words(data, tmp_path / "runs", "--epochs", 3000))
    process.wait_until(lambda: list(tmp_path.glob("runs/*/metrics.jsonl")))
    yield the_run(tmp_path / "runs"), process
    if process.running():
        process.signal(signal.SIGKILL)
    process.wait()


def test_a_second_process_is_told_that_a_run_is_in_use(running, tmp_path):
    run_dir, process = running
    (tmp_path / "link").symlink_to(run_dir)
    for path in (run_dir, tmp_path / "link"):  # a run may have two names
        message = error_line(run(CIFAR, "--resume", path), 1)
        assert f"{path} is in use by another process" in message
    for script in ("compare.py", "visualize.py"):
        assert run(script, run_dir).code == 0  # readers need no lock
    assert process.running() and "in use" not in (run_dir / "log.txt").read_text()
    process.signal(signal.SIGKILL)
    process.wait()
    follower = start(CIFAR, "--resume", run_dir)  # at once
    done = epochs_done(run_dir)
    follower.wait_until(lambda: epochs_done(run_dir) > done)
    follower.signal(signal.SIGTERM)
    assert follower.wait().code == 128 + signal.SIGTERM


def test_the_other_ranks_are_told_too(running):
    from scripts import by_hand, together
    run_dir, _ = running
    first, second = together(CIFAR, "--resume", run_dir, environments=by_hand(2))
    assert "is in use by another process" in error_line(first, 1) and second.code == 1 and not second.err


def test_workers_of_a_killed_run_hold_no_lock(tmp_path):
    log_to = partial(log_to_file, tmp_path / "log.txt")
    code = ("import os, sys, time; from harness.log import log_to_file; from pathlib import Path;"
            f"log_to_file(Path({str(tmp_path)!r}, 'log.txt')); pid = os.fork() or time.sleep(60);"
            "print(pid, flush=True); time.sleep(60)")
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        worker = int(process.stdout.readline())
        with restored():
            assert "is in use" in log_to()
        process.kill()
        process.wait()
        os.kill(worker, 0)  # it lives
        with restored():
            assert log_to() is None
        os.kill(worker, signal.SIGKILL)


@pytest.mark.parametrize("error", [OSError(37, "No locks available"), ImportError("No module named 'fcntl'")])
def test_where_nothing_can_be_locked_the_log_says_so(error, tmp_path, monkeypatch):
    def lockf(*args):
        raise error
    monkeypatch.setattr("fcntl.lockf", lockf)
    with restored():
        assert log_to_file(tmp_path / "log.txt") is None
    text = (tmp_path / "log.txt").read_text()
    assert "can't be locked" in text and str(error) in text


def test_a_finished_run_is_free(notebook, training, tmp_path):
    run_dir = shutil.copytree(training, tmp_path / "run")
    for _ in range(2):
        train_cifar.main(train_cifar.parse_args(["--resume", str(run_dir)]))


# ---- workers that are not forked

@pytest.mark.parametrize("method", ["forkserver", pytest.param("spawn", marks=pytest.mark.slow)])
def test_train_imagenet_ends_with_workers(method, tmp_path):
    root = kill_loop.write_images(tmp_path / "images", val=2)
    done = run("train_imagenet.py", *imagenet_words(root, tmp_path / "runs"),
               change=partial(multiprocessing.set_start_method, method, force=True))
    assert done.code == 0 and (the_run(tmp_path / "runs") / "weights.pt").exists(), done
