"""Does the search find good cells? Search, train what was found and what it has to beat, in one command.

    python experiments/evidence.py cifar --out DIR --tmp_data_dir IMAGES  # CIFAR-10 at 16x16, a CPU in days
    python experiments/evidence.py small --out DIR  # Fashion-MNIST at 16x16, any CPU
    python experiments/evidence.py paper --out DIR --tmp_data_dir CIFAR  # as published, one GPU
    python compare.py DIR/runs/* --markdown --plot dots.svg  # the table and the picture so far
Stop it at any time, even by kill -9, and start it again with the same command: finished steps are skipped, unfinished
ones resumed. matrix.py lists the steps. Expect DIR/runs/ with a run directory per step, DIR/controls/ with those
of the controls, DIR/cells/ with the cells found, DIR/supernets/ with each search's checkpoint after stage 1, and
DIR/output/ with what each step printed.
"""
import ctypes
import fcntl
import itertools
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
import compare
import genotypes
import progressive
from benchmarks.fashion_subset import write_subset
from experiments import matrix
from experiments.matrix import Setting, Step
from harness import cli, records
from harness.files import replace_file
from harness.log import log
from harness.runs import load_checkpoint
from input_pipeline import folders, load
from reporting import tables

ROOT = Path(__file__).resolve().parent.parent


def get_args_parser() -> cli.Parser:
    parser = cli.Parser(__doc__)
    parser.add_argument("setting", choices=matrix.SETTINGS, help="paper: a GPU, others: any CPU, tiny: to try it out")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where everything is written")
    parser.add_argument("--only", nargs="+", choices=matrix.PARTS, default=matrix.PARTS, help="default: all parts")
    parser.add_argument("--processes", type=cli.number(int, 1),
                        help="steps at once, one thread each; default: one for each core, one with paper")
    parser.add_argument("--tmp_data_dir",
                        help="where the data sets are, or are downloaded to; default: where they were before, or data")
    parser.add_argument("--list", action="store_true", help="only say how far each step is")
    return parser


def main(args: Namespace) -> None:
    setting = matrix.SETTINGS[args.setting]
    named = {}
    for step in matrix.steps(setting):
        if step.part in args.only:
            named.setdefault(step.name, step)  # of equal steps the first
    steps = list(named.values())
    check_out(args.out, args.setting, setting)
    if args.list:
        for step in steps:
            print(f"{how_far(find_run(args.out, step)):20} {step.part:9} {step.name}")
        return
    make_out(args.out, args.setting, setting)
    lock = take_lock(args.out)
    sweep(args.out)
    for step in matrix.steps(setting):  # before anything is run
        check_run(args.out, step)
    prepare_data(args.out, setting, args.tmp_data_dir)
    processes = args.processes or setting.processes or os.cpu_count()
    failed = drive(args.out, steps, processes, lock)
    finished = {step: str(run["path"]) for step in steps if (run := find_run(args.out, step)) and is_finished(run)}
    if compared := [path for step, path in finished.items() if step.part != "control"]:
        print(tables.as_markdown(compare.compare(compared)))
    if len(finished) < len(steps):
        what = f"failed ({', '.join(failed)})" if failed else "wait for a search: leave out --only"
        raise ValueError(f"{len(steps) - len(finished)} of {len(steps)} steps are not finished, some {what}")


# ---- --out

def identity(name: str, setting: Setting) -> dict:
    """What settings.json keeps of a setting."""
    return {"setting": name, "images": list(setting.images or [])}


def check_out(out: Path, name: str, setting: Setting) -> None:
    """See that --out is of this setting, or new. Raises ValueError."""
    path = out / "settings.json"
    if path.exists():
        try:
            saved = json.loads(path.read_text())
        except ValueError:
            saved = None
        if saved != identity(name, setting):
            raise ValueError(f"{path} is damaged or of another setting than {name}: choose another --out")
    elif out.is_dir() and any(entry.name != "settings.json.tmp" for entry in out.iterdir()):
        raise ValueError(f"{out} holds something else, it has no settings.json: choose another --out")


def make_out(out: Path, name: str, setting: Setting) -> None:
    """Make what --out lacks."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "settings.json").exists():
        replace_file(out / "settings.json", json.dumps(identity(name, setting)).encode())
    for folder in ("runs", "controls", "cells", "supernets", "output"):
        (out / folder).mkdir(exist_ok=True)


def take_lock(out: Path) -> int:
    """Hold --out alone. The steps inherit the lock: what a killed driver left running has to end before they go on."""
    lock = os.open(out / "settings.json", os.O_RDONLY)
    for attempt in range(120):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock
        except BlockingIOError:
            if not attempt:
                log.info(f"{out} is in use; waiting up to a minute for what was stopped there to be saved")
            time.sleep(0.5)
    raise ValueError(f"{out} is in use by another evidence.py, or by what it started: stop that first")


def sweep(out: Path) -> None:
    """Remove run directories that were killed at birth: they have no args.json yet."""
    for path in [*(out / "runs").iterdir(), *(out / "controls").iterdir()]:
        if path.is_dir() and {file.name for file in path.iterdir()} <= {"args.json.tmp"}:
            shutil.rmtree(path)


def prepare_data(out: Path, setting: Setting, root: str | None) -> None:
    """Put the data sets where the steps look for them, OUT/data, once and whole. Raises ValueError, OSError."""
    folder = out / "data"
    if setting.images and not setting.source:
        if not folder.exists():
            half_written = folder.with_name("data.tmp")
            shutil.rmtree(half_written, ignore_errors=True)
            write_subset(load("fashion_mnist", root or "data", image_size=28), half_written, *setting.images)
            half_written.rename(folder)
        for name, n in zip(("train", "t10k"), setting.images):  # the reader would take Debian's instead, all of it
            for path, size in ((f"{name}-images-idx3-ubyte", 16 + n * 28 * 28), (f"{name}-labels-idx1-ubyte", 8 + n)):
                if not (folder / path).exists() or (folder / path).stat().st_size != size:
                    raise ValueError(f"{folder / path} is missing or damaged: remove {folder}, it is written anew")
    elif any("--tmp_data_dir" in options for options in setting.data.values()):
        if folder.is_symlink() and (root or not folder.exists()):  # the data sets are elsewhere now
            folder.unlink()
        if not folder.exists():
            root = Path(root or "data")
            root.mkdir(parents=True, exist_ok=True)
            folder.symlink_to(root.resolve())
        if setting.source:
            check_tree(folder, setting)
            return
        for name in setting.data:  # before many processes download it at once
            load(name, str(folder))


def check_tree(folder: Path, setting: Setting) -> None:
    """Raise ValueError where a folder does not hold all images of a setting's tree."""
    try:
        found = tuple(len(part.samples) for part in folders.image_folders(folder))
    except (OSError, ValueError) as error:
        found = error
    if found != setting.images:
        raise ValueError(f"{folder.resolve()} is not {setting.source} ({' and '.join(map(str, setting.images))} images "
                         f"in train/CLASS and test/CLASS), but {found}: unpack it and give its folder as "
                         "--tmp_data_dir")


# ---- steps

def find_run(out: Path, step: Step) -> dict | None:
    """The run that a step has begun, as compare.py reads it, or None. Raises ValueError where it is damaged."""
    kind = "eval" if step.command[0] == "train_cifar.py" else "search"
    name = re.compile(rf"{kind}-{re.escape(step.name)}-\d{{8}}-\d{{6}}(-\d+)?")
    found = [path for path in (out / option(step, "--save")).glob(f"{kind}-{step.name}-*")
             if name.fullmatch(path.name) and any(file.name != "args.json.tmp" for file in path.iterdir())]
    if not found:
        return None
    if len(found) > 1:
        raise ValueError(f"{found[0]} and {found[1]} are of the same step: move one away")
    return compare.read_run(str(found[0]))


def is_finished(run: dict) -> bool:
    """The report is the last that a run writes; a resumed evaluation writes its genotype.json anew."""
    genotype, report = run["path"] / "genotype.json", run["path"] / "report.html"
    return (compare.state(run) == "finished" and report.exists()
            and report.stat().st_mtime_ns >= genotype.stat().st_mtime_ns)


def how_far(run: dict | None) -> str:
    return "to do" if run is None else "finished" if is_finished(run) else f"at {compare.state(run)}"


def check_run(out: Path, step: Step) -> None:
    """See that what a step has left can be gone on with. Raises ValueError, in one line, where it can't."""
    run = find_run(out, step)
    if run is None:
        return
    if tuple(shlex.split(str(run.get("command")))[2:]) != step.command[1:]:
        raise ValueError(f"{run['path']} was made with other options than this setting's: move it away")
    if not is_finished(run) and load_checkpoint(run["path"], run["kind"]) is None and run["metrics"]:
        raise ValueError(f"{run['path']} has lost its checkpoint.pt: move it away, to begin it anew")
    write_cells(out, step)


def write_cells(out: Path, step: Step) -> None:
    """What a finished search found becomes cells/NAME.json; of P-DARTS also its first stage's cell, and dealt ones."""
    run = find_run(out, step)
    if step.part != "search" or run is None or not is_finished(run):
        return
    cells = {step.name: run["genotype"]}
    if "-pdarts-" in step.name:
        cells[step.name.replace("-pdarts-", "-one-stage-")] = progressive.first_stage_genotype(
            records.read_alphas(run["path"]), run["args"]["max_skip"])
        for dealing in range(2):
            cells[f"{step.name.replace('-pdarts-', '-dealt-')}-{dealing}"] = deal(run["genotype"], dealing)
    for name, genotype in cells.items():
        path = out / "cells" / f"{name}.json"
        if not path.exists():
            genotypes.save(genotype, path)
        elif genotypes.load(str(path)) != genotype:
            raise ValueError(f"{path} is not the cell of {run['path']}: move it away")


def deal(genotype: genotypes.Genotype, seed: int) -> genotypes.Genotype:
    """A cell with the operations of another: in an order, and on edges, that are drawn by the seed."""
    rng = random.Random(seed)
    normal, reduce = ([(op, state) for op, state in zip(
        rng.sample([op for op, _ in genes], len(genes)),
        [state for node in range(genotypes.NODES) for state in sorted(rng.sample(range(2 + node), 2))])]
        for genes in (genotype.normal, genotype.reduce))
    return genotype._replace(normal=normal, reduce=reduce)


def keep_supernet(out: Path, step: Step) -> None:
    """Keep the checkpoint of a P-DARTS search that is between its first two stages, for ablation.py."""
    run, path = find_run(out, step), out / "supernets" / f"{step.name}.pt"
    wanted = "-pdarts-" in step.name and step.part == "search" and run and not path.exists()
    if wanted and len(run["metrics"]) == run["args"]["epochs"]:  # at its first stage's end; the second's saves later
        replace_file(path, (run["path"] / "checkpoint.pt").read_bytes())


def is_ready(out: Path, step: Step) -> bool:
    """Whether the cell that a step trains has been found."""
    cell = option(step, "--arch") if "--arch" in step.command else ""
    return not cell.endswith(".json") or (out / cell).exists()


def option(step: Step, name: str) -> str:
    return step.command[step.command.index(name) + 1]


def end_with_driver() -> None:
    """In a new process: be stopped, and so save, where the driver is killed; Linux only, elsewhere it runs on."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def start(out: Path, step: Step, lock: int) -> subprocess.Popen:
    """Start a step, or go on with it."""
    run = find_run(out, step)
    options = step.command[1:]
    if run:  # a control's name comes before the options
        options = [*options[:step.part == "control"], "--resume", str(run["path"].relative_to(out))]
    with open(out / "output" / f"{step.name}.txt", "w") as output:
        return subprocess.Popen(  # in a session of its own: a terminal's Ctrl-C would else reach it twice
            [sys.executable, str(ROOT / step.command[0]), *options], cwd=out, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True,
            pass_fds=[lock], preexec_fn=end_with_driver)


# ---- the driver

def drive(out: Path, steps: list[Step], processes: int, lock: int) -> list[str]:
    """Run all unfinished steps, so many at once -> the names of those that failed. On a signal it saves and exits."""
    asked, failed, running = [], [], {}
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: asked.append(number))
    waiting = [step for step in steps if not ((run := find_run(out, step)) and is_finished(run))]
    log.info(describe_progress(out, steps, running, processes))
    for polls in itertools.count():
        ready = [step for step in waiting if is_ready(out, step)]
        for step in ready[:processes - len(running)]:
            waiting.remove(step)
            running[step] = start(out, step, lock)
            log.info(f"started {step.name}")
        if not running:
            return failed
        time.sleep(0.1)
        if polls % 10 == 0:
            for step in running:
                keep_supernet(out, step)
        if asked:
            stop(running, asked[0])
        for step in [step for step, process in running.items() if process.poll() is not None]:
            code = running.pop(step).returncode
            if code:
                said = (out / "output" / f"{step.name}.txt").read_text().strip().splitlines() or [""]
                log.error(f"{step.name} failed with exit status {code}: {said[-1]}")
                failed.append(step.name)
            else:
                write_cells(out, step)
                log.info(f"finished {step.name}; {describe_progress(out, steps, running, processes)}")


def stop(running: dict, number: int) -> None:
    """Pass a signal on to all steps, wait until they have saved what they have, and exit as it asks."""
    for process in running.values():
        process.send_signal(number)
    for process in running.values():
        process.wait()
    log.error(f"stopped by {signal.Signals(number).name}; start it again with the same command")
    sys.exit(128 + number)


def describe_progress(out: Path, steps: list[Step], running: dict, processes: int) -> str:
    """How many steps are finished, what runs, and how long the rest takes at the pace of all epochs so far."""
    begun = {step: find_run(out, step) for step in steps}
    hours, unknown = 0.0, []
    for script, stages in (("train_search.py", 3), ("train_cifar.py", 1), ("experiments/controls.py", 1)):
        own = [step for step in steps if step.command[0] == script]
        records = [record for step in own if begun[step] for record in begun[step]["metrics"]]
        left = sum(int(option(step, "--epochs")) * stages for step in own) - len(records)
        if records:
            hours += left * sum(record["seconds"] for record in records) / len(records) / 3600 / processes
        elif left:
            unknown.append(f" and {len(own)} runs of {script} whose time is not known yet")
    names = ", ".join(step.name for step in running) or "none"
    done = sum(run is not None and is_finished(run) for run in begun.values())
    return (f"{done} of {len(steps)} steps are finished; running: {names}; "
            f"about {hours:.1f} hours left{''.join(unknown)}")


if __name__ == "__main__":
    cli.run(main, get_args_parser().parse_args)
