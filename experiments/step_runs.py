"""What a step of the experiment has written: its run, how far it is, and the cells made from it."""
import random
import re
import shlex
from pathlib import Path

import compare
import genotypes
from experiments.matrix import Step
from harness import checkpoints
from harness.files import replace_file
from reporting.runs import read_run, state


def find_run(out: Path, step: Step) -> dict | None:
    """The run of a step, as compare.py reads it; None if it has not started. Raises ValueError if it is damaged."""
    kind = "eval" if step.command[0] == "train_cifar.py" else "search"
    name = re.compile(rf"{kind}-{re.escape(step.name)}-\d{{8}}-\d{{6}}(-\d+)?")
    found = [path for path in (out / option(step, "--save")).glob(f"{kind}-{step.name}-*")
             if name.fullmatch(path.name) and any(file.name != "args.json.tmp" for file in path.iterdir())]
    if not found:
        return None
    if len(found) > 1:
        raise ValueError(f"{found[0]} and {found[1]} are runs of the same step: move one away")
    return read_run(str(found[0]))


def is_finished(run: dict) -> bool:
    """Whether the report is written, which is a run's last file; a resumed evaluation rewrites its genotype.json."""
    genotype, report = run["path"] / "genotype.json", run["path"] / "report.html"
    return (state(run) == "finished" and report.exists()
            and report.stat().st_mtime_ns >= genotype.stat().st_mtime_ns)


def describe_state(run: dict | None) -> str:
    return "to do" if run is None else "finished" if is_finished(run) else f"at {state(run)}"


def check_run(out: Path, step: Step) -> None:
    """Check that a step can be resumed, or is finished. Raises ValueError, in one line, if it can't."""
    run = find_run(out, step)
    if run is None:
        return
    if tuple(shlex.split(str(run.get("command")))[2:]) != step.command[1:]:
        raise ValueError(f"{run['path']} was made with other options than this setting's: move it away")
    if not is_finished(run) and checkpoints.load(run["path"], run["kind"]) is None and run["metrics"]:
        instead = ", or continue a search with experiments/restore_search.py" * (step.part == "search")
        raise ValueError(f"{run['path']} has lost its checkpoint.pt: move it away to restart the step{instead}")
    write_cells(out, step)


def write_cells(out: Path, step: Step) -> None:
    """Write a finished search's cell to cells/NAME.json; for P-DARTS also dealt ones, and its first stage's cell.

    The last is written even if the search was stopped later on.
    """
    run, cells = find_run(out, step), {}
    if step.part != "search" or run is None:
        return
    pdarts = "-pdarts-" in step.name
    if pdarts and (genotype := compare.first_stage_cell(run)):
        cells[step.name.replace("-pdarts-", "-one-stage-")] = genotype
    if is_finished(run):
        cells[step.name] = run["genotype"]
        for seed in range(2 * pdarts):
            cells[f"{step.name.replace('-pdarts-', '-dealt-')}-{seed}"] = deal(run["genotype"], seed)
    for name, genotype in cells.items():
        path = out / "cells" / f"{name}.json"
        # A cell may have been trained already, so an existing file is compared, not replaced.
        if not path.exists():
            genotypes.save(genotype, path)
        elif genotypes.load_file(path) != genotype:
            raise ValueError(f"{path} is not the cell of {run['path']}: move it away")


def deal(genotype: genotypes.Genotype, seed: int) -> genotypes.Genotype:
    """A cell with the operations of another one, in random order on random edges."""
    rng = random.Random(seed)
    normal, reduce = ([(op, state) for op, state in zip(
        rng.sample([op for op, _ in genes], len(genes)),
        [state for node in range(genotypes.NODES) for state in sorted(rng.sample(range(2 + node), 2))])]
        for genes in (genotype.normal, genotype.reduce))
    return genotype._replace(normal=normal, reduce=reduce)


def save_supernet(out: Path, step: Step) -> None:
    """Copy the checkpoint of a P-DARTS search that is between its first two stages, for ablation.py."""
    run, path = find_run(out, step), out / "supernets" / f"{step.name}.pt"
    wanted = "-pdarts-" in step.name and step.part == "search" and run and not path.exists()
    if wanted and len(run["metrics"]) == run["args"]["epochs"]:  # stage 1 has ended, stage 2 has saved nothing yet
        checkpoint = checkpoints.load(run["path"], run["kind"])
        if checkpoint and checkpoint["stage"] == 1:  # that of restore_search.py is of stage 2, and has no weights
            replace_file(path, (run["path"] / "checkpoint.pt").read_bytes())


def is_ready(out: Path, step: Step) -> bool:
    """Whether the cell that a step trains has been found."""
    cell = option(step, "--arch") if "--arch" in step.command else ""
    return not cell.endswith(".json") or (out / cell).exists()


def option(step: Step, name: str) -> str:
    return step.command[step.command.index(name) + 1]
