"""Does the search find good cells? Search, then train the found cells and their competitors, in one command.

    python experiments/evidence.py cifar --out DIR --tmp_data_dir IMAGES  # CIFAR-10 at 16x16, days on a CPU
    python experiments/evidence.py small --out DIR  # Fashion-MNIST at 16x16, any CPU
    python experiments/evidence.py paper --out DIR --tmp_data_dir CIFAR  # as published, one GPU
    python compare.py DIR/runs/* --markdown --plot dots.svg  # the table and the figure so far
It can be stopped at any time, even by kill -9, and restarted with the same command: finished steps are skipped,
unfinished ones resumed. matrix.py lists the steps. Expect DIR/runs/ with one run directory per step, DIR/controls/ with
those of the controls, DIR/cells/ with the found cells, DIR/supernets/ with each search's checkpoint after stage 1, and
DIR/output/ with the output of each step.
"""
import ctypes
import fcntl
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import compare
from benchmarks.fashion_subset import write_subset
from experiments import matrix
from experiments.matrix import Setting, Step
from experiments.step_runs import (
    check_run,
    describe_state,
    find_run,
    is_finished,
    is_ready,
    option,
    save_supernet,
    write_cells,
)
from harness import cli
from harness.files import replace_file
from harness.log import log
from input_pipeline import folders, load
from reporting import tables

ROOT = Path(__file__).resolve().parent.parent


def get_args_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("setting", choices=matrix.SETTINGS,
                        help="paper needs a GPU, the others any CPU; tiny is for trying it out")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for everything that is written")
    parser.add_argument("--only", nargs="+", choices=matrix.PARTS, default=matrix.PARTS,
                        help="parts to run; default: all")
    parser.add_argument("--processes", type=cli.number(int, 1),
                        help="number of steps at once, one thread each; default: one per core, with paper one")
    parser.add_argument("--tmp_data_dir",
                        help="folder that has the datasets, or gets them; default: the one used before, or data")
    parser.add_argument("--list", action="store_true", help="only print the state of each step")
    return parser


def main(args: Namespace) -> None:
    setting = matrix.SETTINGS[args.setting]
    named = {}
    for step in matrix.steps(setting):
        if step.part in args.only:
            named.setdefault(step.name, step)  # equal steps are run once
    steps = list(named.values())
    check_out(args.out, args.setting, setting)
    if args.list:
        for step in steps:
            print(f"{describe_state(find_run(args.out, step)):20} {step.part:9} {step.name}")
        return
    create_out(args.out, args.setting, setting)
    lock = take_lock(args.out)
    remove_empty_runs(args.out)
    # All runs are checked before any step is started, also those of other parts.
    for step in matrix.steps(setting):
        check_run(args.out, step)
    prepare_data(args.out, setting, args.tmp_data_dir)
    processes = args.processes or setting.processes or os.cpu_count()
    failed = drive(args.out, steps, processes, lock)
    finished = {step: str(run["path"]) for step in steps if (run := find_run(args.out, step)) and is_finished(run)}
    if compared := [path for step, path in finished.items() if step.part != "control"]:
        print(tables.as_markdown(compare.compare(compared)))
    if len(finished) < len(steps):
        reason = f"failed ({', '.join(failed)})" if failed else "wait for a search: omit --only"
        raise ValueError(f"{len(steps) - len(finished)} of {len(steps)} steps are not finished, some {reason}")


# ---- --out

def identity(name: str, setting: Setting) -> dict:
    """The content of settings.json."""
    return {"setting": name, "images": list(setting.images or [])}


def check_out(out: Path, name: str, setting: Setting) -> None:
    """Check that --out belongs to this setting, or is new. Raises ValueError."""
    path = out / "settings.json"
    if path.exists():
        try:
            saved = json.loads(path.read_text())
        except ValueError:
            saved = None
        if saved != identity(name, setting):
            raise ValueError(f"{path} is damaged or for another setting than {name}: choose another --out")
    elif out.is_dir() and any(entry.name != "settings.json.tmp" for entry in out.iterdir()):
        raise ValueError(f"{out} holds something else (no settings.json): choose another --out")


def create_out(out: Path, name: str, setting: Setting) -> None:
    """Create the files and folders that --out lacks."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "settings.json").exists():
        replace_file(out / "settings.json", json.dumps(identity(name, setting)).encode())
    for folder in ("runs", "controls", "cells", "supernets", "output"):
        (out / folder).mkdir(exist_ok=True)


def take_lock(out: Path) -> int:
    """Lock --out. The steps inherit the lock, so those of a killed driver must end before they can be resumed."""
    lock = os.open(out / "settings.json", os.O_RDONLY)
    for attempt in range(120):
        # Steps that were stopped a moment ago may still be saving.
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if not attempt:
                log.info(f"{out} is in use; waiting up to a minute for stopped steps to save")
            time.sleep(0.5)
    raise ValueError(f"{out} is in use by another evidence.py or by its steps: stop these first")


def remove_empty_runs(out: Path) -> None:
    """Remove directories of runs killed before they wrote args.json."""
    for path in [*(out / "runs").iterdir(), *(out / "controls").iterdir()]:
        if path.is_dir() and {file.name for file in path.iterdir()} <= {"args.json.tmp"}:
            shutil.rmtree(path)


def prepare_data(out: Path, setting: Setting, root: str | None) -> None:
    """Put the datasets where the steps look for them, OUT/data, once and complete. Raises ValueError, OSError."""
    if setting.images and not setting.source:
        prepare_fashion_mnist(out / "data", setting.images, root)
    elif any("--tmp_data_dir" in options for options in setting.data.values()):
        link_data(out / "data", root)
        if setting.source:
            check_tree(out / "data", setting)
            return
        for name in setting.data:  # otherwise many processes would download it at once
            load(name, str(out / "data"))


def prepare_fashion_mnist(folder: Path, images: tuple[int, int], root: str | None) -> None:
    """Write a subset of Fashion-MNIST with so many training and test images. Raises ValueError if it is damaged."""
    if not folder.exists():
        temporary = folder.with_name("data.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        write_subset(load("fashion_mnist", root or "data", image_size=28), temporary, *images)
        temporary.rename(folder)
    for name, n in zip(("train", "t10k"), images):
        # If a file were missing, the steps would read Debian's complete dataset instead.
        for path, size in ((f"{name}-images-idx3-ubyte", 16 + n * 28 * 28), (f"{name}-labels-idx1-ubyte", 8 + n)):
            if not (folder / path).exists() or (folder / path).stat().st_size != size:
                raise ValueError(f"{folder / path} is missing or damaged: remove {folder} to rewrite it")


def link_data(folder: Path, root: str | None) -> None:
    """Link `folder` to the folder of the datasets, which is created if it does not exist."""
    if folder.is_symlink() and (root or not folder.exists()):  # the datasets have moved
        folder.unlink()
    if not folder.exists():
        root = Path(root or "data")
        root.mkdir(parents=True, exist_ok=True)
        folder.symlink_to(root.resolve())


def check_tree(folder: Path, setting: Setting) -> None:
    """Raise ValueError if a folder does not hold all images of a setting's tree."""
    try:
        found = tuple(len(part.samples) for part in folders.image_folders(folder))
    except (OSError, ValueError) as error:
        found = error
    if found != setting.images:
        raise ValueError(f"{folder.resolve()} is not {setting.source} ({' and '.join(map(str, setting.images))} images "
                         f"in train/CLASS and test/CLASS), but {found}: unpack it and set --tmp_data_dir to its folder")


# ---- steps

def stop_with_driver() -> None:
    """In a new process: stop, and so save, if the driver is killed; only on Linux, elsewhere the step continues."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def start(out: Path, step: Step, lock: int) -> subprocess.Popen:
    """Start a step, or resume it."""
    run = find_run(out, step)
    options = step.command[1:]
    if run:  # a control's name comes before the options
        options = [*options[:step.part == "control"], "--resume", str(run["path"].relative_to(out))]
    with open(out / "output" / f"{step.name}.txt", "w") as output:
        return subprocess.Popen(  # in a session of its own: otherwise a terminal's Ctrl-C would reach it twice
            [sys.executable, str(ROOT / step.command[0]), *options], cwd=out, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True,
            pass_fds=[lock], preexec_fn=stop_with_driver)


def end_step(out: Path, step: Step, code: int) -> bool:
    """Log how a step has ended, and write the cells of a search -> whether it was successful."""
    if code:
        lines = (out / "output" / f"{step.name}.txt").read_text().strip().splitlines() or [""]
        log.error(f"{step.name} failed with exit status {code}: {lines[-1]}")
        return False
    write_cells(out, step)
    return True


# ---- the driver

def drive(out: Path, steps: list[Step], processes: int, lock: int) -> list[str]:
    """Run all unfinished steps, `processes` at once -> the names of those that failed. A signal saves and exits."""
    signals, failed, running = [], [], {}
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: signals.append(number))
    waiting = [step for step in steps if not ((run := find_run(out, step)) and is_finished(run))]
    log.info(describe_progress(out, steps, running, processes))
    for polls in itertools.count():
        # Free places are filled in the order of the matrix, except with steps whose search has not finished.
        ready = [step for step in waiting if is_ready(out, step)]
        for step in ready[:processes - len(running)]:
            waiting.remove(step)
            running[step] = start(out, step, lock)
            log.info(f"started {step.name}")
        # Now nothing runs and nothing is ready: all steps are finished, failed, or wait for a search in vain.
        if not running:
            return failed
        time.sleep(0.1)
        # Once a second is often enough to see a search between two stages.
        if polls % 10 == 0:
            for step in running:
                save_supernet(out, step)
        if signals:
            stop(running, signals[0])
        # Steps that have ended make room for others; the cells of a search make further steps ready.
        for step in [step for step, process in running.items() if process.poll() is not None]:
            if end_step(out, step, running.pop(step).returncode):
                log.info(f"finished {step.name}; {describe_progress(out, steps, running, processes)}")
            else:
                failed.append(step.name)


def stop(running: dict, number: int) -> None:
    """Pass a signal on to all steps, wait until they have saved, and exit with its status."""
    for process in running.values():
        process.send_signal(number)
    for process in running.values():
        process.wait()
    log.error(f"stopped by {signal.Signals(number).name}; restart it with the same command")
    sys.exit(128 + number)


def describe_progress(out: Path, steps: list[Step], running: dict, processes: int) -> str:
    """How many steps are finished, which ones are running, and how long the rest takes at the pace so far."""
    runs = {step: find_run(out, step) for step in steps}
    hours, unknown = 0.0, []
    for script, stages in (("train_search.py", 3), ("train_cifar.py", 1), ("experiments/controls.py", 1)):
        # Epochs of one script take about the same time, so their mean so far stands for the remaining ones.
        own = [step for step in steps if step.command[0] == script]
        metrics = [record for step in own if runs[step] for record in runs[step]["metrics"]]
        remaining = sum(int(option(step, "--epochs")) * stages for step in own) - len(metrics)
        if metrics:
            hours += remaining * sum(record["seconds"] for record in metrics) / len(metrics) / 3600 / processes
        elif remaining:
            unknown.append(f"{len(own)} x {script}")
    names = ", ".join(step.name for step in running) or "none"
    finished = sum(run is not None and is_finished(run) for run in runs.values())
    untimed = f"; not timed yet: {', '.join(unknown)}" if unknown else ""
    return (f"{finished} of {len(steps)} steps are finished; running: {names}; "
            f"about {hours:.1f} hours left{untimed}")


if __name__ == "__main__":
    cli.run(main, get_args_parser().parse_args)
