"""torchrun on two gloo processes: the same gradients as one, exact files after a rank dies."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
TINY = {
    "train_cifar.py": ["--init_channels", "2", "--layers", "3", "--epochs", "3", "--batch_size", "200"],
    "train_search.py": ["--init_channels", "2", "--layers", "3", "--add_layers", "0", "--add_layers", "0",
                        "--epochs", "2", "--warmup_epochs", "1", "--batch_size", "200"],
}
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def metrics(save: Path) -> list[dict]:
    """The records of the only run below `save`, without what a clock or a memory gauge measured."""
    path, = save.glob("*/metrics.jsonl")
    measured = {"seconds", "images_per_second", "peak_memory_mb"}
    return [{k: v for k, v in json.loads(line).items() if k not in measured} for line in path.read_text().splitlines()]


def test_two_processes_have_the_gradients_of_one(tmp_path):
    script, out = str(ROOT / "tests" / "one_step.py"), str(tmp_path / "grads")
    subprocess.run([sys.executable, script, out], check=True, env=ENVIRONMENT, cwd=tmp_path)
    subprocess.run([*TORCHRUN, script, out], check=True, env=ENVIRONMENT, cwd=tmp_path)
    one, first, second = (torch.load(f"{out}.{name}") for name in ("0of1", "0of2", "1of2"))
    for kind in ("alpha step", "weight step", "evaluation"):
        assert sum(name.startswith(kind) for name in one) >= 2
    assert one.keys() == first.keys() == second.keys()
    for name, grad in one.items():
        assert torch.equal(first[name], second[name]), name                # all ranks hold the same
        torch.testing.assert_close(first[name], grad, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("script", TINY)
def test_a_run_whose_rank_dies_ends_like_an_undisturbed_one(script, tmp_path):
    command = [*TORCHRUN, "--max-restarts=1", str(ROOT / script), *TINY[script]]
    subprocess.run([*command, "--save", "calm"], check=True, env=ENVIRONMENT, cwd=tmp_path, capture_output=True)
    torchrun = subprocess.Popen([*command, "--save", "hit"], env=ENVIRONMENT, cwd=tmp_path, stderr=subprocess.PIPE)
    while not list((tmp_path / "hit").glob("*/metrics.jsonl")):            # the first epoch is saved
        assert torchrun.poll() is None, torchrun.stderr.read().decode()
        time.sleep(0.05)
    children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    _, stderr = torchrun.communicate(timeout=120)
    assert torchrun.returncode == 0, stderr.decode()
    starts = [line for line in stderr.decode().splitlines() if " on 2 x " in line]
    assert len(starts) == 2 and starts[0].split(":")[0] == starts[1].split(":")[0]   # the same directory, twice
    assert metrics(tmp_path / "hit") == metrics(tmp_path / "calm")
