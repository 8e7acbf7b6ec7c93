"""Launchers: torchrun's variables set by anyone, srun, half a set, shells in an allocation, who loads data first."""
import os
import re
import signal
import socket
import subprocess
import sys

import pytest
import torch
from scripts import (
    ROOT,
    by_hand,
    epochs_done,
    error_line,
    free_port,
    metrics,
    run,
    start,
    the_run,
    together,
    write_images,
)

from harness import launchers, parallel

TINY = ["--init_channels", 2, "--layers", 3, "--epochs", 1, "--batch_size", 700, "--device", "cpu"]
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    """None of a launcher's variables are set, and those that a test leaves behind are taken away."""
    for name in [*NAMES, *(name for name in os.environ if name.startswith("SLURM_"))]:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def by_srun(count: int) -> list[dict]:
    """The same by srun in an allocation of one machine; the job's number decides the port."""
    job = {"SLURM_JOB_ID": str(free_port() - 10_000), "SLURM_STEP_ID": "0", "SLURM_NTASKS": str(count),
           "SLURM_STEP_NUM_TASKS": str(count), "SLURM_STEP_NUM_NODES": "1", "SLURM_JOB_NODELIST": "gpu07",
           "SLURM_LAUNCH_NODE_IPADDR": "192.0.2.1"}
    return [{**job, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(count)]


@pytest.mark.parametrize("environments, text", [
    (by_hand, "world size 2 (from the environment variable RANK); rendezvous at 127.0.0.1:"),
    (by_srun, "world size 2 (from srun); rendezvous at 127.0.0.1:")])
def test_processes_started_by_hand_or_by_srun_train_together(environments, text, tmp_path):
    first, second = together("train_cifar.py", *TINY, "--save", tmp_path, environments=environments(2))
    assert first.code == second.code == 0, (first, second)
    assert first.err.count(text) == 1 and " on 2 x " in first.err and not second.err  # nor a warning of DDP's
    assert text in (the_run(tmp_path) / "log.txt").read_text()  # though it was said before there was a log.txt
    assert len(metrics(the_run(tmp_path))) == 1


BATCH_SHELL = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_NPROCS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
               "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "gpu[07-08]"}


@pytest.mark.parametrize("environment", [
    BATCH_SHELL, {**BATCH_SHELL, "SLURM_NTASKS": "1"}, {**BATCH_SHELL, "SLURM_STEP_NUM_TASKS": "1"},
    {**BATCH_SHELL, "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_ID": "4294967290"},  # salloc's interactive step
    {"MASTER_ADDR": "gpu07", "MASTER_PORT": "12345"}, {"WORLD_SIZE": "1", "RANK": "0"}, {}],
    ids=["sbatch", "one task", "srun --pty", "salloc", "an address alone", "one of one", "nothing"])
def test_a_process_that_no_launcher_started_as_one_of_several_stays_alone(environment, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert not launchers.launched()
    parallel.init_distributed(torch.device("cpu"))  # waits for nobody
    assert parallel.world_size() == 1


def test_a_batch_script_of_several_tasks_trains_alone_where_it_calls_python_itself(tmp_path):
    outcome = run("train_cifar.py", *TINY, "--save", tmp_path, env=BATCH_SHELL)
    assert outcome.code == 0 and " on 1 x " in outcome.err, outcome


SRUN = by_srun(2)[1]


@pytest.mark.parametrize("environment, words", [
    ({"RANK": "0"}, ["WORLD_SIZE, LOCAL_RANK, MASTER_ADDR"]), ({"WORLD_SIZE": "2"}, ["RANK", "or none"]),
    ({"LOCAL_RANK": "1"}, ["RANK", "or none"]), ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, ["MASTER_ADDR"]),
    ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "x"}, ["RANK=2", "from 0 to WORLD_SIZE - 1"]),
    ({"RANK": "-1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "x"}, ["RANK=-1", "must be"]),
    ({"RANK": "0", "WORLD_SIZE": "two", "LOCAL_RANK": "0", "MASTER_ADDR": "x"}, ["WORLD_SIZE=two"]),
    ({name: value for name, value in SRUN.items() if name != "SLURM_PROCID"}, ["SLURM_PROCID", "srun or torchrun"]),
    ({name: value for name, value in SRUN.items() if name != "SLURM_LOCALID"}, ["SLURM_LOCALID"])])
def test_half_a_set_is_refused_in_one_line(environment, words, tmp_path):
    outcome = run("train_cifar.py", *TINY, "--save", tmp_path / "runs", env=environment)
    message = error_line(outcome, 1)
    assert all(word in message for word in words), message
    assert outcome.err.count("\n") == 1 and not (tmp_path / "runs").exists()


ALONE = [{"RANK": ""}, {"RANK": "3"}, {"SLURM_PROCID": "3", "SLURM_LOCALID": "3", "SLURM_NTASKS": "4"}]


@pytest.mark.parametrize("environment", ALONE, ids=["empty", "half a set", "a task whose step is hidden"])
def test_a_process_that_is_not_one_of_several_says_what_is_wrong_itself(environment, tmp_path):
    outcome = run("train_cifar.py", "--epoch", 1, cwd=tmp_path, env=environment)
    assert "--epochs" in error_line(outcome, 2) and outcome.err.count("\n") == 1


def test_a_task_whose_step_is_hidden_says_what_it_does(tmp_path):
    outcome = run("train_cifar.py", *TINY, "--save", tmp_path, env=ALONE[2])
    assert outcome.code == 0 and " on 1 x " in outcome.err and "test accuracy last" in outcome.err


def test_machines_that_do_not_share_the_folder_of_runs_are_told_so(tmp_path):
    """Each process in a folder of its own, as on disks of two machines."""
    started = []
    for environment in by_hand(2):
        folder = tmp_path / environment["RANK"]
        folder.mkdir()
        started.append(start("train_cifar.py", *TINY, "--save", "runs", env=environment, cwd=folder))
    outcomes = [process.wait() for process in started]
    assert [outcome.code for outcome in outcomes] == [1, 1]
    lines = [line for outcome in outcomes for line in outcome.err.splitlines() if "error: " in line]
    assert len(lines) == 1 and "--save must be a folder that all machines share" in lines[0], outcomes


def test_where_another_process_dies_the_rest_end_in_one_line_and_can_go_on(tmp_path):
    options = [*TINY, "--epochs", 200, "--save", tmp_path]
    first, second = (start("train_cifar.py", *options, env=environment) for environment in by_hand(2))
    first.wait_until(lambda: any(tmp_path.iterdir()) and epochs_done(the_run(tmp_path)) >= 1)
    second.signal(signal.SIGKILL)
    message = error_line(first.wait(), 1)
    assert "another process of this run has ended" in message and f"--resume {the_run(tmp_path)}" in message


@pytest.mark.parametrize("port", ["abc", "99999", "taken"])
def test_a_place_where_processes_cannot_meet_is_named_in_one_line(port, tmp_path):
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        port = str(other.getsockname()[1]) if port == "taken" else port
        outcome = run("train_cifar.py", *TINY, "--save", tmp_path / "runs", env=by_hand(2)[0] | {"MASTER_PORT": port})
    assert f"rendezvous at 127.0.0.1:{port} failed (" in error_line(outcome, 1)
    assert outcome.err.count("\n") == 1 and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("environment, address", [
    ({"SLURM_STEP_NODELIST": "gpu[003-006,009]"}, "gpu003:10042"), ({"SLURM_JOB_NODELIST": "a1,b2"}, "a1:10042"),
    ({"SLURM_NODELIST": "rack[2-3]n[07,09],x"}, "rack2n07:10042"), ({"SLURM_STEP_NUM_NODES": "1"}, "127.0.0.1:10042"),
    ({"SLURM_LAUNCH_NODE_IPADDR": "192.0.2.1"}, "192.0.2.1:10042"),
    ({"SLURM_JOB_NODELIST": "a1", "MASTER_ADDR": "b", "MASTER_PORT": "5"}, "b:5"),
    ({"SLURM_JOB_NODELIST": "a1", "SLURM_JOB_ID": "20043", "SLURM_STEP_ID": "1"}, "a1:10144")])
def test_srun_meets_at_its_first_machine_and_a_port_of_the_job(environment, address, monkeypatch):
    base = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "42"}
    for name, value in (base | environment).items():
        monkeypatch.setenv(name, value)
    assert launchers.launched()
    assert [os.environ[name] for name in NAMES[:3]] == ["3", "8", "1"]
    assert f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}" == address
    assert launchers.launched()  # asked twice, the same


@pytest.mark.parametrize("option", ["--local-rank=0", "--local_rank=1"])
def test_the_option_of_the_old_launcher_names_torchrun(option, tmp_path):
    outcome = run("train_search.py", option, cwd=tmp_path)
    assert "use torchrun" in error_line(outcome, 2) and outcome.err.count("\n") == 1


@pytest.mark.slow
def test_the_old_launcher_is_told_once_to_use_torchrun(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.launch", "--nproc_per_node=2", ROOT / "train_cifar.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode and done.stderr.count("use torchrun") == 1, done.stderr


@pytest.mark.parametrize("gpus, text", [
    ([("a", "0"), ("a", "0")], "2 processes on a have 1 GPU"), ([("a", "0"), ("a", "1")], None),
    ([("a", "0"), ("b", "0"), ("b", "1"), ("b", "0")], "3 processes on b have 2 GPU"), ([None, None], None)])
def test_more_processes_than_gpus_are_refused_on_all_of_them(gpus, text, monkeypatch):
    monkeypatch.setattr(parallel.dist, "all_gather_object", lambda found, mine: found.__setitem__(slice(None), gpus))
    if text is None:
        return parallel._check_gpus(gpus[0])
    with pytest.raises(parallel.Stopped) as stopped:
        parallel._check_gpus(gpus[0])
    assert stopped.value.args[0] == 1 and text in stopped.value.args[1] and "start " in stopped.value.args[1]


ORDER = """
import datetime, os, platform, sys, time
sys.path.insert(0, {root!r})
import torch, torch.distributed as dist
from harness import parallel
platform.node = lambda: "machine" + str(int(os.environ["RANK"]) // 2)
parallel.init_distributed(torch.device("cpu"))
barrier = dist.barrier
dist.barrier = dist.all_reduce = dist.broadcast = dist.all_gather_object = None  # they would end after some time
parallel._store.set_timeout(datetime.timedelta(seconds=1))
def write(what):
    with open(sys.argv[1], "a") as file:
        file.write(what + str(parallel.rank()) + " ")
with parallel.rank0_first():
    write("+")
    time.sleep(1.5 if parallel.rank() in (0, 3) else 0)  # longer than the store would wait
    write("-")
write("=")
barrier()
dist.destroy_process_group()
"""


def test_rank_0_loads_first_then_one_process_of_each_other_machine_as_long_as_it_takes(tmp_path):
    script = tmp_path / "order.py"
    script.write_text(ORDER.format(root=str(ROOT)))
    environments = [env | {"LOCAL_RANK": str(i % 2)} for i, env in enumerate(by_hand(4))]
    outcomes = together(script, tmp_path / "order", environments=environments)
    assert [outcome.code for outcome in outcomes] == [0] * 4, outcomes
    order = (tmp_path / "order").read_text().split()
    assert order[:2] == ["+0", "-0"] and order.index("-2") < order.index("+3")
    assert sorted(order[-4:]) == ["=0", "=1", "=2", "=3"]  # all leave together


def test_a_data_set_that_rank_0_cannot_load_ends_all_processes_in_one_line(tmp_path):
    root = write_images(tmp_path / "images", val=1)
    (root / "train" / "cat" / "3.png").write_bytes(b"")
    outcomes = together("train_cifar.py", *TINY, "--dataset", "folder", "--tmp_data_dir", root, "--save",
                        tmp_path / "runs", environments=by_hand(3))
    assert "3.png" in error_line(outcomes[0], 1)
    assert [(outcome.code, outcome.err) for outcome in outcomes[1:]] == [(1, ""), (1, "")]
    assert not (tmp_path / "runs").exists()


def test_the_line_of_a_stopped_step_starts_it_by_srun_again(monkeypatch):
    monkeypatch.setattr(launchers, "world_size", lambda: 4)
    for name, value in {"SLURM_PROCID": "2", "RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    assert re.fullmatch("srun --ntasks=4 python x.py", launchers.continue_command("x.py"))
