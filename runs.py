"""Run directories: making and reading one, its checkpoint and weights files, each written whole or not at all."""
import contextlib
import hashlib
import io
import itertools
import json
import logging
import os
import platform
import shlex
import signal
import subprocess
import sys
from argparse import Namespace
from datetime import datetime
from logging.handlers import MemoryHandler
from pathlib import Path

import numpy
import torch
import torch.distributed as dist
import torchvision
from torch import nn

import parallel
import utils

log = logging.getLogger("pdarts")  # what it is told goes to the screen, and in a run to its log.txt


# ---- directories

def open_run_dir(kind: str, args: Namespace, device: torch.device) -> Path:
    """The directory of this run: a new SAVE/KIND-NOTE-TIME, or the one that --resume or a torchrun restart continues.

    From here on log lines go to its log.txt too, and signals end the run between steps. Raises OSError.
    """
    box = [None]  # rank 0 decides, the others are told
    if parallel.rank() == 0:
        box[0] = args.resume or _restarted_run(Path(args.save), kind) or _new_run(Path(args.save), kind, args, device)
    if dist.is_initialized():
        dist.broadcast_object_list(box, src=0)
    args.resume = str(box[0])
    if parallel.rank() == 0:
        path = Path(args.resume) / "log.txt"
        try:
            handler = logging.FileHandler(path, encoding="utf-8")
        except OSError as error:
            raise OSError(f"can't write {path} ({error.strerror}): make room or rights there") from error
        handler.handleError = lambda record: None  # a full disk is said where it matters
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        log.addHandler(handler)
        for early in [other for other in log.handlers if isinstance(other, MemoryHandler)]:
            early.setTarget(handler)  # what was said before there was a log.txt
            early.close()
            log.removeHandler(early)
    for number in parallel.SIGNALS:
        signal.signal(number, parallel.remember)
    return Path(args.resume)


def _new_run(save: Path, kind: str, args: Namespace, device: torch.device) -> str:
    record = {
        "kind": kind, "args": vars(args), "command": shlex.join(["python", *sys.argv]),
        "device": utils.describe_device(device), "processes": parallel.world_size(), "launch": _launch_id(),
        "git": _git_commit(), "versions": {"python": platform.python_version()} | {
            module.__name__: module.__version__ for module in (torch, torchvision, numpy)},
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
            raise OSError(f"can't make the directory {run_dir}: a file is in its way; choose another --save") from None
        except OSError as error:
            with contextlib.suppress(OSError):
                run_dir.rmdir()  # it has no args.json
            raise OSError(f"can't make the directory {run_dir} ({error.strerror}): choose another --save") from error
        return str(run_dir)


def _launch_id() -> str | None:
    """What a torchrun launch and its restarts have in common: its run id, or where it was given none its process."""
    if not dist.is_torchelastic_launched():
        return None
    run_id = os.environ["TORCHELASTIC_RUN_ID"]
    return run_id if run_id != "none" else f"{platform.node()}-{os.getppid()}"


def _restarted_run(save: Path, kind: str) -> str | None:
    """The directory that this torchrun launch began before a process died (--max-restarts)."""
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0:
        for path in save.glob(f"{kind}-*/args.json"):
            if json.loads(path.read_text())["launch"] == _launch_id():
                return str(path.parent)
    return None


def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    with contextlib.suppress(OSError):  # git is not installed
        return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None


def read_args(run_dir) -> dict:
    """A run's args.json. Raises ValueError where the directory is no run."""
    try:
        record = json.loads((Path(run_dir) / "args.json").read_text())
        return record | {"kind": str(record["kind"]), "args": dict(record["args"])}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{run_dir} is no run (it has no args.json that can be read): name a run directory") from None


def read_run(run_dir) -> tuple[dict, list[dict]]:
    """A run's args.json and its epochs' records. Raises ValueError where it is no run or its metrics are damaged."""
    record, path = read_args(run_dir), Path(run_dir) / "metrics.jsonl"  # there from the first epoch's end
    try:
        return record, [dict(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []
    except (OSError, ValueError, TypeError, RecursionError):
        raise ValueError(f"{path} is damaged: --resume of the run writes it anew") from None


def last_weights(run_dir) -> str:
    """The path of a finished training's weights.pt. Raises ValueError where the run is none, or not finished."""
    (record, metrics), best = read_run(run_dir), Path(run_dir) / "best.pt"
    if record["kind"] not in ("eval", "imagenet"):
        raise ValueError(f"{run_dir} is a run of kind {record['kind']}, which leaves no network: train its cell and "
                         "name that run")
    if not (Path(run_dir) / "weights.pt").exists():
        instead = f", or give {best} as weights" if best.exists() else ""
        raise ValueError(f"{run_dir} is not finished, {len(metrics)} of {record['args'].get('epochs')} epochs are "
                         f"done: continue it with --resume{instead}")
    return str(Path(run_dir) / "weights.pt")


def read_alphas(run_dir) -> dict[str, numpy.ndarray]:
    """What alphas.npz holds: per stage and cell alphas (epochs, 14, K) and candidates (14, K). Raises ValueError."""
    try:
        with numpy.load(Path(run_dir) / "alphas.npz") as file:
            return dict(file)
    except Exception:  # damage can show itself in any way
        raise ValueError(f"{run_dir}/alphas.npz is missing or damaged: --resume of the run writes it anew") from None


def arch_of(args: Namespace) -> str:
    """The cell to train: --arch, or what the run to resume has kept of it, which nobody has moved or changed."""
    return args.resume if args.resume and (Path(args.resume) / "genotype.json").exists() else args.arch


# ---- files

def write_file(path: Path, content: bytes) -> None:
    """Write a file of a run whole or not at all. Raises OSError."""
    try:
        replace_file(path, content)
    except OSError as error:
        raise OSError(f"{error}, then continue with --resume; what was saved before is whole") from error


def replace_file(path: Path, content: bytes, check=lambda temporary: None):
    """Write a file under a temporary name, which check(temporary) may refuse, then name it -> what check returned.

    Raises OSError; where anything fails, a file that was there before is kept, and nothing new is left.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        result = check(temporary)
        os.replace(temporary, path)
        return result
    except OSError as error:
        raise OSError(f"can't write {path} ({error.strerror or error}): make room or rights there") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


# ---- checkpoints

def load_state(run_dir: Path, kind: str, **fresh) -> dict:
    """Where a run is: its checkpoint, or `fresh` before the first; what follows from it is written anew.

    A run of any kind has "kind", "epoch" (the next one) and "metrics" (the records of all epochs). A search adds
    "stage", "normal" and "reduce" (the candidates on each edge) and "alphas" (alphas.npz), an evaluation "best_acc" and
    "best_epoch". In the file stand also the state_dicts of its parts (network, optimizer, ...) by name, and in the
    middle of an epoch that of its "meter". Raises ValueError, OSError.
    """
    state = load_checkpoint(run_dir, kind) or {"kind": kind, "epoch": 0, "metrics": [], **fresh}
    if parallel.rank() == 0 and state["metrics"]:
        write_history(run_dir, state)  # a kill may have come before it, or it is damaged
    return state


def restore(state: dict, parts: dict) -> None:
    """Load into each part what the checkpoint has of it, by name. Raises ValueError where it doesn't fit."""
    for name, part in parts.items():
        try:
            if name in state:
                part.load_state_dict(state.pop(name))
        except RuntimeError:
            raise ValueError(f"the checkpoint's {name} doesn't fit: give the data that the run began with") from None


def end_epoch(run_dir: Path, state: dict, record: dict, parts: dict) -> None:
    """Log an epoch and write checkpoint.pt, then what follows from it. All processes call it. Raises OSError."""
    log.info(json.dumps(record))
    state["epoch"] += 1
    state["metrics"].append(record)
    save_checkpoint(run_dir, state, parts)
    if parallel.rank() == 0:
        write_history(run_dir, state)


def write_history(run_dir: Path, state: dict) -> None:
    """Write metrics.jsonl and a search's alphas.npz, whole each time, so that they can't differ from the checkpoint."""
    write_file(run_dir / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in state["metrics"]).encode())
    if "alphas" in state:
        buffer = io.BytesIO()
        numpy.savez(buffer, **{name: numpy.array(rows) for name, rows in state["alphas"].items()})
        write_file(run_dir / "alphas.npz", buffer.getvalue())


def save_checkpoint(run_dir: Path, state: dict, parts: dict) -> None:
    """Write a run's state and that of its parts, keeping the file before as previous.pt. Raises OSError.

    All processes call it. Behind what torch.save writes stands its SHA-256, since torch.load does not notice flipped
    bits; nor does it mind.
    """
    state = state | {name: part.state_dict() for name, part in parts.items()}
    if parallel.rank() > 0:
        return
    buffer, path = io.BytesIO(), run_dir / "checkpoint.pt"
    torch.save(state, buffer)
    if path.exists():
        write_file(run_dir / "previous.pt", path.read_bytes())  # a copy: at no moment is there no checkpoint
    write_file(path, buffer.getvalue() + hashlib.sha256(buffer.getbuffer()).digest())


def load_checkpoint(run_dir: Path, kind: str) -> dict | None:
    """A run's checkpoint, on the CPU, or None before the first; never runs code. Raises ValueError if it is damaged."""
    path, previous = run_dir / "checkpoint.pt", run_dir / "previous.pt"
    if not path.exists():
        return None
    content = path.read_bytes()
    if hashlib.sha256(content[:-32]).digest() == content[-32:]:
        with contextlib.suppress(Exception):  # what others wrote can fail in any way
            state = torch.load(io.BytesIO(content[:-32]), map_location="cpu", weights_only=True)
            if state["kind"] == kind:
                return state
    command = shlex.join(["mv", str(previous), str(path)])
    hint = f"go on from the one before with {command}" if previous.exists() else "start the run anew"
    raise ValueError(f"{path} is damaged or of another kind of run: {hint}")


# ---- weights

def save_weights(path: Path, network: nn.Module) -> None:
    """Write a network's state_dict, on the CPU. Raises OSError."""
    buffer = io.BytesIO()
    torch.save({name: value.cpu() for name, value in network.state_dict().items()}, buffer)
    write_file(path, buffer.getvalue())


# ---- TensorBoard

def scalar_writer(args: Namespace, run_dir: Path, done: int):
    """A function that writes an epoch's record for TensorBoard, if --tensorboard; `done` epochs are written already."""
    if not args.tensorboard or parallel.rank() > 0:
        return lambda epoch, record: None
    from torch.utils.tensorboard import SummaryWriter
    writer = SummaryWriter(run_dir / "tensorboard", purge_step=done)

    def write(epoch: int, record: dict) -> None:
        for name, value in record.items():
            if value is not None:
                writer.add_scalar(name, value, epoch)
        writer.flush()
    return write
