"""Read back what a run wrote: its options, metrics, alphas, and the cell that it trains. Without torch."""
import json
from argparse import Namespace
from pathlib import Path

import numpy

from harness.log import log


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


def judged_by(metrics: list[dict]) -> str:
    """What chose a training's best epoch: "valid" with --valid_portion, otherwise "test"."""
    return "valid" if "valid_acc" in metrics[-1] else "test"


def test_accuracies(metrics: list[dict]) -> tuple[float | None, float | None]:
    """The test accuracies in % of a training's weights.pt and best.pt so far; None if they were not tested yet."""
    if metrics and judged_by(metrics) == "test":
        return metrics[-1]["test_acc"], max(record["test_acc"] for record in metrics)
    return tuple(metrics[-1].get(key) for key in ("test_acc", "best_test_acc")) if metrics else (None, None)


def read_alphas(run_dir) -> dict[str, numpy.ndarray]:
    """alphas.npz: per stage and cell the alphas (epochs, 14, K) and candidates (14, K). Raises ValueError."""
    try:
        with numpy.load(Path(run_dir) / "alphas.npz") as file:
            return dict(file)
    except Exception:  # damage can surface as any exception
        raise ValueError(f"{run_dir}/alphas.npz is missing or damaged: --resume the run to rewrite it") from None


def read_data(run_dir) -> dict:
    """A run's data.json, see `input_pipeline.sets.describe`; {} if it is not a run, or has none. Raises ValueError."""
    path = Path(run_dir, "data.json")
    try:
        return dict(json.loads(path.read_text())) if path.exists() and path.with_name("args.json").exists() else {}
    except (OSError, ValueError, TypeError, RecursionError):
        raise ValueError(f"{path} is damaged: restore it, or remove it") from None


def compare_data(run_dir, data: dict) -> str:
    """The entries of data.json in which `data` differ from a run's, "" if in none; what a run lacks counts as equal.

    Raises ValueError, which names up to five classes of each side, if the classes differ.
    """
    saved = data | read_data(run_dir)
    was, now = saved["classes"], data["classes"]
    if was != now:
        gone, new = ([name for name in one if name not in other][:5] for one, other in ((was, now), (now, was)))
        words = [f"only {side}: {', '.join(names)}" for side, names in (("there", gone), ("here", new)) if names]
        raise ValueError(f"{run_dir} was trained on other classes ({'; '.join(words) or 'in another order'}): use its "
                         "data")
    other = [name for name in ("image_size", "images", "digest") if saved[name] != data[name]]
    other += [name for name in ("mean", "std") if any(abs(a - b) > 1e-3 for a, b in zip(saved[name], data[name]))]
    return ", ".join(other)


def use_data(weights, data: dict) -> dict:
    """The data of the run in whose directory a file of weights lies, otherwise `data`; logs if `data` are another set.

    Raises ValueError if the classes differ.
    """
    run_dir = Path(weights).parent
    if other := compare_data(run_dir, data):
        log.info(f"another set than that of {run_dir} (other {other}), with the run's mean and deviation")
    return data | read_data(run_dir)


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
