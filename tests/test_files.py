"""Where files are written: whole, under names of their own, and never through a link or out of a run."""
import json
import os
import shutil
import subprocess

import pytest
from matplotlib.figure import Figure
from scripts import add_axes, sketch, snapshot, subplots
from test_compare import write_evaluation

import compare
import genotypes
import visualize
from harness.files import replace_file, replace_link, write_file
from harness.log import log, log_to_file
from harness.runs import _git_commit
from harness.scalars import scalar_writer
from reporting import cells
from reporting.page import draw_run


@pytest.fixture
def run_dir(search, tmp_path, monkeypatch):
    """A copy of a search, whose figures are drawn as sketches."""
    for name, change in (("savefig", sketch), ("subplots", subplots), ("add_axes", add_axes)):
        monkeypatch.setattr(Figure, name, change)
    monkeypatch.setattr(cells, "arrange", lambda edges: {point: 0.0 for _, points in edges for point in points})

    return shutil.copytree(search, tmp_path / "run")


# ---- names that were read are no part of a path

@pytest.mark.parametrize("limit", ["/../../escaped", "", "../x", True, 1.5, -1, [2], {}, "2", 10**30])
def test_a_limit_that_is_no_number_is_refused_and_nothing_is_written_elsewhere(limit, run_dir, tmp_path):
    rows = json.loads((run_dir / "genotypes.json").read_text())
    rows[-1]["max_skip"] = limit
    (run_dir / "genotypes.json").write_text(json.dumps(rows))
    (run_dir / "genotype_M").mkdir()
    before = {path for path in tmp_path.rglob("*") if run_dir not in path.parents}
    with pytest.raises(ValueError, match="genotypes.json is damaged.*max_skip"):
        draw_run(run_dir)
    assert {path for path in tmp_path.rglob("*") if run_dir not in path.parents} == before
    assert not list((run_dir / "genotype_M").iterdir())


# ---- temporary names

NAMES = ["x.svg.tmp", "x.svg.0.tmp", ".x.svg.tmp", "x.tmp"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_file_that_a_user_named_leaves_the_users_own_files(fails, tmp_path):
    for name in NAMES:
        (tmp_path / name).write_text("mine")
    if fails:
        (tmp_path / "x.svg").mkdir()  # can't be replaced
        with pytest.raises(OSError, match="can't write"):
            replace_file(tmp_path / "x.svg", b"new")
    else:
        replace_file(tmp_path / "x.svg", b"new")
        assert (tmp_path / "x.svg").read_bytes() == b"new"
    assert {path.name for path in tmp_path.iterdir()} == {*NAMES, "x.svg"}
    assert all((tmp_path / name).read_text() == "mine" for name in NAMES)


def test_a_pipe_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "x.csv")
    with pytest.raises(OSError, match="can't write .*x.csv .a folder, a pipe or a device"):
        replace_file(tmp_path / "x.csv", b"new")
    assert [path.is_fifo() for path in tmp_path.iterdir()] == [True]


def test_the_figures_and_tables_of_a_user_leave_the_users_own_files(tmp_path, monkeypatch):
    runs = [write_evaluation(tmp_path / "eval", [0.0, 95.0])]
    monkeypatch.chdir(tmp_path)
    for name in ("x.svg.tmp", "PDARTS-normal.png.tmp", "report.html.tmp", "cell.json.tmp"):
        (tmp_path / name).write_text("mine")
    monkeypatch.setattr("sys.argv", ["compare.py", *runs, "--plot", "x.svg"])
    compare.main(compare.parse_args())
    visualize.main(visualize.get_args_parser().parse_args(["PDARTS"]))
    genotypes.save(genotypes.load("PDARTS"), "cell.json")
    assert {path.read_text() for path in tmp_path.glob("*.tmp")} == {"mine"} and len([*tmp_path.glob("*.tmp")]) == 4
    assert (tmp_path / "x.svg").exists() and (tmp_path / "PDARTS-normal.png").exists()


def test_in_a_run_what_a_kill_left_is_replaced(run_dir):
    before = {path.name for path in run_dir.iterdir()}
    for name in ("report.html.tmp", "pictures/curves.svg.tmp", "metrics.jsonl.tmp"):
        (run_dir / name).write_text("half")
    write_file(run_dir / "metrics.jsonl", (run_dir / "metrics.jsonl").read_bytes())
    draw_run(run_dir)
    assert {path.name for path in run_dir.iterdir()} == before and not list(run_dir.rglob("*.tmp"))


# ---- links

def test_links_in_a_run_are_read_and_never_written_through(run_dir, tmp_path):
    """As DVC and git-annex leave it: every file, and the folder of pictures, is a link into a store."""
    store = tmp_path / "store"
    run_dir.rename(store)
    run_dir.mkdir()
    for path in store.iterdir():
        (run_dir / path.name).symlink_to(path)
    for name in ("report.html.tmp", "genotype.json.tmp"):
        (run_dir / name).symlink_to(store / "log.txt")
    before = snapshot(store)
    draw_run(run_dir)
    write_file(run_dir / "genotype.json", b"{}")
    write_file(run_dir / "checkpoint.pt", b"x")
    handlers = list(log.handlers)
    try:
        log_to_file(run_dir / "log.txt")
        log.warning("more")
    finally:
        for handler in set(log.handlers) - set(handlers):
            log.removeHandler(handler)
            handler.close()
    assert snapshot(store) == before
    text = (run_dir / "log.txt").read_text()
    assert text.startswith((store / "log.txt").read_text()) and text.endswith(" more\n")
    assert {name for name in before if name.startswith("pictures/")} <= snapshot(run_dir).keys()


@pytest.mark.parametrize("target", ["file", "folder", "nowhere", "itself", "pipe"])
def test_a_link_becomes_a_copy_of_its_file_or_nothing(target, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("content")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("link" if target == "itself" else target)
    replace_link(tmp_path / "link")
    replace_link(tmp_path / "pipe")
    assert not (tmp_path / "pipe").exists()
    assert not (tmp_path / "link").is_symlink() and (tmp_path / "link").exists() == (target == "file")
    assert (tmp_path / "file").read_text() == "content"


def test_scalars_are_not_written_through_a_link(tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "tensorboard").symlink_to("elsewhere")
    scalar_writer(tmp_path, 0)(0, {"loss": 1.0})
    assert list((tmp_path / "tensorboard").iterdir()) and not list((tmp_path / "elsewhere").iterdir())


# ---- whose commit a run records

def git(*words, cwd):
    subprocess.run(["git", *words], cwd=cwd, check=True, capture_output=True)


def repository(folder):
    git("init", "-q", cwd=folder)
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "--allow-empty", "-m", str(folder), cwd=folder)
    return subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("where", ["unpacked in another", "its own", "a hook of another"])
def test_the_commit_is_of_this_repository(where, tmp_path, monkeypatch):
    own = tmp_path / "outer/own"
    (own / "harness").mkdir(parents=True)
    other = repository(tmp_path / "outer")
    commit = None if where == "unpacked in another" else repository(own)
    if where == "a hook of another":
        monkeypatch.setenv("GIT_DIR", str(tmp_path / "outer/.git"))
    monkeypatch.setattr("harness.runs.__file__", str(own / "harness/runs.py"))
    found = _git_commit()
    assert other not in (found or "") and (found or "").removesuffix("-dirty") == (commit or "")


# ---- paths of bytes that are no UTF-8

def test_a_path_of_any_bytes_gets_from_the_command_line_to_the_report(run_dir, tmp_path, monkeypatch, capsys):
    odd = tmp_path / os.fsdecode(b"r\xff\xfe")
    run_dir.rename(odd)
    page = draw_run(odd)
    assert b"r\\udcff" in page.read_bytes() and page.read_text(encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["compare.py", str(odd)])
    compare.main(compare.parse_args())
    assert "r\\udcff" in capsys.readouterr().out
