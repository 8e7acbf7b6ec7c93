"""Run the scripts as a person runs them: processes of their own, with one thread, judged by what they leave behind.

A script takes seconds to import torch and more to draw its figures, and the tests run hundreds. So `start` and `run`
fork them from a server that has imported it (preloaded.py), and save sketches of figures; `run_fresh` starts an
interpreter, as a shell does.
    python tests/scripts.py SCRIPT OPTIONS...  # what other programs start with sketches
"""
import contextlib
import copy
import functools
import itertools
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
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
import genotypes  # noqa: E402
import progressive  # noqa: E402
import utils  # noqa: E402
from reporting import cells  # noqa: E402

MEASURED = ("seconds", "images_per_second", "peak_memory_mb")  # what no two runs have in common
os.environ["OMP_NUM_THREADS"] = "1"  # before the server starts
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["tests.preloaded"])


class Outcome(NamedTuple):
    """How a script ended: exit status (or minus the signal that killed it) and what it printed."""
    code: int
    out: str
    err: str


class Script:
    """A running script; `pid` is its process."""

    def __init__(self, script, *options, cwd=None, env=None, change=None):
        self.folder = tempfile.TemporaryDirectory()
        argv = [str(ROOT / script), *map(str, options)]
        self.process = processes.Process(target=_become, args=(argv, self.folder.name, str(cwd or ROOT), env or {},
                                                               change or sketches))
        self.process.start()
        self.pid = self.process.pid

    def running(self) -> bool:
        return self.process.is_alive()

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float = 100) -> Outcome:
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.kill()
            raise AssertionError(f"still running after {timeout} s: {self.output('err')}")
        with self.folder:
            return Outcome(self.process.exitcode, self.output("out"), self.output("err"))

    def kill(self) -> None:
        """End it, so that it does not slow down the tests that follow."""
        self.process.kill()
        self.process.join()

    def output(self, name: str) -> str:
        path = Path(self.folder.name, name)
        return path.read_text() if path.exists() else ""

    def wait_until(self, condition, timeout: float = 100) -> None:
        """Poll a condition while the script runs."""
        end = time.monotonic() + timeout
        while not condition():
            if not self.running() or time.monotonic() > end:
                self.kill()
                raise AssertionError(f"it never came so far: {self.wait()}")
            time.sleep(0.002)


def _become(argv: list[str], folder: str, cwd: str, env: dict, change) -> None:
    """In the new process: be `python argv...` in `cwd`, after `change()`, printing to files."""
    for stream, name in ((sys.stdout, "out"), (sys.stderr, "err")):
        os.dup2(os.open(Path(folder, name), os.O_WRONLY | os.O_CREAT), stream.fileno())
    os.chdir(cwd)
    os.environ.update(env)
    multiprocessing.set_start_method(None, force=True)  # the default: the tests' would import torch anew in each worker
    change()
    be(argv)


def be(argv: list[str]) -> None:
    """Be `python argv...`."""
    sys.argv = argv
    sys.path.insert(0, str(Path(argv[0]).parent))  # as an interpreter does
    runpy.run_path(argv[0], run_name="__main__")


# ---- what is changed in a process before it is a script

def sketches() -> None:
    """Draw sketches only, and count quickly."""
    figures()
    Figure.subplots, Figure.add_axes = subplots, add_axes
    cells.arrange = lambda edges: {point: 0.0 for _, points in edges for point in points}


def figures() -> None:
    """Draw whole figures, but save sketches of them; count quickly."""
    Figure.savefig = sketch
    count_quickly()


def compile_quickly() -> None:
    """Sketch; compile with a backend that needs no C++ compiler; search only the last stage, among 3 operations."""
    sketches()
    torch.compile = functools.partial(torch.compile, backend="aot_eager")
    last_stage = progressive.Stage(1, layers=1, channels=2, num_candidates=3, num_drop=0, skip_dropout=0.4)
    progressive.stage_table = lambda *_: [last_stage]
    genotypes.PRIMITIVES = ["skip_connect", "sep_conv_3x3", "dil_conv_3x3"]


def forget() -> None:
    """Unload this repository: the program is somebody else's."""
    def ours(path):
        return path and Path(path).is_relative_to(ROOT) and "site-packages" not in path

    sys.path[:] = [path for path in sys.path if not ours(path)]
    for name, module in list(sys.modules.items()):
        if ours(getattr(module, "__file__", None)):
            del sys.modules[name]


def count_quickly() -> None:
    """Count a network that is made on meta without what no count needs: initial values, a copy."""
    def without_values(layer, reset):
        return torch.empty(0).is_meta or reset(layer)

    for layer in (nn.Conv2d, nn.BatchNorm2d, nn.Linear):
        layer.reset_parameters = functools.partialmethod(without_values, layer.reset_parameters)
    utils.copy = SimpleNamespace(deepcopy=lambda network: network if next(network.parameters()).is_meta else
                                 copy.deepcopy(network))


def sketch(figure, file, format, **options) -> None:
    """In the place of a figure's savefig: a dot, and as SVG the numbers that its lines go through."""
    if format == "png":
        Image.new("L", (1, 1)).save(file, "PNG")
    else:
        panels = getattr(figure, "panels", figure.axes)
        lines = [np.asarray(line.get_xydata()).tolist() for panel in panels for line in panel.lines]
        file.write(f"<svg>{lines}</svg>".encode())


class Panel:
    """Replaces matplotlib's axes, of which a run has dozens: keeps the lines, ignores everything else."""

    def __init__(self):
        self.lines = []

    def plot(self, x, y, *form, **style):
        xy = np.column_stack(np.broadcast_arrays(np.atleast_1d(x), np.atleast_1d(y)))
        self.lines.append(SimpleNamespace(get_xydata=lambda: xy.astype(float)))

    def __getattr__(self, name):
        if name.startswith("__"):  # it is no array
            raise AttributeError(name)
        return self

    def __call__(self, *args, **options):
        return self


def add_axes(figure, *args, **options) -> Panel:
    figure.panels = [*getattr(figure, "panels", []), panel := Panel()]
    return panel


def subplots(figure, rows: int = 1, columns: int = 1, **options) -> np.ndarray:
    panels = np.empty((rows, columns), object)
    for place in np.ndindex(rows, columns):
        panels[place] = add_axes(figure)
    return panels.squeeze()


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


def start(script, *options, cwd=None, env=None, change=None) -> Script:
    """Start `script` (a name in the repository, or a path) with these options, after `change()`; default: sketches."""
    return Script(script, *options, cwd=cwd, env=env, change=change)


def run(script, *options, cwd=None, env=None, change=None, timeout: float = 100) -> Outcome:
    """The same to its end."""
    return start(script, *options, cwd=cwd, env=env, change=change).wait(timeout)


def run_fresh(script, *options, cwd=None, timeout: float = 100) -> Outcome:
    """`python script options...` in an interpreter of its own."""
    done = subprocess.run([sys.executable, str(ROOT / script), *map(str, options)], cwd=cwd or ROOT, timeout=timeout,
                          capture_output=True, text=True)
    return Outcome(done.returncode, done.stdout, done.stderr)


# Each of pytest's processes has ports of its own, below those that the system gives to connections.
worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
ports = itertools.count(10_100 + 2_000 * (worker % 8) + os.getpid() % 1_000)


def free_port() -> int:
    """A port that nothing uses, from 10,000 to 29,999."""
    for port in ports:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port


def by_hand(count: int) -> list[dict]:
    """The variables of `count` processes on this machine."""
    port = str(free_port())
    return [{"RANK": str(i), "WORLD_SIZE": str(count), "LOCAL_RANK": str(i), "MASTER_ADDR": "127.0.0.1",
             "MASTER_PORT": port} for i in range(count)]


def together(script, *options, environments, cwd=None, change=None, timeout: float = 100):
    """How the processes of one command line ended."""
    running = [start(script, *options, env=environment, cwd=cwd, change=change) for environment in environments]
    return [process.wait(timeout) for process in running]


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
    sketches()
    be(sys.argv[1:])
