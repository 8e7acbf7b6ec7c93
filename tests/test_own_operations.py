"""docs/own-operations.md as printed: an operation of one's own from the search to the exported file."""
import json
import re
import shlex
import shutil
from types import SimpleNamespace

import numpy
import pytest
from safetensors.torch import load_file
from scripts import ROOT, error_line, figures, run, the_run

from genotypes import Genotype
from reporting import cells
from reporting.page import draw_genotype

PROGRAM, COMMANDS = re.findall(r"```\w*\n(.*?)```", (ROOT / "docs/own-operations.md").read_text(), re.DOTALL)
COMMANDS = [shlex.split(line) for line in COMMANDS.replace("\\\n", " ").splitlines()]
OWN = "silu_conv"
CELL = Genotype([(OWN, 0), ("sep_conv_3x3", 1)], [2], [(OWN, 0), (OWN, 1)], [2])


def run_line(folder, words: list[str], **options):
    """Run `python own.py SCRIPT ...` in `folder`, with its patterns of names filled in, as a shell does."""
    assert words[:2] == ["python", "own.py"]
    filled = [next((str(path) for path in folder.glob(word)), word) if "*" in word else word for word in words[2:]]
    return run(folder / "own.py", *filled, cwd=folder, **options)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the scripts and own.py, in which the page's first command, a search, was run."""
    folder = tmp_path_factory.mktemp("place")
    for path in ROOT.glob("*.py"):
        (folder / path.name).symlink_to(path)
    (folder / "own.py").write_text(PROGRAM)
    outcome = run_line(folder, COMMANDS[0], change=figures)
    assert outcome.code == 0, outcome
    return SimpleNamespace(folder=folder, search=the_run(folder / "runs"))


def test_the_search_has_the_operation_on_every_edge_in_the_place_of_another(place):
    search = place.search
    assert (search / "genotypes.json").exists() and list(search.rglob("report.html"))
    candidates = numpy.load(search / "alphas.npz")["stage1_normal_candidates"]
    assert (candidates == OWN).sum(axis=1).tolist() == [1] * 14 and "dil_conv_5x5" not in candidates


def test_a_picture_names_the_operation_in_a_color_of_its_own(tmp_path):
    draw_genotype(CELL, tmp_path, "x")
    svg = (tmp_path / "x-normal.svg").read_text()
    assert OWN in svg and cells.OWN_COLOR in svg and cells.OWN_COLOR not in cells.COLORS.values()


def test_a_resumed_search_needs_the_operation_again(place, tmp_path):
    copied = shutil.copytree(place.search, tmp_path / "run")
    (copied / "previous.pt").replace(copied / "checkpoint.pt")  # its last epoch is repeated
    line = error_line(run("train_search.py", "--resume", copied, cwd=place.folder), 1)
    assert f"the operation {OWN!r} is not among max_pool_3x3, " in line and "docs/own-operations.md" in line
    outcome = run_line(place.folder, ["python", "own.py", "train_search.py", "--resume", str(copied)])
    assert outcome.code == 0, outcome
    assert (copied / "genotype.json").read_text() == (place.search / "genotype.json").read_text()


def test_a_search_that_was_killed_in_its_first_epoch_needs_the_operation_again_too(place, tmp_path):
    killed = tmp_path / "run"
    killed.mkdir()
    shutil.copy(place.search / "args.json", killed)  # all that is left then, besides the log
    line = error_line(run("train_search.py", "--resume", killed, cwd=place.folder), 1)
    assert f"the operation {OWN!r} is not among max_pool_3x3, " in line and "docs/own-operations.md" in line


def test_the_pages_other_commands_run_as_printed_with_a_cell_that_has_the_operation(place):
    """The search's own cell may lack it: two epochs are as good as chance."""
    genotype = {"normal": CELL.normal, "normal_concat": [2], "reduce": CELL.reduce, "reduce_concat": [2]}
    (place.search / "genotype.json").write_text(json.dumps(genotype))
    for words in COMMANDS[1:]:
        outcome = run_line(place.folder, words)
        assert outcome.code == 0, outcome
    names = load_file(place.folder / "network.safetensors")
    assert names["cells.0._ops.0.1.weight"].shape == (4, 4, 3, 3)  # SiLU, then the convolution
    trained = next(place.folder.glob("runs/eval-own-*"))
    line = error_line(run("train_cifar.py", "--resume", trained, cwd=place.folder), 1)
    assert f"unknown operation {OWN!r}" in line
    outcome = run_line(place.folder, ["python", "own.py", "visualize.py", str(trained), "--out", "pictures"])
    assert outcome.code == 0, outcome
