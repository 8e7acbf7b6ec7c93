"""One of two ranks fails, or is stuck: both end within 30 s, and one line says why."""
import os
import re
import signal
import socket
import time

import pytest
from kill_loop import OPTIONS
from scripts import ROOT, behind, by_hand, start

from harness import parallel

CIFAR = "train_cifar.py"
FAILS = """
import os, sys
import torch
import engine, utils
from harness import checkpoints
rank = int(os.environ["RANK"])
def once(where, name, number, fail):
    original, calls = getattr(where, name), []
    def call(*args, **options):
        calls.append(1)
        if len(calls) == number and rank == {rank}:
            fail()
        return original(*args, **options)
    setattr(where, name, call)
def out_of_memory():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
def disk_is_full():
    raise OSError("can't write checkpoint.pt (No space left on device): free space")
def bug():
    raise KeyError("a bug")
def killed():
    os.kill(os.getpid(), 9)
once({where})
"""
CAUSES = {  # where one rank fails -> what it prints
    "in a step": ('utils, "clipped_step", 2, out_of_memory', 1, "out of memory: try"),
    "in validation": ('engine, "evaluate", 1, bug', 1, "KeyError: 'a bug'"),
    "writing a checkpoint": ('checkpoints, "save", 1, disk_is_full', 0, "No space left on device"),
    "killed": ('utils, "clipped_step", 2, killed', 1, None)}


@pytest.fixture(scope="module")
def options(data):
    return [*OPTIONS[CIFAR], *data, "--batch_size", 4, "--epochs", 3]


@pytest.mark.parametrize("cause", CAUSES)
def test_both_ranks_end_and_the_failing_one_gives_the_cause(cause, options, tmp_path):
    where, rank, text = CAUSES[cause]
    program = behind(FAILS.format(where=where, rank=rank), tmp_path)
    ranks = [start(program, ROOT / CIFAR, *options, "--save", tmp_path / "runs", env=env) for env in by_hand(2)]
    outcomes = [process.wait() for process in ranks]
    assert all(outcome.code for outcome in outcomes), outcomes
    failed, other = outcomes[rank], outcomes[1 - rank]
    if text:
        assert failed.code == 1 and text in failed.err
    lines = [line for line in other.err.splitlines() if "error: " in line]
    assert len(lines) <= 1 and "Traceback" not in other.err
    assert all("another process of this run has ended" in line for line in lines), other.err


@pytest.mark.parametrize("received, status", [([signal.SIGCHLD], None), ([], None),
                                              ([signal.SIGCHLD, signal.SIGTERM], 128 + signal.SIGTERM)])
def test_the_end_of_a_worker_is_no_signal_to_stop(received, status, monkeypatch):
    statuses, (reading, writing) = [], socket.socketpair()
    monkeypatch.setattr(parallel, "_exit_now", statuses.append)
    monkeypatch.setattr(parallel, "PATIENCE", 0)
    monkeypatch.setattr(parallel, "_last_step", 0.0)
    with writing:
        writing.send(bytes(received))
    parallel._exit_if_stuck(reading)
    assert statuses == ([] if status is None else [status])


def test_a_rank_that_waits_for_another_forever_ends_some_time_after_a_signal(options, tmp_path):
    """As torchrun sends it to the others when one has died, and the network does not tell them."""
    assert parallel.PATIENCE == 20
    program = behind("from harness import parallel\nparallel.PATIENCE = 4", tmp_path)
    ranks = [start(program, ROOT / CIFAR, *options, "--epochs", 5000, "--save", tmp_path / "runs", env=env)
             for env in by_hand(2)]
    try:
        ranks[0].wait_until(lambda: '"epoch": 0' in ranks[0].output("err"))
        os.kill(ranks[1].pid, signal.SIGSTOP)  # its connections stay open
        time.sleep(1)
        begun = time.monotonic()
        ranks[0].signal(signal.SIGTERM)
        outcome = ranks[0].wait()
        assert outcome.code == 128 + signal.SIGTERM and time.monotonic() - begun > 3
        assert re.search("stopped by SIGTERM: no step ended within 4 s, another process may have ended", outcome.err)
    finally:
        os.kill(ranks[1].pid, signal.SIGKILL)
