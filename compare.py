"""Compare runs: searches, their cells and costs, and the errors of the evaluation runs that trained these cells.

    python compare.py RUN_DIR... [--json | --markdown | --latex | --choose] [--plot FILE] [--max_multiply_adds M]
An evaluation run belongs to a search if it trained that search's cell, or the cell of its first stage alone. Searches
that differ only in the seed share a row: mean and standard deviation (n - 1) over the searches, of each the mean of its
evaluations. All random:SEED cells share a row, too, the baseline of every other row, and so do the dealt cells of
experiments/evidence.py. A row of one cell is over its evaluation runs. Hours are device-hours, of one search and of
one evaluation. Parameters and multiply-adds are those of the published size. With --max_multiply_adds, those of the
budget are counted as published, with batch norms and ReLUs.
"""
import argparse
import functools
import json
import re
import statistics
import sys
from pathlib import Path

sys.path.insert(0, __file__.removesuffix("compare.py"))  # python -I and -P omit it

import genotypes
import progressive
from harness import cli, records
from harness.log import log
from reporting import tables
from reporting.runs import control, hours, read_run, state, warn_of_other_images
from reporting.tables import MAIN

# options in which runs of the same experiment may differ; their cells are compared separately
INCIDENTAL = {"arch", "seed", "save", "note", "resume", "workers", "report_freq", "device", "compile", "deterministic",
              "cifar100", "eval", "weights", "tensorboard", "grad_checkpoint", "fast"}
FIELDS = ["kind", "run", "searches", "state", "data", "seed", "hours", "device", "genotype", "skips", "found_skips",
          "parameters", "multiply_adds", "cell", "setting", "n", "over", "runs", "seeds", "unfinished",
          "evaluation_hours", "last_error", "last_accuracy", "last_std", "best_error", "best_accuracy", "best_std",
          "valid_error", "valid_accuracy", "valid_std", "difference", "difference_in_std", "cells"]


# ---- runs

def trained(search: dict, evaluation: dict) -> bool:
    """Whether an evaluation run trained this search's cell; decided by --arch until both have written their cells."""
    if search["genotype"] and evaluation["genotype"]:
        return search["genotype"] == evaluation["genotype"]
    arch = evaluation["args"]["arch"]
    return arch not in genotypes.PUBLISHED and Path(arch).resolve() == search["path"].resolve()


def differing(runs: list[dict], dataset: str) -> list[str]:
    """The options, beyond MAIN, in which the runs on this dataset differ."""
    options = [run["args"] for run in runs if run["args"]["dataset"] == dataset]
    names = {name for args in options for name in args} - INCIDENTAL - set(MAIN)
    return [name for name in sorted(names) if len({str(args.get(name)) for args in options}) > 1]


# ---- cells: of searches, of their first stages, and others, each with its evaluation runs

def list_cells(searches: list[dict], evaluations: list[dict]) -> list[dict]:
    """Every cell with its evaluation runs, and the "group" whose cells share a row."""
    cells, rest = [], [run for run in evaluations if not any(trained(search, run) for search in searches)]
    for search in searches:
        own = [run for run in evaluations if trained(search, run)]
        cells.append(searched_cell(search, own))
        # The cell of the first stage alone is listed only if a run has trained it.
        if rest and (genotype := first_stage_cell(search)):
            own = [run for run in rest if run["genotype"] == genotype]
            rest = [run for run in rest if run not in own]
            cells += [searched_cell(search, own, genotype)] if own else []
    # The remaining runs trained cells that were not searched here: one entry per cell.
    others = {}
    for run in rest:
        others.setdefault(json.dumps(run["genotype"] or run["args"]["arch"]), []).append(run)
    return cells + [other_cell(own) for own in others.values()]


def first_stage_cell(search: dict) -> genotypes.Genotype | None:
    """The cell that a search would find in its first stage alone; None before the stage ends. Raises ValueError."""
    stage1 = sum(record["stage"] == 1 for record in search["metrics"])
    if stage1 < search["args"]["epochs"] or not (search["path"] / "alphas.npz").exists():
        return None
    return progressive.first_stage_genotype(records.read_alphas(search["path"]), search["args"].get("max_skip", 2))


def searched_cell(search: dict, evaluations: list[dict], first_stage=None) -> dict:
    """The cell of a search, or of its first stage if that is given."""
    args = {key: value for key, value in search["args"].items() if key not in INCIDENTAL}
    rates = args.get("dropout_rate", [])
    plain = rates and not any(rates)  # no skip dropout
    kind = "one stage" if first_stage else "without skip dropout" if plain else "P-DARTS"
    label = "one stage without skip dropout" if first_stage and plain else kind
    if changed := control(search):
        label += f", {changed}"
    cell = {"kind": kind, "label": label, "name": search["name"], "search": search,
            "group": json.dumps([bool(first_stage), changed, args], sort_keys=True), "evaluations": evaluations,
            "genotype": first_stage or search["genotype"], "seed": search["args"]["seed"], "state": state(search),
            "data": search["args"]["dataset"], "device": f"{search['processes']} x {search['device']}",
            "hours": hours(search, (1,) if first_stage else (1, 2, 3))}
    return cell if first_stage or not search["genotype"] else cell | read_sizes(search)


def read_sizes(search: dict) -> dict:
    """The sizes of a search's cell in genotypes.json, and the unrestricted cell's skip-connects. Raises ValueError."""
    table = genotypes.load_table(search["path"])
    chosen = next((row for row in table if row["genotype"] == search["genotype"]), {})
    return {"found_skips": next((row["skips"] for row in table if row["max_skip"] is None), None),
            **{key: chosen.get(key) for key in ("skips", "parameters", "multiply_adds")}}


def other_cell(evaluations: list[dict]) -> dict:
    """A cell that none of the given searches has found."""
    arch, genotype = genotypes.label(evaluations[0]["args"]["arch"]), evaluations[0]["genotype"]
    published = arch in genotypes.PUBLISHED or genotype in genotypes.PUBLISHED.values()
    kind = "random" if arch.startswith("random:") else "published" if published else "other"
    if "-dealt-" in Path(arch).name:  # by experiments/evidence.py
        kind = "dealt"
    group = kind if kind in ("random", "dealt") else json.dumps(genotype or arch)
    return {"kind": kind, "name": arch, "search": None, "group": group, "genotype": genotype,
            "evaluations": evaluations}


# ---- rows

def compare(run_dirs: list[str]) -> list[dict]:
    """The rows, all with FIELDS: one per group of cells and setting that they were trained in, searches first."""
    read = [read_run(run_dir, *MAIN) for run_dir in {Path(run_dir).resolve(): run_dir for run_dir in run_dirs}.values()]
    names = [run["name"] for run in read]
    read = [run | {"name": str(run["path"])} if names.count(run["name"]) > 1 else run for run in read]
    warn_of_other_images(read)
    searches, evaluations = ([run for run in read if (run["kind"] == "search") is wanted] for wanted in (True, False))
    groups, rows = {}, []
    for cell in list_cells(searches, evaluations):
        groups.setdefault(cell["group"], []).append(cell)
    for cells in groups.values():
        # The group's evaluation runs by setting: MAIN, and the other options in which runs on the dataset differ.
        settings = {}
        for run in sum((cell["evaluations"] for cell in cells), []):
            setting = {key: run["args"].get(key) for key in MAIN + differing(evaluations, run["args"]["dataset"])}
            settings.setdefault(json.dumps(setting), (setting, []))[1].append(run)
        for setting, own in settings.values() or [(None, [])]:
            # A search is listed even if no run has trained its cell yet, another cell is not.
            listed = [cell for cell in cells if cell["search"] or any(run in own for run in cell["evaluations"])]
            parts = [describe_cell(cell, [run for run in cell["evaluations"] if run in own]) for cell in listed]
            rows.append(dict.fromkeys(FIELDS) | describe_finding(listed, parts, searches)
                        | (describe_evaluations(parts, setting) if own else {}) | {"cells": parts})
    return add_differences(sorted(rows, key=lambda row: list(tables.COLORS).index(row["kind"])))


def describe_cell(cell: dict, evaluations: list[dict]) -> dict:
    """One cell and its evaluation runs; unfinished ones are listed, not counted."""
    done = [run for run in evaluations if state(run) == "finished"]
    part = {key: cell.get(key) for key in ("name", "seed", "state", "hours", "genotype", "skips", "found_skips",
                                           "parameters", "multiply_adds")}
    part |= {"arch": genotypes.label(evaluations[0]["args"]["arch"]) if evaluations else None, "n": len(done),
             "runs": [run["name"] for run in done],
             "seeds": [run["args"]["seed"] for run in done], "evaluation_hours": [hours(run) for run in done],
             "unfinished": {run["name"]: state(run) for run in evaluations if run not in done}}
    if cell["genotype"]:
        part["genotype"] = cell["genotype"]._asdict()
        part["skips"] = cell.get("skips", genotypes.count_skips(cell["genotype"].normal))
    for i, which in enumerate(("last", "best")):
        part[f"{which}_errors"] = [100 - records.test_accuracies(run["metrics"])[i] for run in done]
    held_out = [run for run in done if records.judged_by(run["metrics"]) == "valid"]
    part["valid_errors"] = [100 - max(record["valid_acc"] for record in run["metrics"]) for run in held_out]
    if held_out:  # the command that trains the cell on all images
        part["retrain"] = re.sub(r" --valid_portion[ =]\S+", "", held_out[0].get("command", ""))
    return part


def describe_finding(cells: list[dict], parts: list[dict], searches: list[dict]) -> dict:
    """The fields of a row on its cells and their searches, as means over several."""
    ready = [part for part in parts if part["state"] in (None, "finished")] or parts
    row = {key: mean([part[key] for part in ready if part[key] is not None])
           for key in ("hours", "skips", "found_skips", "parameters", "multiply_adds")}
    row["kind"] = cells[0]["kind"]
    if len(parts) == 1:
        row |= {"genotype": parts[0]["genotype"], "cell": parts[0]["arch"]}
    if not cells[0]["search"]:
        return row if len(parts) == 1 else row | {"cell": f"{row['kind']} cells"}
    finished = f"{sum(part['state'] == 'finished' for part in parts)} of {len(parts)} finished"
    seeds = [part["seed"] for part in parts]
    return row | {"run": name_searches(cells, searches), "searches": [part["name"] for part in parts],
                  "data": cells[0]["data"], "device": ", ".join(dict.fromkeys(cell["device"] for cell in cells)),
                  "seed": seeds if len(parts) > 1 else seeds[0],
                  "state": finished if len(parts) > 1 else parts[0]["state"]}


def name_searches(cells: list[dict], searches: list[dict]) -> str:
    """One search's name; for several, their kind and the options that distinguish them from the other searches."""
    name, args = cells[0]["name"], cells[0]["search"]["args"]
    if len(cells) == 1:
        return f"one stage of {name}" if cells[0]["kind"] == "one stage" else name
    shown = [key for key in MAIN if len({str(run["args"].get(key)) for run in searches}) > 1]
    shown += [key for key in differing(searches, args["dataset"]) if key not in ("dropout_rate", "candidates")]
    rates = {str(run["args"].get("dropout_rate")) for run in searches if any(run["args"].get("dropout_rate") or [])}
    shown += ["dropout_rate"] if len(rates) > 1 else []
    own = [f"with {op}" for op in args["candidates"] if op not in records.CANDIDATES]
    return ", ".join([cells[0]["label"], *(f"{key} {args.get(key)}" for key in shown), *own])


def describe_evaluations(parts: list[dict], setting: dict) -> dict:
    """The fields of a row on evaluation runs in one setting: over one cell's runs, or over the means of several."""
    trained = [part for part in parts if part["n"]]
    several = len(trained) > 1
    row = {"setting": setting, "over": "runs" if not several else "searches" if parts[0]["state"] else "cells",
           "n": len(trained) if several else sum(part["n"] for part in parts),
           "evaluation_hours": mean([value for part in parts for value in part["evaluation_hours"]]),
           "unfinished": {name: far for part in parts for name, far in part["unfinished"].items()}}
    for key in ("runs", "seeds"):
        row[key] = [value for part in parts for value in part[key]]
    for which in ("last", "best", "valid"):
        errors = [errors for part in trained if (errors := part[f"{which}_errors"])]
        errors = [mean(of_cell) for of_cell in errors] if several else sum(errors, [])
        row |= {f"{which}_error": mean(errors), f"{which}_accuracy": 100 - mean(errors) if errors else None,
                f"{which}_std": statistics.stdev(errors) if len(errors) > 1 else None}
    return row


def warn_of_repeats(rows: list[dict]) -> None:
    """Warn if runs of one seed count as different runs (on one CPU they are equal), or runs of one cell count twice."""
    for row in rows:
        several = [(row["run"], row["seed"])] if isinstance(row["seed"], list) else []
        for name, seeds in several + [(part["name"], part["seeds"]) for part in row["cells"]]:
            if again := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
                log.warning(f"{name}: several runs have the seed {', '.join(map(str, again))}, and each counts: omit "
                            "all but one, unless they ran on a GPU or on different CPUs")
        cells = [str(part["genotype"]) for part in row["cells"] if part["n"]]
        if row["over"] == "searches" and len({*cells}) < len(cells):
            log.warning(f"{row['run']}: {len(cells)} searches found {len({*cells})} different cell(s), and a cell's "
                        "runs count for each of its searches, so that the deviation is too small")


def mean(values: list) -> float | None:
    return statistics.mean(values) if values else None


def add_differences(rows: list[dict]) -> list[dict]:
    """Add each row's error minus the random cells' in the same setting, in points and in their standard deviations."""
    for row in rows:
        for baseline in rows:
            if (baseline["kind"] == "random" and row is not baseline and row["setting"] == baseline["setting"]
                    and None not in (row["last_error"], baseline["last_error"])):
                row["difference"] = row["last_error"] - baseline["last_error"]
                if baseline["over"] == "cells" and baseline["last_std"]:
                    row["difference_in_std"] = row["difference"] / baseline["last_std"]
    return rows


def add_mobile(rows: list[dict], max_multiply_adds: float) -> None:
    """Add each cell's widest ImageNet network of 14 cells within a budget in millions. Raises ValueError."""
    import utils  # here, because importing torch takes seconds
    from model import NetworkImageNet

    @functools.cache  # a cell may be in several rows
    def widest(genotype: str) -> dict:
        make = functools.partial(NetworkImageNet, num_classes=1000, layers=14, auxiliary=False,
                                 genotype=genotypes.Genotype(**json.loads(genotype)))
        network = make(channels := utils.most_channels(make, 224, max_multiply_adds))
        return {"channels": channels, "parameters": utils.count_parameters(network),
                "multiply_adds": utils.count_multiply_adds(network, 224, published=True)}

    for row in rows:
        for part in row["cells"]:
            if part["genotype"]:
                part["mobile"] = widest(json.dumps(part["genotype"]))


# ---- command line

def figure_file(text: str) -> Path:
    """The type of an option that names the file of a figure."""
    if Path(text).suffix not in (".svg", ".png"):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} must end in .svg or .png")
    return Path(text)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    parser.add_argument("run_dirs", nargs="+", metavar="RUN_DIR", help="run directories of the training scripts")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print all numbers, unrounded, and the genotypes as JSON")
    form.add_argument("--markdown", action="store_true", help="print a Markdown table, for a README")
    form.add_argument("--latex", action="store_true", help="print a LaTeX table (booktabs), for a paper")
    form.add_argument("--choose", action="store_true", help="also print which cells --valid_portion's images prefer")
    parser.add_argument("--plot", type=figure_file, metavar="FILE", help="plot the cells' errors as .svg or .png")
    parser.add_argument("--max_multiply_adds", type=cli.number(float, 0), metavar="M",
                        help="also show each cell's widest ImageNet network within M million multiply-adds")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    rows = compare(args.run_dirs)
    warn_of_repeats(rows)
    if args.max_multiply_adds is not None:
        add_mobile(rows, args.max_multiply_adds)
    if args.json:
        print(json.dumps(rows, indent=1))
    elif args.markdown:
        print(tables.as_markdown(rows))
    elif args.latex:
        print(tables.as_latex(rows))
    else:
        print(tables.as_text(rows) + "\n\n" + tables.list_genotypes(rows))
    if args.choose:
        print("\n" + tables.list_choices(rows))
    if args.max_multiply_adds is not None and not args.json:
        write = tables.markdown if args.markdown else tables.latex if args.latex else tables.align
        print("\n" + write(tables.list_mobile(rows)))
    if args.plot:
        tables.plot(rows, args.plot)


if __name__ == "__main__":
    cli.run(main, parse_args)
