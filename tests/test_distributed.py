"""torchrun on two gloo processes: the same gradients as one, exact files after a rank dies or a signal came."""
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from scripts import ROOT, by_hand, children, compile_quickly, metrics, the_run, together, write_images

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
SKETCHING = str(ROOT / "tests" / "scripts.py")
TINY = {
    "train_cifar.py": ["--init_channels", "2", "--layers", "3", "--epochs", "3", "--batch_size", "200"],
    "train_search.py": ["--init_channels", "2", "--layers", "3", "--add_layers", "0", "--add_layers", "0",
                        "--epochs", "2", "--warmup_epochs", "1", "--batch_size", "200"],
}
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def test_two_processes_have_the_gradients_of_one(tmp_path):
    out = tmp_path / "grads"
    for environments in ([{}], by_hand(2)):
        for outcome in together("tests/one_step.py", out, environments=environments, cwd=tmp_path):
            assert outcome.code == 0, outcome.err
    one, first, second = (torch.load(f"{out}.{name}") for name in ("0of1", "0of2", "1of2"))
    for kind in ("alpha step, cifar", "weight step, imagenet: stem1", "evaluation"):
        assert sum(name.startswith(kind) for name in one) >= 2
    assert one.keys() == first.keys() == second.keys()
    for name, grad in one.items():
        assert torch.equal(first[name], second[name]), name  # all ranks hold the same
        torch.testing.assert_close(first[name], grad, rtol=1e-6, atol=1e-9, msg=name)


# More than 1 MiB of weights: DDP averages the gradients in several buckets.
COMPILED = {
    "train_search.py": ["--epochs", "2", "--warmup_epochs", "1"],
    "train_cifar.py": ["--init_channels", "128", "--layers", "1", "--epochs", "2", "--drop_path_prob", "0.3"],
    "train_imagenet.py": ["--init_channels", "128", "--layers", "1", "--epochs", "2", "--drop_path_prob", "0.3",
                          "--image_size", "32", "--workers", "0", "--lr_scheduler", "cosine"],
}


@pytest.mark.slow
@pytest.mark.parametrize("script", COMPILED)
def test_two_compiled_processes_train_for_two_epochs(script, tmp_path):
    """In the second epoch the drop path probability becomes a variable, on which DDP's graph splitter fails."""
    images = write_images(tmp_path / "images", val=1)
    options = [*COMPILED[script], "--compile", "--tmp_data_dir", images, "--batch_size", 8, "--save", tmp_path / "runs"]
    if script != "train_imagenet.py":
        options += ["--dataset", "folder", "--image_size", 8]
    for outcome in together(script, *options, environments=by_hand(2), change=compile_quickly, timeout=600):
        assert outcome.code == 0, outcome.err
    records = metrics(the_run(tmp_path / "runs"))
    assert len(records) == 2 and all(record["compile_seconds"] > 0 for record in records)


@pytest.fixture(scope="module", params=TINY)
def calm(request, tmp_path_factory):
    """A script, and the records of its run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("calm")
    command = [*TORCHRUN, SKETCHING, str(ROOT / request.param), *TINY[request.param], "--save", "calm"]
    subprocess.run(command, check=True, env=ENVIRONMENT, cwd=folder, capture_output=True)
    return request.param, metrics(the_run(folder / "calm"))


def start_until_saved(command, save: Path) -> tuple[subprocess.Popen, list[int]]:
    """torchrun and its processes, when the first epoch is saved."""
    torchrun = subprocess.Popen([*command, "--save", save], env=ENVIRONMENT, stderr=subprocess.PIPE)
    while not list(save.glob("*/metrics.jsonl")):
        assert torchrun.poll() is None, torchrun.stderr.read().decode()
        time.sleep(0.05)
    return torchrun, children(torchrun.pid)


@pytest.mark.slow
def test_a_run_whose_rank_dies_ends_like_an_undisturbed_one(calm, tmp_path):
    script, expected = calm
    torchrun, ranks = start_until_saved(
        [*TORCHRUN, "--max-restarts=1", SKETCHING, str(ROOT / script), *TINY[script]], tmp_path / "hit")
    os.kill(ranks[-1], signal.SIGKILL)
    _, stderr = torchrun.communicate(timeout=120)
    assert torchrun.returncode == 0, stderr.decode()
    starts = [line for line in stderr.decode().splitlines() if " on 2 x " in line]
    assert len(starts) == 2 and starts[0].split(":")[0] == starts[1].split(":")[0]  # the same directory, twice
    assert metrics(the_run(tmp_path / "hit")) == expected


@pytest.mark.slow
def test_a_signal_to_torchrun_and_its_processes_saves_the_run_in_the_middle_of_an_epoch(calm, tmp_path):
    script, expected = calm
    torchrun, ranks = start_until_saved([*TORCHRUN, SKETCHING, str(ROOT / script), *TINY[script]], tmp_path)
    for pid in (ranks[-1], torchrun.pid, ranks[0]):  # as a cluster does; torchrun passes it on
        os.kill(pid, signal.SIGTERM)
    _, stderr = torchrun.communicate(timeout=120)
    run_dir = the_run(tmp_path)
    assert f"stopped by SIGTERM; continue with: torchrun --nproc_per_node=2 {ROOT / script}" in stderr.decode()
    assert torch.load(run_dir / "checkpoint.pt", weights_only=True)["meter"]["steps"] > 0
    subprocess.run([*TORCHRUN, SKETCHING, str(ROOT / script), "--resume", run_dir], check=True, env=ENVIRONMENT,
                   capture_output=True)
    assert metrics(run_dir) == expected
