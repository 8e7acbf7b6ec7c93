"""Signals of a cluster, and the job script of docs/cluster.md without SLURM: stopped, requeued, finished by itself."""
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
from kill_loop import OPTIONS, assert_same_result
from scripts import ROOT, children, epochs_done, run, start, the_run

from harness import checkpoints

CIFAR = "train_cifar.py"


@pytest.fixture(scope="module")
def options(data):
    """Those of `training`."""
    return [*OPTIONS[CIFAR], *data]


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGUSR2"])
def test_a_clusters_warning_saves_the_run_in_the_middle_of_its_epoch(name, options, training, tmp_path):
    number = signal.Signals[name]
    process = start(CIFAR, *options, "--save", tmp_path)
    process.wait_until(lambda: any(tmp_path.iterdir()) and epochs_done(the_run(tmp_path)) >= 1)
    process.signal(number)
    outcome, run_dir = process.wait(), the_run(tmp_path)
    assert outcome.code == 128 + number, outcome
    line = outcome.err.splitlines()[-1]
    command = shlex.split(line.removeprefix(f"stopped by {name}; continue with: python "))
    assert command == [str(ROOT / "train_cifar.py"), "--resume", str(run_dir)]
    assert checkpoints.load(run_dir, "eval")["epoch"] < 12
    assert run(*command).code == 0
    assert_same_result(run_dir, training)


def job_script(folder, options):
    """The script of docs/cluster.md with another training in it, and srun and scontrol that only a test would have."""
    text = re.search(r"```bash\n(#!.*?)```", (ROOT / "docs" / "cluster.md").read_text(), re.DOTALL)[1]
    assert len(text.splitlines()) <= 10
    ours = "train_search.py --tmp_data_dir DIR"
    assert ours in text
    job = folder / "job.sh"
    job.write_text(text.replace(ours, shlex.join([str(ROOT / CIFAR), *map(str, options)])))
    programs = {"srun": '[ "$1" = --kill-on-bad-exit=1 ] && shift; exec "$@"', "scontrol": 'echo "$@" >> requeued',
                "python": f'exec {sys.executable} {ROOT}/tests/scripts.py "$@"'}
    for name, line in programs.items():
        (folder / name).write_text(f"#!/bin/bash\n{line}\n")
        (folder / name).chmod(0o755)
    return job


@pytest.mark.slow
def test_the_job_script_is_requeued_and_goes_on_by_itself(options, training, tmp_path):
    job, save = job_script(tmp_path, options), tmp_path / "runs" / "4711"
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "4711",
                                "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "OMP_NUM_THREADS": "1"}

    def submit():
        return subprocess.Popen(["bash", str(job)], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)

    batch = submit()
    while not (save.exists() and any(save.iterdir()) and epochs_done(the_run(save)) >= 1):
        assert batch.poll() is None, batch.stderr.read()
        time.sleep(0.005)
    step, = children(batch.pid)  # srun has become the script
    os.kill(step, signal.SIGUSR1)
    _, stderr = batch.communicate(timeout=100)
    assert batch.returncode == 138 and "stopped by SIGUSR1" in stderr, stderr
    assert (tmp_path / "requeued").read_text() == "requeue 4711\n"
    batch = submit()
    _, stderr = batch.communicate(timeout=100)
    assert batch.returncode == 0, stderr
    assert (tmp_path / "requeued").read_text() == "requeue 4711\n"  # finished: not again
    assert_same_result(the_run(save), training)


def test_the_first_cell_of_a_notebook_begins_a_run_and_then_continues_it(tmp_path):
    """As printed, but for the storage; in the place of python, what makes a run's directory."""
    text = next(text for text in re.findall(r"```bash\n(.*?)```", (ROOT / "docs/cluster.md").read_text(), re.DOTALL)
                if text.startswith("save=/content"))
    text = text.replace("/content/drive/MyDrive/pdarts", f"{tmp_path}/runs")
    python = f'python() {{ echo "$@" >> {tmp_path}/calls; mkdir -p $save/search-1; touch $save/search-1/args.json; }}\n'
    for _ in range(2):
        subprocess.run(["bash", "-c", python + text], check=True)
    command = f"train_search.py --tmp_data_dir DIR --save {tmp_path}/runs"
    assert (tmp_path / "calls").read_text().splitlines() == [command, f"{command} --resume {tmp_path}/runs/search-1"]
