"""A run's figures and its report.html: one self-contained page with embedded figures, in which user text is escaped."""
import base64
import html
import re
import shlex
from pathlib import Path

import genotypes
import progressive
from genotypes import Genotype
from harness import records
from harness.files import replace_file, replace_link
from harness.log import log
from reporting import classes
from reporting.figures import CELLS, save_figure, style
from reporting.runs import state

CITATION = """\
@inproceedings{chen2019progressive,
  title     = {Progressive Differentiable Architecture Search: Bridging the Depth Gap between Search and Evaluation},
  author    = {Chen, Xin and Xie, Lingxi and Wu, Jun and Tian, Qi},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision (ICCV)},
  year      = {2019},
  note      = {arXiv:1904.12760}
}"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font-family: sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; color: #222; line-height: 1.4; }}
h1, pre, td {{ overflow-wrap: anywhere; }}
pre {{ background: #f4f4f4; padding: 0.7em; white-space: pre-wrap; }}
figure {{ margin: 1.5em 0; }}
figure img {{ max-width: 100%; }}
figcaption {{ color: #555; }}
table {{ border-collapse: collapse; }}
th, td {{ text-align: left; padding: 0.25em 1.2em 0.25em 0; border-bottom: 1px solid #ddd; }}
@media (prefers-color-scheme: dark) {{
  body {{ background: #181818; color: #ddd; }}
  pre {{ background: #262626; }}
  figcaption {{ color: #aaa; }}
  th, td {{ border-color: #444; }}
}}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""

NOT_IN_HTML = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]")  # control characters


# ---- figures

@style()
def draw_genotype(genotype: Genotype, out: Path, name: str) -> dict[str, Path]:
    """Draw both cells of a genotype as out/name-normal.png, .svg and out/name-reduce.* -> {caption: SVG path}."""
    from reporting.cells import draw_cell
    out.mkdir(parents=True, exist_ok=True)
    for cell in CELLS:
        figure = draw_cell(getattr(genotype, cell), getattr(genotype, f"{cell}_concat"))
        save_figure(figure, out / f"{name}-{cell}")
    return {title.capitalize(): out / f"{name}-{cell}.svg" for cell, title in CELLS.items()}


@style()
def draw_run(run_dir, out=None) -> Path:
    """Draw a run, finished or not, into out/pictures/ and out/report.html -> the path of the report.

    out: by default the run directory. Raises ValueError if run_dir is not a run, OSError if writing fails.
    """
    from reporting import curves
    run_dir, out = Path(run_dir), Path(out or run_dir)
    record, metrics = records.read_run(run_dir, "versions", "git", "command", "device", "processes", "epochs",
                                       "dataset", "image_size", "tmp_data_dir",
                                       *records.METRICS)
    genotype = genotypes.load_file(run_dir) if (run_dir / "genotype.json").exists() else None
    figures, folder = {}, out / "pictures"
    replace_link(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if genotype:
        figures |= draw_genotype(genotype, folder, "cell")
    if metrics and record["kind"] == "search":
        alphas = records.read_alphas(run_dir)
        save_figure(curves.draw_search(metrics, alphas), folder / "curves")
        figures["The search; entropy in units of log K: mean and range over a cell's edges"] = folder / "curves.svg"
        for cell, title in CELLS.items():
            genes = getattr(genotype, cell) if genotype else []
            save_figure(curves.draw_alphas(curves.read_stages(alphas, cell), genes), folder / f"alphas-{cell}")
            figures[f"Candidates on the edges of the {title}"] = folder / f"alphas-{cell}.svg"
    elif metrics:
        save_figure(curves.draw_training(metrics), folder / "curves")
        figures["Training"] = folder / "curves.svg"
        figures |= classes.draw(run_dir, folder)
    text = NOT_IN_HTML.sub("", page(run_dir, out, record | {"metrics": metrics, "genotype": genotype}, figures))
    replace_file(out / "report.html", text.encode(errors="backslashreplace"))  # a path's bytes need not be UTF-8
    return out / "report.html"


def try_to_draw(run_dir: Path) -> None:
    """Draw a run and log where; a figure or page that can't be made is one log line, so that the run can end."""
    try:
        log.info(f"pictures: {draw_run(run_dir)}")
    except Exception as error:
        log.debug("traceback of the error below", exc_info=True)
        line = " ".join(str(error).split()) or type(error).__name__
        log.warning(f"no pictures: {line}; draw them later with: python visualize.py {shlex.quote(str(run_dir))}")


# ---- report.html

def page(run_dir: Path, out: Path, run: dict, figures: dict[str, Path]) -> str:
    """The run as one self-contained HTML page: figures are embedded, user text is escaped."""
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    facts = [("state", progress(run)), ("device", f"{run['processes']} x {run['device']}"),
             ("versions", versions), ("source", run["git"] or "unknown"),
             ("time", f"{sum(row['seconds'] for row in run['metrics']) / 3600:.2f} hours")]
    body = ["<h2>Run</h2>", code(run["command"]), table(facts)]
    if run["genotype"] and (run_dir / "genotypes.json").exists():
        body += ["<h2>Genotypes</h2>", *describe_genotypes(run_dir, out, run)]
    if measured := records.read_classes(run_dir):
        head, *rows = classes.tabulate(measured)
        body += ["<h2>Classes</h2>", "<p>Of the test set, by the weights of the last epoch.</p>", table(rows, head)]
    body += describe_choices(run["metrics"]) + ["<h2>Figures</h2>"]
    for caption, path in figures.items():
        data = base64.b64encode(path.read_bytes()).decode()
        body.append(f'<figure><img src="data:image/svg+xml;base64,{data}" alt="{html.escape(caption)}">'
                    f"<figcaption>{html.escape(caption)}</figcaption></figure>")
    body += ["<h2>Citation</h2>", code(CITATION)]
    return PAGE.format(title=html.escape(run_dir.resolve().name), body="\n".join(body))


def progress(run: dict) -> str:
    """How far a run is; of an evaluation also its accuracy."""
    metrics = run["metrics"]
    if not metrics or run["kind"] == "search":
        return state(run)
    found = {"test": records.test_accuracies(metrics)}
    if records.judged_by(metrics) == "valid":  # best.pt has the best validation accuracy
        found |= {"validation": (metrics[-1]["valid_acc"], max(row["valid_acc"] for row in metrics))}
    return "; ".join([state(run), *(f"{name} accuracy last {both[0]:.2f} %, best {both[1]:.2f} %"
                                    for name, both in found.items() if both[0] is not None)])


def describe_genotypes(run_dir: Path, out: Path, run: dict) -> list[str]:
    """The genotypes that a search found, as HTML; those not recommended are written to `out`, for training, too."""
    chosen, args, rows, commands = run["genotype"], run["args"], [], []
    for row in genotypes.load_table(run_dir):
        genotype, limit = row["genotype"], row["max_skip"]
        name, path = "unrestricted" if limit is None else f"M = {limit}", run_dir
        if genotype == chosen:
            name += " (recommended)"
        else:
            path = out / ("genotype_unrestricted.json" if limit is None else f"genotype_M{limit}.json")
            replace_file(path, genotypes.to_json(genotype))
        rows.append((name, row["skips"], f"{row['parameters'] / 1e6:.2f} M", f"{row['multiply_adds'] / 1e6:.1f} M"))
        commands.append(f"# {name}\n{training_command(path, args)}")
    head = ("limit on skip-connects", "skip-connects in the normal cell", "parameters", "multiply-adds")
    sizes = "48 channels and 14 cells, on ImageNet" if args.get("stem") == "imagenet" else (
        "36 channels and 20 cells, on CIFAR-10")
    return [table(rows, head), f"<p>Sizes with {sizes}. To train each:</p>",
            code("\n".join(commands)), "<p>Recommended:</p>", code(str(chosen))]


def describe_choices(metrics: list[dict]) -> list[str]:
    """How decided a search's choices are after the last epoch of each stage so far, as HTML."""
    last = {record["stage"]: record for record in metrics if "lead" in record}  # not in older runs
    if not last:
        return []
    rows = [(stage, record["alpha_steps"], f"{record['entropy']:.4f}", f"{100 * record['lead']:.1f} %",
             f"{record['clear_edges']} of {2 * progressive.EDGES}",
             *("–" if record.get(key) is None else f"{record[key]:.{digits}f}"
               for key, digits in (("displacement", 2), ("drift", 4)))) for stage, record in last.items()]
    head = ("stage", "alpha steps", "entropy of an edge's choice, in units of log K", "median lead of the winner",
            f"edges with a lead above {100 * progressive.CLEAR_LEAD:.0f} %",
            "displacement of the alphas, in units of a random walk's", "drift per step, in learning rates")
    return ["<h2>How decided the choices are</h2>", table(rows, head), f"<p>{progressive.DIRECTION}</p>"]


def training_command(arch: Path, args: dict) -> str:
    """The command that trains a cell on the images of a search, with the auxiliary head if they are large enough."""
    size = args["image_size"] or {"digits": 8, "imagenet": 224}.get(args["dataset"], 32)
    where = ["--tmp_data_dir", args["tmp_data_dir"]] if args["tmp_data_dir"] else []
    cell = ["--arch", f"./{arch}" if str(arch) in genotypes.PUBLISHED else str(arch)]
    if args["dataset"] == "imagenet" or (args["dataset"], args.get("stem")) == ("folder", "imagenet"):
        words = ["train_imagenet.py", *where, *cell, *(["--image_size", str(size)] if size != 224 else [])]
        words += ["--auxiliary"] if size >= 193 else []
    else:
        words = ["train_cifar.py", *where, "--dataset", args["dataset"], *cell]
        words += ["--image_size", str(size)] if args["image_size"] else []
        words += ["--auxiliary", "--cutout"] if size >= 29 else []
    return shlex.join(["python", *words])


def code(text: str) -> str:
    return f"<pre>{html.escape(text)}</pre>"


def table(rows: list, head: tuple = ()) -> str:
    """An HTML table of these rows; their first values are headings."""
    lines = ["<tr>" + "".join(f"<th>{html.escape(title)}</th>" for title in head) + "</tr>"] if head else []
    for first, *values in rows:
        cells = "".join(f"<td>{html.escape(str(value))}</td>" for value in values)
        lines.append(f"<tr><th>{html.escape(str(first))}</th>{cells}</tr>")
    return "<table>\n" + "\n".join(lines) + "\n</table>"
