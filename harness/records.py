"""Read back what a run wrote: its options, metrics, alphas, and the cell that it trains. Without torch."""
import json
from argparse import Namespace
from pathlib import Path

import numpy


def read_args(run_dir) -> dict:
    """A run's args.json. Raises ValueError if the directory is not a run."""
    try:
        record = json.loads((Path(run_dir) / "args.json").read_text())
        return record | {"kind": str(record["kind"]), "args": dict(record["args"])}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{run_dir} is not a run (no readable args.json): use a run directory") from None


def read_run(run_dir) -> tuple[dict, list[dict]]:
    """A run's args.json and its epochs' records. Raises ValueError if it is not a run or its metrics are damaged."""
    record, path = read_args(run_dir), Path(run_dir) / "metrics.jsonl"  # written from the end of the first epoch on
    try:
        return record, [dict(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []
    except (OSError, ValueError, TypeError, RecursionError):
        raise ValueError(f"{path} is damaged: --resume the run to rewrite it") from None


def read_alphas(run_dir) -> dict[str, numpy.ndarray]:
    """alphas.npz: per stage and cell the alphas (epochs, 14, K) and candidates (14, K). Raises ValueError."""
    try:
        with numpy.load(Path(run_dir) / "alphas.npz") as file:
            return dict(file)
    except Exception:  # damage can surface as any exception
        raise ValueError(f"{run_dir}/alphas.npz is missing or damaged: --resume the run to rewrite it") from None


def last_weights(run_dir) -> str:
    """The path of a finished training's weights.pt. Raises ValueError if the run is not a training, or not finished."""
    (record, metrics), best = read_run(run_dir), Path(run_dir) / "best.pt"
    if record["kind"] not in ("eval", "imagenet"):
        raise ValueError(f"{run_dir} is a run of kind {record['kind']}, which leaves no network: train its cell and "
                         "use that run")
    if not (Path(run_dir) / "weights.pt").exists():
        instead = f", or use {best} as weights" if best.exists() else ""
        raise ValueError(f"{run_dir} is not finished, {len(metrics)} of {record['args'].get('epochs')} epochs are "
                         f"done: continue it with --resume{instead}")
    return str(Path(run_dir) / "weights.pt")


def arch_of(args: Namespace) -> str:
    """The cell to train: --arch, or the copy in the run to resume, which cannot have been moved or changed since."""
    return args.resume if args.resume and (Path(args.resume) / "genotype.json").exists() else args.arch
