"""Kill a search and a training at random moments, many times, and see that they end as if nobody had.

    python tests/kill_loop.py --kills 30
kills (SIGKILL) a small train_search.py 30 times and a small train_cifar.py 30 times, resumes them each time, and fails
where a file is torn or a result differs from an undisturbed run's. test_survival.py does the same with fewer kills.
"""
import argparse
import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from signal import SIGKILL
from xml.etree import ElementTree

import numpy as np
import torch
from PIL import Image
from scripts import MEASURED, run, start, the_run, write_images

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import checkpoints  # noqa: E402

TINY = ["--image_size", 8, "--batch_size", 8, "--init_channels", 2, "--layers", 3, "--cutout", "--device", "cpu"]
OPTIONS = {  # everything random takes part
    "train_search.py": [*TINY, "--add_layers", 0, "--add_layers", 0, "--train_portion", 0.34, "--epochs", 3,
                        "--warmup_epochs", 1, "--seed", 4],
    "train_cifar.py": [*TINY, "--arch", "random:1", "--epochs", 12, "--seed", 3],
}
KIND = {"train_search.py": "search", "train_cifar.py": "eval"}


def image_options(root: Path) -> list:
    """The options that name a small image folder, made at `root`."""
    return ["--dataset", "folder", "--tmp_data_dir", write_images(root, val=2)]


# ---- what a run directory holds

def plain(value):
    """What a file holds, to be compared by ==, bit for bit, without what is measured anew in every run."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items() if key not in MEASURED}
    return [plain(part) for part in value] if isinstance(value, (list, tuple)) else value


def read(path: Path):
    """A file's content; fails on a torn one. None for what differs between equal runs: dates, paths."""
    content = path.read_bytes()
    match path.suffix:
        case ".pt":
            return plain(torch.load(path, weights_only=True))
        case ".npz":
            with np.load(path) as file:
                return plain(dict(file))
        case ".jsonl":
            assert content.endswith(b"\n"), path
            return [plain(json.loads(line)) for line in content.splitlines()]
        case ".json":
            return None if path.name == "args.json" and json.loads(content) else json.loads(content)
        case ".png":
            Image.open(path).load()
            return content
        case ".svg":
            ElementTree.fromstring(content)
            return content
    if path.suffix == ".html":
        assert content.rstrip().endswith(b"</html>"), path
    return content.decode() and None  # log.txt, report.html


def read_run(run_dir: Path) -> dict:
    """Every file of a run, also below it, by name. What a kill left half-written has a name of its own: *.tmp."""
    return {str(path.relative_to(run_dir)): read(path) for path in sorted(run_dir.rglob("*"))
            if path.is_file() and path.suffix != ".tmp"}


def assert_same_result(run_dir: Path, expected: Path) -> None:
    """Everything that two runs computed, drew and saved is equal, bit for bit, and nothing half-written is left."""
    actual, wanted = read_run(run_dir), read_run(expected)
    assert sorted(actual) == sorted(wanted)
    different = [name for name in wanted if actual[name] != wanted[name]]
    assert not different, f"{', '.join(different)} differ in {run_dir} and {expected}"
    assert not list(run_dir.rglob("*.tmp"))


def assert_nothing_torn(run_dir: Path, script: str, expected: Path) -> None:
    """After a kill: no torn file, no doubled, missing or half line, and nothing that the undisturbed run lacks."""
    files, wanted = read_run(run_dir), read_run(expected)
    assert set(files) <= set(wanted)
    state = checkpoints.load(run_dir, KIND[script])  # verifies its hash
    lines, saved = files.get("metrics.jsonl", []), plain(state["metrics"]) if state else []
    assert lines == wanted["metrics.jsonl"][:len(lines)] and saved == wanted["metrics.jsonl"][:len(saved)]
    assert len(saved) - len(lines) in (0, 1)  # killed between the two files
    assert ("previous.pt" in files) <= ("checkpoint.pt" in files)


# ---- kills

def undisturbed(script: str, options: list, save: Path) -> Path:
    """The directory of a run that nobody stopped."""
    outcome = run(script, *options, "--save", save)
    assert outcome.code == 0, outcome
    return the_run(save)


EPOCH_FILES = ("checkpoint.pt", "previous.pt", "metrics.jsonl", "alphas.npz", "best.pt")


def files_seen(save: Path) -> set:
    """Every file there is, one for each time that it was written, among them those being written."""
    seen = set()
    for path in save.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
            seen.add((path.name.removesuffix(".tmp"), path.stat().st_ino, path.stat().st_mtime_ns))
    return seen


def where(run_dir: Path | None, script: str) -> str:
    """Where in a run a kill came, as its files show it."""
    if run_dir is None:
        return "before the run directory was whole"
    if list(run_dir.rglob("*.tmp")):
        return "in the writing of a " + ("picture" if list(run_dir.glob("pictures/*.tmp")) else "file")
    state = checkpoints.load(run_dir, KIND[script])
    if state is None:
        return "before the first checkpoint"
    lines = (run_dir / "metrics.jsonl").read_text().count("\n") if (run_dir / "metrics.jsonl").exists() else 0
    if lines < len(state["metrics"]):
        return "between checkpoint.pt and metrics.jsonl"
    epochs = OPTIONS[script][OPTIONS[script].index("--epochs") + 1]
    return "in the drawing at a stage's or the run's end" if state["epoch"] == epochs else "in an epoch"


def kill_at_random(script: str, data: list, expected: Path, folder: Path, kills: int, seed: int) -> Counter:
    """Kill a run `kills` times, resuming it each time, and begin another where it ends before; where the kills came.

    A kill comes after so many new files, any or an epoch's, at once (so in a save, often) or a little later.
    """
    random, places, run_dir, number = np.random.default_rng(seed), Counter(), None, 0
    while True:
        save = folder / f"{number}"
        if run_dir is None and save.exists():  # killed before there was anything to resume
            shutil.rmtree(save)
        save.mkdir(exist_ok=True)
        last = places.total() == kills
        process = start(script, *(["--resume", run_dir] if run_dir else [*OPTIONS[script], *data, "--save", save]))
        of_epochs, old = random.random() < 0.6, files_seen(save)
        count = random.integers(1, 12) if of_epochs else random.choice([0, 1, 2, 4, 8])
        delay = random.choice([0, random.uniform(0, 0.1), random.uniform(0, 0.6)])
        new: set = set()
        while process.running() and (last or len(new) < count):
            new |= {file for file in files_seen(save) - old if not of_epochs or file[0] in EPOCH_FILES}
            time.sleep(0.05 if last else 0.0005)
        if process.running():
            time.sleep(delay)
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            process.signal(SIGKILL)
        outcome = process.wait()
        if outcome.code == 0:
            assert_same_result(the_run(save), expected)
            if last:
                return places
            run_dir, number = None, number + 1
            continue
        assert outcome.code == -SIGKILL, outcome
        run_dir = next((path.parent for path in save.glob("*/args.json")), None)
        places[where(run_dir, script)] += 1
        if run_dir:
            assert_nothing_torn(run_dir, script, expected)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="of each script")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = image_options(Path(folder, "images"))
        for script in OPTIONS:
            begin = time.monotonic()
            expected = undisturbed(script, [*OPTIONS[script], *data], Path(folder, f"undisturbed {script}"))
            Path(folder, script).mkdir()
            once = time.monotonic() - begin
            places = kill_at_random(script, data, expected, Path(folder, script), args.kills, args.seed)
            print(f"{script}: {args.kills} kills, the same result; {once:.0f} s undisturbed, "
                  f"{time.monotonic() - begin - once:.0f} s killed and resumed")
            for place, count in places.most_common():
                print(f"  {count:3} {place}", flush=True)


if __name__ == "__main__":
    main()
