"""Run the scripts as a person runs them: processes of their own, with one thread, judged by what they leave behind.

A script takes seconds to import torch and more to draw its pictures, and the tests run dozens. So `start` and `run`
fork them from a server that has imported it, and save sketches; `run_fresh` starts an interpreter, as a shell does.
    python tests/scripts.py SCRIPT OPTIONS...  # what other programs start with sketches
"""
import json
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

ROOT = Path(__file__).parents[1]
MEASURED = ("seconds", "images_per_second", "peak_memory_mb")  # what no two runs have in common
os.environ["OMP_NUM_THREADS"] = "1"  # before the server starts
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["train_search", "sklearn.datasets", "sklearn.model_selection", "torch._dynamo"])


class Outcome(NamedTuple):
    """How a script ended: exit status (or minus the signal that killed it) and what it printed."""
    code: int
    out: str
    err: str


class Script:
    """A running script; `pid` is its process."""

    def __init__(self, script, *options, cwd=None, env=None):
        self.folder = tempfile.TemporaryDirectory()
        argv = [str(ROOT / script), *map(str, options)]
        self.process = processes.Process(target=_become, args=(argv, self.folder.name, str(cwd or ROOT), env or {}))
        self.process.start()
        self.pid = self.process.pid

    def running(self) -> bool:
        return self.process.is_alive()

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float = 100) -> Outcome:
        self.process.join(timeout)
        assert self.process.exitcode is not None, f"still running after {timeout} s: {self.output('err')}"
        with self.folder:
            return Outcome(self.process.exitcode, self.output("out"), self.output("err"))

    def output(self, name: str) -> str:
        path = Path(self.folder.name, name)
        return path.read_text() if path.exists() else ""

    def wait_until(self, condition, timeout: float = 100) -> None:
        """Poll a condition while the script runs."""
        end = time.monotonic() + timeout
        while not condition():
            assert self.running() and time.monotonic() < end, f"it never came so far: {self.wait()}"
            time.sleep(0.002)


def _become(argv: list[str], folder: str, cwd: str, env: dict) -> None:
    """In the new process: be `python argv...` in `cwd`, printing to files."""
    for stream, name in ((sys.stdout, "out"), (sys.stderr, "err")):
        os.dup2(os.open(Path(folder, name), os.O_WRONLY | os.O_CREAT), stream.fileno())
    os.chdir(cwd)
    os.environ.update(env)
    be(argv)


def be(argv: list[str]) -> None:
    """Be `python argv...`, with sketches for pictures."""
    sys.argv = argv
    sys.path.insert(0, str(Path(argv[0]).parent))  # as an interpreter does
    Figure.savefig = sketch
    runpy.run_path(argv[0], run_name="__main__")


def sketch(figure, file, format, **options) -> None:
    """In the place of a figure's savefig: a dot, and as SVG the numbers that its lines go through."""
    if format == "png":
        Image.new("L", (1, 1)).save(file, "PNG")
    else:
        lines = [line.get_xydata().tolist() for ax in figure.axes for line in ax.lines]
        file.write(f"<svg>{lines}</svg>".encode())


BEHIND = """
import runpy, sys
{}
sys.argv = sys.argv[1:]
sys.path[0] = sys.argv[0].rpartition("/")[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def behind(code: str, folder: Path) -> Path:
    """A program, made in `folder`, that does `code` and then is the script of its first argument."""
    (folder / "behind.py").write_text(BEHIND.format(code))
    return folder / "behind.py"


def start(script, *options, cwd=None, env=None) -> Script:
    """Start `script` (a name in the repository, or a path) with these options."""
    return Script(script, *options, cwd=cwd, env=env)


def run(script, *options, cwd=None, env=None, timeout: float = 100) -> Outcome:
    """The same to its end."""
    return start(script, *options, cwd=cwd, env=env).wait(timeout)


def run_fresh(script, *options, cwd=None, timeout: float = 100) -> Outcome:
    """`python script options...` in an interpreter of its own."""
    done = subprocess.run([sys.executable, str(ROOT / script), *map(str, options)], cwd=cwd or ROOT, timeout=timeout,
                          capture_output=True, text=True)
    return Outcome(done.returncode, done.stdout, done.stderr)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def by_hand(count: int) -> list[dict]:
    """The variables of `count` processes on this machine."""
    port = str(free_port())
    return [{"RANK": str(i), "WORLD_SIZE": str(count), "LOCAL_RANK": str(i), "MASTER_ADDR": "127.0.0.1",
             "MASTER_PORT": port} for i in range(count)]


def together(script, *options, environments, cwd=None):
    """How the processes of one command line ended."""
    running = [start(script, *options, env=environment, cwd=cwd) for environment in environments]
    return [process.wait() for process in running]


def children(pid: int) -> list[int]:
    """The processes that a process has started, oldest first."""
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def the_run(save) -> Path:
    """The only run directory in SAVE."""
    run_dir, = Path(save).iterdir()
    return run_dir


def metrics(run_dir) -> list[dict]:
    """The objects of metrics.jsonl, without what is measured anew in every run."""
    records = [json.loads(line) for line in Path(run_dir, "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in MEASURED} for record in records]


def epochs_done(run_dir) -> int:
    """The number of lines of metrics.jsonl."""
    path = Path(run_dir, "metrics.jsonl")
    return path.read_text().count("\n") if path.exists() else 0


def snapshot(folder) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def write_images(root: Path, val: int) -> Path:
    """Make an image folder: 2 classes, of which 12 images train and `val` validate each, 10x8 pixels."""
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", val)):
        for name in ("bear", "cat"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(random.integers(256, size=(10, 8, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return root


def error_line(outcome: Outcome, code: int) -> str:
    """The one line in which a script said why it ended with exit status `code`; fails on a traceback."""
    assert outcome.code == code, outcome
    assert "Traceback" not in outcome.out + outcome.err, outcome.err
    line, = [line for line in (outcome.out + outcome.err).splitlines() if "error: " in line]
    assert outcome.err.endswith(line + "\n"), outcome.err
    return line


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    be(sys.argv[1:])
