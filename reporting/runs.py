"""A run's records as one dictionary, how far the run is, and what it has cost."""
import contextlib
import re
from pathlib import Path

import genotypes
from harness import records
from harness.log import log


def read_run(run_dir: str, *needed: str) -> dict:
    """A run directory's content: the entries of args.json, name, path, metrics, genotype and number of channels.

    needed: more entries than `state` and `hours` need, see `records.read_run`. Raises ValueError.
    """
    path = Path(run_dir)
    record, metrics = records.read_run(path, "device", "processes", "dataset", "epochs", "seed", "arch", "stage",
                                       "epoch", "seconds", "test_acc", *needed)
    genotype = genotypes.load_file(path) if (path / "genotype.json").exists() else None
    args = {key: value for key, value in records.options_of(record).items() if value is not None}
    channels = args.get("init_channels")
    if limit := args.pop("max_multiply_adds", None):  # it chose the channels, which differ between cells
        args["init_channels"] = f"at most {limit:g}M multiply-adds"
    folder = args.pop("tmp_data_dir", "")
    if args["dataset"] in ("folder", "imagenet"):  # its name is the dataset's, on any machine
        args["tmp_data_dir"] = Path(folder).name
    return record | {"name": path.resolve().name, "path": path, "metrics": metrics, "genotype": genotype, "args": args,
                     "channels": channels}


def warn_of_other_images(runs: list[dict]) -> None:
    """Warn if folders of one name hold different images: their runs share rows."""
    folders = {}
    for run in runs:
        with contextlib.suppress(ValueError):  # data.json is damaged, which concerns no number
            digest = records.read_data(run["path"]).get("digest")
            if digest and (folder := run["args"].get("tmp_data_dir")):
                folders.setdefault(folder, {}).setdefault(digest, run["name"])
    for folder, names in folders.items():
        if len(names) > 1:
            log.warning(f"{' and '.join(names.values())} have different images in a folder of the same name, {folder}, "
                        "and are compared as if they were the same: compare them separately")


def control(record: dict) -> str | None:
    """The name of a control of experiments/controls.py, from args.json; None for a search of three stages."""
    found = re.search(r"\bcontrols\.py'? (\S+)", record.get("command", ""))  # a path with a space is quoted
    return found[1] if found else None


def state(run: dict) -> str:
    """"finished", or the progress of an unfinished run."""
    if not run["metrics"]:
        return "no epoch yet"
    last, epochs = run["metrics"][-1], run["args"]["epochs"]
    if (run["genotype"] is not None) if run["kind"] == "search" else (last["epoch"] + 1 == epochs):
        return "finished"
    return (f"stage {last['stage']}, " if run["kind"] == "search" else "") + f"epoch {last['epoch'] + 1}/{epochs}"


def hours(run: dict, stages=(1, 2, 3)) -> float:
    """The device-hours of a run, or of some stages of a search."""
    rows = [record for record in run["metrics"] if record.get("stage", 1) in stages]
    return records.device_hours(rows, run["processes"])
