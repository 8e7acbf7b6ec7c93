"""The rows of compare.py as tables, for the eye, a README or a paper, and as a picture."""
import json
import textwrap
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from harness.files import replace_file
from reporting.curves import STYLE, render

NOTHING = "–"
SHARED = {"data": "Data of all searches", "device": "Device of all searches", "evaluation": "All evaluations"}
MAIN = ["dataset", "epochs", "init_channels", "layers"]  # settings that every row shows
COLORS = {"P-DARTS": "#0072B2", "without skip dropout": "#56B4E9", "one stage": "#009E73", "random": "#606060",
          "published": "#D55E00", "other": "#CC79A7"}  # by kind, in the order of rows; Okabe and Ito's


# ---- tables

def cells(row: dict) -> dict[str, str]:
    """A row as the texts of a table, by column; errors are of the test set, mean ± standard deviation."""
    def show(key: str, digits: int, unit: float = 1) -> str:
        return NOTHING if row[key] is None else f"{row[key] / unit:.{digits}f}"

    def error(which: str) -> str:
        std = "" if row[f"{which}_std"] is None else f" ± {row[f'{which}_std']:.2f}"
        return show(f"{which}_error", 2) + std

    def count(key: str) -> str:
        return NOTHING if row[key] is None else f"{row[key]:.3g}"  # a mean of several is not whole

    def difference(key: str, digits: int) -> str:
        return NOTHING if row[key] is None else f"{row[key]:+.{digits}f}".replace("-", "−")

    n = NOTHING if row["n"] is None else f"{row['n']} {row['over'].removesuffix('s') if row['n'] == 1 else row['over']}"
    seeds = row["seed"] if isinstance(row["seed"], list) else [] if row["seed"] is None else [row["seed"]]
    return {"search, or cell": row["run"] or row["cell"], "data": row["data"] or NOTHING,
            "seed": ", ".join(map(str, seeds)) or NOTHING, "skips": count("skips"),
            "skips without limit": count("found_skips"), "params (M)": show("parameters", 2, 1e6),
            "mult-adds (M)": show("multiply_adds", 1, 1e6), "search (h)": show("hours", 2),
            "device": row["device"] or NOTHING, "evaluation": ", ".join(describe_setting(row["setting"])) or NOTHING,
            "evaluation (h)": show("evaluation_hours", 2), "n": n,
            "error, last (%)": error("last"), "vs random (points)": difference("difference", 2),
            "vs random (std)": difference("difference_in_std", 1), "error, best (%)": error("best"),
            "unfinished": "; ".join(name_unfinished(row)) or NOTHING}


def describe_setting(setting: dict | None) -> list[str]:
    if setting is None:
        return []
    form = "{dataset}, {epochs} epochs, {init_channels} channels, {layers} cells".format
    return [form(**setting), *(f"{key} {value}" for key, value in setting.items() if key not in MAIN)]


def name_unfinished(row: dict) -> list[str]:
    """The searches and evaluation runs of a row that are not finished, and how far they are."""
    searches = [] if row["kind"] == "one stage" else [part for part in row["cells"] if part["state"]]
    named = [f"{part['name']}: {part['state']}" if len(searches) > 1 else f"search: {part['state']}"
             for part in searches if part["state"] != "finished"]
    return named + [f"{name}: {how_far}" for name, how_far in (row["unfinished"] or {}).items()]


def grid(rows: list[dict]) -> list[list[str]]:
    """The table's lines, the head first, without the columns in which there is nothing."""
    lines = [cells(row) for row in rows]
    names = [name for name in lines[0] if any(line[name] != NOTHING for line in lines)]
    return [names, *([line[name] for name in names] for line in lines)]


def grid_for_print(rows: list[dict]) -> tuple[list[list[str]], str]:
    """The same without the columns of SHARED in which all searches, or all evaluations, agree; and what these hold."""
    lines = grid(rows)
    values = {name: {text for text in column if text != NOTHING} for name, *column in zip(*lines)}
    shared = {name: values[name].pop() for name in SHARED if len(rows) > 1 and len(values.get(name, ())) == 1}
    kept = [i for i, name in enumerate(lines[0]) if name not in shared]
    return ([[line[i] for i in kept] for line in lines],
            " ".join(f"{SHARED[name]}: {text}." for name, text in shared.items()))


def as_text(rows: list[dict]) -> str:
    lines = grid(rows)
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip() for line in lines)


def markdown(lines: list[list[str]]) -> str:
    """A Markdown table of these cells, the head first."""
    head, *rest = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rest))


def as_markdown(rows: list[dict]) -> str:
    escape = str.maketrans({char: f"\\{char}" for char in "\\`*_|<>[]"})
    lines, shared = grid_for_print(rows)
    table = markdown([[text.translate(escape) for text in line] for line in lines])
    return f"{table}\n\n{shared.translate(escape)}" if shared else table


def as_latex(rows: list[dict]) -> str:
    """A tabular with the rules of the package booktabs; what all rows share is a comment behind it, for the caption."""
    escape = str.maketrans({char: f"\\{char}" for char in "&%$#_{}"} | {
        "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
        ">": r"\textgreater{}", "|": r"\textbar{}", "±": r"$\pm$", "−": "$-$", NOTHING: "--"})
    lines, shared = grid_for_print(rows)
    columns = "l" * len(lines[0])
    head, *lines = [" & ".join(text.translate(escape) for text in line) + r" \\" for line in lines]
    return "\n".join([rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *lines, r"\bottomrule",
                      r"\end{tabular}", *([f"% {shared}"] if shared else [])])


def list_genotypes(rows: list[dict]) -> str:
    """The cells of the table, a line each, as genotype.json has them."""
    found = {("one stage of " if row["kind"] == "one stage" else "") + part["name"]: json.dumps(part["genotype"])
             for row in rows for part in row["cells"] if part["genotype"]}
    return "\n".join(f"{name}: {genotype}" for name, genotype in found.items())


# ---- picture

@rc_context(STYLE | {"text.parse_math": False})  # a $ in a name is no formula
def plot(rows: list[dict], path: Path) -> None:
    """Draw the last error of every evaluation run, a column per cell, by kind; a panel per setting. Raises OSError.

    A bar marks the mean of a cell that was trained several times; the band is mean ± deviation of the random cells.
    """
    settings = list({json.dumps(row["setting"]): row["setting"] for row in rows if row["n"]}.values())
    if not settings:
        raise ValueError("--plot: none of these cells has been trained yet: leave it out")
    figure = Figure((7.2, 2.9 * len(settings)), layout="constrained")
    for ax, setting in zip(figure.subplots(len(settings), squeeze=False)[:, 0], settings):
        draw_setting(ax, [row for row in rows if row["n"] and row["setting"] == setting])
        ax.set_title(", ".join(describe_setting(setting)), loc="left")
    replace_file(path, render(figure, path.suffix[1:]))


def draw_setting(ax, rows: list[dict]) -> None:
    """One panel: rows of the same setting."""
    x, ticks, kinds = 0.0, {}, [row["kind"] for row in rows]
    for row in rows:
        color, start = COLORS[row["kind"]], x
        for part in row["cells"]:
            errors = part["last_errors"]
            ax.plot([x] * len(errors), errors, "o", color=color, markersize=5, alpha=0.7, markeredgewidth=0)
            if len(errors) > 1:
                ax.hlines(sum(errors) / len(errors), x - 0.3, x + 0.3, color=color, linewidth=2)
            x += bool(errors)
        alone = len(row["cells"]) == 1 and row["run"] and kinds.count(row["kind"]) == 1
        name = row["kind"] if alone else row["run"] or row["cell"]  # a search's own name is long
        ticks[(start + x - 1) / 2] = textwrap.fill(name, 14)
        if row["kind"] == "random" and row["last_std"] is not None:
            low, high = row["last_error"] - row["last_std"], row["last_error"] + row["last_std"]
            ax.axhspan(low, high, color=color, alpha=0.12, linewidth=0, zorder=0)
            ax.axhline(row["last_error"], color=color, linestyle=":", linewidth=0.8, zorder=0)
        x += 0.8
    ax.set_xticks(list(ticks), ticks.values())
    ax.set_xlim(-0.8, max(x, 10))  # few cells stay together
    ax.set_ylabel("test error, last epoch (%)")
