"""The rows of compare.py as tables, for a terminal, a README or a paper, and as a figure."""
import json
import statistics
import textwrap
from collections import Counter
from pathlib import Path

from harness.files import replace_file
from harness.log import printable
from reporting.figures import drawable, render, style

BLANK = "–"
SHARED = {"data": "Data of all searches", "device": "Device of all searches", "evaluation": "All evaluations"}
MAIN = ["dataset", "epochs", "init_channels", "layers"]  # settings that every row prints
COLORS = {"P-DARTS": "#0072B2", "without skip dropout": "#56B4E9", "one stage": "#009E73", "dealt": "#E69F00",
          "random": "#606060", "published": "#D55E00",  # by kind, in the order of rows; Okabe and Ito's
          "other": "#CC79A7"}


# ---- tables

def signed(value: float | None, digits: int = 2) -> str:
    return BLANK if value is None else f"{value:+.{digits}f}".replace("-", "−")


def format_row(row: dict) -> dict[str, str]:
    """A row as {column: text}; errors are of the test set, mean ± standard deviation."""
    def show(key: str, digits: int, unit: float = 1) -> str:
        return BLANK if row[key] is None else f"{row[key] / unit:.{digits}f}"

    def error(which: str) -> str:
        std = "" if row[f"{which}_std"] is None else f" ± {row[f'{which}_std']:.2f}"
        return show(f"{which}_error", 2) + std

    def count(key: str) -> str:
        return BLANK if row[key] is None else f"{row[key]:.3g}"  # a mean may be fractional

    n = BLANK if row["n"] is None else f"{row['n']} {row['over'].removesuffix('s') if row['n'] == 1 else row['over']}"
    seeds = row["seed"] if isinstance(row["seed"], list) else [] if row["seed"] is None else [row["seed"]]
    return {"search, or cell": row["run"] or row["cell"], "data": row["data"] or BLANK,
            "seed": ", ".join(map(str, seeds)) or BLANK, "skips": count("skips"),
            "unrestricted skips": count("found_skips"), "params (M)": show("parameters", 2, 1e6),
            "mult-adds (M)": show("multiply_adds", 1, 1e6), "search (h)": show("hours", 2),
            "device": row["device"] or BLANK, "evaluation": ", ".join(describe_setting(row["setting"])) or BLANK,
            "evaluation (h)": show("evaluation_hours", 2), "n": n,
            "top-1 error, last epoch (%)": error("last"), "vs random (points)": signed(row["difference"]),
            "vs random (std)": signed(row["difference_in_std"], 1), "top-1 error, best epoch (%)": error("best"),
            "validation error, best epoch (%)": error("valid"),
            "unfinished": "; ".join(name_unfinished(row)) or BLANK}


def describe_setting(setting: dict | None) -> list[str]:
    if setting is None:
        return []
    channels = setting["init_channels"]  # in words if --max_multiply_adds chose them
    width = channels if isinstance(channels, str) else f"{channels} channels"
    form = "{dataset}, {epochs} epochs, {width}, {layers} cells".format
    return [form(**setting, width=width), *(f"{key} {value}" for key, value in setting.items() if key not in MAIN)]


def name_unfinished(row: dict) -> list[str]:
    """How far a row's unfinished searches are, and its unfinished evaluation runs."""
    states = [] if row["kind"] == "one stage" else [part["state"] for part in row["cells"] if part["state"]]
    which = "search" if len(states) == 1 else f"{{}} of {len(states)} searches"
    far = Counter(state for state in states if state != "finished")
    return [f"{which.format(n)}: {state}" for state, n in far.items()] + [
        f"{name}: {how_far}" for name, how_far in (row["unfinished"] or {}).items()]


def grid(rows: list[dict]) -> list[list[str]]:
    """The table's lines, the head first, without empty columns."""
    lines = [format_row(row) for row in rows]
    names = [name for name in lines[0] if any(line[name] != BLANK for line in lines)]
    return [names, *([printable(line[name]) for name in names] for line in lines)]


def grid_for_print(rows: list[dict]) -> tuple[list[list[str]], str]:
    """The same without the columns of SHARED whose entries are all equal, and a text with these entries."""
    lines = grid(rows)
    values = {name: {text for text in column if text != BLANK} for name, *column in zip(*lines)}
    shared = {name: values[name].pop() for name in SHARED if len(rows) > 1 and len(values.get(name, ())) == 1}
    kept = [i for i, name in enumerate(lines[0]) if name not in shared]
    return ([[line[i] for i in kept] for line in lines],
            " ".join(f"{SHARED[name]}: {text}." for name, text in shared.items()))


def as_text(rows: list[dict]) -> str:
    return align(grid(rows))


def align(lines: list[list[str]]) -> str:
    """A table of these cells for a terminal, the head first."""
    lines = [[printable(text) for text in line] for line in lines]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines = [lines[0], ["-" * width for width in widths], *lines[1:]]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip() for line in lines)


def markdown(lines: list[list[str]]) -> str:
    """A Markdown table of these cells, the head first."""
    head, *rest = lines
    return "\n".join(f"| {' | '.join(map(printable, line))} |" for line in (head, ["---"] * len(head), *rest))


def as_markdown(rows: list[dict]) -> str:
    escape = str.maketrans({char: f"\\{char}" for char in "\\`*_|<>[]"})
    lines, shared = grid_for_print(rows)
    table = markdown([[text.translate(escape) for text in line] for line in lines])
    return f"{table}\n\n{shared.translate(escape)}" if shared else table


def as_latex(rows: list[dict]) -> str:
    """A tabular; what all rows share is a comment after it, for the caption."""
    lines, shared = grid_for_print(rows)
    return latex(lines) + (f"\n% {shared}" if shared else "")


def latex(lines: list[list[str]]) -> str:
    """A tabular with booktabs rules, the head first."""
    escape = str.maketrans({char: f"\\{char}" for char in "&%$#_{}"} | {
        "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
        ">": r"\textgreater{}", "|": r"\textbar{}", "±": r"$\pm$", "−": "$-$", BLANK: "--"})
    columns = "l" * len(lines[0])
    head, *lines = [" & ".join(text.translate(escape) for text in line) + r" \\" for line in lines]
    return "\n".join([rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *lines, r"\bottomrule",
                      r"\end{tabular}"])


def name_cells(rows: list[dict]) -> list[tuple[str, dict]]:
    """The rows' known cells and their names, which may have several; each once."""
    found = {(row["kind"] == "one stage", part["name"], json.dumps(part["genotype"])): part
             for row in rows for part in row["cells"] if part["genotype"]}
    return [("one stage of " * of_one_stage + printable(name), part) for (of_one_stage, name, _), part in found.items()]


def list_genotypes(rows: list[dict]) -> str:
    """The genotypes of the rows, a line each, in the form of genotype.json."""
    return "\n".join(f"{name}: {json.dumps(part['genotype'])}" for name, part in name_cells(rows))


def list_choices(rows: list[dict]) -> str:
    """The cell of each row that validation prefers, its test accuracy, and how to retrain it. Raises ValueError."""
    lines = []
    for row in rows:
        if cells := [part for part in row["cells"] if part["valid_errors"]]:
            best = min(cells, key=lambda part: statistics.mean(part["valid_errors"]))
            valid, test = (100 - statistics.mean(best[f"{which}_errors"]) for which in ("valid", "best"))
            among = statistics.mean(100 - statistics.mean(part["best_errors"]) for part in cells)
            lines += [f"{row['run'] or row['cell']}: of {len(cells)} cell(s), validation prefers {best['name']}: "
                      f"validation accuracy {valid:.2f}%, test accuracy {test:.2f}% (mean of all: {among:.2f}%)",
                      f"  to train it on all images: {best['retrain']}"]
    if not lines:
        raise ValueError("--choose: no cell has a finished training with --valid_portion: train the cells with it")
    return "\n".join(map(printable, lines))


def list_mobile(rows: list[dict]) -> list[list[str]]:
    """What compare.py --max_multiply_adds has found, a line per cell, the head first."""
    head = ["cell", "mobile setting: channels", "params (M)", "published mult-adds (M)"]
    return [head, *([name, str(found["channels"]), f"{found['parameters'] / 1e6:.2f}",
                     f"{found['multiply_adds'] / 1e6:.1f}"]
                    for name, part in name_cells(rows) for found in [part["mobile"]])]


# ---- figure

@style(**{"text.parse_math": False})  # a $ in a name does not start a formula
def plot(rows: list[dict], path: Path) -> None:
    """Plot the last-epoch error of each evaluation run: a panel per setting, a column per cell. Raises OSError.

    A bar marks the mean of a cell that was trained several times; the band is mean ± standard deviation of the random
    cells. Raises ValueError if no cell has been trained.
    """
    settings = list({json.dumps(row["setting"]): row["setting"] for row in rows if row["n"]}.values())
    if not settings:
        raise ValueError("--plot: none of these cells has been trained yet: omit it")
    from matplotlib.figure import Figure
    figure = Figure((7.2, 2.9 * len(settings)), layout="constrained")
    for ax, setting in zip(figure.subplots(len(settings), squeeze=False)[:, 0], settings):
        draw_setting(ax, [row for row in rows if row["n"] and row["setting"] == setting])
        ax.set_title(drawable(", ".join(describe_setting(setting))), loc="left")
    replace_file(path, render(figure, path.suffix[1:]))


def draw_setting(ax, rows: list[dict]) -> None:
    """One panel: rows of the same setting."""
    x, ticks, kinds = 0.0, {}, [row["kind"] for row in rows]
    for row in rows:
        # A dot per run, a bar at the mean, a column per cell.
        color, start = COLORS[row["kind"]], x
        for part in row["cells"]:
            errors = part["last_errors"]
            ax.plot([x] * len(errors), errors, "o", color=color, markersize=5, alpha=0.7, markeredgewidth=0)
            if len(errors) > 1:
                ax.hlines(sum(errors) / len(errors), x - 0.3, x + 0.3, color=color, linewidth=2)
            x += bool(errors)
        # The row's name, below the middle of its columns.
        alone = len(row["cells"]) == 1 and row["run"] and kinds.count(row["kind"]) == 1
        name = row["kind"] if alone else row["run"] or row["cell"]  # the name of a search is long
        ticks[(start + x - 1) / 2] = textwrap.fill(drawable(name), 14)
        # The band of the random cells.
        if row["kind"] == "random" and row["last_std"] is not None:
            low, high = row["last_error"] - row["last_std"], row["last_error"] + row["last_std"]
            ax.axhspan(low, high, color=color, alpha=0.12, linewidth=0, zorder=0)
            ax.axhline(row["last_error"], color=color, linestyle=":", linewidth=0.8, zorder=0)
        x += 0.8
    ax.set_xticks(list(ticks), ticks.values())
    ax.set_xlim(-0.8, max(x, 10))  # few cells are not spread out
    ax.set_ylabel("top-1 error, last epoch (%)")
