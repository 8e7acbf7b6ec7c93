"""A run: its directory, its options, its progress, and the checkpoint from which it is resumed."""
import contextlib
import importlib.metadata
import io
import itertools
import json
import os
import platform
import shlex
import subprocess
import sys
from argparse import Namespace
from datetime import datetime
from pathlib import Path

import numpy
import torch
import torch.distributed as dist

from harness import checkpoints, launchers, parallel, records, weights
from harness.cli import MAY_CHANGE
from harness.files import write_file
from harness.log import log, log_to_file
from harness.process import change
from harness.scalars import scalar_writer


class Run:
    """A run that saves itself: after each epoch, and mid-epoch when a signal or a bad image stops it.

    path: its directory. next_epoch: counted from 0 (in a search, within its stage). metrics: the records of all epochs.
    state: a dataclass of what its kind adds. parts: what else a checkpoint holds, by name, see `keep`. costs: the
    relative cost of each epoch, from which the remaining time is estimated.
    """

    @classmethod
    def open(cls, kind: str, args: Namespace, device: str, state, costs: list[float] | None = None) -> "Run":
        """A new run in SAVE/KIND-NOTE-TIME, or the one that --resume or a torchrun restart continues.

        device: in words. state: as it is before the first epoch. From here on messages go to log.txt too, and signals
        end the run between steps. All ranks call it. Raises OSError, ValueError if the checkpoint is damaged or lost,
        and Stopped if another process has the run.
        """
        path = open_directory(kind, args, device)
        check_not_lost(path)
        parallel.stop_if_failed(log_to_file(path / "log.txt") if parallel.rank() == 0 else None)
        parallel.catch_signals()
        run = cls(kind, path, args, device, state, costs)
        run.processes = records.read_args(path, "processes")["processes"]
        return run

    def __init__(self, kind: str, path: Path, args: Namespace, device: str, state, costs: list[float] | None = None):
        self.kind, self.path, self.args, self.device, self.state = kind, path, args, device, state
        self.next_epoch, self.metrics, self.parts, self.costs = 0, [], {}, costs or [1.0] * args.epochs
        self.processes = parallel.world_size()  # when the run began
        self._saved = checkpoints.load(path, kind) or {}  # the states of the parts, until `keep` restores them
        if self._saved:
            self.next_epoch, self.metrics = self._saved.pop("epoch"), self._saved.pop("metrics")
            for name, initial in vars(state).items():
                setattr(state, name, self._saved.pop(name, initial))  # an older checkpoint lacks newer fields
        first = parallel.rank() == 0
        if first and self.metrics:
            self._write_history()  # it may be damaged, or the run was killed before writing it
        self._write_scalars = scalar_writer(path, len(self.metrics)) if first and args.tensorboard else None

    def keep(self, **parts) -> None:
        """Save the state_dicts of these parts in checkpoints from now on; first restore those that were saved.

        Raises ValueError if a saved state does not match.
        """
        self.parts = parts
        for name, part in parts.items():
            self._restore(name, part)

    def _restore(self, name: str, part) -> None:
        try:
            if name in self._saved:
                part.load_state_dict(self._saved.pop(name))
        except (RuntimeError, TypeError, KeyError, AttributeError, IndexError):
            raise ValueError(f"the checkpoint's {name} does not match: use the data that the run began with") from None

    def epochs_left(self) -> range:
        return range(self.next_epoch, self.args.epochs)

    @contextlib.contextmanager
    def epoch(self, meter):
        """Run an epoch, or the rest of one; if all ranks stop in it, save the run and its meter mid-epoch."""
        self._restore("meter", meter)
        try:
            yield
            log.info(f"{meter.label} done, ETA {in_words(self.seconds_left(1.0, meter.elapsed()))}")
        except parallel.Stopped:
            weights.check_finite(self.parts["network"], meter.label)
            self.save(meter=meter)
            parallel.barrier()
            raise

    def end_epoch(self, record: dict) -> None:
        """Log an epoch and write checkpoint.pt, then the files derived from it. All ranks call it. Raises OSError."""
        if parallel.world_size() != self.processes:
            record["processes"] = parallel.world_size()  # resumed with another number
        log.info(json.dumps(record))
        self.next_epoch += 1
        self.metrics.append(record)
        self.save()
        if parallel.rank() == 0:
            self._write_history()
        if self._write_scalars:
            self._write_scalars(len(self.metrics) - 1, record)

    def seconds_left(self, fraction: float = 0.0, elapsed: float = 0.0) -> float:
        """Seconds until the run ends; `fraction` of the current epoch took `elapsed` seconds."""
        return seconds_left(self.costs, [record["seconds"] for record in self.metrics], fraction, elapsed)

    def device_hours(self) -> float:
        return records.device_hours(self.metrics, self.processes)

    def save(self, **more) -> None:
        """Write checkpoint.pt: the run, its parts, and these. All ranks call it. Raises OSError."""
        # The meter's state is summed over all ranks.
        states = {name: part.state_dict() for name, part in (self.parts | more).items()}
        if parallel.rank() == 0:
            args = {name: value for name, value in vars(self.args).items() if name not in {*MAY_CHANGE, "save"}}
            checkpoints.save(self.path, {"kind": self.kind, "epoch": self.next_epoch, "metrics": self.metrics,
                                         "args": args, **vars(self.state), **states})

    def _write_history(self) -> None:
        """Write metrics.jsonl and a search's alphas.npz, whole each time, so that they match the checkpoint."""
        write_file(self.path / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in self.metrics).encode())
        if hasattr(self.state, "alphas"):
            buffer = io.BytesIO()
            numpy.savez(buffer, **{name: numpy.array(rows) for name, rows in self.state.alphas.items()})
            write_file(self.path / "alphas.npz", buffer.getvalue())


# ---- the remaining time

def seconds_left(costs: list[float], seconds: list[float], fraction: float = 0.0, elapsed: float = 0.0) -> float:
    """Seconds that a run will still take, at the pace of its last 5 epochs or, in its first, the pace so far.

    costs: the relative cost of each epoch of the run. seconds: the time that each finished epoch took. `fraction` of
    the current epoch took `elapsed` seconds.
    """
    n, begun = len(seconds), fraction * costs[len(seconds)]
    pace = sum(seconds[-5:]) / sum(costs[:n][-5:]) if n else elapsed / begun
    return (sum(costs[n:]) - begun) * pace


def in_words(seconds: float) -> str:
    """A time for people: 40 s, 12 min, 3 h 05 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


# ---- directories

GIT_SECONDS = 10  # after which a run starts without its commit


def open_directory(kind: str, args: Namespace, device: str) -> Path:
    """Choose the directory on rank 0, broadcast it, and set args.resume to it. Raises OSError.

    Raises Stopped if another rank's machine lacks it.
    """
    box = [None]
    if parallel.rank() == 0:
        save = Path(args.save)
        box[0] = args.resume or _restarted_run(save, kind, args) or _new_run(save, kind, args, device)
    if dist.is_initialized():
        dist.broadcast_object_list(box, src=0)
        missing = f"{platform.node()} has no {box[0]}: --save must be a folder that all machines share"
        parallel.stop_if_failed(None if Path(box[0], "args.json").exists() else missing)
    change(args, "resume", str(box[0]))  # until the run ends: another one may be given the same options
    return Path(args.resume)


def check_not_lost(run_dir: Path) -> None:
    """Raise ValueError if a run has lost its checkpoint.pt: it would start anew, and replace what it had written."""
    begun = any((run_dir / name).exists() for name in ("previous.pt", "metrics.jsonl"))
    if begun and not (run_dir / "checkpoint.pt").exists():
        raise ValueError(f"{run_dir} has lost its checkpoint.pt: restore it, or {checkpoints.replacement(run_dir)} "
                         "(experiments/restore_search.py continues a search with its next stage)")


def _new_run(save: Path, kind: str, args: Namespace, device: str) -> str:
    record = {
        "kind": kind, "args": vars(args), "command": shlex.join(["python", *sys.argv]),
        "device": device, "processes": parallel.world_size(), "launch": _launch_id(), "git": _git_commit(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__,
                     "torchvision": importlib.metadata.version("torchvision"), "numpy": numpy.__version__},
    }
    name = f"{kind}-{args.note}-{datetime.now():%Y%m%d-%H%M%S}"
    for i in itertools.count(1):  # two runs may start in the same second
        run_dir = save / (name if i == 1 else f"{name}-{i}")
        try:
            save.mkdir(parents=True, exist_ok=True)
            run_dir.mkdir()
            write_file(run_dir / "args.json", json.dumps(record, indent=2).encode())
        except FileExistsError:
            if run_dir.is_dir():
                continue
            raise OSError(f"can't create the directory {run_dir}: a file has its name; choose another --save") from None
        except OSError as error:
            with contextlib.suppress(OSError):
                run_dir.rmdir()  # it has no args.json
            reason = error.strerror or error.__cause__ or error  # write_file's own text asks for --resume
            raise OSError(f"can't create the directory {run_dir} ({reason}): choose another --save") from error
        return str(run_dir)


def _launch_id() -> str | None:
    """An identifier that a torchrun launch and its restarts share: its run id, or else its machine and process id."""
    if not launchers.is_torchrun():
        return None
    run_id = os.environ["TORCHELASTIC_RUN_ID"]
    return run_id if run_id != "none" else f"{platform.node()}-{os.getppid()}"


def _restarted_run(save: Path, kind: str, args: Namespace) -> str | None:
    """The directory that this torchrun launch created before it was restarted (--max-restarts)."""
    if not int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)):
        return None
    own, options = [], json.loads(json.dumps(vars(args)))
    for path in save.glob(f"{kind}-*/args.json"):
        with contextlib.suppress(ValueError):  # another run's file may be damaged
            record = records.read_args(path.parent, "launch")
            # An earlier launch may have had the same id, if that is given or in a container.
            if record["launch"] == _launch_id() and record["args"] == options:
                own.append(path)
    return str(max(own, key=lambda path: path.stat().st_mtime).parent) if own else None


def _git_commit() -> str | None:
    root = Path(__file__).resolve().parents[1]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    # Neither the repository of a hook that starts the run, nor one that this one was unpacked in.
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    with contextlib.suppress(OSError, subprocess.SubprocessError):  # git is not installed, or hangs
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                              env=env | {"GIT_CEILING_DIRECTORIES": str(root.parent)},
                              timeout=GIT_SECONDS).stdout.strip() or None
