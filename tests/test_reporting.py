"""Pictures: every gene can be read, an operation looks the same everywhere, and a report needs nothing but itself."""
import base64
import json
import os
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import kill_loop
import numpy
import pytest
from PIL import Image
from scripts import error_line, run, the_run

import genotypes
import visualize
from genotypes import OPERATIONS, PRIMITIVES
from harness import cli
from harness.log import log
from reporting import cells, tables
from reporting.curves import read_stages
from reporting.page import draw_genotype, draw_run, training_command, try_to_draw

ROOT = Path(__file__).parent.parent
NOTE = "a<b>&'c"  # a note that HTML and the shell must escape
FOUND = genotypes.load("random:3")


def write_run(run_dir: Path, args: dict, metrics: list[dict]) -> Path:
    """A run directory as open_run_dir and write_metrics leave it."""
    run_dir.mkdir()
    record = {"kind": "eval" if "arch" in args else "search", "args": args,
              "command": shlex.join(["python", "train.py", "--note", NOTE]), "device": "NVIDIA H100",
              "processes": 2, "git": None, "versions": {"python": "3.11.7", "torch": "2.14.1"}}
    (run_dir / "args.json").write_text(json.dumps(record))
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    return run_dir


def write_search(run_dir: Path, epochs: list[int], finished: bool = True, **options) -> Path:
    """A search of 4 epochs a stage that has done these many in each."""
    metrics, alphas, rng = [], {}, numpy.random.default_rng(0)
    for stage, (done, K) in enumerate(zip(epochs, (8, 5, 3)), 1):
        metrics += [{"stage": stage, "epoch": epoch, "lr": 0.1, "skip_dropout": 0.1, "train_loss": 2.0, "seconds": 1.0,
                     "train_acc": 30.0, "valid_loss": 2.5 if epoch else None, "valid_acc": 20.0 if epoch else None,
                     "skips": 2} for epoch in range(done)]
        for cell in ("normal", "reduce"):
            alphas[f"stage{stage}_{cell}"] = rng.normal(size=(done, 14, K)).astype("float32")
            alphas[f"stage{stage}_{cell}_candidates"] = numpy.array([PRIMITIVES[8 - K:]] * 14)
    args = {"dataset": "digits", "epochs": 4, "max_skip": 2, "tmp_data_dir": None, "image_size": None} | options
    write_run(run_dir, args, metrics)
    numpy.savez(run_dir / "alphas.npz", **alphas)
    if finished:
        genotypes.save(FOUND, run_dir / "genotype.json")
        sizes = {"skips": 1, "parameters": 3433798, "multiply_adds": 532200000}
        rows = [{"max_skip": M, "genotype": cell._asdict()} | sizes
                for M, cell in ((None, genotypes.load("DARTS_V2")), (3, genotypes.load("PDARTS")), (2, FOUND))]
        (run_dir / "genotypes.json").write_text(json.dumps(rows))
    return run_dir


@pytest.fixture(scope="module")
def search(tmp_path_factory) -> Path:
    """A finished search, drawn."""
    run_dir = write_search(tmp_path_factory.mktemp("runs") / f"search-{NOTE}", [4, 4, 4])
    draw_run(run_dir)
    return run_dir


def texts(svg: Path) -> list[str]:
    return ["".join(node.itertext()).strip() for node in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")]


def edge_colors(svg: Path) -> set[str]:
    """The colours of all strokes in a picture."""
    return set(re.findall(r"stroke: (#[0-9a-f]{6})", svg.read_text()))


class Reader(HTMLParser):
    """Checks that tags are closed in order and keeps texts, tags and attributes."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.attributes, self.text, self.tags = [], [], "", []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


# ---- cells

@pytest.mark.parametrize("name", ["PDARTS", "DARTS_V2", "NASNet", "AmoebaNet"])
def test_a_cell_shows_every_gene_once(name, tmp_path):
    genotype = genotypes.load(name)
    draw_genotype(genotype, tmp_path, name)
    for cell in ("normal", "reduce"):
        genes = getattr(genotype, cell)
        shown = texts(tmp_path / f"{name}-{cell}.svg")
        assert sorted(text for text in shown if text in OPERATIONS) == sorted(op for op, _ in genes)
        assert set(map(str, range(len(genes) // 2))) <= set(shown)
        assert {cells.COLORS[op].lower() for op, _ in genes} <= edge_colors(tmp_path / f"{name}-{cell}.svg")
        with Image.open(tmp_path / f"{name}-{cell}.png") as image:
            image.verify()


@pytest.mark.parametrize("name", genotypes.PUBLISHED)
def test_no_two_boxes_of_a_cell_overlap(name):
    genotype = genotypes.load(name)
    for cell in ("normal", "reduce"):
        edges = cells.trace_edges(getattr(genotype, cell), getattr(genotype, f"{cell}_concat"))
        places = cells.arrange(edges)
        boxes = [(point[0], y) for point, y in places.items() if point[1] != "bend"]
        assert all(abs(y - other) > 0.25 for i, (column, y) in enumerate(boxes)
                   for column_other, other in boxes[:i] if column == column_other)
        for _, points in edges:  # left to right, a column at a time
            assert [point[0] for point in points] == list(range(points[0][0], points[-1][0] + 1))
        assert places[0, "state", 0] > places[0, "state", 1]


def test_each_operation_has_one_color_and_skips_are_dashed(tmp_path):
    assert set(cells.COLORS) == {"none", *OPERATIONS}
    assert len(set(cells.COLORS.values())) == len(cells.COLORS)
    genes = [("skip_connect", 0), ("sep_conv_3x3", 1)]
    draw_genotype(genotypes.Genotype(genes, [2], genes[1:] * 2, [2]), tmp_path, "x")
    for svg, dashed in ((tmp_path / "x-normal.svg", True), (tmp_path / "x-reduce.svg", False)):
        styles = re.findall(r'style="([^"]*stroke:[^"]*)"', svg.read_text())
        assert any("dasharray" in style for style in styles) == dashed
        assert all("#000000" in style for style in styles if "dasharray" in style)


def test_the_same_cell_gives_the_same_bytes(tmp_path):
    for folder in ("a", "b"):
        draw_genotype(FOUND, tmp_path / folder, "x")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


# ---- runs

def test_a_search_is_drawn_with_all_its_edges(search):
    for name in ("cell-normal", "cell-reduce", "curves", "alphas-normal", "alphas-reduce"):
        ElementTree.parse(search / "pictures" / f"{name}.svg")
        with Image.open(search / "pictures" / f"{name}.png") as image:
            image.verify()
    for cell in ("normal", "reduce"):
        svg = search / "pictures" / f"alphas-{cell}.svg"
        assert sum("→" in text for text in texts(svg)) == 14
        assert set(PRIMITIVES) <= set(texts(svg))
        assert {cells.COLORS[op].lower() for op in PRIMITIVES} <= edge_colors(svg)
    assert {"loss", "accuracy, %", "entropy", "skip dropout", "stage 1", "stage 2", "stage 3"} <= set(
        texts(search / "pictures" / "curves.svg"))


def test_a_report_needs_nothing_else_and_escapes_what_people_wrote(search):
    page = (search / "report.html").read_text()
    reader = Reader(page)
    links = [value for name, value in reader.attributes if name in ("src", "href")]
    assert len(links) == 5 and all(link.startswith("data:image/svg+xml;base64,") for link in links)
    assert "http" not in reader.text and not {"script", "link", "b"} & set(reader.tags)
    for link in links:
        ElementTree.fromstring(base64.b64decode(link.split(",")[1]))
    assert "<b>" not in page and search.name in reader.text
    assert shlex.join(["python", "train.py", "--note", NOTE]) in reader.text
    for text in ("2 x NVIDIA H100", "torch 2.14.1", "3.43 M", "532.2 M", "finished", "@inproceedings{", "1904.12760"):
        assert text in reader.text


def test_the_commands_of_a_report_name_the_cells_of_its_table(search):
    text = Reader((search / "report.html").read_text()).text
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("python train_cifar.py")]
    cells = [genotypes.load(words[words.index("--arch") + 1]) for words in commands]
    assert cells == [genotypes.load("DARTS_V2"), genotypes.load("PDARTS"), FOUND]
    assert all(words[words.index("--dataset") + 1] == "digits" and "--auxiliary" not in words for words in commands)


def test_cifar_is_trained_as_in_the_paper():
    args = {"dataset": "cifar10", "tmp_data_dir": "my data", "image_size": None}
    command = training_command(Path("run"), args)
    assert command == "python train_cifar.py --tmp_data_dir 'my data' --dataset cifar10 --arch run --auxiliary --cutout"


@pytest.mark.parametrize("args, command", [
    ({"dataset": "cifar10", "image_size": 16}, "train_cifar.py --dataset cifar10 --arch run --image_size 16"),
    ({"dataset": "digits"}, "train_cifar.py --dataset digits --arch run"),
    ({"dataset": "folder", "image_size": 64},
     "train_cifar.py --dataset folder --arch run --image_size 64 --auxiliary --cutout"),
    ({"dataset": "folder", "image_size": 64, "stem": "imagenet"}, "train_imagenet.py --arch run --image_size 64"),
    ({"dataset": "imagenet", "stem": "imagenet"}, "train_imagenet.py --arch run --auxiliary"),
])
def test_a_cell_is_trained_on_the_images_of_its_search(args, command):
    args = {"tmp_data_dir": None, "image_size": None, "stem": "cifar"} | args
    assert training_command(Path("run"), args) == f"python {command}"


@pytest.mark.parametrize("epochs, text", [([], "no epoch yet"),
                                          ([4, 2], "stage 2, epoch 2/4")])
def test_an_unfinished_search_is_drawn_too(epochs, text, tmp_path):
    run_dir = write_search(tmp_path / "search", epochs, finished=False)
    page = draw_run(run_dir, tmp_path / "out")
    assert page == tmp_path / "out" / "report.html" and text in page.read_text()
    assert (tmp_path / "out" / "pictures" / "curves.svg").exists() == bool(epochs)
    assert sorted(path.name for path in run_dir.iterdir()) == ["alphas.npz", "args.json", "metrics.jsonl"]


def test_a_search_of_one_stage_with_a_cell_is_finished_and_one_without_its_cell_is_not(tmp_path):
    control = write_search(tmp_path / "control", [4])  # experiments/controls.py
    assert "finished" in draw_run(control).read_text()
    killed = write_search(tmp_path / "killed", [4, 4, 4])
    (killed / "genotype.json").unlink()  # the last file but the pictures
    assert "stage 3, epoch 4/4" in draw_run(killed).read_text()


def test_an_evaluation_marks_its_last_and_best_epoch(tmp_path):
    metrics = [{"epoch": epoch, "lr": 0.1, "drop_path_prob": 0.0, "train_loss": 1.0, "train_acc": 50.0, "seconds": 1.0,
                "test_loss": 1.0, "test_acc": accuracy} for epoch, accuracy in enumerate((70.0, 91.25, 88.5))]
    run_dir = write_run(tmp_path / "eval", {"dataset": "digits", "arch": "PDARTS", "epochs": 3}, metrics)
    genotypes.save(genotypes.load("PDARTS"), run_dir / "genotype.json")
    text = Reader(draw_run(run_dir).read_text()).text
    assert "finished; test accuracy last 88.50 %, best 91.25 %" in text
    assert {"best 91.25", "last 88.50"} <= set(texts(run_dir / "pictures" / "curves.svg"))


@pytest.mark.parametrize("done", [2, 3])
def test_with_held_out_images_their_accuracy_is_drawn_and_the_tests_is_told_at_the_end(done, tmp_path):
    metrics = [{"epoch": epoch, "lr": 0.1, "drop_path_prob": 0.0, "train_loss": 1.0, "train_acc": 50.0, "seconds": 1.0,
                "valid_loss": 1.0, "valid_acc": accuracy} for epoch, accuracy in enumerate((70.0, 91.25, 88.5))]
    metrics[-1] |= {"test_loss": 1.0, "test_acc": 87.5, "best_test_acc": 90.75}
    run_dir = write_run(tmp_path / "eval", {"dataset": "digits", "arch": "PDARTS", "epochs": 3}, metrics[:done])
    text = Reader(draw_run(run_dir).read_text()).text
    assert ("test accuracy last 87.50 %, best 90.75 %; validation accuracy last 88.50 %, best 91.25 %" in text) == (
        done == 3)
    assert "validation accuracy" in text and ("test accuracy" in text) == (done == 3)
    assert {"best 91.25", "validation"} <= set(texts(run_dir / "pictures" / "curves.svg"))


def test_stages_are_joined_and_probabilities_are_softmaxes():
    alphas = {"stage1_normal": numpy.zeros((2, 14, 8)), "stage1_normal_candidates": numpy.array([PRIMITIVES] * 14),
              "stage2_normal": numpy.log(numpy.full((3, 14, 5), [1, 2, 3, 4, 10])),
              "stage2_normal_candidates": numpy.array([PRIMITIVES[3:]] * 14)}
    (x1, p1, _), (x2, p2, candidates) = read_stages(alphas, "normal")
    assert x1.tolist() == [0, 1] and x2.tolist() == [2, 3, 4] and candidates == [PRIMITIVES[3:]] * 14
    assert numpy.allclose(p1, 1 / 8) and numpy.allclose(p2, [0.05, 0.1, 0.15, 0.2, 0.5])


# ---- what drawing depends on, and must not: settings of matplotlib, names

SETTINGS = (b"text.usetex: True\ngarbage\nfoo.bar: 1\nfont.size: abc\naxes.prop_cycle: cycler('color', [])\n"
            b"font.family: Nowhere\nsvg.fonttype: path\nsavefig.bbox: tight\nbackend: qtagg\n")


def visualize_under(matplotlibrc: bytes, backend: str, folder: Path):
    """Draw a cell in a fresh interpreter, because matplotlib reads its settings when it is imported."""
    (folder / "matplotlibrc").write_bytes(matplotlibrc)
    return subprocess.run([sys.executable, ROOT / "visualize.py", str(FOUND), "--out", "out"], cwd=folder,
                          capture_output=True, text=True, env=os.environ | {"MPLBACKEND": backend})


def test_settings_of_matplotlib_change_no_picture(tmp_path):
    done = visualize_under(SETTINGS, "module://nowhere", tmp_path)
    assert done.returncode == 0, done.stderr
    draw_genotype(FOUND, tmp_path / "here", "x")
    for kind in ("svg", "png"):
        drawn, = (tmp_path / "out").glob(f"*-normal.{kind}")
        assert drawn.read_bytes() == (tmp_path / "here" / f"x-normal.{kind}").read_bytes()


@pytest.mark.parametrize("backend, rc", [("garbage", b""), ("", b"font.family: \xe9\n")], ids=["backend", "bytes"])
def test_matplotlib_that_cannot_be_imported_is_one_line(backend, rc, tmp_path):
    done = visualize_under(rc, backend, tmp_path)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and last.startswith("error: can't draw (") and "MPLBACKEND" in last
    assert "Traceback" not in done.stderr and not list(tmp_path.glob("out/*"))


def without_matplotlib():
    sys.modules["matplotlib"] = None


@pytest.mark.parametrize("script", ["train_search.py", "train_cifar.py"])
def test_a_run_ends_well_without_pictures_and_visualize_makes_them_later(script, data, tmp_path):
    options = [*kill_loop.OPTIONS[script], *data, "--epochs", 2, "--save", tmp_path]
    done = run(script, *options, change=without_matplotlib)
    run_dir = the_run(tmp_path)
    assert done.code == 0 and (run_dir / "genotype.json").exists() and not (run_dir / "report.html").exists(), done
    lines = [line for line in done.err.splitlines() if "no pictures: " in line]
    assert len(lines) == (3 if "search" in script else 1) and "Traceback" not in done.err
    command = shlex.split(lines[-1].split("draw them later with: python ")[1])
    assert run(*command).code == 0 and (run_dir / "report.html").exists()
    assert "ModuleNotFoundError" in (run_dir / "log.txt").read_text()  # the traceback, for whoever looks for it


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("a\nb"), OSError(28, "No space left"), KeyError("x")])
def test_whatever_drawing_raises_is_one_line_of_the_log(error, tmp_path, monkeypatch, caplog):
    def fail(*args):
        raise error
    monkeypatch.setattr("reporting.page.draw_run", fail)
    try_to_draw(tmp_path / "a b")
    line, = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert line.startswith("no pictures: ") and "\n" not in line and line.endswith(f"visualize.py '{tmp_path}/a b'")


ODD = "\x01\x1b[31m\r\x7f\x9b\ufffe日本\U0001f600"  # control characters, a terminal's escape, no glyphs


def test_a_report_has_no_control_characters_and_any_path(tmp_path):
    run_dir = write_search(Path(os.fsdecode(bytes(tmp_path) + b"/\xff\xfe" + ODD.encode())), [], finished=False)
    record = json.loads((run_dir / "args.json").read_text())
    (run_dir / "args.json").write_text(json.dumps(record | {"command": f"a{ODD}b", "device": ODD}))
    content = draw_run(run_dir).read_bytes().decode()
    assert "a[31m\r日本\U0001f600b" in content and "\\udcff" in content
    assert not [c for c in content if ord(c) < 32 and c not in "\n\r\t" or 127 <= ord(c) < 160]


def test_names_in_a_figure_need_no_glyphs(tmp_path, recwarn):
    row = {"kind": "other", "n": 1, "run": None, "cell": ODD, "last_std": None, "cells": [{"last_errors": [3.0]}],
           "setting": {"dataset": ODD, "epochs": 1, "init_channels": 1, "layers": 1}}
    for kind in ("svg", "png"):
        tables.plot([row], tmp_path / f"x.{kind}")
    found = "".join(texts(tmp_path / "x.svg")).replace("\n", "")
    assert r"\x01\x1b[31m\r\x7f" in found and r"\u65e5\u672c" in found and not recwarn.list
    with Image.open(tmp_path / "x.png") as image:
        image.verify()


def test_a_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    for words in (["PDARTS", "--out", tmp_path / "file"], ["PDARTS", "--out", tmp_path / "file/x"]):
        assert f"'{words[-1]}': check the file, its access" in error_line(run("visualize.py", *words), 1)


# ---- command line

def test_the_command_draws_a_published_cell_where_it_is_told(tmp_path):
    done = subprocess.run([sys.executable, ROOT / "visualize.py", "PDARTS", "--out", "pictures"], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0 and "pictures/PDARTS-normal.svg" in done.stderr
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [
        "PDARTS-normal.png", "PDARTS-normal.svg", "PDARTS-reduce.png", "PDARTS-reduce.svg"]


def test_a_pasted_cell_gets_a_short_name_of_its_own(tmp_path):
    names = set()
    for text in (str(FOUND), json.dumps(FOUND._asdict()), str(genotypes.load("PDARTS"))):
        done = run("visualize.py", text, cwd=tmp_path)
        assert done.code == 0 and max(map(len, done.err.split())) < 40, done.err
        names.add(re.match(r"wrote (pasted-[0-9a-f]{8})-normal", done.err)[1])
    assert len(names) == 2  # the cell counts, not how it is written
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}-{cell}.{kind}" for name in names for cell in ("normal", "reduce") for kind in ("png", "svg")}
    assert genotypes.label("PDARTS") == "PDARTS" and genotypes.label("a/b.json") == "a/b.json"


@pytest.mark.parametrize("words, status, text", [
    (["PDRTS"], 1, "similar names: PDARTS"), (["."], 1, "genotype.json"), ([], 2, "required"),
    (["PDARTS", "--ot", "x"], 2, "did you mean --out")])
def test_bad_input_gets_one_line(words, status, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["visualize.py", *words])
    monkeypatch.setattr(log, "handlers", [])
    with pytest.raises(SystemExit) as exit:
        cli.run(visualize.main, visualize.get_args_parser().parse_args)
    lines = capsys.readouterr().err.splitlines()
    assert exit.value.code == status and len(lines) == 1 and text in lines[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"args": 3}'])
def test_a_directory_without_a_readable_record_is_no_run(content, tmp_path):
    (tmp_path / "args.json").write_text(content)
    with pytest.raises(ValueError, match="is not a run"):
        draw_run(tmp_path)
