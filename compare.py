"""Compare runs: searches, what they found and cost, and what the evaluation runs that trained it reached.

    python compare.py RUN_DIR... [--json | --markdown | --latex]
An evaluation run belongs to a search when it trained that search's cell. Those that differ in nothing but the seed
share a row, with mean, standard deviation (n - 1) and n; those of other cells have rows of their own.
"""
import argparse
import json
import statistics
from pathlib import Path

import cli
import genotypes
import runs

# what runs of the same experiment may differ in; the cell is compared by itself
INCIDENTAL = {"arch", "seed", "save", "note", "resume", "tmp_data_dir", "workers", "report_freq", "device", "compile",
              "deterministic", "eval", "weights"}
FIELDS = ["run", "state", "data", "seed", "hours", "device", "genotype", "skips", "parameters", "multiply_adds", "cell",
          "setting", "n", "runs", "seeds", "unfinished", "last_error", "last_accuracy", "last_std", "best_error",
          "best_accuracy", "best_std"]
NOTHING = "–"
MAIN = ["dataset", "epochs", "init_channels", "layers"]  # settings that are always shown


# ---- runs

def read_run(run_dir: str) -> dict:
    """What a run directory holds: args.json's entries and the name, path, metrics and genotype. Raises ValueError."""
    path = Path(run_dir)
    record, metrics = runs.read_run(path)
    genotype = genotypes.load(run_dir) if (path / "genotype.json").exists() else None
    return record | {"name": path.resolve().name, "path": path, "metrics": metrics, "genotype": genotype,
                     "args": {"dataset": "imagenet"} | record["args"]}


def state(run: dict) -> str:
    """"finished", or how far the run is."""
    if not run["metrics"]:
        return "no epoch yet"
    last, epochs = run["metrics"][-1], run["args"]["epochs"]
    if (run["genotype"] is not None) if run["kind"] == "search" else (last["epoch"] + 1 == epochs):
        return "finished"
    return (f"stage {last['stage']}, " if run["kind"] == "search" else "") + f"epoch {last['epoch'] + 1}/{epochs}"


def trained(search: dict, evaluation: dict) -> bool:
    """Whether an evaluation run trained this search's cell; before it has written the cell, its --arch tells."""
    if search["genotype"] and evaluation["genotype"]:
        return search["genotype"] == evaluation["genotype"]
    return Path(evaluation["args"]["arch"]).resolve() == search["path"].resolve()


def describe_search(run: dict) -> dict:
    """A search's part of a row."""
    row = {"run": run["name"], "state": state(run), "data": run["args"]["dataset"], "seed": run["args"]["seed"],
           "hours": sum(record["seconds"] for record in run["metrics"]) * run["processes"] / 3600,
           "device": f"{run['processes']} x {run['device']}"}
    if run["genotype"]:
        row["genotype"] = run["genotype"]._asdict()
        table = json.loads((run["path"] / "genotypes.json").read_text())
        found = next((entry for entry in table if genotypes.parse(entry["genotype"]) == run["genotype"]), {})
        row |= {key: found.get(key) for key in ("skips", "parameters", "multiply_adds")}
    return row


def describe_evaluations(runs: list[dict], setting: dict) -> dict:
    """The part of a row on evaluation runs of one cell in one setting; unfinished ones are named, not counted."""
    done = [run for run in runs if state(run) == "finished"]
    row = {"cell": runs[0]["args"]["arch"], "setting": setting, "n": len(done), "runs": [run["name"] for run in done],
           "seeds": [run["args"]["seed"] for run in done],
           "unfinished": {run["name"]: state(run) for run in runs if run not in done}}
    if runs[0]["genotype"]:
        row["genotype"] = runs[0]["genotype"]._asdict()
    for which, choose in (("last", lambda accuracies: accuracies[-1]), ("best", max)):
        errors = [100 - choose([record["test_acc"] for record in run["metrics"]]) for run in done]
        row[f"{which}_error"] = statistics.mean(errors) if errors else None
        row[f"{which}_accuracy"] = 100 - statistics.mean(errors) if errors else None
        row[f"{which}_std"] = statistics.stdev(errors) if len(errors) > 1 else None
    return row


def differing(runs: list[dict], dataset: str) -> list[str]:
    """The options, beyond MAIN, in which the runs on this data set differ."""
    options = [run["args"] for run in runs if run["args"]["dataset"] == dataset]
    names = {name for args in options for name in args} - INCIDENTAL - set(MAIN)
    return [name for name in sorted(names) if len({str(args.get(name)) for args in options}) > 1]


def compare(run_dirs: list[str]) -> list[dict]:
    """The rows, all with FIELDS: each search with each setting that its cell was trained in, then the other cells."""
    runs = [read_run(run_dir) for run_dir in {Path(run_dir).resolve(): run_dir for run_dir in run_dirs}.values()]
    searches, evaluations = ([run for run in runs if (run["kind"] == "search") is wanted] for wanted in (True, False))

    def grouped(runs: list[dict]) -> list[dict]:
        groups = {}
        for run in runs:
            setting = {key: run["args"].get(key) for key in MAIN + differing(evaluations, run["args"]["dataset"])}
            key = json.dumps([setting, run["genotype"] or run["args"]["arch"]])
            groups.setdefault(key, (setting, []))[1].append(run)
        return [describe_evaluations(group, setting) for setting, group in groups.values()]

    rows = []
    for search in searches:
        own = grouped([run for run in evaluations if trained(search, run)])
        rows += [evaluated | describe_search(search) for evaluated in own or [{}]]
    rows += grouped([run for run in evaluations if not any(trained(search, run) for search in searches)])
    return [dict.fromkeys(FIELDS) | row for row in rows]


# ---- tables

def cells(row: dict) -> dict[str, str]:
    """A row as the texts of a table, by column; errors are of the test set, mean ± standard deviation."""
    def show(key: str, digits: int, unit: float = 1) -> str:
        return NOTHING if row[key] is None else f"{row[key] / unit:.{digits}f}"

    def error(which: str) -> str:
        std = "" if row[f"{which}_std"] is None else f" ± {row[f'{which}_std']:.2f}"
        return show(f"{which}_error", 2) + std

    form = "{dataset}, {epochs} epochs, {init_channels} channels, {layers} cells".format
    setting = row["setting"] and [form(**row["setting"]), *(
        f"{key} {value}" for key, value in row["setting"].items() if key not in MAIN)]
    unfinished = [f"search: {row['state']}"] if row["run"] and row["state"] != "finished" else []
    unfinished += [f"{name}: {how_far}" for name, how_far in (row["unfinished"] or {}).items()]
    return {"search, or cell": row["run"] or row["cell"], "data": row["data"] or NOTHING, "seed": show("seed", 0),
            "skips": show("skips", 0), "params (M)": show("parameters", 2, 1e6),
            "mult-adds (M)": show("multiply_adds", 1, 1e6), "cost (h)": show("hours", 2),
            "device": row["device"] or NOTHING, "evaluation": ", ".join(setting or [NOTHING]), "n": show("n", 0),
            "error, last (%)": error("last"), "error, best (%)": error("best"),
            "unfinished": "; ".join(unfinished) or NOTHING}


def grid(rows: list[dict]) -> list[list[str]]:
    """The table's lines, the head first, without the columns in which there is nothing."""
    lines = [cells(row) for row in rows]
    names = [name for name in lines[0] if any(line[name] != NOTHING for line in lines)]
    return [names, *([line[name] for name in names] for line in lines)]


def as_text(rows: list[dict]) -> str:
    lines = grid(rows)
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip() for line in lines)


def as_markdown(rows: list[dict]) -> str:
    escape = str.maketrans({char: f"\\{char}" for char in "\\`*_|<>[]"})
    lines = [[text.translate(escape) for text in line] for line in grid(rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def as_latex(rows: list[dict]) -> str:
    """A tabular with the rules of the package booktabs."""
    escape = str.maketrans({char: f"\\{char}" for char in "&%$#_{}"} | {
        "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
        ">": r"\textgreater{}", "±": r"$\pm$", NOTHING: "--"})
    lines = grid(rows)
    columns = "l" * len(lines[0])
    head, *lines = [" & ".join(text.translate(escape) for text in line) + r" \\" for line in lines]
    return "\n".join([rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *lines, r"\bottomrule",
                      r"\end{tabular}"])


def list_genotypes(rows: list[dict]) -> str:
    """The cells of the table, a line each, as genotype.json has them."""
    found = {row["run"] or row["cell"]: json.dumps(row["genotype"]) for row in rows if row["genotype"]}
    return "\n".join(f"{name}: {genotype}" for name, genotype in found.items())


# ---- command line

def parse_args() -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    parser.add_argument("run_dirs", nargs="+", metavar="RUN_DIR", help="run directories of the training scripts")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="all numbers, unrounded, and the genotypes")
    form.add_argument("--markdown", action="store_true", help="a table for a README")
    form.add_argument("--latex", action="store_true", help="a table for a paper (booktabs)")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    rows = compare(args.run_dirs)
    if args.json:
        print(json.dumps(rows, indent=1))
    elif args.markdown:
        print(as_markdown(rows))
    elif args.latex:
        print(as_latex(rows))
    else:
        print(as_text(rows) + "\n\n" + list_genotypes(rows))


if __name__ == "__main__":
    cli.run(main, parse_args)
