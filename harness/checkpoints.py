"""The checkpoint of a run: written whole or not at all, checked when it is read, and read without running code."""
import contextlib
import hashlib
import io
import shlex
from pathlib import Path

import torch

from harness.files import read_file, write_file


def save(run_dir: Path, checkpoint: dict) -> None:
    """Write checkpoint.pt, and keep the one before it as previous.pt. Raises OSError.

    A dictionary: "kind", "epoch" (the next one), "metrics", "args" (the options that can't change), what the kind of
    run adds (a search: "stage", "normal" and "reduce", the candidates per edge, and "alphas"; an evaluation: "best_acc"
    and "best_epoch"), the state_dicts of the run's parts by name, and mid-epoch that of its "meter". A SHA-256 follows
    what torch.save writes, because torch.load does not notice flipped bits; it ignores the SHA.
    """
    buffer, path = io.BytesIO(), run_dir / "checkpoint.pt"
    torch.save(checkpoint, buffer)
    if path.exists():
        write_file(run_dir / "previous.pt", path.read_bytes())  # a copy, so that there is a checkpoint at any moment
    write_file(path, buffer.getvalue() + hashlib.sha256(buffer.getbuffer()).digest())


def load(run_dir: Path, kind: str) -> dict | None:
    """A run's checkpoint, on the CPU, or None before the first; never runs code. Raises ValueError if it is damaged."""
    path = run_dir / "checkpoint.pt"
    if not path.exists():
        return None
    if (checkpoint := read(path, kind)) is not None:
        return checkpoint
    raise ValueError(f"{path} is damaged or of another kind of run: {replacement(run_dir)}")


def replacement(run_dir: Path) -> str:
    """What to do, in words, without a usable checkpoint.pt."""
    path, previous = run_dir / "checkpoint.pt", run_dir / "previous.pt"
    command = shlex.join(["mv", str(previous), str(path)])
    return f"restore the previous one with {command}" if previous.exists() else "start a new run"


def read(path: Path, kind: str) -> dict | None:
    """The checkpoint in a file, on the CPU, or None if it is damaged or of another kind of run; never runs code."""
    content = read_file(path)
    if hashlib.sha256(content[:-32]).digest() == content[-32:]:
        with contextlib.suppress(Exception):  # a foreign file can fail in any way
            checkpoint = torch.load(io.BytesIO(content[:-32]), map_location="cpu", weights_only=True)
            if checkpoint["kind"] == kind:
                return checkpoint
    return None
