"""The one reader of each file that a run wrote: options, metrics, alphas, the metadata of its data. Without torch.

Run directories come from strangers, too: entries are checked before they are used, and errors name file and entry.
"""
import io
import json
from argparse import Namespace
from pathlib import Path

import numpy

from harness.files import read_file
from harness.log import log

# What options mean that older runs lack; an ImageNet run has no option for its dataset.
EVERY_RUN = {"tf32": False, "tensorboard": False, "fast": "auto", "valid_portion": None}
CANDIDATES = ["none", "max_pool_3x3", "avg_pool_3x3", "skip_connect",
              "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5"]
OLD_MEANING = {"search": EVERY_RUN | {"grad_checkpoint": False, "stem": "cifar", "drop_path_prob": 0.3,
                                      "candidates": CANDIDATES},
               "eval": EVERY_RUN | {"init_weights": None, "max_multiply_adds": None, "predictions": None},
               "imagenet": EVERY_RUN | {"init_weights": None, "max_multiply_adds": None, "predictions": None,
                                          "dataset": "imagenet"}}
# What entries must be, for the programs that use them: the type, and lowest and highest number.
TEXT, COUNT, SHARE, PERCENT, REAL = (str,), (int, 1, 10**9), (float, 0, 1), (float, 0, 100), (float, 0, 1e12)
RECORD = {"command": TEXT, "device": TEXT, "processes": COUNT, "versions": (dict,), "git": TEXT, "launch": TEXT}
OPTIONS = {"epochs": COUNT, "seed": (int, 0, 10**38), "dataset": TEXT, "arch": TEXT, "stem": TEXT, "image_size": COUNT,
           "warmup_epochs": (int, 0, 10**9), "max_multiply_adds": REAL, "init_channels": COUNT, "layers": COUNT,
           "tmp_data_dir": TEXT, "max_skip": (int, 0, 10**9), "dropout_rate": [SHARE, 0, 9],
           "candidates": [TEXT, 2, 100]}
METRICS = {"stage": (int, 1, 3), "epoch": (int, 0, 10**9), "seconds": REAL, "processes": COUNT, "lr": REAL,
           "train_loss": REAL, "valid_loss": REAL, "test_loss": REAL, "train_acc": PERCENT, "valid_acc": PERCENT,
           "test_acc": PERCENT, "skip_dropout": SHARE, "drop_path_prob": SHARE, "skips": (int, 0, 8),
           "alpha_steps": (int, 0, 10**12), "entropy": (float, 0, 1.001), "lead": REAL, "clear_edges": (int, 0, 28),
           "displacement": REAL, "drift": (float, -1e12, 1e12), "best_test_acc": PERCENT}
DATA = {"classes": [TEXT, 1, 10**6], "mean": [(float, -100, 100), 3, 3], "std": [(float, 1e-9, 100), 3, 3],
        "image_size": COUNT, "resize": COUNT, "images": [(int, 0, 10**9), 1, 10**6], "digest": TEXT}
CLASSES = {"classes": [TEXT, 1, 100], "images": [(int, 0, 10**9), 1, 100], "balanced_accuracy": PERCENT,
           "confusion": [[(int, 0, 10**9), 1, 100], 1, 100]}
NULLABLE = {"git", "launch", "image_size", "tmp_data_dir", "dropout_rate", "valid_loss", "valid_acc", "displacement",
            "drift", "max_multiply_adds"}
OF_SEARCHES = {"tmp_data_dir", "image_size", "stage", "valid_loss", "valid_acc", "skip_dropout", "skips"}
LACKING = {"search": {"arch", "init_channels", "layers", "test_loss", "test_acc", "drop_path_prob"},
           "eval": OF_SEARCHES, "imagenet": OF_SEARCHES | {"dataset"}}  # what a kind of run need not have
# What older runs lack, all of a group together.
TOGETHER = {"alpha_steps", "entropy", "lead", "clear_edges"}, {"displacement", "drift"}, {"resize", "images", "digest"}


def is_valid(value, entry) -> bool:
    """Whether a decoded value is what an entry must be: (type, low, high), or a list [of these, fewest, most]."""
    if isinstance(entry, list):
        return isinstance(value, list) and entry[1] <= len(value) <= entry[2] and all(
            is_valid(one, entry[0]) for one in value)
    kind, *limits = entry
    fits = type(value) in ((int, float) if kind is float else (kind,))
    return fits and (not limits or limits[0] <= value <= limits[1])


def check(path, record: dict, entries: dict, needed) -> None:
    """Raise ValueError, which names the entry, if one of `needed` is missing, or one is not what it must be."""
    older = [group for group in TOGETHER if group <= entries.keys() and not group & record.keys()]
    needed = set(needed).difference(*older)
    for name, entry in entries.items():
        if name not in record and name in needed:
            raise ValueError(f"{path} has no {name!r}: restore the file")
        value = record.get(name)
        if name in record and not (is_valid(value, entry) or value is None and name in NULLABLE):
            raise ValueError(f"{path}: {name!r} can't be {str(value)[:40]!r}: restore the file")


def _read(path: Path, otherwise: str, by_line: bool = False) -> list[dict]:
    """The JSON objects of a file, in UTF-8 or in what Windows' tools make of it. Raises ValueError(otherwise)."""
    try:
        content = read_file(path)
        text = content.decode(json.detect_encoding(content))
        return [dict(json.loads(part)) for part in (text.splitlines() if by_line else [text])]
    except (OSError, ValueError, TypeError, RecursionError):
        raise ValueError(otherwise) from None


def read_args(run_dir, *needed: str) -> dict:
    """A run's args.json. needed: the entries and options that must be there. Raises ValueError."""
    path, otherwise = Path(run_dir, "args.json"), f"{run_dir} is not a run (no readable args.json): use a run directory"
    record, = _read(path, otherwise)
    if record.get("kind") not in [*LACKING] or not isinstance(record.get("args"), dict):
        raise ValueError(otherwise)
    check(path, record, RECORD, set(needed))
    check(path, record["args"], OPTIONS, set(needed) - LACKING[record["kind"]])
    return record


def options_of(record: dict) -> dict:
    """A run's options from its args.json; those that are newer than the run have their old meaning."""
    return OLD_MEANING[record["kind"]] | record["args"]


def read_run(run_dir, *needed: str) -> tuple[dict, list[dict]]:
    """A run's args.json and its epochs' records, in their order. needed: as for `read_args`. Raises ValueError."""
    record, path = read_args(run_dir, *needed), Path(run_dir) / "metrics.jsonl"
    hint = "--resume the run to rewrite it"
    metrics = _read(path, f"{path} is damaged: {hint}", by_line=True) if path.exists() else []  # from epoch 0 on
    names, last = set(needed) - LACKING[record["kind"]] - RECORD.keys() - {"best_test_acc"}, (1, -1)
    held_out = record["kind"] != "search" and any("valid_acc" in row for row in metrics)
    for i, row in enumerate(metrics, 1):
        if held_out:  # then the test set is used after the last epoch only
            names = names - {"test_acc", "test_loss"} | {"valid_acc"} | ({"valid_loss"} & {*needed})
            if row.get("epoch") == record["args"].get("epochs", 0) - 1:
                names |= {"test_acc", "best_test_acc"}
        check(f"{path}, line {i}", row, METRICS, names)
        stage, epoch = row.get("stage", 1), row.get("epoch", last[1] + 1)
        if (stage, epoch) not in ((last[0], last[1] + 1), (last[0] + 1, 0)):
            raise ValueError(f"{path}, line {i}: stage {stage}, epoch {epoch} can't follow epoch {last[1]}: {hint}")
        last = stage, epoch
    return record, metrics


def judged_by(metrics: list[dict]) -> str:
    """What chose a training's best epoch: "valid" with --valid_portion, otherwise "test"."""
    return "valid" if "valid_acc" in metrics[-1] else "test"


def test_accuracies(metrics: list[dict]) -> tuple[float | None, float | None]:
    """The test accuracies in % of a training's weights.pt and best.pt so far; None if they were not tested yet."""
    if metrics and judged_by(metrics) == "test":
        return metrics[-1]["test_acc"], max(record["test_acc"] for record in metrics)
    return tuple(metrics[-1].get(key) for key in ("test_acc", "best_test_acc")) if metrics else (None, None)


def read_alphas(run_dir) -> dict[str, numpy.ndarray]:
    """alphas.npz: per stage and cell the alphas (epochs, 14, K) and candidates (14, K).

    Raises ValueError if an entry is missing or not like this.
    """
    path, alphas = Path(run_dir) / "alphas.npz", {}
    try:
        with numpy.load(io.BytesIO(read_file(path))) as file:
            stages = max(int(name[5]) for name in file.files)
            for name in [f"stage{1 + i // 2}_{('normal', 'reduce')[i % 2]}" for i in range(2 * stages)]:
                alphas[name], alphas[f"{name}_candidates"] = rows, candidates = file[name], file[f"{name}_candidates"]
                epochs, _, K = rows.shape
                if not (epochs and K > 1 and rows.dtype.kind == "f" and numpy.isfinite(rows).all()
                        and candidates.dtype.kind == "U" and rows.shape[1:] == candidates.shape == (14, K)
                        and all(len({*row}) == K for row in candidates.tolist())):
                    raise ValueError(name)
    except Exception:  # damage can surface as any exception
        raise ValueError(f"{path} is missing or damaged: --resume the run to rewrite it") from None
    return alphas


def read_data(run_dir) -> dict:
    """A run's data.json, see `input_pipeline.sets.describe`; {} if it is not a run, or has none. Raises ValueError."""
    path = Path(run_dir) / "data.json"
    if not (path.exists() and path.with_name("args.json").exists()):
        return {}
    record, = _read(path, f"{path} is damaged: restore the file, or remove it")
    check(path, record, DATA, DATA)
    return {name: record[name] for name in DATA.keys() & record.keys()}


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


def run_of(weights) -> Path:
    """The directory in which a file of weights lies, or the one that a link outside any run leads to."""
    return max(Path(weights).parent, Path(weights).resolve().parent, key=lambda path: (path / "args.json").exists())


def use_data(weights, data: dict) -> dict:
    """The data of the run in whose directory a file of weights lies, otherwise `data`; logs if `data` are another set.

    Raises ValueError if the classes differ.
    """
    run_dir = run_of(weights)
    if other := compare_data(run_dir, data):
        log.info(f"this is not the data of {run_dir} (other {other}); the run's mean and deviation are used")
    return data | read_data(run_dir)


def read_classes(run_dir) -> dict:
    """A training's classes.json, see `reporting.classes.measure`; {} if it has none. Raises ValueError."""
    path = Path(run_dir) / "classes.json"
    if not path.exists():
        return {}
    damaged = f"{path} is damaged: --resume the run to rewrite it"
    record, = _read(path, damaged)
    check(path, record, CLASSES, CLASSES.keys())
    sides = {len(part) for part in (record["classes"], record["images"], record["confusion"], *record["confusion"])}
    if len(sides) > 1:
        raise ValueError(damaged)
    return record


def device_hours(metrics: list[dict], processes: int) -> float:
    """The device-hours of epochs; processes: of those recorded before each had its own number."""
    return sum(row["seconds"] * row.get("processes", processes) for row in metrics) / 3600


def last_weights(run_dir) -> str:
    """The path of a finished training's weights.pt. Raises ValueError if the run is not a training, or not finished."""
    (record, metrics), best = read_run(run_dir, "epochs"), Path(run_dir) / "best.pt"
    if record["kind"] == "search":
        raise ValueError(f"{run_dir} is a run of kind search, which leaves no network: train its cell and use that run")
    if not (Path(run_dir) / "weights.pt").exists():
        instead = f", or use {best} as weights" if best.exists() else ""
        raise ValueError(f"{run_dir} is not finished, {len(metrics)} of {record['args']['epochs']} epochs are done: "
                         f"continue it with --resume{instead}")
    return str(Path(run_dir) / "weights.pt")


def arch_of(args: Namespace) -> str:
    """The cell to train: --arch, or the copy in the run to resume, which cannot have been moved or changed since."""
    copy = Path(args.resume or "", "genotype.json").absolute()  # as such it is no published cell's name
    return str(copy) if args.resume and copy.exists() else args.arch
